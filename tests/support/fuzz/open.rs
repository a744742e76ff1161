//! `open`: a sound file with lies in it, signed again so that they get past the checksums.
//!
//! The file is opened read-only (no byte may change), examined, and read at every block it has. What `extents()` says must agree with
//! what reads return and must keep off the structures, which a parser of this module's own finds. Then it is opened for writing:
//! what was sound before must take writes and give them back after a reopening; what was not must only not panic.

use super::forge::*;
use super::guard::{Watched, bounded};
use super::images::{Base, base};
use super::source::Source;
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Disk, ExtentKind, OpenOptions};
use std::collections::BTreeSet;
use std::sync::Arc;

const MOST_EDITS: usize = 24;

/// Fields by offset and length, as §1.5, §2, §6 and §3.2 of the format's description have them.
const HEADER: [(u64, usize); 11] = [(0, 4), (4, 4), (8, 8), (16, 16), (32, 16), (48, 16), (64, 2), (66, 2), (68, 4), (72, 8), (80, 8)];
const REGION_HEAD: [(u64, usize); 4] = [(0, 4), (4, 4), (8, 4), (12, 4)];
const REGION_ENTRY: [(u64, usize); 4] = [(0, 16), (16, 8), (24, 4), (28, 4)];
const TABLE_HEAD: [(u64, usize); 4] = [(0, 8), (8, 2), (10, 2), (12, 4)];
const TABLE_ENTRY: [(u64, usize); 5] = [(0, 16), (16, 4), (20, 4), (24, 4), (28, 4)];
const ENTRY: [(usize, usize); 9] = [(0, 4), (8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 16), (48, 8), (56, 8)];
const IDS: [RawGuid; 10] =
    [[0; 16], REGION_BAT, REGION_METADATA, ITEM_PARAMETERS, ITEM_SIZE, ITEM_LOGICAL, ITEM_LOCATOR, ITEM_INCOMPLETE, LOG_GUID, BASE_IDS.1];

/// The bytes for a field: a GUID for a long one, a number otherwise.
fn value(s: &mut Source<'_>, len: usize) -> Vec<u8> {
    match len {
        16 => IDS[s.pick(IDS.len())].to_vec(),
        _ => s.number().to_le_bytes()[..len].to_vec(),
    }
}

fn apply(image: &mut Image, place: Place, bytes: &[u8], signed: bool) {
    let place = match place {
        _ if signed => place,
        Place::Header(slot, at) => Place::File(0x10000 + 0x10000 * slot as u64 + at),
        Place::Regions(copy, at) => Place::File(0x30000 + 0x10000 * copy as u64 + at),
        Place::Metadata(at) => Place::File(METADATA_AT + at),
        Place::File(_) => place,
    };
    let old = std::mem::replace(image, Image::raw(0));
    *image = old.edit(place, bytes);
}

/// One lie. The low bits of its first byte say about what, bits 4 to 6 (unless all set) that it is signed, bit 7 that only the first of two
/// copies has it.
pub fn edit(image: &mut Image, bat_at: u64, s: &mut Source<'_>) {
    let how = s.byte();
    let signed = how >> 4 & 7 != 7;
    let copies = if how & 0x80 == 0 { 2 } else { 1 };
    match how & 15 {
        0 | 1 => {
            let (at, len) = HEADER[s.pick(HEADER.len())];
            let bytes = value(s, len);
            (2 - copies..2).for_each(|slot| apply(image, Place::Header(slot, at), &bytes, signed));
        }
        2 => {
            let (at, len) = REGION_HEAD[s.pick(REGION_HEAD.len())];
            let bytes = value(s, len);
            (0..copies).for_each(|copy| apply(image, Place::Regions(copy, at), &bytes, signed));
        }
        3 | 4 => {
            let n = s.pick(4) as u64;
            let (at, len) = REGION_ENTRY[s.pick(REGION_ENTRY.len())];
            let bytes = value(s, len);
            (0..copies).for_each(|copy| apply(image, Place::Regions(copy, 16 + 32 * n + at), &bytes, signed));
        }
        5 => {
            let (at, len) = TABLE_HEAD[s.pick(TABLE_HEAD.len())];
            let bytes = value(s, len);
            apply(image, Place::Metadata(at), &bytes, signed);
        }
        6 => {
            let n = 1 + s.pick(8) as u64;
            let (at, len) = TABLE_ENTRY[s.pick(TABLE_ENTRY.len())];
            let bytes = value(s, len);
            apply(image, Place::Metadata(32 * n + at), &bytes, signed);
        }
        7 | 8 => {
            // Items stand one after the other from 64 KiB on: parameters, size, sectors, identity, locator.
            let at = 0x10000 + s.pick(64) as u64;
            let len = [1, 2, 4, 8][s.pick(4)];
            let bytes = value(s, len);
            apply(image, Place::Metadata(at), &bytes, signed);
        }
        9 | 10 => {
            let index = [s.number() % 4200, s.number() % (1 << 21)][s.pick(2)];
            let word = if s.byte() & 1 == 0 { (s.number() / MIB * MIB) | u64::from(s.byte() & 7) } else { s.number() };
            image.put(bat_at + 8 * index, &word.to_le_bytes());
        }
        11 => {
            let at = s.number() % (image.len.clamp(1, 1 << 42));
            image.put(at, s.bytes(64));
        }
        12 => image.len = s.number(),
        13 | 14 => log_entry(image, s, signed),
        _ => locator(image, s),
    }
}

/// Where replays like to go.
const HOMES: [u64; 8] = [BAT_AT, 0x3_0000, 0x4_0000, METADATA_AT, METADATA_AT + 0x1_0000, DATA_AT, DATA_AT + MIB + 4096, DATA_AT + 2 * MIB];

fn log_entry(image: &mut Image, s: &mut Source<'_>, signed: bool) {
    let mut entry = Entry::new(s.number(), s.number() as u32, image.len / MIB * MIB, Vec::new());
    for _ in 0..s.pick(5) {
        let at = if s.byte() & 1 == 0 { HOMES[s.pick(HOMES.len())] } else { s.number() };
        let change = match s.byte() & 3 {
            0 => Change::Zero { at, len: s.number() },
            1 => Change::Data { at, sector: vec![s.byte(); 4096] },
            // What is there already, or a BAT that is.
            2 => Change::Data { at, sector: image.get(at % (1 << 42), 4096) },
            _ => Change::Data { at, sector: bat_sector(&[present(DATA_AT), s.number(), (s.number() / MIB * MIB) | 6]) },
        };
        entry.changes.push(change);
    }
    let mut bytes = entry.encode();
    for _ in 0..s.pick(3) {
        let (at, len) = ENTRY[s.pick(ENTRY.len())];
        bytes[at..at + len].copy_from_slice(&value(s, len));
    }
    if signed {
        sign(&mut bytes);
    }
    let at = s.number() % 256 * 4096;
    for (i, sector) in bytes.chunks(4096).enumerate() {
        image.put(LOG_AT + (at + 4096 * i as u64) % MIB, sector);
    }
    for slot in 0..2 {
        apply(image, Place::Header(slot, 48), &LOG_GUID, true);
    }
}

const KEYS: [&str; 6] = ["parent_linkage", "parent_linkage2", "relative_path", "volume_path", "absolute_win32_path", "x"];

/// The pairs of a locator: keys that mean something or anything, values likewise.
pub fn pairs(s: &mut Source<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |s: &mut Source<'_>| {
        let key = if s.byte() & 7 == 7 { s.bytes(40).to_vec() } else { utf16(KEYS[s.pick(KEYS.len())]) };
        let value = match s.pick(4) {
            0 => utf16(&guid_text(BASE_IDS.1)),
            1 => utf16(&guid_text([0; 16])),
            2 => utf16("parent.vhdx"),
            _ => s.bytes(200).to_vec(),
        };
        (key, value)
    };
    (0..s.pick(8)).map(|_| pair(s)).collect()
}

fn locator(image: &mut Image, s: &mut Source<'_>) {
    let mut item = Locator { kind: LOCATOR_VHDX, pairs: pairs(s) }.encode();
    for _ in 0..s.pick(3) {
        let at = s.pick(item.len().min(256));
        item[at] = s.byte();
    }
    let len = if s.byte() & 7 == 7 { s.number() as u32 } else { item.len() as u32 };
    image.put(METADATA_AT + 0x10028, &item);
    apply(image, Place::Metadata(32 * 6 + 20), &len.to_le_bytes(), true);
}

/// What no block may lie over, when the file is simple enough for this parser: its log is empty and both headers are good.
fn structures(image: &Image) -> Option<Vec<(u64, u64)>> {
    let u32_at = |at| u32::from_le_bytes(image.get(at, 4).try_into().expect("four bytes"));
    let u64_at = |at| u64::from_le_bytes(image.get(at, 8).try_into().expect("eight bytes"));
    let is_good = |at: u64, len: usize, signature: &[u8]| {
        let mut bytes = image.get(at, len);
        sign(&mut bytes);
        bytes == image.get(at, len) && bytes.starts_with(signature)
    };
    if !is_good(0x10000, 4096, b"head") || !is_good(0x20000, 4096, b"head") || !is_good(0x30000, 0x10000, b"regi") {
        return None;
    }
    let header = if u64_at(0x10008) > u64_at(0x20008) { 0x10000 } else { 0x20000 };
    if image.get(header + 48, 16) != [0; 16] {
        return None;
    }
    let mut all = vec![(0, MIB), (u64_at(header + 72), u64_at(header + 72).saturating_add(u32_at(header + 68).into()))];
    for n in 0..u64::from(u32_at(0x30008)).min(16) {
        let entry = 0x30010 + 32 * n;
        all.push((u64_at(entry + 16), u64_at(entry + 16).saturating_add(u32_at(entry + 24).into())));
    }
    Some(all)
}

/// Where to look: the ends and the middle of the first and last blocks.
fn places(size: u64, block: u64) -> BTreeSet<u64> {
    let blocks = size.div_ceil(block);
    let picked = (0..9).chain(4095..4097).chain(blocks.saturating_sub(3)..blocks).filter(|&b| b < blocks);
    picked.flat_map(|b| [0, 4096, block / 2, block - 4096].map(|within| b * block + within)).filter(|&at| at < size).collect()
}

/// Reads, asks for extents, and compares the two.
fn look(disk: &Disk, fences: &[Option<Vec<(u64, u64)>>], files: &[Arc<MemoryStorage>]) {
    let Ok(info) = disk.info() else { return };
    let mut buf = vec![0; 4096];
    for at in places(disk.size(), info.block_size) {
        let part = (disk.size() - at).min(4096);
        let buf = &mut buf[..part as usize];
        buf.fill(0x77);
        let read = disk.read_at(buf, at);
        let Ok(extents) = disk.extents(at, part) else { continue };
        let mut covered = at;
        for extent in extents {
            let Ok(extent) = extent else {
                assert!(read.is_err(), "a read of {at:#x} says yes where an extent says no");
                break;
            };
            assert!(extent.offset == covered && extent.len > 0, "extents of {at:#x} leave something out");
            let piece = &buf[(covered - at) as usize..(covered + extent.len - at) as usize];
            covered += extent.len;
            match extent.kind {
                ExtentKind::Zero { .. } => assert!(read.is_err() || piece.iter().all(|&b| b == 0), "zeros at {at:#x} are none"),
                ExtentKind::Data { layer, file_offset } => {
                    let Some(fences) = &fences[layer] else { continue };
                    let end = file_offset + extent.len;
                    let hit = fences.iter().find(|(from, to)| file_offset < *to && *from < end);
                    assert_eq!(hit, None, "the disk at {at:#x} is the file's own structures at {file_offset:#x}");
                    let mut there = vec![0; piece.len()];
                    let _ = files[layer].read_at(&mut there, file_offset).expect("memory can be read");
                    assert!(read.is_err() || there == piece, "the disk at {at:#x} is not the file at {file_offset:#x}");
                }
            }
        }
    }
}

fn open(leaf: Arc<dyn Storage>, parents: &[Arc<Watched>], options: &OpenOptions) -> Option<Disk> {
    let parents = parents.iter().map(|p| Arc::clone(p) as Arc<dyn Storage>).collect();
    Disk::open_on(leaf, parents, options).ok()
}

/// Reading: returns whether the file is sound.
fn read_only(images: &[Image], untrusted: bool) -> bool {
    let files: Vec<Arc<MemoryStorage>> = images.iter().map(Image::storage).collect();
    let fences: Vec<_> = images.iter().map(structures).collect();
    let watched: Vec<Arc<Watched>> = files.iter().map(|f| Watched::sealed(Arc::clone(f) as Arc<dyn Storage>)).collect();
    bounded("reading", 0, || {
        let options = OpenOptions::new().untrusted(untrusted);
        let Some(disk) = open(Arc::clone(&watched[0]) as Arc<dyn Storage>, &watched[1..], &options) else { return false };
        // A place beyond the file's end that an entry without a block names is a warning, until the file grows over it and it is somebody
        // else's: then the same entry is an error, though nothing is read through it.
        let sound = disk.check().is_ok_and(|report| report.is_sound() && report.warnings.iter().all(|at| at.fault.key() != "stray_anchor"));
        watched.iter().for_each(|file| file.expect_blocks(256 * MIB));
        look(&disk, &fences, &files);
        sound
    })
}

/// Writing to it all over.
fn writing(images: &[Image], sound: bool) {
    let leaf = images[0].storage();
    let parents: Vec<Arc<Watched>> = images[1..].iter().map(|image| Watched::sealed(image.storage())).collect();
    let watched = Watched::open(Arc::clone(&leaf) as Arc<dyn Storage>);
    parents.iter().chain([&watched]).for_each(|file| file.expect_blocks(256 * MIB));
    bounded("writing", 0, || {
        let Some(disk) = open(watched, &parents, &OpenOptions::new().writable(true)) else { return };
        let Ok(info) = disk.info() else { return };
        let mut written = Vec::new();
        for (i, at) in places(disk.size(), info.block_size).into_iter().step_by(3).enumerate().take(12) {
            let len = (disk.size() - at).min(1000 + 512 * (i as u64 % 3));
            if disk.write_at(&vec![0xE0 + i as u8; len as usize], at).is_ok() {
                written.push((at, len, 0xE0 + i as u8));
            }
        }
        let _ = disk.trim(7 * info.block_size, info.block_size);
        let flushed = disk.flush().is_ok();
        let _ = disk.check();
        let closed = disk.close().is_ok();
        if !(sound && flushed && closed) {
            return;
        }
        let again = open(Watched::sealed(leaf), &[], &OpenOptions::new().parents(diffdisk::ParentPolicy::Deny));
        let again = again.expect("what was sound and closed opens");
        let report = again.check();
        assert!(report.as_ref().is_ok_and(|report| report.is_sound()), "what was sound and written to is sound: {report:?}");
        for (at, len, byte) in written.into_iter().filter(|&(at, _, _)| at / info.block_size != 7) {
            let mut buf = vec![0; len as usize];
            again.read_at(&mut buf, at).expect("what was written can be read");
            assert!(buf.iter().all(|&b| b == byte), "what was written to {at:#x} is not there");
        }
    });
}

/// What the leaf alone reads as in many places; `None` when it does not open.
fn glimpses(file: &Arc<dyn Storage>) -> Option<Vec<Option<Vec<u8>>>> {
    let disk = open(Arc::clone(file), &[], &OpenOptions::new().parents(diffdisk::ParentPolicy::Deny))?;
    let block = disk.info().ok()?.block_size;
    let glimpse = |at: u64| {
        let mut buf = vec![0; (disk.size() - at).min(700) as usize];
        disk.read_at(&mut buf, at).ok().map(|()| buf)
    };
    Some(places(disk.size(), block).into_iter().map(glimpse).collect())
}

/// Examining and repairing it: what could be read reads the same afterwards, and once is enough.
fn repairing(image: &Image, accepts: bool) {
    let file: Arc<dyn Storage> = image.storage();
    let before = glimpses(&file);
    let (nobody, never) = (diffdisk::NoProgress, diffdisk::Cancel::new());
    let report = Disk::examine_on(&file, Vec::new(), &nobody, &never).expect("memory can be examined");
    assert!(before.is_some() || !report.is_sound(), "a file without an error does not open");
    let mut options = diffdisk::RepairOptions::new();
    if accepts {
        options = options.accept(diffdisk::Consent::EmptyLog);
    }
    let Ok(done) = Disk::repair_on(&file, &options, &nobody, &never) else { return };
    let after = glimpses(&file);
    match (before, after) {
        (Some(before), after) => {
            let after = after.expect("what opened opens");
            let same = before.iter().zip(&after).all(|(old, new)| old.is_none() || old == new);
            assert!(same && before.len() == after.len(), "a repair changed what can be read");
        }
        (None, after) => assert!(after.is_some() || !done.left.is_sound(), "a file without an error does not open"),
    }
    let again = Disk::repair_on(&file, &options, &nobody, &never).expect("a second repair");
    assert!(again.steps.is_empty(), "a second repair did {:?}", again.steps);
}

/// The body.
pub fn run(input: &[u8]) {
    let mut s = Source::new(input);
    let Base { mut chain, bat_at } = base(s.pick(256));
    let options = s.byte();
    for _ in 0..MOST_EDITS {
        if s.is_empty() {
            break;
        }
        edit(&mut chain[0], bat_at, &mut s);
    }
    // A file of an exabyte is no lie that a storage in memory could tell quickly; 2^46 is beyond the largest that means anything.
    chain[0].len = chain[0].len.min(1 << 47);
    let sound = read_only(&chain, options & 2 != 0);
    if options & 1 != 0 {
        writing(&chain, sound);
    }
    if options & 4 != 0 {
        repairing(&chain[0], options & 8 != 0);
    }
}
