//! Laying down a new file (our format reference §8.2).
//!
//! The layout is Windows' own: log at 1 MiB, metadata region behind it, BAT behind that, then data. Everything that is zero
//! stays a hole, so a new child of a 64 TiB disk takes the same few pages as one of 1 GiB. Whether the file appears all or not
//! at all is the caller's business (`storage/volume.rs`).

use super::error::LayDownError;
use crate::format::{
    BAT_REGION, HEADER_SECTION, Header, HeaderSlot, METADATA_REGION, Metadata, PayloadState, REGION_TABLES, Region, RegionTable, TABLE_LEN,
    encode_identifier,
};
use crate::geometry::Geometry;
use crate::guid::{DataWriteGuid, FileWriteGuid, LogGuid};
use crate::storage::{self, Storage};
use crate::units::{BlockHome, BlockIndex, FileOffset, MIB, PAGE_LEN};

/// Largest log that is created; readers refuse larger ones.
const MAX_LOG: u64 = 64 << 20;

/// What goes into a new file.
pub(crate) struct Blueprint {
    pub(crate) creator: String,
    pub(crate) log_size: u64,
    pub(crate) metadata: Metadata,
}

/// Places of the regions.
struct Layout {
    metadata: Region,
    bat: Region,
    /// Where data begins.
    data: u64,
}

impl Blueprint {
    fn layout(&self, geometry: &Geometry, metadata_len: u64) -> Layout {
        // The differencing count in every type: the same region in nearly all cases, and room should it become one.
        let bat_len = (geometry.bat_entries_differencing() * 8).next_multiple_of(MIB);
        let metadata_at = MIB + self.log_size;
        let metadata_len = metadata_len.next_multiple_of(MIB);
        let bat_at = metadata_at + metadata_len;
        let region = |guid, at, len: u64| Region {
            guid,
            offset: FileOffset::new(at),
            length: u32::try_from(len).expect("regions are far below 4 GiB"),
            required: true,
        };
        Layout {
            metadata: region(METADATA_REGION, metadata_at, metadata_len),
            bat: region(BAT_REGION, bat_at, bat_len),
            data: bat_at + bat_len,
        }
    }

    /// Writes the file. It must be empty.
    pub(crate) fn lay_down(&self, file: &dyn Storage) -> Result<(), LayDownError> {
        if self.log_size == 0 || self.log_size > MAX_LOG || !self.log_size.is_multiple_of(MIB) {
            let rule = "it must be a multiple of 1 MiB, at most 64 MiB";
            return Err(LayDownError::Option { option: "log size", value: self.log_size, rule });
        }
        let m = &self.metadata;
        let geometry = Geometry::new(m.virtual_size, u64::from(m.block_size), m.logical_sector)?;
        if !matches!(m.physical_sector, 512 | 4096) {
            let value = u64::from(m.physical_sector);
            return Err(LayDownError::Option { option: "physical sector size", value, rule: "it must be 512 or 4096" });
        }
        if storage::len(file)? != 0 {
            return Err(LayDownError::NotEmpty);
        }
        let metadata = m.encode_region();
        let layout = self.layout(&geometry, metadata.len() as u64);
        let is_fixed = m.leave_blocks_allocated;
        let blocks = if is_fixed { u64::from(geometry.blocks()) * geometry.block_size() } else { 0 };
        storage::set_len(file, layout.data + blocks)?;

        storage::write_all(file, &encode_identifier(&self.creator), 0)?;
        self.write_headers(file)?;
        // Windows lists the BAT first, although it lies behind the metadata region.
        let table = RegionTable { entries: vec![layout.bat, layout.metadata] }.encode();
        for at in REGION_TABLES {
            write_nonzero(file, &table, at.get())?;
        }
        debug_assert!(HEADER_SECTION <= layout.metadata.offset.get() && metadata.len() >= TABLE_LEN);
        write_nonzero(file, &metadata, layout.metadata.offset.get())?;
        if is_fixed {
            write_fixed_bat(file, &geometry, &layout)?;
        }
        Ok(())
    }

    fn write_headers(&self, file: &dyn Storage) -> Result<(), LayDownError> {
        let mut header = Header {
            sequence: 0,
            file_write: FileWriteGuid::random(),
            data_write: DataWriteGuid::random(),
            log: LogGuid::default(),
            log_version: crate::format::LOG_VERSION,
            version: crate::format::FORMAT_VERSION,
            log_length: u32::try_from(self.log_size).expect("at most 64 MiB"),
            log_offset: MIB,
        };
        for slot in [HeaderSlot::One, HeaderSlot::Two] {
            storage::write_all(file, &header.encode()[..], slot.offset().get())?;
            header.sequence += 1;
        }
        Ok(())
    }
}

/// Writes the pages that are not all zeros; neighbours in one call. The last page may be short.
fn write_nonzero(file: &dyn Storage, bytes: &[u8], at: u64) -> Result<(), LayDownError> {
    // Compared as a whole: a test byte by byte is not vectorised, and took half the time of creating a clone.
    let is_zero = |page: &[u8]| page == &[0; PAGE_LEN][..page.len()];
    let pages: Vec<&[u8]> = bytes.chunks(PAGE_LEN).collect();
    let mut first = 0;
    for run in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        if !is_zero(run[0]) {
            let start = first * PAGE_LEN;
            let len: usize = run.iter().map(|page| page.len()).sum();
            storage::write_all(file, &bytes[start..start + len], at + start as u64)?;
        }
        first += run.len();
    }
    Ok(())
}

/// Every block in its place, one behind the other.
fn write_fixed_bat(file: &dyn Storage, geometry: &Geometry, layout: &Layout) -> Result<(), LayDownError> {
    const BUFFER: usize = 1 << 20;
    let entries = geometry.bat_entries();
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut at = layout.bat.offset.get();
    let mut home = layout.data / MIB;
    for index in 0..entries {
        let role = geometry.bat_role(crate::units::BatIndex::new(index as u32));
        let word = match role {
            Some(crate::geometry::BatRole::Payload(_)) => {
                let place = BlockHome::from_mib(home).expect("a disk of 64 TiB lies far below the last home");
                home += geometry.block_mib();
                PayloadState::FullyPresent(place).encode()
            }
            Some(crate::geometry::BatRole::Bitmap(_)) | None => 0,
        };
        buffer.extend_from_slice(&word.to_le_bytes());
        if buffer.len() == BUFFER {
            storage::write_all(file, &buffer, at)?;
            at += BUFFER as u64;
            buffer.clear();
        }
    }
    debug_assert_eq!(home, layout.data / MIB + u64::from(geometry.blocks()) * geometry.block_mib());
    debug_assert!(geometry.visible_len(BlockIndex::new(0)) > 0);
    storage::write_all(file, &buffer, at)?;
    Ok(())
}
