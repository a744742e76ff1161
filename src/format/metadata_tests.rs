use proptest::prelude::*;

use super::*;
use crate::format::METADATA_REGION;
use crate::guid::DataWriteGuid;
use crate::kind::ErrorKind;

const REGION: Region = Region { guid: METADATA_REGION, offset: FileOffset::new(2 << 20), length: 1 << 20, required: true };

fn sample() -> Metadata {
    Metadata {
        block_size: 2 << 20,
        leave_blocks_allocated: false,
        has_parent: false,
        virtual_size: 64 << 20,
        disk_id: "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap(),
        logical_sector: 512,
        physical_sector: 4096,
        parent_locator: None,
        others: Vec::new(),
    }
}

fn child() -> Metadata {
    let locator = ParentLocator::new(DataWriteGuid::random(), &[("relative_path", ".\\va.vhdx")]);
    Metadata { has_parent: true, parent_locator: Some(locator), ..sample() }
}

/// The items that a region holds, read as a caller reads them.
fn items(bytes: &[u8]) -> Result<Vec<MetadataItem>, FormatError> {
    let table = MetadataTable::parse(REGION, bytes)?;
    let item = |entry: MetadataEntry| {
        let start = entry.offset as usize;
        let mut bytes = bytes.get(start..).unwrap_or(&[]).to_vec();
        bytes.resize(entry.length as usize, 0);
        MetadataItem { entry, bytes }
    };
    Ok(table.entries.into_iter().map(item).collect())
}

fn read(bytes: &[u8]) -> Result<Metadata, FormatError> {
    Metadata::from_items(REGION, &items(bytes)?)
}

fn entry(id: Guid, offset: u32, length: u32) -> MetadataEntry {
    MetadataEntry { id, offset, length, is_user: false, is_virtual_disk: false, is_required: false }
}

fn table_fault(entries: Vec<MetadataEntry>) -> Option<Fault> {
    MetadataTable::parse(REGION, &MetadataTable { entries }.encode()).err().map(|e| e.fault)
}

/// Changes the items of a sound file before they are judged.
fn item_error(change: impl FnOnce(&mut Vec<MetadataItem>)) -> Option<FormatError> {
    let mut all = items(&child().encode_region()).unwrap();
    change(&mut all);
    Metadata::from_items(REGION, &all).err()
}

fn item_fault(change: impl FnOnce(&mut Vec<MetadataItem>)) -> Option<Fault> {
    item_error(change).map(|e| e.fault)
}

fn extra(id: Guid, is_user: bool, is_required: bool) -> MetadataItem {
    MetadataItem { entry: MetadataEntry { is_user, is_required, ..entry(id, 0x8_0000, 8) }, bytes: vec![7; 8] }
}

#[test]
fn the_table_of_windows_is_written_byte_for_byte() {
    #[rustfmt::skip]
    let golden = [
        0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b, 0, 0, 1, 0, 8, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0,
        0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8, 8, 0, 1, 0, 8, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
        0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f, 0x10, 0, 1, 0, 4, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
        0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56, 0x14, 0, 1, 0, 4, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
        0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46, 0x18, 0, 1, 0, 0x10, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
    ];
    let windows = Metadata { block_size: 32 << 20, virtual_size: 10 << 30, ..sample() };
    let bytes = windows.encode_region();
    assert_eq!(bytes[..16], *b"metadata\0\0\x05\0\0\0\0\0");
    assert_eq!(bytes[0x20..0xC0], golden);
    assert_eq!(bytes[0x1_0000..0x1_0010], [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x80, 2, 0, 0, 0]);
    assert_eq!(bytes[0x1_0010..0x1_0018], [0, 2, 0, 0, 0, 0x10, 0, 0]);
    assert_eq!(bytes.len(), 0x1_0028);
    assert_eq!(read(&bytes), Ok(windows));
}

#[test]
fn the_locator_of_a_child_stands_behind_the_five_items() {
    let bytes = child().encode_region();
    let all = items(&bytes).unwrap();
    let locator = &all[5].entry;
    assert_eq!((locator.id, locator.offset, locator.flags()), (PARENT_LOCATOR, 0x1_0028, 4));
    assert_eq!(read(&bytes), Ok(child_of(&bytes)));
    fn child_of(bytes: &[u8]) -> Metadata {
        let locator = ParentLocator::parse(FileOffset::new(0x21_0028), &bytes[0x1_0028..]).unwrap();
        Metadata { parent_locator: Some(locator), ..child() }
    }
}

#[test]
fn tables_with_impossible_entries_are_refused() {
    let (a, b) = (Guid::from_u128(1), Guid::from_u128(2));
    let field = |e: MetadataEntry| match table_fault(vec![e]) {
        Some(Fault::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(table_fault(vec![entry(a, 0x1_0000, 8), entry(b, 0x1_0008, 8)]), None);
    assert_eq!(table_fault(vec![entry(a, 0, 0), entry(b, 0, 0)]), None);
    assert_eq!(field(entry(a, 0xFFFF, 8)), "Offset");
    assert_eq!(field(entry(a, 0, 8)), "Offset");
    assert_eq!(field(entry(a, 0xF_FFFC, 8)), "Offset");
    assert_eq!(field(entry(a, u32::MAX, 8)), "Offset");
    assert_eq!(field(entry(a, 0x1_0000, 0)), "Offset");
    assert_eq!(field(entry(a, 0x1_0000, (1 << 20) + 1)), "Length");
    assert_eq!(
        table_fault(vec![entry(a, 0x1_0000, 9), entry(b, 0x1_0008, 8)]),
        Some(Fault::Collision { one: (a, 0x1_0000), other: (b, 0x1_0008) })
    );
    assert_eq!(table_fault(vec![entry(a, 0x1_0000, 8), entry(a, 0x1_0008, 8)]), Some(Fault::Duplicate(a)));
    let user = MetadataEntry { is_user: true, ..entry(a, 0x1_0008, 8) };
    assert_eq!(table_fault(vec![entry(a, 0x1_0000, 8), user]), None);
    let many = |is_user: bool, n: u128| (0..n).map(|id| MetadataEntry { is_user, ..entry(Guid::from_u128(id), 0, 0) }).collect();
    assert_eq!(table_fault(many(false, 2047)), None);
    assert_eq!(table_fault(many(true, 1024)), None);
    assert!(matches!(table_fault(many(true, 1025)), Some(Fault::Field { field: "EntryCount", .. })));
}

#[test]
fn a_huge_region_does_not_buy_huge_reads() {
    let region = Region { length: 0xFFF0_0000, ..REGION };
    let entries = (0..100).map(|n: u32| entry(Guid::from_u128(n.into()), (1 + n) << 20, 1 << 20)).collect();
    let error = MetadataTable::parse(region, &MetadataTable { entries }.encode()).unwrap_err();
    assert!(matches!(error.fault, Fault::Field { field: "Length", value, .. } if value == 100 << 20));
}

#[test]
fn damaged_table_headers_are_refused() {
    let fault = |change: fn(&mut Vec<u8>)| {
        let mut bytes = sample().encode_region();
        change(&mut bytes);
        MetadataTable::parse(REGION, &bytes).unwrap_err().fault
    };
    assert_eq!(fault(|b| b[0] = b'M'), Fault::Signature);
    assert!(matches!(fault(|b| b[10..12].copy_from_slice(&[0, 8])), Fault::Field { field: "EntryCount", value: 2048, .. }));
    assert_eq!(fault(|b| b[0x38] = 12), Fault::ReservedBits(12));
    assert!(matches!(fault(|b| b.truncate(0xFFFF)), Fault::Truncated { .. }));
}

#[test]
fn the_standard_items_must_be_there_and_exact() {
    for id in [FILE_PARAMETERS, VIRTUAL_DISK_SIZE, VIRTUAL_DISK_ID, LOGICAL_SECTOR_SIZE, PHYSICAL_SECTOR_SIZE, PARENT_LOCATOR] {
        assert!(matches!(item_fault(|all| all.retain(|i| i.entry.id != id)), Some(Fault::Missing(_))), "{id}");
        let as_user = |all: &mut Vec<MetadataItem>| all.iter_mut().filter(|i| i.entry.id == id).for_each(|i| i.entry.is_user = true);
        assert_eq!(item_fault(as_user), Some(Fault::UnknownRequired(id)));
        if id == PARENT_LOCATOR {
            continue;
        }
        for grow in [true, false] {
            let fault = item_fault(|all| {
                let item = all.iter_mut().find(|i| i.entry.id == id).unwrap();
                if grow { item.bytes.push(0) } else { item.bytes.truncate(item.bytes.len() - 1) }
            });
            assert!(matches!(fault, Some(Fault::Field { field: "Length", .. })), "{id}");
        }
    }
}

#[test]
fn sizes_outside_their_ranges_are_refused_where_they_stand() {
    let set = |which: usize, bytes: Vec<u8>| {
        let error = item_error(|all| all[which].bytes = bytes).unwrap();
        assert_eq!(error.structure, Structure::MetadataItem);
        (error.at.get() - REGION.offset.get(), error.fault)
    };
    for block in [0_u32, 1, 3 << 20, 512 << 20, 2 << 30, u32::MAX] {
        let (at, fault) = set(0, [block.to_le_bytes(), [2, 0, 0, 0]].concat());
        assert_eq!((at, fault), (0x1_0000, Fault::Geometry(GeometryError::BlockSize(block.into()))));
    }
    assert_eq!(set(0, vec![0, 0, 0x20, 0, 6, 0, 0, 0]), (0x1_0000, Fault::ReservedBits(6)));
    for size in [0_u64, 513, (64 << 40) + 512, u64::MAX] {
        let (at, fault) = set(1, size.to_le_bytes().to_vec());
        assert_eq!((at, fault), (0x1_0008, Fault::Geometry(GeometryError::VirtualSize { size, sector: 512 })));
    }
    for sector in [0_u32, 1, 520, 1024, u32::MAX] {
        let (at, fault) = set(2, sector.to_le_bytes().to_vec());
        assert_eq!((at, fault), (0x1_0010, Fault::Geometry(GeometryError::LogicalSectorSize(sector))));
        let (at, fault) = set(3, sector.to_le_bytes().to_vec());
        assert!(at == 0x1_0014 && matches!(fault, Fault::Field { field: "PhysicalSectorSize", .. }));
    }
}

#[test]
fn a_locator_without_a_parent_is_ignored() {
    let orphan = Metadata { has_parent: false, ..child() };
    let read = read(&orphan.encode_region()).unwrap();
    assert_eq!((read.parent_locator, read.others), (None, Vec::new()));
}

#[test]
fn unknown_items_are_kept_or_refuse_the_file() {
    let odd = Guid::from_u128(7);
    assert_eq!(item_fault(|all| all.push(extra(odd, false, true))), Some(Fault::UnknownRequired(odd)));
    assert_eq!(item_fault(|all| all.push(extra(CHS_PARAMETERS, false, true))), None);
    assert_eq!(item_fault(|all| all.push(extra(INCOMPLETE_FILE, true, false))), None);
    let incomplete = item_error(|all| all.push(extra(INCOMPLETE_FILE, false, true))).unwrap();
    assert_eq!((incomplete.fault.clone(), incomplete.kind()), (Fault::IncompleteFile, ErrorKind::Unsupported));
    let empty = MetadataItem { entry: MetadataEntry { is_virtual_disk: true, ..entry(odd, 0, 0) }, bytes: Vec::new() };
    let with = Metadata { others: vec![extra(CHS_PARAMETERS, false, false), empty.clone(), extra(odd, true, false)], ..sample() };
    let read = read(&with.encode_region()).unwrap();
    assert_eq!(
        read.others.iter().map(|i| (&i.bytes, i.entry.offset)).collect::<Vec<_>>(),
        [(&vec![7; 8], 0x1_0028), (&vec![], 0), (&vec![7; 8], 0x1_0030)]
    );
    assert_eq!(read.others[1], empty);
}

#[test]
fn the_geometry_is_that_of_the_items() {
    assert_eq!(sample().geometry(), Geometry::new(64 << 20, 2 << 20, 512).unwrap());
}

proptest! {
    #[test]
    fn metadata_comes_back(block in 20_u32..29, sectors in 1_u64..(64 << 40) / 4096, four_k: bool, leave: bool, parent: bool, id: [u8; 16]) {
        let metadata = Metadata {
            block_size: 1 << block,
            leave_blocks_allocated: leave,
            virtual_size: sectors * 4096,
            disk_id: Guid::from_bytes(id),
            logical_sector: if four_k { 4096 } else { 512 },
            ..if parent { child() } else { sample() }
        };
        prop_assert_eq!(read(&metadata.encode_region()), Ok(metadata));
    }

    #[test]
    fn mutated_regions_never_panic(table in prop::collection::vec((8_usize..0xE0, any::<u8>()), 0..4), tail in prop::collection::vec((0x1_0000_usize..0x1_00E0, any::<u8>()), 0..4)) {
        let mut bytes = child().encode_region();
        bytes.resize(0x1_0100, 0);
        table.iter().chain(&tail).for_each(|&(at, to)| bytes[at] = to);
        if let Ok(metadata) = read(&bytes) {
            metadata.geometry();
            prop_assert_eq!(metadata.has_parent, metadata.parent_locator.is_some());
        }
    }
}
