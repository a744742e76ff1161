use proptest::prelude::*;

use super::*;
use crate::format::{EntryFields, crc32c_with_field_zeroed, encode_entry, entry_len};

const LOG_AT: FileOffset = FileOffset::new(1 << 20);
const HOME: FileOffset = FileOffset::new(0x30_0000);
const FILE_LEN: u64 = 4 << 20;

fn guid() -> LogGuid {
    LogGuid::new("0f0e0d0c-0b0a-0908-0706-050403020100".parse().unwrap())
}

fn fields(sequence: u64, tail: u32) -> EntryFields {
    EntryFields { tail, sequence, log_guid: guid(), flushed_file_offset: FILE_LEN, last_file_offset: FILE_LEN }
}

/// A page that is told apart by one byte.
fn page(fill: u8) -> Page {
    [fill; PAGE_LEN]
}

fn one_page(fields: &EntryFields, fill: u8) -> Vec<u8> {
    encode_entry(fields, &[(HOME, &page(fill))], &[])
}

/// Writes an entry into the ring, around its end.
fn put(ring: &mut [u8], at: usize, entry: &[u8]) {
    let len = ring.len();
    entry.iter().enumerate().for_each(|(n, &byte)| ring[(at + n) % len] = byte);
}

/// Changes an entry and signs it again.
fn resigned(mut entry: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut entry);
    let crc = crc32c_with_field_zeroed(&entry, 4);
    entry[4..8].copy_from_slice(&crc.to_le_bytes());
    entry
}

fn ring_of(entries: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut ring = vec![0; 16 * PAGE_LEN];
    entries.iter().for_each(|(at, entry)| put(&mut ring, *at, entry));
    ring
}

fn scan(ring: &[u8], log_at: FileOffset, guid: LogGuid, file_len: u64) -> Result<ActiveSequence, FormatError> {
    super::scan(&mut &*ring, log_at, guid, file_len)
}

/// A step of a replay with the page itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Page(FileOffset, Box<Page>),
    Zero(FileOffset, u64),
}

fn steps(found: &ActiveSequence, ring: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    let each = found.for_each(&mut &*ring, |step| {
        steps.push(match step {
            Replay::Zero { home, length } => Step::Zero(home, length),
            Replay::Page { home, page } => {
                let mut image = ring.as_chunks::<PAGE_LEN>().0[page.sector];
                page.restore(&mut image).unwrap();
                Step::Page(home, Box::new(image))
            }
        });
        Ok(())
    });
    each.unwrap();
    steps
}

fn scanned(entries: &[(usize, Vec<u8>)]) -> Result<ActiveSequence, FormatError> {
    scan(&ring_of(entries), LOG_AT, guid(), FILE_LEN)
}

fn fault(entries: &[(usize, Vec<u8>)]) -> Fault {
    scanned(entries).unwrap_err().fault
}

fn sequences(found: &ActiveSequence) -> Vec<u64> {
    found.entries.iter().map(|(_, header)| header.sequence).collect()
}

#[test]
fn an_unread_sector_hides_something_only_where_the_sequence_may_go_on() {
    // Sectors 12 and 13 hold the newest entry; the next one is torn: its header in sector 14 says three sectors, around the end.
    let mut ring = ring_of(&[(12 * PAGE_LEN, one_page(&fields(5, 12 * PAGE_LEN as u32), 1))]);
    let found = scan(&ring, LOG_AT, guid(), FILE_LEN).unwrap();
    let hidden = |ring: &[u8]| (0..16).filter(|&sector| found.may_go_on(&mut &*ring, &[sector].into()).unwrap()).collect::<Vec<_>>();
    assert_eq!(hidden(&ring), [14], "nothing begins there, or what does could not be read");
    let three = encode_entry(&fields(6, 12 * PAGE_LEN as u32), &[(HOME, &page(2)), (HOME, &page(3))], &[]);
    put(&mut ring, 14 * PAGE_LEN, &three[..PAGE_LEN]);
    assert_eq!(hidden(&ring), [0, 14, 15]);
    let old = encode_entry(&fields(4, 12 * PAGE_LEN as u32), &[(HOME, &page(2)), (HOME, &page(3))], &[]);
    put(&mut ring, 14 * PAGE_LEN, &old[..PAGE_LEN]);
    assert_eq!(hidden(&ring), [14], "an entry of another time is not the next one");
}

/// §2.3.3 of the specification, word for word and slow: every offset, every start, bytes copied out of the ring.
fn naive(ring: &[u8]) -> Option<Vec<u64>> {
    let le = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
    let entry = |start: usize| -> Option<(usize, u64, usize)> {
        let turned = [&ring[start..], &ring[..start]].concat();
        let (length, tail) = (le(&turned[8..12]) as usize, le(&turned[12..16]) as usize);
        if &turned[..4] != b"loge" || length == 0 || length % 4096 != 0 || length > ring.len() || tail % 4096 != 0 || tail >= ring.len() {
            return None;
        }
        let (bytes, seq, count) = (&turned[..length], le(&turned[16..24]), le(&turned[24..28]) as usize);
        let tables = (64 + 32 * count).div_ceil(4096);
        if seq == 0 || le(&turned[28..32]) != 0 || turned[32..48] != guid().get().to_bytes() || tables * 4096 > length {
            return None;
        }
        let mut pages = 0;
        for d in 0..count {
            let d = &bytes[64 + 32 * d..][..32];
            let home = le(&d[16..24]);
            let len = if &d[..4] == b"desc" { 4096 } else { le(&d[8..16]) };
            pages += usize::from(&d[..4] == b"desc");
            let known = matches!(&d[..4], b"desc" | b"zero");
            let end = home.checked_add(len)?;
            let in_log = home < LOG_AT.get() + ring.len() as u64 && end > LOG_AT.get();
            if !known || le(&d[24..32]) != seq || home % 4096 != 0 || len % 4096 != 0 || home < 0x3_0000 || in_log {
                return None;
            }
        }
        let sectors = &bytes[tables * 4096..];
        let sound = |s: &[u8]| &s[..4] == b"data" && le(&s[4..8]) == seq >> 32 && le(&s[4092..]) == seq & 0xFFFF_FFFF;
        let crc = crc32c_with_field_zeroed(bytes, 4);
        let whole = sectors.len() == pages * 4096 && sectors.chunks(4096).all(sound) && le(&bytes[4..8]) == u64::from(crc);
        whole.then_some((length, seq, tail))
    };
    let mut best: Option<(u64, Vec<u64>)> = None;
    for start in (0..ring.len()).step_by(4096) {
        let (mut at, mut used, mut run) = (start, 0, Vec::<(usize, u64, usize)>::new());
        while let Some((length, seq, tail)) = entry(at) {
            if run.last().is_some_and(|last| last.1.checked_add(1) != Some(seq)) || used + length > ring.len() {
                break;
            }
            run.push((at, seq, tail));
            used += length;
            at = (at + length) % ring.len();
        }
        let Some(&(_, head, tail)) = run.last() else { continue };
        if let Some(from) = run.iter().position(|e| e.0 == tail)
            && best.as_ref().is_none_or(|b| head > b.0)
        {
            best = Some((head, run[from..].iter().map(|e| e.1).collect()));
        }
    }
    best.map(|b| b.1)
}

#[test]
fn the_dirty_log_of_windows_replays_its_last_two_entries() {
    let base = 80_117_443_871_106_387;
    let windows = |n: u64, tail, flushed: u64, last: u64| EntryFields {
        flushed_file_offset: flushed << 20,
        last_file_offset: last << 20,
        ..fields(base + n, tail)
    };
    let bat = |fields: EntryFields, word: u64| {
        let mut image = page(0);
        image[..8].copy_from_slice(&word.to_le_bytes());
        encode_entry(&fields, &[(HOME, &image)], &[])
    };
    let ring = ring_of(&[
        (0x0000, encode_entry(&windows(0, 0, 4, 4), &[], &[])),
        (0x1000, bat(windows(1, 0x1000, 4, 4), 2)),
        (0x3000, bat(windows(2, 0x1000, 4, 4), 2)),
        (0x5000, bat(windows(3, 0x1000, 4, 36), 0x40_0006)),
        (0x7000, bat(windows(4, 0x5000, 36, 36), 0x40_0006)),
    ]);
    let found = scan(&ring, LOG_AT, guid(), 36 << 20).unwrap();
    assert_eq!(found.entries.iter().map(|e| e.0).collect::<Vec<_>>(), [0x5000, 0x7000]);
    let mut image = page(0);
    image[..8].copy_from_slice(&0x40_0006_u64.to_le_bytes());
    assert_eq!(steps(&found, &ring), vec![Step::Page(HOME, Box::new(image)); 2]);
    let short = scan(&ring, LOG_AT, guid(), 35 << 20).unwrap_err();
    assert_eq!(short.fault, Fault::FileTruncated { flushed: 36 << 20, len: 35 << 20 });
}

#[test]
fn a_log_without_entries_of_the_header_is_refused() {
    assert_eq!(fault(&[]), Fault::NoActiveSequence);
    let foreign = EntryFields { log_guid: LogGuid::random(), ..fields(1, 0) };
    assert_eq!(fault(&[(0, one_page(&foreign, 1))]), Fault::NoActiveSequence);
    assert_eq!(scan(&[], LOG_AT, guid(), FILE_LEN).unwrap_err().fault, Fault::NoActiveSequence);
}

#[test]
fn one_empty_entry_is_a_sequence_with_nothing_to_replay() {
    let entries = [(0, encode_entry(&fields(1, 0), &[], &[]))];
    let found = scanned(&entries).unwrap();
    assert_eq!((sequences(&found), steps(&found, &ring_of(&entries)).len()), (vec![1], 0));
}

#[test]
fn only_the_head_decides_what_is_replayed_and_how_long_the_file_was() {
    let old = EntryFields { flushed_file_offset: 400 << 20, last_file_offset: 400 << 20, ..fields(10, 0) };
    let found = scanned(&[(0, one_page(&old, 1)), (0x2000, encode_entry(&fields(11, 0x2000), &[], &[]))]).unwrap();
    assert_eq!((sequences(&found), found.file_len()), (vec![11], FILE_LEN));
}

#[test]
fn a_gap_in_the_numbers_separates_sequences() {
    let ten = (0, one_page(&fields(10, 0), 1));
    assert_eq!(sequences(&scanned(&[ten.clone(), (0x2000, one_page(&fields(99, 0x2000), 2))]).unwrap()), [99]);
    assert_eq!(sequences(&scanned(&[ten.clone(), (0x2000, one_page(&fields(99, 0), 2))]).unwrap()), [10]);
    assert_eq!(fault(&[ten, (0x2000, one_page(&fields(11, 0x1000), 2))]), Fault::NoActiveSequence);
    let last = [(0, one_page(&fields(u64::MAX, 0), 1)), (0x2000, encode_entry(&fields(1, 0), &[], &[]))];
    assert_eq!(sequences(&scanned(&last).unwrap()), [u64::MAX]);
}

#[test]
fn entries_wrap_around_the_end_of_the_ring() {
    let image = page(5);
    let long = encode_entry(&fields(7, 0xE000), &vec![(HOME, &image); 130], &[]);
    let mut ring = vec![0; 256 * PAGE_LEN];
    put(&mut ring, 0xF_0000, &long);
    put(&mut ring, (0xF_0000 + long.len()) % (1 << 20), &one_page(&fields(8, 0xF_0000), 9));
    let found = scan(&ring, LOG_AT, guid(), FILE_LEN).unwrap();
    assert_eq!(sequences(&found), [7, 8]);
    let fills: Vec<u8> = steps(&found, &ring).iter().map(|step| matches!(step, Step::Page(_, image) if image[4095] == 9).into()).collect();
    assert_eq!((fills.len(), fills.iter().rposition(|&last| last == 1), fills.iter().sum::<u8>()), (131, Some(130), 1));
}

#[test]
fn torn_entries_end_the_sequence() {
    for at in [0, 5, 40, 64, 100, 4096, 4101, 5000, 8191] {
        let mut torn = one_page(&fields(2, 0), 2);
        torn[at] ^= 0x10;
        let found = scanned(&[(0, encode_entry(&fields(1, 0), &[], &[])), (0x1000, torn)]).unwrap();
        assert_eq!(sequences(&found), [1], "byte {at}");
    }
}

#[test]
fn hostile_entries_are_not_entries() {
    let le = |value: u64| value.to_le_bytes();
    let set = |at: usize, bytes: &[u8]| {
        let entry = encode_entry(&fields(9, 0), &[(HOME, &page(1))], &[(FileOffset::new(0x40_0000), 4096)]);
        fault(&[(0, resigned(entry, |e| e[at..at + bytes.len()].copy_from_slice(bytes)))])
    };
    // EntryLength, Tail, SequenceNumber, DescriptorCount, Reserved; the zero descriptor at 64, the data descriptor at 96.
    for (at, bytes) in [
        (8, &le(0)[..4]),
        (8, &le(4097)[..4]),
        (8, &le(0x1000)[..4]),
        (8, &le(0x2_0000)[..4]),
        (8, &[0xFF; 4]),
        (12, &le(4097)[..4]),
        (12, &le(0x1_0000)[..4]),
        (12, &le(0x1000)[..4]),
        (16, &le(0)),
        (24, &le(1)[..4]),
        (24, &le(3)[..4]),
        (24, &[0xFF; 4]),
        (28, &[1]),
        (64, b"zera"),
        (72, &le(4097)),
        (72, &le(u64::MAX - 4095)),
        (80, &le(1)),
        (80, &le(0xF_F000 + 4096)),
        (88, &le(8)),
        (112, &le(0)),
        (112, &le(0x2_0000)),
        (112, &le(1 << 20)),
        (112, &le((1 << 20) + 0xF000)),
        (112, &le(0x30_0001)),
        (112, &le(u64::MAX - 4095)),
        (4096, b"dat_"),
        (4100, &[1]),
        (8188, &[1]),
    ] {
        assert_eq!(set(at, bytes), Fault::NoActiveSequence, "{bytes:x?} at {at}");
    }
}

#[test]
fn targets_up_to_the_log_and_in_the_region_tables_are_fine() {
    let image = page(1);
    let entry = encode_entry(&fields(9, 0), &[(FileOffset::new(0x3_0000), &image), (FileOffset::new((1 << 20) - 4096), &image)], &[]);
    assert!(scanned(&[(0, entry)]).is_ok());
}

#[test]
fn a_replay_grows_the_file_as_far_as_sense_goes() {
    let with_last = |last| scanned(&[(0, encode_entry(&EntryFields { last_file_offset: last, ..fields(1, 0) }, &[], &[]))]);
    assert_eq!(with_last(10 << 20).unwrap().file_len(), 10 << 20);
    assert_eq!(with_last(0).unwrap().file_len(), FILE_LEN);
    for last in [MAX_FILE_LEN + (1 << 20), u64::MAX] {
        assert!(matches!(with_last(last).unwrap_err().fault, Fault::Field { field: "LastFileOffset", .. }));
    }
    let to = |home| scanned(&[(0, encode_entry(&fields(1, 0), &[(FileOffset::new(home), &page(1))], &[]))]);
    assert_eq!(to(8 << 20).unwrap().file_len(), (8 << 20) + 4096);
    assert!(matches!(to(MAX_FILE_LEN).unwrap_err().fault, Fault::Field { field: "FileOffset", .. }));
    let clear = |length, times| scanned(&[(0, encode_entry(&fields(1, 0), &[], &vec![(HOME, length); times]))]);
    assert_eq!(clear(1 << 30, 64).unwrap().file_len(), HOME.get() + (1 << 30));
    for (length, times) in [(1 << 30, 65), (64 << 40, 1)] {
        assert!(matches!(clear(length, times).unwrap_err().fault, Fault::Field { field: "ZeroLength", .. }));
    }
}

#[test]
fn zeros_are_replayed_before_the_pages_of_their_entry() {
    let entries = [(0, encode_entry(&fields(1, 0), &[(HOME, &page(3))], &[(HOME, 0x2000)]))];
    let ring = ring_of(&entries);
    let steps = steps(&scanned(&entries).unwrap(), &ring);
    assert_eq!(steps, [Step::Zero(HOME, 0x2000), Step::Page(HOME, Box::new(page(3)))]);
}

#[test]
fn overlapping_claims_cost_no_more_than_the_ring() {
    // Every sector claims to start an entry as long as the ring, and to be a data sector of all the others.
    let mut claim = encode_entry(&fields(1, 0), &vec![(HOME, &page(1)); 60], &[]);
    claim[8..12].copy_from_slice(&(64_u32 * 4096).to_le_bytes());
    let mut ring = vec![0; 64 * PAGE_LEN];
    for at in (0..64).map(|n| n * PAGE_LEN) {
        put(&mut ring, at, &claim[..PAGE_LEN]);
    }
    let mut counted = Counted { ring: &ring, asked: 0 };
    assert_eq!(super::scan(&mut counted, LOG_AT, guid(), FILE_LEN).unwrap_err().fault, Fault::NoActiveSequence);
    assert!(counted.asked <= 3 * 64, "{} sectors of 64 were asked for", counted.asked);
    // The worst that is sound: one entry of nearly the whole ring, around its end.
    let long = encode_entry(&fields(1, 32 * PAGE_LEN as u32), &vec![(HOME, &page(1)); 60], &[]);
    let mut ring = vec![0; 64 * PAGE_LEN];
    put(&mut ring, 32 * PAGE_LEN, &long);
    let mut counted = Counted { ring: &ring, asked: 0 };
    assert_eq!(sequences(&super::scan(&mut counted, LOG_AT, guid(), FILE_LEN).unwrap()), [1]);
    assert!(counted.asked <= 3 * 64, "{} sectors of 64 were asked for", counted.asked);
}

/// A ring that counts the sectors it is asked for.
struct Counted<'a> {
    ring: &'a [u8],
    asked: usize,
}

impl LogRing for Counted<'_> {
    type Error = FormatError;

    fn sectors(&self) -> usize {
        self.ring.sectors()
    }

    fn sector(&mut self, number: usize) -> Result<&Page, FormatError> {
        self.asked += 1;
        Ok(&self.ring.as_chunks::<PAGE_LEN>().0[number])
    }
}

/// What a ring of random history holds.
#[derive(Clone, Debug)]
struct Piece {
    at: usize,
    sequence: u64,
    tail: u32,
    pages: usize,
    zeros: usize,
    flip: Option<usize>,
}

fn piece() -> impl Strategy<Value = Piece> {
    let flip = prop::option::weighted(0.1, 0_usize..8192);
    (0_usize..16, 1_u64..6, 0_u32..16, 0_usize..3, 0_usize..3, flip).prop_map(|(at, sequence, tail, pages, zeros, flip)| Piece {
        at,
        sequence,
        tail,
        pages,
        zeros,
        flip,
    })
}

fn encode_piece(piece: &Piece) -> Vec<u8> {
    let image = page(piece.at as u8);
    let mut entry = encode_entry(
        &fields(piece.sequence, piece.tail * 4096),
        &vec![(HOME, &image); piece.pages],
        &vec![(FileOffset::new(0x50_0000), 8192); piece.zeros],
    );
    if let Some(at) = piece.flip {
        let len = entry.len();
        entry[at % len] ^= 1;
    }
    entry
}

proptest! {
    #[test]
    fn the_scan_agrees_with_the_slow_reading_of_the_specification(pieces in prop::collection::vec(piece(), 1..12)) {
        let ring = ring_of(&pieces.iter().map(|p| (p.at * PAGE_LEN, encode_piece(p))).collect::<Vec<_>>());
        let fast = scan(&ring, LOG_AT, guid(), FILE_LEN);
        match (&fast, naive(&ring)) {
            (Ok(found), Some(expected)) => {
                // Two heads with one number are nobody's history; then only the number is promised.
                prop_assert_eq!(found.head().sequence, *expected.last().unwrap());
                steps(found, &ring);
            }
            (Err(error), None) => prop_assert_eq!(&error.fault, &Fault::NoActiveSequence),
            (fast, slow) => prop_assert!(false, "{:?} but {:?}", fast, slow),
        }
    }

    #[test]
    fn a_real_history_is_found_entry_by_entry(
        start in 0_usize..16, first in 1_u64..u64::MAX - 20, sizes in prop::collection::vec((0_usize..3, 0_usize..3), 1..9), live in 1_usize..4,
    ) {
        let mut ring = ring_of(&[]);
        let (mut at, mut placed) = (start, Vec::new());
        for (n, &(pages, zeros)) in sizes.iter().enumerate() {
            placed.push(at);
            // The tail follows the head at a distance of `live` entries; what it left behind may be overwritten.
            let from = placed.len().saturating_sub(live);
            let sequence = first + n as u64;
            let image = page(n as u8);
            let entry = encode_entry(
                &fields(sequence, (placed[from] * PAGE_LEN) as u32), &vec![(HOME, &image); pages], &vec![(FileOffset::new(0x50_0000), 4096); zeros],
            );
            put(&mut ring, at * PAGE_LEN, &entry);
            at = (at + entry_len(pages, zeros) / PAGE_LEN) % 16;
        }
        let found = scan(&ring, LOG_AT, guid(), FILE_LEN).unwrap();
        prop_assert_eq!(Some(sequences(&found)), naive(&ring));
        prop_assert_eq!(found.entries.len(), live.min(sizes.len()));
        let pages: usize = sizes.iter().rev().take(live).map(|s| s.0 + s.1).sum();
        prop_assert_eq!(steps(&found, &ring).len(), pages);
    }

    #[test]
    fn no_ring_panics(
        pieces in prop::collection::vec(piece(), 0..6), changes in prop::collection::vec((0_usize..16, 0_usize..200, any::<u8>()), 0..12), cut in 0_usize..=65536,
    ) {
        let mut ring = ring_of(&pieces.iter().map(|p| (p.at * PAGE_LEN, resigned(encode_piece(p), |e| {
            changes.iter().for_each(|&(_, at, to)| if at >= 8 { e[at] = to });
        }))).collect::<Vec<_>>());
        changes.iter().for_each(|&(sector, at, to)| ring[sector * PAGE_LEN + at] = to);
        ring.truncate(cut);
        if let Ok(found) = scan(&ring, LOG_AT, guid(), FILE_LEN) {
            steps(&found, &ring);
        }
    }
}
