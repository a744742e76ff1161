//! Flattening a disk while four threads write to it: each sector belongs to one of them, and every read finds the last value written.

use super::chain::{MIB, content, scribble};
use diffdisk::storage::sim::Rng;
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Cancel, CreateOptions, Disk, NoProgress, OpenOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const WRITERS: usize = 4;
const SIZE: u64 = 24 * MIB;
const SECTOR: usize = 512;

#[test]
fn a_disk_is_flattened_while_it_is_written_to() {
    for seed in 0..6 {
        let (base, child): (Arc<MemoryStorage>, Arc<MemoryStorage>) = Default::default();
        let mut rng = Rng::new(900 + seed);
        // Blocks of the base that hold nothing, so that first touches go on until the cut and beyond it.
        let disk = Disk::create_on(base.clone(), &CreateOptions::dynamic(SIZE).block_size(2 * MIB)).expect("a base");
        let mut model = vec![0; SIZE as usize];
        scribble(&disk, &mut model, &mut rng, 10);
        disk.close().expect("a close");
        let disk = Disk::create_child_on(child.clone(), vec![base], &CreateOptions::child()).expect("a child");
        scribble(&disk, &mut model, &mut rng, 10);
        disk.flush().expect("a flush");
        let is_over = AtomicBool::new(false);
        let models: Vec<Vec<(u64, u8)>> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|thread| {
                    let (disk, leaf, is_over) = (&disk, &child, &is_over);
                    scope.spawn(move || write_until(disk, leaf, thread, 7000 * seed + thread as u64, is_over))
                })
                .collect();
            let done = disk.flatten(&NoProgress, &Cancel::new()).expect("a cut");
            assert!(done.is_cut);
            // A while on the disk that has no parent any more.
            for _ in 0..20 {
                disk.flush().expect("a flush");
            }
            is_over.store(true, Ordering::Relaxed);
            writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
        });
        for (sector, byte) in models.into_iter().flatten() {
            let at = sector as usize * SECTOR;
            model[at..at + SECTOR].fill(byte);
        }
        let what = format!("seed {seed}");
        assert!(content(&disk) == model, "{what}: live");
        disk.close().expect("a close");
        let disk = Disk::open_on(child, Vec::new(), &OpenOptions::new()).expect("it needs nobody");
        let report = disk.check().expect("a check");
        assert!(report.is_sound(), "{what}: {:?}", report.errors);
        let shown = content(&disk);
        if let Some(at) = shown.iter().zip(&model).position(|(a, b)| a != b) {
            let wrong = shown.iter().zip(&model).filter(|(a, b)| a != b).count();
            let near: Vec<_> = disk.extents(at as u64 / MIB * MIB, MIB).expect("inside").collect();
            panic!("{what}: reopened, byte {at} is {} and should be {}, {wrong} are wrong; {near:?}", shown[at], model[at]);
        }
    }
}

/// Writes to sectors of its own until told to stop; returns the last value of each.
fn write_until(disk: &Disk, leaf: &MemoryStorage, thread: usize, seed: u64, is_over: &AtomicBool) -> Vec<(u64, u8)> {
    let mut rng = Rng::new(seed);
    let mut last = std::collections::BTreeMap::new();
    let mut rounds = 0;
    while !is_over.load(Ordering::Relaxed) || rounds < 200 {
        rounds += 1;
        let sector = rng.below(SIZE / SECTOR as u64 / WRITERS as u64) * WRITERS as u64 + thread as u64;
        let at = sector * SECTOR as u64;
        let byte = 1 + rng.below(255) as u8;
        if rounds % 7 == 0 {
            // As a host that writes by itself does, through a token.
            let token = disk.begin_write(at, SECTOR as u64).expect("a token");
            std::thread::yield_now();
            host_write(leaf, &token, byte);
            token.complete().expect("completed");
        } else {
            disk.write_at(&[byte; SECTOR], at).expect("a write");
        }
        last.insert(sector, byte);
        let mut seen = [0; SECTOR];
        disk.read_at(&mut seen, at).expect("a read");
        assert_eq!(seen, [byte; SECTOR], "thread {thread}, sector {sector}");
        if rounds % 50 == 0 {
            disk.flush().expect("a flush");
        }
    }
    last.into_iter().collect()
}

/// What a host with an I/O engine of its own does.
fn host_write(leaf: &MemoryStorage, token: &diffdisk::WriteToken<'_>, byte: u8) {
    for extent in token.extents() {
        leaf.write_at(&vec![byte; extent.len as usize], extent.file_offset).expect("a write");
    }
}
