//! Compaction cut off at any moment: what the disk shows stays, the file stays sound, and compacting again goes on.
//!
//! `DIFFDISK_COMPACT_SHARE` (16) tries one of so many crashes at each moment, `DIFFDISK_COMPACT_EVERY` (3) every so many-th call as the one that
//! fails; 1 is all of them, which takes minutes.
//!
//! Random histories, threads, and other programs' opinion of the result are elsewhere (`tests/model.rs`, `tests/threads.rs`, `.ci/e2e/compact.sh`).

#[path = "support/crashes.rs"]
mod crashes;
#[path = "support/loud.rs"]
mod loud;

use diffdisk::storage::sim::{CallKind, Fault, FaultStorage, Repeat, SimWorld};
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Cancel, CompactOptions, CompactReport, CreateOptions, Disk, NoProgress, OpenOptions, ToolError};
use loud::loud;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 12;
const SIZE: u64 = BLOCKS * MIB;

type Parents = Vec<Arc<dyn Storage>>;

fn compact(disk: &Disk) -> Result<CompactReport, ToolError> {
    disk.compact(&CompactOptions::default(), &NoProgress, &Cancel::new())
}

fn open(file: &Arc<dyn Storage>, parents: &Parents, writable: bool) -> Disk {
    Disk::open_on(file.clone(), parents.clone(), &OpenOptions::new().writable(writable)).unwrap()
}

/// A byte that is never zero, and another one in each sector of each block.
fn filled(tag: u8, at: u64, len: u64) -> Vec<u8> {
    (at..at + len).map(|i| tag.wrapping_add((i / 512) as u8).wrapping_add((i / MIB) as u8 * 16) | 1).collect()
}

fn parent() -> Arc<dyn Storage> {
    let bytes: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let disk = Disk::create_on(bytes.clone(), &CreateOptions::dynamic(SIZE).block_size(MIB)).unwrap();
    disk.write_at(&filled(9, 0, SIZE / 2), 0).unwrap();
    disk.close().unwrap();
    bytes
}

/// A disk with everything that a compaction is for: gaps left by trims, a block of zeros, one that holds what the parent shows, one of
/// which a part is there, and blocks behind them all that will move. Returns what it shows.
fn prepared(is_child: bool) -> (SimWorld, Arc<dyn Storage>, Parents, Vec<u8>) {
    let world = SimWorld::new(5);
    let leaf: Arc<dyn Storage> = world.create("leaf");
    let parents: Parents = if is_child { vec![parent()] } else { Vec::new() };
    let disk = match is_child {
        true => Disk::create_child_on(leaf.clone(), parents.clone(), &CreateOptions::child().block_size(MIB)),
        false => Disk::create_on(leaf.clone(), &CreateOptions::dynamic(SIZE).block_size(MIB)),
    }
    .unwrap();
    let mut shown = vec![0; SIZE as usize];
    if is_child {
        shown[..(SIZE / 2) as usize].copy_from_slice(&filled(9, 0, SIZE / 2));
    }
    let mut write = |at: u64, bytes: &[u8]| {
        disk.write_at(bytes, at).unwrap();
        shown[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    write(0, &filled(1, 0, MIB));
    write(MIB, &filled(9, MIB, MIB)); // what a parent shows there
    write(2 * MIB, &vec![0; MIB as usize]);
    write(3 * MIB + 4096, &filled(2, 0, 4096));
    write(7 * MIB, &filled(3, 0, MIB));
    write(9 * MIB, &filled(4, 0, MIB));
    write(10 * MIB + 512, &filled(5, 0, 512));
    disk.trim(7 * MIB, MIB).unwrap();
    shown[7 * MIB as usize..8 * MIB as usize].fill(0);
    disk.close().unwrap();
    world.forget();
    (world, leaf, parents, shown)
}

fn knob(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn shows(disk: &Disk, shown: &[u8], when: &str) {
    let mut got = vec![0xEE; shown.len()];
    disk.read_at(&mut got, 0).unwrap();
    if let Some(at) = (0..shown.len()).find(|&i| got[i] != shown[i]) {
        panic!("{when}: {at:#x} is {:#x} and not {:#x}", got[at], shown[at]);
    }
}

#[test]
fn every_crash_of_a_compaction_leaves_what_the_disk_shows() {
    let of = knob("DIFFDISK_COMPACT_SHARE", 16);
    let mut all = 0;
    for is_child in [false, true] {
        let (world, leaf, parents, shown) = prepared(is_child);
        let before = leaf.len().unwrap();
        let disk = open(&leaf, &parents, true);
        let report = compact(&disk).unwrap();
        assert!(report.moved_blocks > 0 && report.file_after < before, "{report:?}");
        disk.close().unwrap();
        let mut shorter = 0;
        let crashed = crashes::after_each(&world.trace(), of, &parents, &mut |again, disk| {
            let report = disk.check().unwrap();
            assert!(report.is_sound(), "{:?}", report.errors);
            shows(&disk, &shown, "after a crash");
            drop(disk);
            shorter += usize::from(again.len().unwrap() < before);
            let disk = open(&again, &parents, true);
            compact(&disk).unwrap();
            shows(&disk, &shown, "compacted again");
            disk.close().unwrap();
            assert!(open(&again, &parents, false).check().unwrap().is_sound());
        });
        all += crashed.states;
        assert!(
            shorter > 0 && crashed.refused < crashed.states / 3,
            "{is_child}: {shorter} shorter, {} refused of {}",
            crashed.refused,
            crashed.states
        );
    }
    loud(&format!("compact: {all} crash states, 0 violations"));
    assert!(all > 100, "only {all} states");
}

#[test]
fn every_call_of_a_compaction_may_fail() {
    let every = knob("DIFFDISK_COMPACT_EVERY", 3) as usize;
    let mut met = 0;
    for is_child in [false, true] {
        for call in [CallKind::Read, CallKind::Write, CallKind::Len, CallKind::SetLen, CallKind::Sync, CallKind::Punch] {
            for repeat in [Repeat::Once, Repeat::FromThen] {
                for k in (1..).step_by(every) {
                    let (_, leaf, parents, shown) = prepared(is_child);
                    let faulty = Arc::new(FaultStorage::new(leaf.clone()).unwrap());
                    let file: Arc<dyn Storage> = faulty.clone();
                    let disk = open(&file, &parents, true);
                    faulty.arm(call, k, repeat, Fault::Error(std::io::ErrorKind::Other));
                    let _ = compact(&disk);
                    let has_met = faulty.hits() > 0;
                    faulty.heal();
                    // Also through the handle to which it happened, if that still reads.
                    let mut got = vec![0; MIB as usize];
                    if disk.read_at(&mut got, 0).is_ok() {
                        assert_eq!(got, shown[..MIB as usize]);
                    }
                    let _ = disk.close();
                    let disk = open(&file, &parents, true);
                    let report = disk.check().unwrap();
                    assert!(report.is_sound(), "{call:?} {k} {repeat:?}: {:?}", report.errors);
                    shows(&disk, &shown, "after a failure");
                    compact(&disk).unwrap();
                    shows(&disk, &shown, "compacted again");
                    disk.close().unwrap();
                    if !has_met {
                        break;
                    }
                    met += 1;
                }
            }
        }
    }
    loud(&format!("compact: {met} faults, 0 violations"));
    assert!(met > 60, "only {met} faults");
}
