//! Another virtual size: what a disk shows, beside an array of bytes; where its table goes; what crashes and failures leave.

#[path = "support/crashes.rs"]
mod crashes;
#[path = "support/loud.rs"]
mod loud;

use diffdisk::storage::sim::{CallKind, Fault, FaultStorage, Repeat, Rng, SimWorld};
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Cancel, CompactOptions, CreateOptions, Disk, ErrorKind, NoProgress, OpenOptions, ResizeOptions, Resized, ToolError};
use loud::loud;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

type Parents = Vec<Arc<dyn Storage>>;

fn resize(file: &Arc<dyn Storage>, parents: &Parents, size: u64) -> Result<Resized, ToolError> {
    let options = ResizeOptions::new().shrink(true);
    Disk::resize_on(file.clone(), parents.clone(), size, &options, &NoProgress, &Cancel::new())
}

fn open(file: &Arc<dyn Storage>, parents: &Parents, writable: bool) -> Disk {
    Disk::open_on(file.clone(), parents.clone(), &OpenOptions::new().writable(writable)).unwrap()
}

fn sound(disk: &Disk) {
    let report = disk.check().unwrap();
    assert!(report.is_sound(), "{:?}", report.errors);
    let padding: Vec<_> =
        report.warnings.iter().filter(|w| w.layer == 0 && matches!(w.fault, diffdisk::format::Fault::BehindLastBlock { .. })).collect();
    assert!(padding.is_empty(), "{padding:?}");
}

fn pattern(tag: u64, at: u64, len: u64) -> Vec<u8> {
    (at..at + len).map(|i| (i / 512 * 7 + tag * 31 + i % 251) as u8 | 1).collect()
}

/// A parent full of bytes that are not zero.
fn parent(size: u64) -> Arc<dyn Storage> {
    let bytes: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let disk = Disk::create_on(bytes.clone(), &CreateOptions::dynamic(size).block_size(MIB)).unwrap();
    disk.write_at(&pattern(9, 0, size), 0).unwrap();
    disk.close().unwrap();
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dynamic,
    Fixed,
    Child,
}

/// Random sizes, writes, trims and compactions, beside an array of bytes.
#[test]
fn a_resized_disk_is_a_longer_or_shorter_array() {
    let (mut grown, mut shrunk, mut refused) = (0, 0, 0);
    for seed in 0..24_u64 {
        let mut rng = Rng::new(seed);
        let kind = [Kind::Dynamic, Kind::Fixed, Kind::Child, Kind::Child][seed as usize % 4];
        let sector = if seed % 3 == 0 { 4096 } else { 512 };
        let block = MIB << (seed % 2);
        let some_size =
            |rng: &mut Rng| ((1 + rng.below(6)) * block + [0, sector, block / 2, 3 * sector][rng.below(4) as usize]).max(sector);
        let mut size = some_size(&mut rng);
        let parents: Parents = if kind == Kind::Child { vec![parent(5 * MIB + 4096 * 3)] } else { Vec::new() };
        let file: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let disk = match kind {
            Kind::Dynamic => Disk::create_on(file.clone(), &CreateOptions::dynamic(size).block_size(block).logical_sector(sector as u32)),
            Kind::Fixed => Disk::create_on(file.clone(), &CreateOptions::fixed(size).block_size(block).logical_sector(sector as u32)),
            Kind::Child => Disk::create_child_on(file.clone(), parents.clone(), &CreateOptions::child().block_size(block).size(size)),
        };
        // A child has its parent's sectors.
        let sector = if kind == Kind::Child { 512 } else { sector };
        disk.unwrap().close().unwrap();
        let mut model = vec![0; size as usize];
        if kind == Kind::Child {
            let shown = pattern(9, 0, 5 * MIB + 4096 * 3);
            let both = shown.len().min(model.len());
            model[..both].copy_from_slice(&shown[..both]);
        }
        for step in 0..12 {
            let disk = open(&file, &parents, true);
            for _ in 0..rng.below(4) {
                let at = rng.below(size);
                let len = (1 + rng.below(3 * MIB)).min(size - at);
                let range = at as usize..(at + len) as usize;
                match rng.below(4) {
                    0 => {
                        disk.write_zeroes(at, len).unwrap();
                        model[range].fill(0);
                    }
                    1 => {
                        disk.write_zeroes(at, size - at).unwrap();
                        model[at as usize..].fill(0);
                    }
                    _ => {
                        let data = pattern(seed * 100 + step, at, len);
                        disk.write_at(&data, at).unwrap();
                        model[range].copy_from_slice(&data);
                    }
                }
            }
            if rng.below(3) == 0 {
                disk.compact(&CompactOptions::new(), &NoProgress, &Cancel::new()).unwrap();
            }
            disk.close().unwrap();
            let wanted = some_size(&mut rng) / sector * sector;
            let is_lossy = wanted < size && model[wanted as usize..].iter().any(|&b| b != 0);
            match resize(&file, &parents, wanted) {
                Ok(resized) => {
                    assert!(!is_lossy, "seed {seed} step {step}: content was lost");
                    assert_eq!((resized.from, resized.to), (size, wanted));
                    if wanted > size {
                        grown += 1
                    } else {
                        shrunk += 1
                    }
                    model.resize(wanted as usize, 0);
                    size = wanted;
                }
                Err(ToolError::Refused { .. }) => {
                    assert!(is_lossy, "seed {seed} step {step}: refused without a reason");
                    refused += 1;
                }
                Err(e) => panic!("{e}"),
            }
            let disk = open(&file, &parents, false);
            sound(&disk);
            assert_eq!(disk.size(), size);
            let mut got = vec![0xEE; size as usize];
            disk.read_at(&mut got, 0).unwrap();
            if got != model {
                let at = got.iter().zip(&model).position(|(a, b)| a != b).unwrap();
                panic!("seed {seed} ({kind:?}, block {block}) step {step}: {at:#x} is {} and not {}", got[at], model[at]);
            }
        }
    }
    loud(&format!("resize: {grown} times larger, {shrunk} times smaller, {refused} times refused"));
    assert!(grown > 30 && shrunk > 30 && refused > 10);
}

/// A table of one MiB maps 128 GiB in blocks of 1 MiB; beyond that it moves.
#[test]
fn a_table_that_must_grow_moves_and_takes_everything_along() {
    for is_child in [false, true] {
        let parents: Parents = if is_child { vec![parent(3 * MIB)] } else { Vec::new() };
        let file: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let disk = match is_child {
            false => Disk::create_on(file.clone(), &CreateOptions::dynamic(100 * GIB).block_size(MIB)),
            true => Disk::create_child_on(file.clone(), parents.clone(), &CreateOptions::child().block_size(MIB).size(100 * GIB)),
        };
        let disk = disk.unwrap();
        let places = [0, MIB + 512, 4 * GIB - 512, 99 * GIB, 100 * GIB - 4096];
        for (tag, &at) in places.iter().enumerate() {
            disk.write_at(&pattern(tag as u64, at, 4096), at).unwrap();
        }
        disk.close().unwrap();
        for size in [130 * GIB, 1 << 40, 64 << 40, 100 * GIB] {
            resize(&file, &parents, size).unwrap();
            let disk = open(&file, &parents, true);
            sound(&disk);
            for (tag, &at) in places.iter().enumerate() {
                let mut got = vec![0; 4096];
                disk.read_at(&mut got, at).unwrap();
                assert_eq!(got, pattern(tag as u64, at, 4096), "{at:#x} of {size:#x}");
            }
            if size > 100 * GIB {
                let (last, mut got) = (size - 4096, vec![1; 4096]);
                disk.read_at(&mut got, last).unwrap();
                assert_eq!(got, vec![0; 4096]);
                disk.write_at(&pattern(77, last, 4096), last).unwrap();
                disk.flush().unwrap();
                disk.read_at(&mut got, last).unwrap();
                assert_eq!(got, pattern(77, last, 4096));
                disk.write_zeroes(last / MIB * MIB, size - last / MIB * MIB).unwrap();
            }
            disk.close().unwrap();
        }
        assert!(file.allocated().unwrap() < 64 * MIB, "the table has holes: {}", file.allocated().unwrap());
    }
}

#[test]
fn nonsense_and_loss_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhdx");
    let resize = |size, options: &ResizeOptions| Disk::resize(&path, size, options, &NoProgress, &Cancel::new());
    Disk::create(&path, &CreateOptions::dynamic(GIB)).unwrap().close().unwrap();
    let kind = |result: Result<Resized, ToolError>| result.unwrap_err().kind();
    assert_eq!(kind(resize(GIB + 1, &ResizeOptions::new())), ErrorKind::InvalidInput);
    assert_eq!(kind(resize(65 << 40, &ResizeOptions::new())), ErrorKind::InvalidInput);
    assert_eq!(kind(resize(MIB, &ResizeOptions::new())), ErrorKind::InvalidInput, "smaller only when told");
    let held = Disk::open(&path, &OpenOptions::new().writable(true)).unwrap();
    assert_eq!(kind(resize(2 * GIB, &ResizeOptions::new())), ErrorKind::InUse);
    drop(held);
    Disk::create_child(dir.path().join("b.vhdx"), &path, &CreateOptions::child()).unwrap().close().unwrap();
    let Err(ToolError::Children { children, .. }) = resize(2 * GIB, &ResizeOptions::new()) else { panic!("it has a child") };
    assert_eq!(children, [dir.path().join("b.vhdx")]);
    Disk::open(dir.path().join("b.vhdx"), &OpenOptions::new()).unwrap();
    std::fs::rename(dir.path().join("b.vhdx"), dir.path().join("b.bin")).unwrap();
    let known = ResizeOptions::new().known_children(vec![dir.path().join("b.bin")]);
    assert!(matches!(resize(2 * GIB, &known), Err(ToolError::Children { .. })));
    let cancel = Cancel::new();
    cancel.cancel();
    let cancelled = Disk::resize(&path, 2 * GIB, &ResizeOptions::new(), &NoProgress, &cancel);
    assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(Disk::open(&path, &OpenOptions::new()).unwrap().size(), GIB);
}

/// A small disk in a simulated world: (world, leaf, parents).
fn prepared(is_child: bool, size: u64) -> (SimWorld, Arc<dyn Storage>, Parents) {
    let world = SimWorld::new(5);
    let parents: Parents = if is_child { vec![parent(3 * MIB)] } else { Vec::new() };
    let leaf: Arc<dyn Storage> = world.create("leaf");
    let disk = match is_child {
        false => Disk::create_on(leaf.clone(), &CreateOptions::dynamic(size).block_size(MIB)),
        true => Disk::create_child_on(leaf.clone(), parents.clone(), &CreateOptions::child().block_size(MIB).size(size)),
    };
    let disk = disk.unwrap();
    disk.write_at(&[7; 512], 512).unwrap();
    disk.write_at(&[8; 512], size - 512).unwrap();
    disk.write_zeroes(MIB, size - MIB).unwrap();
    disk.close().unwrap();
    world.forget();
    (world, leaf, parents)
}

/// Whatever a crash in a resize leaves, the disk opens, has its old size or the new one, shows what it showed, and can be resized.
#[test]
fn every_crash_leaves_the_old_size_or_the_new_one() {
    let cases = [
        (false, 2 * MIB + 512, 4 * MIB, 1),
        (true, 2 * MIB + 512, 5 * MIB, 1),
        (true, 4 * MIB, MIB + 4096, 1),
        (false, 100 * GIB, 130 * GIB, 4),
        (true, 100 * GIB, 130 * GIB, 4),
    ];
    let mut all = 0;
    for (is_child, from, to, of) in cases {
        let (world, leaf, parents) = prepared(is_child, from);
        resize(&leaf, &parents, to).unwrap();
        let mut seen = [0, 0];
        let crashed = crashes::after_each(&world.trace(), of, &parents, &mut |again, disk| {
            assert!(disk.size() == from || disk.size() == to, "{:#x}", disk.size());
            seen[usize::from(disk.size() == to)] += 1;
            assert!(disk.check().unwrap().is_sound());
            let mut got = vec![0xEE; 3 * MIB.min(disk.size()) as usize];
            got.truncate(disk.size().min(3 * MIB) as usize);
            disk.read_at(&mut got, 0).unwrap();
            assert_eq!(&got[512..1024], [7; 512]);
            assert!(got[MIB as usize..].iter().all(|&b| b == 0));
            drop(disk);
            resize(&again, &parents, to).unwrap();
            let disk = open(&again, &parents, false);
            sound(&disk);
            assert_eq!(disk.size(), to);
        });
        all += crashed.states;
        let refused = crashed.refused;
        assert!(seen[0] > 5 && seen[1] > 5 && refused < crashed.states / 3, "{is_child} {from} {to}: {seen:?} {refused}");
    }
    loud(&format!("resize: {all} crash states, 0 violations"));
    assert!(all > 200);
}

/// Each storage call fails once, and from then on: an error, and the disk has one of its sizes and its content.
#[test]
fn every_call_may_fail() {
    let mut met = 0;
    for (is_child, from, to) in
        [(false, 2 * MIB + 512, 4 * MIB), (true, 2 * MIB + 512, 5 * MIB), (true, 4 * MIB, MIB + 4096), (true, 100 * GIB, 130 * GIB)]
    {
        for call in [CallKind::Read, CallKind::Write, CallKind::Len, CallKind::SetLen, CallKind::Sync, CallKind::Punch] {
            for repeat in [Repeat::Once, Repeat::FromThen] {
                for k in 1.. {
                    let (_, leaf, parents) = prepared(is_child, from);
                    let faulty = Arc::new(FaultStorage::new(leaf.clone()).unwrap());
                    faulty.arm(call, k, repeat, Fault::Error(std::io::ErrorKind::Other));
                    let file: Arc<dyn Storage> = faulty.clone();
                    let result = resize(&file, &parents, to);
                    let has_met = faulty.hits() > 0;
                    faulty.heal();
                    if result.is_ok() {
                        assert_eq!(open(&file, &parents, false).size(), to);
                    }
                    let disk = open(&file, &parents, true);
                    assert!(disk.check().unwrap().is_sound());
                    assert!(disk.size() == from || disk.size() == to);
                    let mut got = vec![0; 512];
                    disk.read_at(&mut got, 512).unwrap();
                    assert_eq!(got, [7; 512]);
                    disk.close().unwrap();
                    resize(&file, &parents, to).unwrap();
                    sound(&open(&file, &parents, false));
                    if !has_met {
                        break;
                    }
                    met += 1;
                }
            }
        }
    }
    loud(&format!("resize: {met} faults, 0 violations"));
    assert!(met > 100);
}
