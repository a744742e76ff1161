//! Where two claim the same bytes, both are named.

use crate::content::{File, examine};
use crate::forge::*;
use crate::head::small;
use crate::vectors::{va, vb};
use diffdisk::{Severity, Subject};

/// What is said of each finding that has another one in it, the layer of the leaf only.
fn told(chain: &[File]) -> Vec<String> {
    let report = examine(chain).expect("an examination");
    report.findings().filter(|f| f.layer == 0 && f.fault.other().is_some()).map(ToString::to_string).collect()
}

fn told_of(disk: &Vhdx) -> Vec<String> {
    told(&[disk.build().storage() as File])
}

#[test]
fn two_blocks_name_each_other() {
    let mut disk = small();
    disk.bat.insert(1, present(DATA_AT));
    let all = ["BAT entry at 0x300008 (block 1): it lies at 4 MiB, over payload block 0 at 0x400000 (BAT entry at 0x300000)"];
    assert_eq!(told_of(&disk), all);
    // Wide blocks that share a part.
    let mut half = Vhdx::dynamic(8 * MIB, 2 << 20);
    half.bat.extend([(0, present(5 * MIB)), (1, present(DATA_AT))]);
    half.len = 8 * MIB;
    let all = ["BAT entry at 0x300008 (block 1): it lies at 4 MiB, over payload block 0 at 0x500000 (BAT entry at 0x300000)"];
    assert_eq!(told_of(&half), all);
}

#[test]
fn an_anchor_and_whose_place_it_keeps_are_named() {
    let mut kept = small();
    kept.bat.extend([(1, (5 * MIB) | 3), (2, present(5 * MIB)), (3, (MIB) | 3)]);
    kept.len = 6 * MIB;
    let all = [
        "BAT entry at 0x300018 (block 3): it keeps a place that is not its own, 1 MiB: there lies the log at 0x100000",
        "BAT entry at 0x300008 (block 1): it keeps a place that is not its own, 5 MiB: there lies payload block 2 at 0x500000 (BAT entry at 0x300010)",
    ];
    assert_eq!(told_of(&kept), all);
}

#[test]
fn a_bitmap_and_the_block_it_lies_in_are_named() {
    let mut child = vb();
    child.bat.insert(2048, present(5 * MIB));
    let chain = [child.build().storage() as File, va().build().storage() as File];
    let all = [
        "BAT entry at 0x304000 (sector bitmap block of chunk 0): it lies at 5 MiB, over payload block 0 at 0x400000 (BAT entry at 0x300000)",
    ];
    assert_eq!(told(&chain), all);
    // The bitmap stands in the table behind the blocks of its chunk: a block of the next chunk meets it.
    let mut child = vb();
    child.item(ITEM_SIZE).data = (5_u64 << 30).to_le_bytes().to_vec();
    child.bat.insert(2049, present(6 * MIB));
    child.len = 8 * MIB;
    let chain = [child.build().storage() as File, va().build().storage() as File];
    let all = [
        "BAT entry at 0x304008 (block 2048): it lies at 6 MiB, over the sector bitmap block of chunk 0 at 0x600000 (BAT entry at 0x304000)",
    ];
    assert_eq!(told(&chain), all);
}

#[test]
fn what_lies_over_a_region_names_both_places() {
    let mut disk = small();
    disk.bat.insert(1, present(2 * MIB));
    let all = ["BAT entry at 0x300008 (block 1): what starts at 0x200000 overlaps the metadata table at 0x200000"];
    assert_eq!(told_of(&disk), all);
    let mut disk = small();
    disk.log_at = 3 * MIB;
    assert!(told_of(&disk)[0].ends_with("what starts at 0x300000 overlaps the log at 0x300000"), "{:?}", told_of(&disk));
    let mut disk = small();
    disk.regions[1].at = 3 * MIB;
    let report = examine(&[disk.build().storage() as File]).expect("an examination");
    let text: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
    assert!(text.iter().any(|text| text.contains(" at 0x300000 and ") && text.ends_with(" at 0x300000 overlap")), "{text:?}");
}

/// Every block in one place: the first one is found for those that are listed, and the others are counted, in a time that the table takes anyway.
#[test]
fn a_table_in_one_place_is_told_about_in_one_more_walk() {
    let mut disk = Vhdx::dynamic(120_000 * MIB, MIB as u32);
    disk.bat.extend((0..120_000_u64).map(|block| (block + block / 4096, present(DATA_AT))));
    disk.len = DATA_AT + MIB;
    let report = examine(&[disk.build().storage() as File]).expect("an examination");
    assert_eq!((report.count(Severity::Error), report.errors.len()), (119_999, 1000));
    for (finding, block) in report.errors.iter().zip(1..) {
        let other = finding.fault.other().map(|other| (other.number, other.at.get()));
        assert_eq!((finding.subject, other), (Some(Subject::Block(block)), Some((Some(0), DATA_AT))));
    }
}
