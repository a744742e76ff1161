//! One VHDX file, opened: identity, geometry, and shallow questions about where its blocks are.
//!
//! A layer answers for its own file only: *this file holds it here*, *this file says zero*, *ask the parent*. Ancestors are
//! layers and nothing else; a disk that is written to has a `Writer` beside its layer.

use super::error::LayerError;
use crate::format::{
    self, BitmapState, CurrentHeader, Fault, FormatError, HEADER_SECTION, Header, HeaderSlot, Metadata, MetadataItem, MetadataTable,
    PayloadState, REGION_TABLES, Region, RegionTable, TABLE_LEN,
};
use crate::geometry::{BatRole, Geometry};
use crate::kind::Structure;
use crate::log::headers::{HeaderPair, Spare};
use crate::log::overlay::Overlay;
use crate::log::replay::{self, Unreplayed};
use crate::mapping::bat::{BatTable, Fences, MapError};
use crate::mapping::bitmap::BitmapTable;
use crate::storage::{self, Storage, StorageError};
use crate::sync::{Arc, AtomicU8, Ordering};
use crate::units::{BatIndex, BlockHome, BlockIndex, FileOffset, VirtualOffset};
use std::path::PathBuf;

/// What this file says about a stretch of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The bytes are here.
    Data(FileOffset),
    /// They are zeros, whatever a parent says.
    Zero,
    /// This file does not know.
    Parent,
}

/// A stretch of the file that a BAT entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) home: BlockHome,
    pub(crate) mib: u64,
    /// Kept by an unmapped or undefined block: taken, but nobody reads it.
    pub(crate) is_anchor: bool,
}

/// See the module.
pub(crate) struct Layer {
    /// Where reads go: the file, or its replayed view.
    pub(crate) file: Arc<dyn Storage>,
    /// The file itself.
    pub(crate) original: Arc<dyn Storage>,
    /// The replayed view, if there is one.
    overlay: Option<Arc<Overlay>>,
    pub(crate) path: Option<PathBuf>,
    pub(crate) creator: String,
    /// The current header as found, or as replay left it.
    pub(crate) header: Header,
    pub(crate) slot: HeaderSlot,
    pub(crate) spare: Spare,
    pub(crate) log_was_dirty: bool,
    pub(crate) metadata: Metadata,
    pub(crate) geometry: Geometry,
    pub(crate) bat: BatTable,
    pub(crate) bitmaps: BitmapTable,
    /// Length of the file (of its replayed view) at open.
    pub(crate) file_len: u64,
    /// The code of a [`Link`]. Looked at where blocks are touched first, never by a read.
    link: AtomicU8,
}

/// What a differencing disk that is open for writing makes of blocks that are not present (`hydrate.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// They are the parent's.
    Linked,
    /// They are the parent's, which shows zeros there.
    Whole,
    /// They are zeros: the file has no parent any more.
    Cut,
}

impl Link {
    fn code(self) -> u8 {
        match self {
            Self::Linked => 0,
            Self::Whole => 1,
            Self::Cut => 2,
        }
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("path", &self.path)
            .field("geometry", &self.geometry)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Layer {
    /// Opens one file in the order of our format reference §1.8: identifier, headers, log, regions, metadata. Not a byte of it
    /// changes; a dirty log is replayed into memory.
    pub(crate) fn open(file: Arc<dyn Storage>, path: Option<PathBuf>) -> Result<Self, LayerError> {
        let original = Arc::clone(&file);
        let file_len = storage::len(&*file)?;
        let (creator, current) = read_header_section(&*file, file_len)?;
        current.header.check_fields(current.slot, file_len)?;
        let spare = Spare::found(&current.header, current.other.as_ref().ok());
        let headers = HeaderPair::new(current.header, current.slot, spare);
        let log_was_dirty = !headers.current().log.get().is_zero();
        let overlay = if log_was_dirty { Some(Unreplayed::find(&file, file_len, &headers)?.into_memory()) } else { None };
        let file = match &overlay {
            Some(view) => Arc::clone(view) as Arc<dyn Storage>,
            None => file,
        };
        let file_len = if log_was_dirty { storage::len(&*file)? } else { file_len };
        let header = headers.current().clone();
        let regions = read_regions(&*file, &header, file_len)?;
        let metadata = read_metadata(&*file, regions.metadata())?;
        let geometry = metadata.geometry();
        let needed = if metadata.has_parent { geometry.bat_entries_differencing() } else { geometry.bat_entries() } * 8;
        let bat_region = regions.bat();
        if u64::from(bat_region.length) < needed {
            let fault = Fault::Truncated { needed, available: u64::from(bat_region.length) };
            return Err(FormatError::new(Structure::Bat, bat_region.offset, fault).into());
        }
        let fences = fences(&header, &regions);
        Ok(Self {
            bat: BatTable::new(bat_region.offset, geometry, metadata.has_parent, fences, file_len),
            bitmaps: BitmapTable::new(if metadata.has_parent { geometry.chunks() } else { 0 }),
            slot: headers.slot(),
            spare: headers.spare(),
            file,
            original,
            overlay,
            path,
            creator,
            header,
            log_was_dirty,
            metadata,
            geometry,
            file_len,
            link: AtomicU8::new(Link::Linked.code()),
        })
    }

    /// Brings a dirty log's content to disk, for a file that is going to be written to.
    pub(crate) fn replay(&mut self) -> Result<(), LayerError> {
        let Some(view) = self.overlay.take() else { return Ok(()) };
        let mut headers = HeaderPair::new(self.header.clone(), self.slot, self.spare);
        replay::onto_disk(&*self.original, view.outcome(), &mut headers)?;
        // The file now reads as the view did, so what was read through the view stays true.
        self.file = Arc::clone(&self.original);
        (self.header, self.slot, self.spare) = (headers.current().clone(), headers.slot(), headers.spare());
        Ok(())
    }

    /// Whether the file is a differencing disk.
    pub(crate) fn has_parent(&self) -> bool {
        self.metadata.has_parent && self.link.load(Ordering::Acquire) != Link::Cut.code()
    }

    /// Whether a block that is not present may become partially present: the parent shows through its other sectors. The caller holds
    /// the block's stripe.
    pub(crate) fn shows_parent(&self) -> bool {
        self.metadata.has_parent && self.link.load(Ordering::Acquire) == Link::Linked.code()
    }

    /// See [`Link`]. The caller holds all stripes.
    pub(crate) fn switch(&self, link: Link) {
        self.link.store(link.code(), Ordering::Release);
    }

    /// Whether the file promises to keep every block allocated (MS-VHDX 2.6.2.1).
    pub(crate) fn is_fixed(&self) -> bool {
        self.metadata.leave_blocks_allocated && !self.metadata.has_parent
    }

    /// The stretch that an entry of this value names, if it names one.
    pub(crate) fn placed(&self, index: BatIndex, word: u64) -> Option<Placed> {
        match self.geometry.bat_role(index)? {
            BatRole::Payload(_) => {
                let (home, is_anchor) = match PayloadState::decode(word).ok()? {
                    PayloadState::FullyPresent(home) | PayloadState::PartiallyPresent(home) => (home, false),
                    PayloadState::Undefined | PayloadState::Unmapped => (PayloadState::anchor(word)?, true),
                    PayloadState::NotPresent | PayloadState::Zero => return None,
                };
                Some(Placed { home, mib: self.geometry.block_mib(), is_anchor })
            }
            BatRole::Bitmap(_) => match BitmapState::decode(word).ok()? {
                BitmapState::Present(home) => Some(Placed { home, mib: 1, is_anchor: !self.has_parent() }),
                BitmapState::NotPresent => None,
            },
        }
    }

    /// The state of a payload block.
    #[inline]
    pub(crate) fn payload(&self, block: BlockIndex) -> Result<PayloadState, MapError> {
        self.bat.payload(block, &*self.file)
    }

    /// Where the sector bitmap of a partially present block is. Asked only when a page of it has to be read.
    #[cold]
    pub(crate) fn bitmap_home(&self, block: BlockIndex) -> Result<BlockHome, MapError> {
        match self.bat.bitmap(self.geometry.chunk_of(block), &*self.file)? {
            BitmapState::Present(home) => Ok(home),
            BitmapState::NotPresent => {
                let at = self.bat.entry_at(self.geometry.bat_index(block));
                Err(FormatError::new(Structure::BatEntry, at, Fault::NoSectorBitmap).into())
            }
        }
    }

    /// What this file says about the bytes from `at` on, and for how many of at most `max` bytes (and no further than the end
    /// of the block) the answer holds. `at` lies inside the disk.
    #[inline]
    pub(crate) fn answer(&self, at: VirtualOffset, max: u64) -> Result<(Answer, u64), MapError> {
        let block = self.geometry.block_of(at);
        let within = self.geometry.in_block(at);
        let len = max.min(self.geometry.block_size() - u64::from(within.get()));
        match self.payload(block)? {
            PayloadState::FullyPresent(home) => Ok((Answer::Data(home.at(within)), len)),
            PayloadState::PartiallyPresent(home) => self.answer_by_sector(at, len, home),
            PayloadState::NotPresent => Ok((if self.metadata.has_parent { Answer::Parent } else { Answer::Zero }, len)),
            // MS-VHDX 2.5.1.1 lets a reader choose for two of these; zeros are stable and leak nothing.
            PayloadState::Zero | PayloadState::Unmapped | PayloadState::Undefined => Ok((Answer::Zero, len)),
        }
    }

    /// For how many bytes from `at` on this file certainly holds nothing, as far as holes in its BAT tell; `u64::MAX` for all the rest
    /// of the disk. A cheap question with a modest answer: 0 means only that it has to be asked block by block.
    pub(crate) fn blank(&self, at: VirtualOffset) -> Result<u64, MapError> {
        let g = &self.geometry;
        if at.get() >= g.size() {
            return Ok(u64::MAX);
        }
        let index = g.bat_index(g.block_of(at));
        let entries = self.bat.blank(index, &*self.file)?;
        if entries == 0 {
            return Ok(0);
        }
        let end = u64::from(index.get()) + entries;
        let next = u32::try_from(end).ok().and_then(|end| g.block_at_or_after(BatIndex::new(end)));
        // A blank stretch that ends at a bitmap entry ends with the chunk before it.
        Ok(next.map_or(u64::MAX, |block| g.block_start(block).get().saturating_sub(at.get())))
    }

    #[inline]
    fn answer_by_sector(&self, at: VirtualOffset, len: u64, home: BlockHome) -> Result<(Answer, u64), MapError> {
        let g = &self.geometry;
        let block = g.block_of(at);
        let within = g.in_block(at);
        let into_sector = u64::from(within.get()) & u64::from(g.logical_sector() - 1);
        let sectors = (into_sector + len).div_ceil(u64::from(g.logical_sector())) as u32;
        let first = g.first_bit(block) + (within.get() >> g.sector_shift());
        let run = self.bitmaps.run(g.chunk_of(block), first, sectors, &*self.file, || self.bitmap_home(block))?;
        let bytes = ((u64::from(run.len) << g.sector_shift()) - into_sector).min(len);
        Ok((if run.present { Answer::Data(home.at(within)) } else { Answer::Parent }, bytes))
    }
}

/// The structures that no block may lie over.
fn fences(header: &Header, regions: &RegionTable) -> Fences {
    let mut taken = vec![(0, HEADER_SECTION, Structure::Header)];
    if header.log_length > 0 {
        taken.push((header.log_offset, header.log_offset + u64::from(header.log_length), Structure::Log));
    }
    let bat = regions.bat();
    let metadata = regions.metadata();
    taken.push((bat.offset.get(), bat.end(), Structure::Bat));
    taken.push((metadata.offset.get(), metadata.end(), Structure::MetadataTable));
    taken.extend(regions.others().map(|region| (region.offset.get(), region.end(), Structure::RegionTable)));
    Fences { taken }
}

fn read_header_section(file: &dyn Storage, file_len: u64) -> Result<(String, CurrentHeader), LayerError> {
    if file_len < HEADER_SECTION {
        let fault = Fault::Truncated { needed: HEADER_SECTION, available: file_len };
        return Err(FormatError::new(Structure::File, FileOffset::new(0), fault).into());
    }
    let mut identifier = [0; 520];
    storage::read_exact(file, &mut identifier, 0)?;
    let creator = format::parse_identifier(&identifier)?;
    let [one, two] = [HeaderSlot::One, HeaderSlot::Two].map(|slot| {
        let mut bytes = [0; 4096];
        storage::read_exact(file, &mut bytes, slot.offset().get()).map(|()| Header::parse(slot, &bytes))
    });
    match (one, two) {
        (Ok(one), Ok(two)) => Ok((creator, format::choose_header(one, two)?)),
        (Err(e), Err(_)) => Err(e.into()),
        (Ok(good), Err(e)) => Ok((creator, only_header(HeaderSlot::One, good, e)?)),
        (Err(e), Ok(good)) => Ok((creator, only_header(HeaderSlot::Two, good, e)?)),
    }
}

/// What one header says when the other one cannot be read. The unreadable one may be the newer one. If this one names a log,
/// that does not matter: a newer one can only say that the log's content is home by now, and replaying it again changes
/// nothing. If this one names none, the newer one may name a log that holds what was flushed, and opening without it would
/// show, and keep, old content: an error that may pass is better.
fn only_header(slot: HeaderSlot, good: Result<Header, FormatError>, unreadable: StorageError) -> Result<CurrentHeader, LayerError> {
    match good {
        Ok(header) if !header.log.get().is_zero() => {
            let other = Err(FormatError::new(Structure::Header, slot.other().offset(), Fault::Signature));
            Ok(CurrentHeader { header, slot, other })
        }
        Ok(_) => Err(unreadable.into()),
        Err(damaged) => Err(damaged.into()),
    }
}

/// The first region table that is whole; the other one is only needed when it is not (MS-VHDX 2.2.3).
fn read_regions(file: &dyn Storage, header: &Header, file_len: u64) -> Result<RegionTable, LayerError> {
    let log = (header.log_length > 0).then(|| (header.log_offset, u64::from(header.log_length)));
    let mut first_error = None;
    for at in REGION_TABLES {
        let mut bytes = vec![0; TABLE_LEN];
        storage::read_exact(file, &mut bytes, at.get())?;
        match RegionTable::parse(at, &bytes) {
            Ok(table) => {
                table.check_placement(at, file_len, log)?;
                return Ok(table);
            }
            // Only damage makes the second copy count; a whole table that breaks a rule is what somebody meant.
            Err(e) if matches!(e.fault, Fault::Signature | Fault::Checksum { .. }) => first_error = first_error.or(Some(e)),
            Err(e) => return Err(e.into()),
        }
    }
    Err(first_error.expect("the loop ends early unless a table is damaged").into())
}

/// Reads the metadata table and its items. Only as much of the table is read as its entry count needs, in pages.
fn read_metadata(file: &dyn Storage, region: Region) -> Result<Metadata, LayerError> {
    const FIRST: usize = 4096;
    let mut table = vec![0; TABLE_LEN];
    storage::read_exact(file, &mut table[..FIRST], region.offset.get())?;
    let entries = usize::from(u16::from_le_bytes([table[10], table[11]]));
    if 32 * (entries + 1) > FIRST {
        storage::read_exact(file, &mut table[FIRST..], region.offset.get() + FIRST as u64)?;
    }
    let table = MetadataTable::parse(region, &table)?;
    // The items of nearly every file stand together right behind the table: one read serves them all.
    let mut near = vec![0; FIRST];
    let near_at = TABLE_LEN as u64;
    let near_len = storage::read_up_to(file, &mut near, region.offset.get() + near_at)? as u64;
    let mut items = Vec::with_capacity(table.entries.len());
    for entry in table.entries {
        let (start, len) = (u64::from(entry.offset), u64::from(entry.length));
        let bytes = if start >= near_at && start + len <= near_at + near_len {
            near[(start - near_at) as usize..(start - near_at + len) as usize].to_vec()
        } else {
            let mut bytes = vec![0; len as usize];
            storage::read_exact(file, &mut bytes, region.offset.get() + start)?;
            bytes
        };
        items.push(MetadataItem { entry, bytes });
    }
    Ok(Metadata::from_items(region, &items)?)
}
