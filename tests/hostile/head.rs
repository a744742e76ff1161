//! Rows 1 to 7, 17 to 21, 42 and 43: lengths, headers, region tables.

use crate::forge::*;
use crate::table::Table;
use crate::vectors::va;

/// A base of 8 MiB, blocks of 1 MiB, block 0 full of 0xA0.
pub fn small() -> Vhdx {
    let mut disk = Vhdx::dynamic(8 * MIB, MIB as u32);
    disk.bat.insert(0, present(DATA_AT));
    disk.fill(DATA_AT, MIB, 0xA0);
    disk.len = DATA_AT + MIB;
    disk
}

pub const SMALL: [(u64, u64, u8); 2] = [(0, MIB, 0xA0), (MIB, 7 * MIB, 0)];

pub fn rows(t: &mut Table) {
    lengths(t);
    headers(t);
    log_place(t);
    regions(t);
    reserved(t);
}

fn lengths(t: &mut Table) {
    for len in [0, 7, 64 * KIB, MIB - 1] {
        t.damaged(1, format!("length {len}"), small().build().with_len(len), &["file", "header"]);
    }
    t.damaged(1, "only the header section", small().build().with_len(MIB), &["region table", "log", "metadata", "BAT", "header"]);
    t.damaged(1, "no BAT region", small().build().with_len(3 * MIB), &["region table", "BAT"]);
    t.damaged(1, "half a BAT region", small().build().with_len(3 * MIB + 512 * KIB), &["region table", "BAT"]);
    t.damaged(1, "a megabyte of zeros", Image::raw(MIB), &["file type identifier"]);
    t.damaged(1, "a raw disk", Image::raw(64 * MIB).edit(Place::File(510), &[0x55, 0xAA]), &["file type identifier"]);
    t.damaged(1, "another signature", small().build().flip(3), &["file type identifier"]);
    t.reads(1, "an odd length", vec![small().build().with_len(5 * MIB + 513)], &SMALL);
}

fn headers(t: &mut Table) {
    let image = || small().build();
    t.reads(2, "the last sequence number", vec![image().edit(Place::Header(1, 8), &u64::MAX.to_le_bytes())], &SMALL);
    let equal = image().edit(Place::Header(0, 8), &1_u64.to_le_bytes());
    t.reads(3, "twins", vec![equal.clone()], &SMALL);
    t.damaged(3, "one number, two contents", equal.edit(Place::Header(0, 32), &[7]), &["header"]);
    t.damaged(3, "no valid header", image().flip(0x10010).flip(0x20010), &["header"]);
    t.damaged(3, "no header signature", image().edit_headers(0, b"Head"), &["header"]);
    t.reads(3, "header 2 torn", vec![image().flip(0x20800)], &SMALL);
    t.reads(3, "header 1 torn", vec![image().flip(0x10010)], &SMALL);
    for version in [0_u16, 2, 0x0100, u16::MAX] {
        t.unsupported(4, format!("version {version}"), image().edit_headers(66, &version.to_le_bytes()), &["header"]);
    }
    t.unsupported(4, "version 2 in the current header", image().edit(Place::Header(1, 66), &[2, 0]), &["header"]);
    t.reads(4, "log version 1, no log", vec![image().edit_headers(64, &[1, 0])], &SMALL);
    let dirty = small().dirty(&Entry::new(1, 0, 5 * MIB, Vec::new())).build();
    t.reads(4, "log version 0, a log", vec![dirty.clone()], &SMALL);
    t.unsupported(4, "log version 1, a log", dirty.edit_headers(64, &[1, 0]), &["header", "log"]);
}

fn log_place(t: &mut Table) {
    let names = ["header", "log"];
    let dirty = || small().dirty(&Entry::new(1, 0, 5 * MIB, Vec::new())).build();
    let clean = || small().build();
    t.damaged(5, "LogLength 0 with a log", dirty().edit_headers(68, &[0; 4]), &names);
    t.reads(5, "LogLength 0 without one", vec![clean().edit_headers(68, &[0; 4])], &SMALL);
    for (what, image) in [("clean", clean()), ("dirty", dirty())] {
        t.damaged(5, format!("LogLength 4 GiB - 1 MiB, {what}"), image.clone().edit_headers(68, &0xFFF0_0000_u32.to_le_bytes()), &names);
        t.damaged(5, format!("LogLength 4 KiB, {what}"), image.clone().edit_headers(68, &4096_u32.to_le_bytes()), &names);
        let offsets =
            [0, 4096, 512 * KIB, MIB + 4096, 1 << 30, 1 << 44, u64::MAX, 0xFFFF_FFFF_FFF0_0000, 0xFFFF_FFFF_FFFF_F000, 2 * MIB, 3 * MIB];
        for at in offsets {
            let edited = image.clone().edit_headers(72, &at.to_le_bytes());
            t.damaged(6, format!("LogOffset {at:#x}, {what}"), edited, &["header", "log", "region table"]);
        }
        let over = image.clone().edit_headers(68, &(2 * MIB as u32).to_le_bytes());
        t.damaged(6, format!("the log reaches into the metadata, {what}"), over, &["header", "log", "region table"]);
    }
    let block_over_log = clean().edit_headers(72, &DATA_AT.to_le_bytes());
    t.damaged(6, "a block lies in the log", block_over_log, &["BAT entry"]);
    let sequence_less = small().build().edit_headers(48, &LOG_GUID);
    t.damaged(7, "a log GUID and an empty log", sequence_less, &["log"]);
    let foreign = dirty().edit_headers(48, &guid(7));
    t.damaged(7, "only another log's entries", foreign, &["log"]);
}

fn regions(t: &mut Table) {
    let image = || small().build();
    for count in [2048_u32, 65536, u32::MAX] {
        t.damaged(17, format!("{count} regions"), image().edit_regions(8, &count.to_le_bytes()), &["region table"]);
    }
    t.damaged(17, "no region", image().edit_regions(8, &[0; 4]), &["region table"]);
    t.damaged(17, "no BAT region", image().edit_regions(16, &ITEM_LOCATOR).edit_regions(44, &[0]), &["region table"]);
    t.damaged(17, "no valid table", image().flip(0x30020).flip(0x40020), &["region table"]);
    t.reads(17, "table 1 torn", vec![image().flip(0x30020)], &SMALL);
    t.reads(17, "table 2 torn", vec![image().flip(0x40020)], &SMALL);

    let with = |id, at, len: u64, required| {
        let mut disk = small();
        disk.regions.push(Region { id, at, len: len as u32, required });
        disk.len = disk.len.max((at + len).min(64 * MIB));
        disk.build()
    };
    t.damaged(18, "two BATs", with(REGION_BAT, 5 * MIB, MIB, 1), &["region table"]);
    t.damaged(18, "two metadata regions", with(REGION_METADATA, 5 * MIB, MIB, 1), &["region table"]);
    t.unsupported(21, "an unknown required region", with(guid(9), 5 * MIB, MIB, 1), &["region table"]);
    t.reads(21, "an unknown optional region", vec![with(guid(9), 5 * MIB, MIB, 0)], &SMALL);
    t.damaged(19, "an optional region over the BAT", with(guid(9), 3 * MIB, MIB, 0), &["region table"]);
    t.damaged(19, "an optional region over the log", with(guid(9), MIB, MIB, 0), &["region table", "log"]);
    t.damaged(31, "an optional region over a block", with(guid(9), DATA_AT, MIB, 0), &["BAT entry", "region table"]);

    for (region, at) in [("BAT", 32), ("metadata", 64)] {
        let offsets = [0, 64 * KIB, MIB + 512, 1 << 40, 0xFFFF_FFFF_FFF0_0000, u64::MAX, MIB];
        for offset in offsets {
            let edited = image().edit_regions(at, &offset.to_le_bytes());
            t.damaged(19, format!("{region} at {offset:#x}"), edited, &["region table", "BAT", "metadata", "log", "header"]);
        }
        for len in [0_u32, 4096, 0x0018_0000] {
            let edited = image().edit_regions(at + 8, &len.to_le_bytes());
            t.damaged(19, format!("{region} of {len:#x} bytes"), edited, &["region table", "BAT", "metadata"]);
        }
        t.damaged(
            19,
            format!("{region} overlaps its neighbour"),
            image().edit_regions(at, &[0, 0, if at == 32 { 0x20 } else { 0x30 }]),
            &["region table"],
        );
    }
    let mut wide = small();
    wide.regions[0] = Region { id: REGION_BAT, at: 5 * MIB, len: 0xFFF0_0000, required: 1 };
    wide.len = 5 * MIB + 0xFFF0_0000;
    t.either(20, "a BAT of almost 4 GiB", vec![wide.build()], &["region table", "BAT"], &SMALL);
    let mut wide = small();
    wide.regions[0] = Region { id: REGION_BAT, at: 5 * MIB, len: 513 << 20, required: 1 };
    wide.len = 5 * MIB + (513 << 20);
    t.reads(20, "a BAT of 513 MiB", vec![wide.build()], &SMALL);
}

fn reserved(t: &mut Table) {
    let image = || small().build();
    let mut loud = small();
    loud.creator = vec![0xDB; 512];
    t.reads(42, "a creator of lone surrogates without an end", vec![loud.build()], &SMALL);
    loud.creator = (0..512).map(|i| (i * 7 + 1) as u8).collect();
    t.reads(42, "a creator of garbage", vec![loud.build()], &SMALL);
    t.reads(43, "reserved bytes of the headers", vec![image().edit_headers(80, &[0xFF; 4016])], &SMALL);
    t.reads(43, "reserved bytes behind the creator", vec![image().edit(Place::File(520), &[0xFF; 65016])], &SMALL);
    t.reads(43, "reserved bytes between the headers", vec![image().edit(Place::File(0x11000), &[0xFF; 0xF000])], &SMALL);
    t.reads(43, "reserved space behind the region entries", vec![image().edit_regions(80, &[0xFF; 1024])], &SMALL);
    t.reads(43, "junk in the metadata region", vec![image().edit(Place::Metadata(0x20000), &[0xFF; 4096])], &SMALL);
    t.damaged(43, "flags of the file parameters", image().edit(Place::Metadata(0x10004), &[0x20]), &["metadata item"]);
    t.damaged(43, "flags of a metadata entry", image().edit(Place::Metadata(32 + 25), &[0x04]), &["metadata table"]);
    t.damaged(43, "flags of a region", image().edit_regions(16 + 28, &[3]), &["region table"]);
}

/// The vectors of the description that a conforming reader answers.
pub fn negative_vectors(t: &mut Table) {
    const ZEROS: [(u64, u64, u8); 1] = [(0, 64 * MIB, 0)];
    t.reads(0, "VA", vec![va().build()], &ZEROS);
    t.reads(0, "VA with a bit flipped in header 1", vec![va().build().flip(0x10020)], &ZEROS);
    t.reads(0, "VA with a bit flipped in region table 1", vec![va().build().flip(0x30020)], &ZEROS);
    t.reads(0, "VA with LogVersion 1 and no log", vec![va().build().edit_headers(64, &[1, 0])], &ZEROS);
    t.damaged(0, "VA with a log GUID and an empty log", va().build().edit_headers(48, &LOG_GUID), &["log"]);

    let data = |at: u64| vec![Change::Data { at: BAT_AT, sector: bat_sector(&[present(at)]) }];
    let mut base = va();
    base.log_guid = LOG_GUID;
    base.fill(DATA_AT, 2 * MIB, 0xBB);
    base.len = 6 * MIB;
    let logged = |entries: &[(u64, Entry)], len: u64| {
        let mut disk = base.clone();
        disk.len = len;
        disk.log = entries.iter().map(|(pos, entry)| (*pos, entry.encode())).collect();
        disk.build()
    };
    let tail_is_itself = [(0, Entry::new(10, 0, 6 * MIB, data(DATA_AT))), (0x2000, Entry::new(11, 0x2000, 6 * MIB, Vec::new()))];
    t.reads(0, "only the entries from the head's tail on are replayed", vec![logged(&tail_is_itself, 6 * MIB)], &ZEROS);
    let both = [(0, Entry::new(10, 0, 6 * MIB, data(DATA_AT))), (0x2000, Entry::new(11, 0, 6 * MIB, Vec::new()))];
    let shown = [(0, 2 * MIB, 0xBB), (2 * MIB, 62 * MIB, 0)];
    t.reads(0, "both entries are replayed", vec![logged(&both, 6 * MIB)], &shown);
    let mut flushed = Entry::new(10, 0, 400 * MIB, Vec::new());
    flushed.last = 400 * MIB;
    let only_head = [(0, flushed), (0x1000, Entry::new(11, 0x1000, 4 * MIB, Vec::new()))];
    let mut clean = logged(&only_head, 6 * MIB);
    clean = clean.with_len(4 * MIB);
    t.reads(0, "only the head's FlushedFileOffset counts", vec![clean], &ZEROS);
    let gap = [(0, Entry::new(10, 0, 6 * MIB, data(DATA_AT))), (0x2000, Entry::new(99, 0, 6 * MIB, Vec::new()))];
    t.reads(0, "10 and 99 are two sequences, and 99 is not complete", vec![logged(&gap, 6 * MIB)], &shown);
    let alone = [(0, Entry::new(10, 0, 6 * MIB, data(DATA_AT))), (0x2000, Entry::new(99, 0x2000, 6 * MIB, Vec::new()))];
    t.reads(0, "10 and 99 are two sequences, and 99 is complete", vec![logged(&alone, 6 * MIB)], &ZEROS);
    let mut longer = Entry::new(1, 0, 4 * MIB, Vec::new());
    longer.last = 10 * MIB;
    t.reads(0, "LastFileOffset beyond the end of the file", vec![logged(&[(0, longer)], 4 * MIB)], &ZEROS);
}
