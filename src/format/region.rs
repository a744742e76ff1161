//! The region tables: where the BAT and the metadata region are (MS-VHDX 2.2.3).
//!
//! Two copies of 64 KiB, changed only through the log, so they may be read only after a dirty log was replayed. Regions with
//! unknown GUIDs are kept when they are optional and refuse the file when they are required. Windows sets the required bit of
//! the two known regions, qemu does not; both are read.

use std::collections::BTreeSet;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c_with_field_zeroed;
use super::wire::{prefix, split};
use super::{Fault, FormatError, HEADER_SECTION, Neighbour, TABLE_LEN};
use crate::guid::Guid;
use crate::kind::Structure;
use crate::units::{FileOffset, MIB};

/// The GUID of the BAT region.
pub const BAT_REGION: Guid = Guid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
/// The GUID of the metadata region.
pub const METADATA_REGION: Guid = Guid::from_u128(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);

const SIGNATURE: [u8; 4] = *b"regi";
const CHECKSUM_AT: usize = 4;
const MAX_ENTRIES: u32 = 2047;
const REQUIRED: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireHeader {
    signature: [u8; 4],
    checksum: U32,
    entry_count: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireEntry {
    guid: [u8; 16],
    offset: U64,
    length: U32,
    flags: U32,
}

/// One region: a named piece of the file in whole MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What the region is.
    pub guid: Guid,
    /// Where it starts.
    pub offset: FileOffset,
    /// Its length in bytes.
    pub length: u32,
    /// Whether a reader that does not know the GUID must refuse the file.
    pub required: bool,
}

impl Region {
    /// The first byte behind the region.
    pub fn end(&self) -> u64 {
        self.offset.get().saturating_add(u64::from(self.length))
    }

    fn is_known(&self) -> bool {
        self.guid == BAT_REGION || self.guid == METADATA_REGION
    }
}

/// A region table with a BAT region and a metadata region in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionTable {
    /// All regions in the order of the table.
    pub entries: Vec<Region>,
}

impl RegionTable {
    /// Reads a copy of the table from its 65536 bytes; `at` is where it stands in the file.
    ///
    /// # Errors
    /// `Truncated`, `Signature` or `Checksum` when the copy is damaged; otherwise what its entries contradict: too many, the
    /// same GUID twice, unaligned, empty, in the header section, required but unknown, or no BAT or metadata region.
    pub fn parse(at: FileOffset, bytes: &[u8]) -> Result<Self, FormatError> {
        let err = |fault| FormatError::new(Structure::RegionTable, at, fault);
        let (table, _) = split(bytes, TABLE_LEN, Structure::RegionTable, at)?;
        let (header, rest) = prefix::<WireHeader>(table, Structure::RegionTable, at)?;
        if header.signature != SIGNATURE {
            return Err(err(Fault::Signature));
        }
        let computed = crc32c_with_field_zeroed(table, CHECKSUM_AT);
        if header.checksum.get() != computed {
            return Err(err(Fault::Checksum { stored: header.checksum.get(), computed }));
        }
        let (table, faults) = Self::entries(header, rest);
        faults.into_iter().next().map_or(Ok(table), |fault| Err(err(fault)))
    }

    /// Reads a copy as far as its entries make sense, and says everything that is wrong with them: for examinations. `None` when the
    /// copy itself is damaged, with the fault that says how.
    pub fn examine(at: FileOffset, bytes: &[u8]) -> (Option<Self>, Vec<Fault>) {
        match Self::parse(at, bytes) {
            Ok(table) => (Some(table), Vec::new()),
            Err(FormatError { fault: fault @ (Fault::Signature | Fault::Checksum { .. } | Fault::Truncated { .. }), .. }) => {
                (None, vec![fault])
            }
            Err(e) => match prefix::<WireHeader>(bytes, Structure::RegionTable, at) {
                Ok((header, rest)) => {
                    let (table, faults) = Self::entries(header, rest);
                    (Some(table), faults)
                }
                Err(_) => (None, vec![e.fault]),
            },
        }
    }

    /// The entries that make sense, and what is wrong with the others.
    fn entries(header: &WireHeader, mut left: &[u8]) -> (Self, Vec<Fault>) {
        let count = header.entry_count.get();
        let (mut entries, mut faults) = (Vec::new(), Vec::new());
        if count > MAX_ENTRIES {
            faults.push(Fault::Field { field: "EntryCount", value: count.into(), rule: "above 2047" });
            return (Self { entries }, faults);
        }
        let mut seen = BTreeSet::new();
        for _ in 0..count {
            let Ok((wire, next)) = WireEntry::ref_from_prefix(left) else { break };
            left = next;
            match wire.checked() {
                Ok(region) if !seen.insert(region.guid) => faults.push(Fault::Duplicate(region.guid)),
                Ok(region) => {
                    if region.required && !region.is_known() {
                        faults.push(Fault::UnknownRequired(region.guid));
                    }
                    entries.push(region);
                }
                Err(fault) => {
                    seen.insert(Guid::from_bytes(wire.guid));
                    faults.push(fault);
                }
            }
        }
        for (guid, name) in [(BAT_REGION, "BAT region"), (METADATA_REGION, "metadata region")] {
            if !seen.contains(&guid) {
                faults.push(Fault::Missing(name));
            }
        }
        (Self { entries }, faults)
    }

    /// The 65536 bytes of a copy, checksum included.
    ///
    /// # Panics
    /// With more than 2047 entries, which no table holds.
    pub fn encode(&self) -> Vec<u8> {
        let entry_count = u32::try_from(self.entries.len()).ok().filter(|&n| n <= MAX_ENTRIES).expect("a table holds 2047 regions");
        let mut header = WireHeader { signature: SIGNATURE, checksum: U32::ZERO, entry_count: entry_count.into(), reserved: U32::ZERO };
        let mut entries = Vec::with_capacity(TABLE_LEN);
        for region in &self.entries {
            let wire = WireEntry {
                guid: region.guid.to_bytes(),
                offset: region.offset.get().into(),
                length: region.length.into(),
                flags: u32::from(region.required).into(),
            };
            entries.extend_from_slice(wire.as_bytes());
        }
        let whole = |header: &WireHeader| {
            let mut bytes = [header.as_bytes(), &entries].concat();
            bytes.resize(TABLE_LEN, 0);
            bytes
        };
        header.checksum.set(crc32c_with_field_zeroed(&whole(&header), CHECKSUM_AT));
        whole(&header)
    }

    /// The BAT region.
    ///
    /// # Panics
    /// When the table was put together by hand without one; `parse` refuses such a table.
    pub fn bat(&self) -> Region {
        self.find(BAT_REGION).expect("a region table has a BAT region")
    }

    /// The metadata region.
    ///
    /// # Panics
    /// When the table was put together by hand without one; `parse` refuses such a table.
    pub fn metadata(&self) -> Region {
        self.find(METADATA_REGION).expect("a region table has a metadata region")
    }

    /// The optional regions of unknown meaning: their space is taken.
    pub fn others(&self) -> impl Iterator<Item = Region> {
        self.entries.iter().copied().filter(|region| !region.is_known())
    }

    /// The region with this GUID, if there is one.
    pub fn find(&self, guid: Guid) -> Option<Region> {
        self.entries.iter().copied().find(|region| region.guid == guid)
    }

    /// Checks that all regions lie inside a file of `file_len` bytes and share no byte with each other, the header section or
    /// the log, given as offset and length (MS-VHDX 2.2.3.2). `at` is where the table stands, for the message.
    ///
    /// # Errors
    /// The first collision, or the first region outside of the file.
    pub fn check_placement(&self, at: FileOffset, file_len: u64, log: Option<(u64, u64)>) -> Result<(), FormatError> {
        let first = self.placement_faults(file_len, log).into_iter().next();
        first.map_or(Ok(()), |fault| Err(FormatError::new(Structure::RegionTable, at, fault)))
    }

    /// Everything that [`RegionTable::check_placement`] would refuse, in the order of the file.
    pub fn placement_faults(&self, file_len: u64, log: Option<(u64, u64)>) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut sorted: Vec<&Region> = self.entries.iter().collect();
        sorted.sort_unstable_by_key(|region| region.offset);
        let mut before: Option<&Region> = None;
        for region in sorted {
            if region.offset.get() < HEADER_SECTION {
                faults.push(Fault::Field { field: "FileOffset", value: region.offset.get(), rule: "inside the header section" });
            }
            if region.end() > file_len {
                faults.push(Fault::BeyondFile { end: region.end(), len: file_len });
            }
            if let Some(other) = before.filter(|other| other.end() > region.offset.get()) {
                let (one, other) = ((other.guid, other.offset.get()), (region.guid, region.offset.get()));
                faults.push(Fault::Collision { one, other });
            }
            if let Some((start, _)) = log.filter(|(start, len)| *start < region.end() && region.offset.get() < start.saturating_add(*len)) {
                let other = Neighbour::fixed(Structure::Log, FileOffset::new(start));
                faults.push(Fault::Overlap { start: region.offset.get(), other });
            }
            before = Some(region);
        }
        faults
    }
}

impl WireEntry {
    fn checked(&self) -> Result<Region, Fault> {
        let (offset, length, flags) = (self.offset.get(), self.length.get(), self.flags.get());
        let offset_fault = |rule| Err(Fault::Field { field: "FileOffset", value: offset, rule });
        let length_fault = |rule| Err(Fault::Field { field: "Length", value: length.into(), rule });
        if flags & !REQUIRED != 0 {
            return Err(Fault::ReservedBits(flags.into()));
        }
        if !offset.is_multiple_of(MIB) {
            return offset_fault("not a multiple of 1 MiB");
        }
        if offset < HEADER_SECTION {
            return offset_fault("inside the header section");
        }
        if length == 0 {
            return length_fault("but regions are not empty");
        }
        if !u64::from(length).is_multiple_of(MIB) {
            return length_fault("not a multiple of 1 MiB");
        }
        if offset.checked_add(length.into()).is_none() {
            return offset_fault("past any file");
        }
        Ok(Region { guid: Guid::from_bytes(self.guid), offset: FileOffset::new(offset), length, required: flags == REQUIRED })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: FileOffset = FileOffset::new(0x3_0000);

    fn region(guid: Guid, mib: u64, length_mib: u32, required: bool) -> Region {
        Region { guid, offset: FileOffset::new(mib << 20), length: length_mib << 20, required }
    }

    fn windows() -> RegionTable {
        RegionTable { entries: vec![region(BAT_REGION, 3, 1, true), region(METADATA_REGION, 2, 1, true)] }
    }

    /// Changes bytes and signs again, as an attacker would.
    fn resigned(table: &RegionTable, change: impl FnOnce(&mut [u8])) -> Result<RegionTable, FormatError> {
        let mut bytes = table.encode();
        change(&mut bytes);
        let crc = crc32c_with_field_zeroed(&bytes, 4);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        RegionTable::parse(AT, &bytes)
    }

    #[test]
    fn the_table_of_windows_is_written_byte_for_byte() {
        #[rustfmt::skip]
        let hex = [
            0x72, 0x65, 0x67, 0x69, 0xae, 0x8c, 0x6b, 0xc6, 0x02, 0, 0, 0, 0, 0, 0, 0,
            0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08,
            0, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0x01, 0, 0, 0,
            0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
            0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0x01, 0, 0, 0,
        ];
        let bytes = windows().encode();
        assert_eq!((bytes.len(), &bytes[..80]), (65536, hex.as_slice()));
        assert_eq!(RegionTable::parse(AT, &bytes), Ok(windows()));
        assert_eq!((windows().bat().offset.get(), windows().metadata().offset.get()), (3 << 20, 2 << 20));
    }

    #[test]
    fn the_table_of_qemu_has_its_checksum() {
        let table = RegionTable { entries: vec![region(BAT_REGION, 2, 1, false), region(METADATA_REGION, 3, 1, false)] };
        assert_eq!(table.encode()[4..8], 0x2C6F_CE83_u32.to_le_bytes());
        assert_eq!(RegionTable::parse(AT, &table.encode()), Ok(table));
    }

    #[test]
    fn unknown_regions_are_kept_or_refuse_the_file() {
        let odd = Guid::from_u128(7);
        let with = |required| {
            let mut table = windows();
            table.entries.insert(1, region(odd, 9, 2, required));
            RegionTable::parse(AT, &table.encode())
        };
        assert_eq!(with(false).unwrap().others().map(|r| r.guid).collect::<Vec<_>>(), [odd]);
        assert_eq!(with(true).unwrap_err().fault, Fault::UnknownRequired(odd));
    }

    #[test]
    fn hostile_tables_are_refused() {
        let fault = |change: fn(&mut [u8])| resigned(&windows(), change).unwrap_err().fault;
        let field = |change: fn(&mut [u8])| match fault(change) {
            Fault::Field { field, .. } => field,
            other => panic!("{other}"),
        };
        assert_eq!(field(|b| b[8..12].copy_from_slice(&2048_u32.to_le_bytes())), "EntryCount");
        assert_eq!(field(|b| b[8..12].fill(0xFF)), "EntryCount");
        assert_eq!(field(|b| b[32] = 1), "FileOffset");
        assert_eq!(field(|b| b[34] = 0), "FileOffset");
        assert_eq!(field(|b| b[34..40].copy_from_slice(&[0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])), "FileOffset");
        assert_eq!(field(|b| b[40..44].fill(0)), "Length");
        assert_eq!(field(|b| b[41] = 1), "Length");
        assert_eq!(fault(|b| b[44] = 3), Fault::ReservedBits(3));
        assert_eq!(fault(|b| b.copy_within(16..32, 48)), Fault::Duplicate(BAT_REGION));
        assert_eq!(fault(|b| b[8] = 1), Fault::Missing("metadata region"));
        assert_eq!(fault(|b| b[8] = 0), Fault::Missing("BAT region"));
        assert_eq!(fault(|b| b[0] = 0), Fault::Signature);
        let mut bytes = windows().encode();
        bytes[65535] = 1;
        assert!(matches!(RegionTable::parse(AT, &bytes).unwrap_err().fault, Fault::Checksum { .. }));
        assert!(matches!(RegionTable::parse(AT, &bytes[..65535]).unwrap_err().fault, Fault::Truncated { .. }));
    }

    #[test]
    fn a_full_table_fits() {
        let mut table = windows();
        for n in 0..2045 {
            table.entries.push(region(Guid::from_u128(n), 10, 1, false));
        }
        assert_eq!(RegionTable::parse(AT, &table.encode()), Ok(table));
    }

    #[test]
    fn regions_share_no_bytes_with_anything() {
        let place = |bat: Region, len_mib: u64, log: Option<(u64, u64)>| {
            let table = RegionTable { entries: vec![bat, region(METADATA_REGION, 2, 1, true)] };
            table.check_placement(AT, len_mib << 20, log).err().map(|e| e.fault)
        };
        let log = Some((1 << 20, 1 << 20));
        assert_eq!(place(region(BAT_REGION, 3, 1, true), 4, log), None);
        assert_eq!(place(region(BAT_REGION, 3, 2, true), 4, log), Some(Fault::BeyondFile { end: 5 << 20, len: 4 << 20 }));
        assert_eq!(
            place(region(BAT_REGION, 2, 1, true), 4, None),
            Some(Fault::Collision { one: (BAT_REGION, 2 << 20), other: (METADATA_REGION, 2 << 20) })
        );
        let over = |mib: u64| {
            let other = Neighbour::fixed(Structure::Log, FileOffset::new(mib << 20));
            Some(Fault::Overlap { start: mib << 20, other })
        };
        assert_eq!(place(region(BAT_REGION, 1, 1, true), 4, log), over(1));
        assert_eq!(place(region(BAT_REGION, 1, 1, true), 4, None), None);
        assert!(matches!(place(region(BAT_REGION, 0, 1, true), 4, None), Some(Fault::Field { .. })));
        assert_eq!(place(region(BAT_REGION, 3, 1, true), 4, Some((3 << 20, u64::MAX))), over(3));
    }

    proptest! {
        #[test]
        fn mutated_tables_never_panic(changes in prop::collection::vec((0_usize..128, any::<u8>()), 1..12), len: u64, log: (u64, u64)) {
            let parsed = resigned(&windows(), |bytes| changes.iter().for_each(|&(at, to)| bytes[at] = to));
            if let Ok(table) = parsed {
                let _ = table.check_placement(AT, len, Some(log));
                prop_assert_eq!(RegionTable::parse(AT, &table.encode()), Ok(table));
            }
        }

        #[test]
        fn placement_agrees_with_a_pairwise_check(places in prop::collection::vec((1_u64..12, 1_u32..4), 2..5), len in 4_u64..14) {
            let entries: Vec<_> =
                places.iter().enumerate().map(|(n, &(mib, length))| region(Guid::from_u128(n as u128), mib, length, false)).collect();
            let apart = |a: (u64, u64), b: (u64, u64)| a.1 <= b.0 || b.1 <= a.0;
            let spans: Vec<_> = entries.iter().map(|r| (r.offset.get(), r.end())).collect();
            let log = (5 << 20, 7 << 20);
            let fine = spans.iter().enumerate().all(|(n, &a)| {
                a.1 <= len << 20 && apart(a, log) && spans[..n].iter().all(|&b| apart(a, b))
            });
            let checked = RegionTable { entries }.check_placement(AT, len << 20, Some((5 << 20, 2 << 20)));
            prop_assert_eq!(checked.is_ok(), fine);
        }
    }
}
