//! Rows 8 to 16: log entries that lie.

use crate::forge::*;
use crate::head::{SMALL, small};
use crate::table::Table;

const LEN: u64 = 5 * MIB;

fn with_entry(bytes: Vec<u8>) -> Image {
    with_entries(vec![(0, bytes)])
}

fn with_entries(log: Vec<(u64, Vec<u8>)>) -> Image {
    let mut disk = small();
    disk.log_guid = LOG_GUID;
    disk.log = log;
    disk.build()
}

fn empty() -> Entry {
    Entry::new(1, 0, LEN, Vec::new())
}

/// An entry with one field overwritten, signed again over the bytes that are there.
fn lie(entry: &Entry, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut encoded = entry.encode();
    encoded[at..at + bytes.len()].copy_from_slice(bytes);
    sign(&mut encoded);
    encoded
}

fn one(change: Change) -> Entry {
    Entry::new(1, 0, LEN, vec![change])
}

/// Moves block 0 to nowhere: a change that a reader must not make.
fn bat_change() -> Change {
    Change::Data { at: BAT_AT, sector: bat_sector(&[2]) }
}

pub fn rows(t: &mut Table) {
    shape(t);
    order(t);
    targets(t);
    lengths(t);
    huge(t);
}

fn shape(t: &mut Table) {
    let log = &["log"];
    for len in [0_u32, 1, 64, 4095, 4097, 6144, MIB as u32 + 4096, 0xFFFF_F000, u32::MAX] {
        t.damaged(8, format!("EntryLength {len:#x}"), with_entry(lie(&empty(), 8, &len.to_le_bytes())), log);
    }
    t.damaged(8, "EntryLength of two sectors for one", with_entry(lie(&empty(), 8, &8192_u32.to_le_bytes())), log);
    for count in [1_u32, 127, 0x0800_0000, 0x07FF_FFFE, u32::MAX] {
        t.damaged(9, format!("DescriptorCount {count:#x}"), with_entry(lie(&empty(), 24, &count.to_le_bytes())), log);
    }
    let entry = one(bat_change());
    t.damaged(8, "no signature", with_entry(lie(&entry, 0, b"Loge")), log);
    t.damaged(
        8,
        "a wrong checksum",
        with_entry({
            let mut e = entry.encode();
            e[4] ^= 1;
            e
        }),
        log,
    );
    t.damaged(8, "a descriptor of no known kind", with_entry(lie(&entry, 64, b"what")), log);
    t.damaged(8, "a descriptor of another entry", with_entry(lie(&entry, 64 + 24, &[9])), log);
    t.damaged(8, "a data sector without its signature", with_entry(lie(&entry, 4096, b"Data")), log);
    t.damaged(8, "SequenceHigh of another entry", with_entry(lie(&entry, 4100, &[1])), log);
    t.damaged(8, "SequenceLow of another entry", with_entry(lie(&entry, 8188, &[9])), log);

    // Every sector claims to start an entry of the whole ring: whoever sums before looking does it thousands of times.
    let claim = |len: u64| {
        let mut disk = small();
        (disk.log_at, disk.log_len, disk.log_guid) = (8 * MIB, len as u32, LOG_GUID);
        disk.len = 8 * MIB + len;
        let mut head = lie(&empty(), 8, &(len as u32).to_le_bytes());
        let zeros = len / 32 - 2;
        head[24..28].copy_from_slice(&(zeros as u32).to_le_bytes());
        for d in head[64..].chunks_exact_mut(32) {
            d[..4].copy_from_slice(b"zero");
            d[8..16].copy_from_slice(&4096_u64.to_le_bytes());
            d[16..24].copy_from_slice(&DATA_AT.to_le_bytes());
            d[24] = 1;
        }
        disk.log = (0..len / 4096).map(|i| (i * 4096, head.clone())).collect();
        disk.build()
    };
    t.damaged(10, "256 candidates of the whole log", claim(MIB), log);
    t.damaged(10, "8192 candidates of the whole log", claim(32 * MIB), log);
    let data = |ring: u64| {
        // Descriptors that would fit, and sectors that are headers: the last check before the checksum fails.
        let mut disk = small();
        (disk.log_at, disk.log_len, disk.log_guid) = (8 * MIB, ring as u32, LOG_GUID);
        disk.len = 8 * MIB + ring;
        let entry = Entry::new(1, 0, LEN, (0..126).map(|_| bat_change()).collect()).encode();
        disk.log = (0..ring / 4096).map(|i| (i * 4096, entry[..4096].to_vec())).collect();
        disk.build()
    };
    t.damaged(10, "2048 candidates of 127 sectors", data(8 * MIB), log);
}

fn order(t: &mut Table) {
    let log = &["log"];
    for tail in [4096_u32, 8192, MIB as u32, MIB as u32 + 4096, 0xFFFF_F000, 1, 2048, u32::MAX] {
        let mut entry = empty();
        entry.tail = tail;
        t.damaged(11, format!("Tail {tail:#x}"), with_entry(entry.encode()), log);
    }
    let second = Entry::new(2, 0x1000, LEN, Vec::new());
    let inside = vec![(0, one(bat_change()).encode()), (0x2000, second.encode())];
    t.damaged(11, "a tail inside of an entry", with_entries(inside), log);

    t.damaged(12, "sequence number 0", with_entry(Entry { sequence: 0, ..empty() }.encode()), log);
    t.either(12, "the last sequence number", vec![with_entry(Entry { sequence: u64::MAX, ..empty() }.encode())], log, &SMALL);
    let around = vec![
        (0, Entry { sequence: u64::MAX, ..empty() }.encode()),
        (0x1000, Entry { sequence: 0, changes: vec![bat_change()], ..empty() }.encode()),
    ];
    t.either(12, "sequence numbers do not run around", vec![with_entries(around)], log, &SMALL);

    // A sequence that wraps from the end of the ring to its start, one entry even in the middle of itself.
    let ring = MIB as u32;
    let wrapped = vec![
        (u64::from(ring) - 0x3000, Entry::new(5, ring - 0x3000, LEN, vec![bat_change()]).encode()),
        (
            u64::from(ring) - 0x1000,
            Entry::new(6, ring - 0x3000, LEN, vec![Change::Data { at: BAT_AT, sector: bat_sector(&[present(DATA_AT)]) }]).encode(),
        ),
        (0x1000, Entry::new(7, ring - 0x1000, LEN, Vec::new()).encode()),
    ];
    t.reads(11, "a sequence around the end of the ring", vec![with_entries(wrapped)], &SMALL);
    let torn = vec![
        (0, empty().encode()),
        (0x1000, {
            let mut e = Entry::new(2, 0, LEN, vec![bat_change()]).encode();
            e[0x1800] ^= 1;
            e
        }),
    ];
    t.reads(8, "a torn last entry never happened", vec![with_entries(torn)], &SMALL);
    let foreign = vec![
        (0, empty().encode()),
        (0x1000, Entry { guid: guid(77), ..Entry::new(2, 0, LEN, vec![bat_change()]) }.encode()),
        (0x8000, Entry { guid: guid(77), ..Entry::new(900, 0x8000, LEN, vec![bat_change()]) }.encode()),
    ];
    t.reads(7, "another log's entries are not ours", vec![with_entries(foreign)], &SMALL);
}

fn targets(t: &mut Table) {
    let log = &["log"];
    let places = [
        0,
        4096,
        0x1_0000,
        0x2_0000,
        0x2_F000,
        MIB,
        MIB + 0x8000,
        2 * MIB - 4096,
        BAT_AT + 1,
        BAT_AT + 512,
        1 << 47,
        1 << 60,
        0xFFFF_FFFF_FFFF_F000,
        u64::MAX,
    ];
    for at in places {
        let data = one(Change::Data { at, sector: vec![0x5A; 4096] });
        t.damaged(13, format!("a sector for {at:#x}"), with_entry(data.encode()), log);
        let zero = one(Change::Zero { at, len: 4096 });
        t.damaged(13, format!("zeros for {at:#x}"), with_entry(zero.encode()), log);
    }
    for (at, len) in [
        (DATA_AT, 1 << 44),
        (DATA_AT, 1 << 62),
        (DATA_AT, u64::MAX - 4095),
        (DATA_AT, 4095),
        (DATA_AT, 1),
        (0xFFFF_FFFF_FFF0_0000, 1 << 20),
        (0x3_0000, 2 * MIB),
        (0x3_0000, MIB),
    ] {
        let zero = one(Change::Zero { at, len });
        t.damaged(14, format!("{len:#x} zeros for {at:#x}"), with_entry(zero.encode()), log);
    }
    let payload = one(Change::Zero { at: DATA_AT + 512 * KIB, len: 512 * KIB });
    t.reads(14, "zeros over half a block", vec![with_entry(payload.encode())], &[(0, MIB / 2, 0xA0), (MIB / 2, MIB, 0)]);
    let sector = one(Change::Data { at: DATA_AT, sector: vec![0x77; 4096] });
    t.reads(13, "a sector of payload", vec![with_entry(sector.encode())], &[(0, 4096, 0x77), (4096, 4096, 0xA0)]);

    // Both region tables are torn in place; the log has them whole. Replay comes before anything else is read.
    let whole = small().build();
    let changes = (0..32).map(|i| 0x3_0000 + 4096 * i).map(|at| Change::Data { at, sector: whole.get(at, 4096) }).collect();
    let repaired = with_entry(Entry::new(1, 0, LEN, changes).encode()).flip(0x3_0020).flip(0x4_0020);
    t.reads(13, "region tables that only the log has", vec![repaired], &SMALL);
    let table = Change::Data { at: METADATA_AT, sector: whole.get(METADATA_AT, 4096) };
    let repaired = with_entry(one(table).encode()).edit(Place::Metadata(0), &[0; 512]);
    t.reads(13, "a metadata table that only the log has", vec![repaired], &SMALL);
}

fn lengths(t: &mut Table) {
    let log = &["log", "file"];
    for last in [1 << 60, 1 << 62, u64::MAX, 0xFFFF_FFFF_FFF0_0000_u64] {
        t.damaged(15, format!("LastFileOffset {last:#x}"), with_entry(Entry { last, ..empty() }.encode()), log);
    }
    t.reads(15, "LastFileOffset of 64 MiB", vec![with_entry(Entry { last: 64 * MIB, ..empty() }.encode())], &SMALL);
    for flushed in [6 * MIB, 1 << 40, 1 << 62, 0xFFFF_FFFF_FFF0_0000] {
        let entry = Entry { flushed, last: flushed, ..empty() };
        t.damaged(16, format!("FlushedFileOffset {flushed:#x}"), with_entry(entry.encode()), log);
    }
    // The head decides: an older entry may know of a longer file, since shrunk.
    let older = vec![
        (0, Entry { flushed: 64 * MIB, last: 64 * MIB, ..empty() }.encode()),
        (0x1000, Entry::new(2, 0x1000, LEN, Vec::new()).encode()),
    ];
    t.reads(16, "an older entry's FlushedFileOffset", vec![with_entries(older)], &SMALL);
}

/// Logs of 64 MiB, full to the brim. They must be read, and in as little memory as any other.
fn huge(t: &mut Table) {
    let log = &["log"];
    let with = |entries: Vec<Entry>| {
        let mut disk = small();
        (disk.log_at, disk.log_len, disk.log_guid) = (8 * MIB, 64 * MIB as u32, LOG_GUID);
        disk.len = 72 * MIB;
        let mut at = 0;
        for mut entry in entries {
            (entry.flushed, entry.last) = (disk.len, 20 << 30);
            let bytes = entry.encode();
            disk.log.push((at, bytes.clone()));
            at += bytes.len() as u64;
        }
        assert!(at <= 64 * MIB, "the entries fit");
        disk.build()
    };
    let past = 80 * MIB;
    let page = |n: u64| Change::Data { at: past + 4096 * n, sector: vec![n as u8 | 1; 4096] };
    let zero = |n: u64, gap: u64| Change::Zero { at: past + 4096 * n * gap, len: 4096 };

    let entries = (1..=8191).map(|n| Entry::new(n, 0, LEN, vec![page(n)]));
    t.reads(10, "8191 entries of one page", vec![with(entries.collect())], &SMALL);
    let entries = vec![Entry::new(1, 0, LEN, (0..16_254).map(page).collect())];
    t.reads(10, "an entry of 16254 pages", vec![with(entries)], &SMALL);
    // Block 0 moved into the log's last page but one, and what block 0 holds there.
    let mut changes: Vec<Change> = (0..16_000).map(page).collect();
    changes.push(Change::Data { at: BAT_AT, sector: bat_sector(&[present(past + 64 * MIB)]) });
    changes.extend((0..16).map(|n| Change::Data { at: past + 64 * MIB + 4096 * n, sector: vec![0x5C; 4096] }));
    t.reads(
        13,
        "a block of which some pages are in a huge log",
        vec![with(vec![Entry::new(1, 0, LEN, changes)])],
        &[(0, 64 * KIB, 0x5C), (64 * KIB, 64 * KIB, 0)],
    );
    let entries = vec![Entry::new(1, 0, LEN, (0..2_097_150).map(|n| zero(n, 1)).collect())];
    t.reads(14, "two million zeros that touch", vec![with(entries)], &SMALL);
    let entries = vec![Entry::new(1, 0, LEN, (0..262_144).map(|n| zero(n, 2)).collect())];
    t.reads(14, "the most zeros apart", vec![with(entries)], &SMALL);
    let entries = vec![Entry::new(1, 0, LEN, (0..2_097_150).map(|n| zero(n, 2)).collect())];
    t.damaged(14, "two million zeros apart", with(entries), log);
    let entries = (1..=16_384).map(|n| Entry::new(n, (4096 * (n - 1)) as u32, LEN, Vec::new()));
    t.reads(11, "16384 empty entries", vec![with(entries.collect())], &SMALL);
}
