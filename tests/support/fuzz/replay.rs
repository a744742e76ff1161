//! `replay`: logs put together from descriptors, wrapped anywhere, torn, with entries of other logs among them.
//!
//! A naive replayer ([`super::naive`]) says what must come out. The engine is asked four times: its scan of the ring; the disk opened
//! read-only, beside a clean file that the naive replayer made; the file after a writable opening; and the file after a replay that
//! failed at its k-th write and was begun again.

use super::forge::*;
use super::guard::{Watched, bounded, difference};
use super::images::{child, small};
use super::naive::{self, Bounds, Step};
use super::source::Source;
use diffdisk::format::{self, MAX_FILE_LEN, Replay};
use diffdisk::storage::sim::{CallKind, Fault, FaultStorage, Repeat};
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::units::FileOffset;
use diffdisk::{Disk, Guid, LogGuid, OpenOptions, ParentPolicy};
use std::io::ErrorKind;
use std::sync::Arc;

const HEADERS: std::ops::Range<u64> = 0x1_0000..0x3_0000;
/// A sequence may clear as much as the sector bitmaps of the largest disk, four times over, and may run ahead of what it says of the
/// file's length by a GiB.
const BOUNDS: Bounds = Bounds { len: MAX_FILE_LEN, slack: 1 << 30, zeros: 64 << 30 };

fn home(s: &mut Source<'_>, len: u64) -> u64 {
    match s.pick(10) {
        0..3 => BAT_AT + 4096 * s.pick(4) as u64,
        3 => 0x3_0000 + 4096 * s.pick(32) as u64,
        4 => METADATA_AT + 4096 * s.pick(20) as u64,
        5 | 6 => DATA_AT + 4096 * s.byte() as u64,
        7 => len + 4096 * s.pick(600) as u64,
        8 => s.number() / 4096 * 4096,
        _ => s.number(),
    }
}

fn change(s: &mut Source<'_>, base: &Image) -> Change {
    let at = home(s, base.len);
    match s.pick(4) {
        0 => Change::Zero { at, len: if s.byte() & 1 == 0 { 4096 * s.pick(300) as u64 } else { s.number() } },
        1 => Change::Data { at, sector: vec![s.byte(); 4096] },
        2 => Change::Data { at, sector: base.get(at % (1 << 42), 4096) },
        _ => {
            let word = |s: &mut Source<'_>| (DATA_AT + MIB * s.pick(4) as u64) | [6, 7, 2, 0, 3, 5][s.pick(6)];
            Change::Data { at, sector: bat_sector(&[word(s), word(s), word(s)]) }
        }
    }
}

/// The ring as the input wants it.
fn fill_ring(s: &mut Source<'_>, image: &Image) -> Vec<u8> {
    let mut ring = vec![0; MIB as usize];
    let mut at = s.byte() as usize * 4096;
    let mut sequence = if s.byte() & 3 == 3 { s.number() } else { 1 + s.pick(200) as u64 };
    let mut starts = vec![at];
    for _ in 0..=s.pick(24) {
        if s.is_empty() {
            break;
        }
        let how = s.byte();
        let mut entry = Entry::new(sequence, starts[0] as u32, image.len / MIB * MIB, Vec::new());
        entry.changes = if how & 0x40 == 0 {
            (0..s.pick(5)).map(|_| change(s, image)).collect()
        } else {
            // Many, and no two of them touch.
            (0..16 * s.pick(256) as u64).map(|n| Change::Zero { at: DATA_AT + n * 8192, len: 4096 }).collect()
        };
        match how & 7 {
            0..4 => {}
            4 => entry.tail = at as u32,
            5 => entry.tail = starts[s.pick(starts.len())] as u32,
            6 => entry.tail = s.number() as u32,
            _ => (entry.flushed, entry.last) = (s.number(), s.number()),
        }
        if how & 0x38 == 0x38 {
            entry.guid = guid(77);
        }
        let mut bytes = entry.encode();
        if how & 0x80 != 0 && s.byte() & 1 == 1 {
            // Torn, or a lie that is signed.
            let place = s.number() as usize % bytes.len();
            bytes[place] ^= s.byte() | 1;
            if s.byte() & 1 == 1 {
                sign(&mut bytes);
            }
        }
        if bytes.len() > ring.len() {
            continue;
        }
        for (i, sector) in bytes.chunks(4096).enumerate() {
            let to = (at + 4096 * i) % ring.len();
            ring[to..to + 4096].copy_from_slice(sector);
        }
        starts.push(at);
        at = (at + bytes.len()) % ring.len();
        sequence = sequence.wrapping_add(1);
        if how & 0x18 == 0x18 {
            // Somewhere else, with another number, as a new sequence.
            (at, sequence) = (s.byte() as usize * 4096, s.number());
            starts = vec![at];
        }
    }
    ring
}

/// Writes what is not zeros.
fn put_ring(image: &mut Image, ring: &[u8]) {
    for (n, sector) in ring.chunks(4096).enumerate().filter(|(_, sector)| sector.iter().any(|&b| b != 0)) {
        image.put(LOG_AT + 4096 * n as u64, sector);
    }
}

fn options() -> OpenOptions {
    OpenOptions::new().parents(ParentPolicy::Deny)
}

fn scan_agrees(ring: &[u8], file_len: u64, want: Option<&(Vec<Step>, u64)>) {
    let guid = LogGuid::new(Guid::from_bytes(LOG_GUID));
    let got = bounded("scanning", 0, || format::scan(&mut &*ring, FileOffset::new(LOG_AT), guid, file_len));
    assert_eq!(got.is_ok(), want.is_some(), "whether there is a sequence: {:?}", got.err());
    let (Ok(sequence), Some((steps, len))) = (got, want) else { return };
    let mut got = Vec::new();
    let each = sequence.for_each(&mut &*ring, |step| {
        got.push(match step {
            Replay::Page { home, page } => {
                let mut image: [u8; 4096] = ring[4096 * page.sector..][..4096].try_into().expect("a sector");
                page.restore(&mut image).expect("the sector is the one that was scanned");
                Step::Page(home.get(), image.to_vec())
            }
            Replay::Zero { home, length } => Step::Zero(home.get(), length),
        });
        Ok(())
    });
    each.expect("what was scanned can be gone through");
    assert_eq!(got.len(), steps.len(), "steps of the replay");
    assert!(got == *steps, "a step differs: {:?}", got.iter().zip(steps).position(|(a, b)| a != b));
    assert_eq!(sequence.file_len(), *len, "the length after the replay");
}

/// Reads the same places of both.
fn reads_agree(dirty: &Disk, clean: &Disk) {
    assert_eq!(dirty.size(), clean.size());
    let mut bufs = [vec![0; 32 << 10], vec![0; 32 << 10]];
    for at in (0..dirty.size().min(9 * MIB)).step_by(MIB as usize / 2) {
        let part = (dirty.size() - at).min(32 << 10) as usize;
        let [a, b] = &mut bufs;
        let results = (dirty.read_at(&mut a[..part], at), clean.read_at(&mut b[..part], at));
        assert_eq!(results.0.is_ok(), results.1.is_ok(), "whether {at:#x} reads: {results:?}");
        assert!(results.0.is_err() || a[..part] == b[..part], "replayed in memory, {at:#x} is something else");
    }
}

fn header_word(file: &MemoryStorage, within: u64, len: usize) -> Vec<u8> {
    let word = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        let _ = file.read_at(&mut bytes, at).expect("memory can be read");
        bytes
    };
    let sequence = |at: u64| u64::from_le_bytes(word(at + 8, 8).try_into().expect("eight bytes"));
    let at = if sequence(0x10000) > sequence(0x20000) { 0x10000 } else { 0x20000 };
    word(at + within, len)
}

/// What a finished replay leaves.
fn is_replayed(file: &MemoryStorage, want: &MemoryStorage, data_write: &[u8]) {
    assert_eq!(difference(file, want, HEADERS), None, "the replayed file is another one");
    assert_eq!(header_word(file, 48, 16), [0; 16], "the log is still named");
    assert_eq!(header_word(file, 32, 16), data_write, "a replay changes no content and no DataWriteGuid");
}

/// The body.
pub fn run(input: &[u8]) {
    let mut s = Source::new(input);
    let mut disk = if s.byte() & 1 == 0 { small() } else { child() };
    let (kind, k, cut) = (s.byte(), 1 + s.pick(12) as u64, s.byte());
    disk.log_guid = [0; 16];
    let clean = disk.build();
    disk.log_guid = LOG_GUID;
    let mut dirty = disk.build();
    let ring = fill_ring(&mut s, &dirty);
    put_ring(&mut dirty, &ring);
    let want = naive::replay(&ring, LOG_AT, LOG_GUID, dirty.len, &BOUNDS);
    scan_agrees(&ring, dirty.len, want.as_ref());

    let open = |file: Arc<dyn Storage>, options: &OpenOptions| Disk::open_on(file, Vec::new(), options);
    let sealed = |file: Arc<dyn Storage>| {
        let file = Watched::sealed(file);
        file.expect_blocks(MIB);
        file
    };
    let read_only = bounded("reading", 0, || open(sealed(dirty.storage()), &options()).ok());
    let Some((steps, len)) = want else {
        assert!(read_only.is_none(), "a log without a sequence was accepted");
        assert!(open(sealed(dirty.storage()), &options().writable(true)).is_err());
        return;
    };
    let mut clean = clean;
    put_ring(&mut clean, &ring);
    let want = clean.storage();
    naive::apply(&want, &steps, len);
    let beside = open(sealed(Arc::clone(&want) as Arc<dyn Storage>), &options());
    assert_eq!(read_only.is_some(), beside.is_ok(), "whether it opens: {:?}", beside.err());
    let (Some(replayed), Ok(beside)) = (read_only, beside) else { return };
    reads_agree(&replayed, &beside);
    drop((replayed, beside));

    let data_write = disk.data_write;
    let file = dirty.storage();
    let written = Watched::open(Arc::clone(&file) as Arc<dyn Storage>);
    bounded("replaying", 0, || drop(open(written, &options().writable(true)).expect("what opens read-only opens")));
    is_replayed(&file, &want, &data_write);

    let file = dirty.storage();
    let faulty = Arc::new(FaultStorage::new(Arc::clone(&file) as Arc<dyn Storage>).expect("memory can be read"));
    let (kind, fault) = match kind % 4 {
        0 => (CallKind::Write, Fault::Error(ErrorKind::Other)),
        1 => (CallKind::Write, Fault::ErrorAfterHalf(ErrorKind::Other)),
        2 => (CallKind::Sync, Fault::Error(ErrorKind::Other)),
        _ => (CallKind::SetLen, Fault::Error(ErrorKind::StorageFull)),
    };
    faulty.arm(kind, k, Repeat::FromThen, fault);
    let failed = open(Arc::clone(&faulty) as Arc<dyn Storage>, &options().writable(true)).is_err();
    assert_eq!(failed, faulty.hits() > 0, "a replay that met an error says so");
    faulty.heal();
    // Going back to what the device holds costs as much memory as the file grew, so only small ones do.
    if cut & 1 == 1 && len < 64 * MIB {
        faulty.power_cut().expect("memory takes it");
    }
    drop(open(Arc::clone(&faulty) as Arc<dyn Storage>, &options().writable(true)).expect("a replay can be begun again"));
    is_replayed(&file, &want, &data_write);
}
