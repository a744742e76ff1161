//! Dropping savepoints that something stands on: every other one, and the clone, go on showing what they showed.

#[path = "support/loud.rs"]
mod loud;
#[path = "support/store.rs"]
mod support;

use diffdisk::storage::sim::Rng;
use diffdisk::{
    Cancel, CloneDisk, CreateOptions, Disk, ErrorKind, NoProgress, OpenOptions, ParentPolicy, Phase, Progress, ResetOptions, Store,
    StoreError,
};
use loud::loud;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::{MIB, RAW_LEN, World, content, first, quick};

/// What the clone and each savepoint hold, in plain bytes.
struct Model {
    world: World,
    clone: CloneDisk,
    now: Vec<u8>,
    saved: BTreeMap<String, Vec<u8>>,
}

fn size() -> usize {
    RAW_LEN.next_multiple_of(512) as usize
}

fn whole(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xEE; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

impl Model {
    fn new() -> Self {
        let world = World::new();
        let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
        let mut now = content(1);
        now.resize(size(), 0);
        Self { world, clone, now, saved: BTreeMap::new() }
    }

    fn change(&mut self, rng: &mut Rng) {
        let disk = self.clone.open().unwrap();
        for _ in 0..1 + rng.below(5) {
            let at = rng.below(size() as u64);
            let len = (1 + rng.below(200_000)).min(size() as u64 - at);
            let range = at as usize..(at + len) as usize;
            match rng.below(6) {
                0 => {
                    // Whole blocks read as zeros after a trim; here a block is 1 MiB.
                    let block = rng.below(8) * MIB;
                    disk.trim(block, MIB).unwrap();
                    self.now[block as usize..(block + MIB) as usize].fill(0);
                }
                1 => {
                    disk.write_zeroes(at, len).unwrap();
                    self.now[range].fill(0);
                }
                _ => {
                    let byte = rng.below(255) as u8 + 1;
                    disk.write_at(&vec![byte; len as usize], at).unwrap();
                    self.now[range].fill(byte);
                }
            }
        }
        if rng.below(2) == 0 { disk.close().unwrap() } else { disk.flush().unwrap() }
    }

    fn check(&self, what: &str) {
        let disk = self.clone.open_with(&OpenOptions::new()).unwrap();
        assert!(disk.check().unwrap().is_sound(), "{what}");
        assert!(whole(&disk) == self.now, "{what}: the clone");
        let savepoints = self.clone.savepoints().unwrap();
        assert_eq!(
            savepoints.iter().map(|s| s.name.clone()).collect::<std::collections::BTreeSet<_>>(),
            self.saved.keys().cloned().collect()
        );
        for savepoint in savepoints {
            let disk = savepoint_disk(&self.world, &savepoint.file);
            assert!(disk.check().unwrap().is_sound(), "{what}: {}", savepoint.name);
            assert!(whole(&disk) == self.saved[&savepoint.name], "{what}: {}", savepoint.name);
            assert!(std::fs::metadata(self.world.path(&savepoint.file)).unwrap().permissions().readonly());
        }
    }
}

/// By its own locator, as any program would open it.
fn savepoint_disk(world: &World, file: &str) -> Disk {
    Disk::open(world.path(file), &OpenOptions::new().parents(ParentPolicy::Anywhere)).unwrap()
}

#[test]
fn a_tree_of_savepoints_is_what_plain_bytes_are() {
    let rounds: u64 = std::env::var("DIFFDISK_FOLD_OPS").ok().and_then(|n| n.parse().ok()).unwrap_or(90);
    let (mut model, mut rng) = (Model::new(), Rng::new(5));
    let (mut saves, mut reverts, mut drops, mut merged) = (0, 0, 0, 0);
    for n in 0..rounds {
        let names: Vec<String> = model.saved.keys().cloned().collect();
        let any = |rng: &mut Rng| names[rng.below(names.len() as u64) as usize].clone();
        match rng.below(10) {
            0..3 => model.change(&mut rng),
            3..6 => {
                model.change(&mut rng);
                let name = format!("s{n}");
                if rng.below(2) == 0 {
                    let live = model.clone.open_live().unwrap();
                    live.save(&name).unwrap();
                    live.close().unwrap();
                } else {
                    model.clone.save(&name).unwrap();
                }
                model.saved.insert(name, model.now.clone());
                saves += 1;
            }
            6 | 7 if !names.is_empty() => {
                let name = any(&mut rng);
                model.clone.revert(&name).unwrap();
                model.now = model.saved[&name].clone();
                reverts += 1;
            }
            8 | 9 if names.len() > 2 => {
                let name = any(&mut rng);
                merged += model.clone.drop_savepoint_with(&name, &NoProgress, &Cancel::new()).unwrap().merged;
                model.saved.remove(&name);
                drops += 1;
                model.check(&format!("op {n}: drop {name}"));
            }
            _ => {}
        }
    }
    model.check("at the end");
    assert!(model.clone.repair().unwrap().done.is_empty(), "every locator leads where it should");
    // One by one until the clone stands on its image again.
    for name in model.saved.keys().cloned().collect::<Vec<_>>() {
        model.clone.drop_savepoint(&name).unwrap();
        model.saved.remove(&name);
    }
    model.check("without savepoints");
    assert_eq!(model.clone.parents().unwrap().len(), 1);
    assert!(!model.world.files().iter().any(|file| file.ends_with(".avhdx") || file.contains(".tmp")), "{:?}", model.world.files());
    loud(&format!("fold: {saves} saves, {reverts} reverts, {drops} drops that merged {merged} files, 0 differences"));
    assert!(drops > 3 && merged > 3 && reverts > 3);
}

/// Savepoints s0 to s3, each with a change of its own, and a change on top.
fn four() -> Model {
    let mut model = Model::new();
    for n in 0..5_usize {
        let disk = model.clone.open().unwrap();
        // Something of its own, something over the one below, a trimmed block.
        for at in [n * 70_000, 500_000 + n * 300, 2 * MIB as usize + n * 5000] {
            let bytes = vec![0x40 + n as u8; 60_000];
            disk.write_at(&bytes, at as u64).unwrap();
            model.now[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let block = (3 + n as u64) * MIB;
        disk.trim(block, MIB).unwrap();
        model.now[block as usize..(block + MIB) as usize].fill(0);
        disk.close().unwrap();
        if n < 4 {
            model.clone.save(&format!("s{n}")).unwrap();
            model.saved.insert(format!("s{n}"), model.now.clone());
        }
    }
    model
}

#[test]
fn a_savepoint_in_the_middle_goes_while_the_clone_is_used() {
    let mut model = four();
    let live = model.clone.open_live().unwrap();
    // Only what the open clone stands on itself is in the way.
    let refused = model.clone.drop_savepoint("s3").unwrap_err();
    assert!(matches!(refused, StoreError::SavepointsInTheWay { .. }) && refused.kind() == ErrorKind::InUse, "{refused}");
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let n = writes.fetch_add(1, Ordering::Relaxed);
                live.write_at(&[n as u8; 600], MIB + n % 50 * 1000).unwrap();
                let mut bytes = [0; 300];
                live.read_at(&mut bytes, 0).unwrap();
                assert_eq!(bytes, [0x40; 300], "s0 shows through");
                if n.is_multiple_of(20) {
                    live.flush().unwrap();
                }
            }
        });
        model.clone.drop_savepoint("s1").unwrap();
        live.save("s4").unwrap();
        model.clone.drop_savepoint("s3").unwrap();
        model.clone.drop_savepoint("s0").unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    assert!(writes.load(Ordering::Relaxed) > 10);
    let mut bytes = vec![0; size()];
    live.read_at(&mut bytes, 0).unwrap();
    live.close().unwrap();
    model.now = bytes;
    ["s0", "s1", "s3"].iter().for_each(|name| drop(model.saved.remove(*name)));
    let s4 = model.clone.savepoints().unwrap().into_iter().find(|s| s.name == "s4").unwrap();
    model.saved.insert("s4".to_owned(), whole(&savepoint_disk(&model.world, &s4.file)));
    model.check("after the drops");
    assert_eq!(model.clone.parents().unwrap().len(), 3, "s4, s2, the image");
}

/// Stops at the k-th report.
struct StopAt {
    left: Mutex<u64>,
    cancel: Cancel,
}

impl Progress for StopAt {
    fn phase(&self, phase: Phase, _total: Option<u64>) {
        assert_eq!(phase, Phase::Merge);
    }
    fn advance(&self, _done: u64) {
        let mut left = self.left.lock().unwrap();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.cancel.cancel();
        }
    }
}

#[test]
fn stopped_at_any_moment_nothing_has_changed() {
    let mut model = four();
    let mut stops = 0;
    for k in (1..).step_by(3) {
        let cancel = Cancel::new();
        let progress = StopAt { left: Mutex::new(k), cancel: cancel.clone() };
        match model.clone.drop_savepoint_with("s1", &progress, &cancel) {
            Ok(dropped) => {
                assert!(dropped.merged == 1 && dropped.bytes > 0);
                break;
            }
            Err(e) => assert!(matches!(e, StoreError::Cancelled { .. }), "{e}"),
        }
        stops += 1;
        let text = std::fs::read_to_string(model.world.path("alice.vhdx.json")).unwrap();
        assert!(!text.contains("dropping"), "{text}");
        assert_eq!(model.world.leftovers(), Vec::<String>::new());
        if stops % 4 == 1 {
            model.check(&format!("stopped at {k}"));
        }
    }
    model.saved.remove("s1");
    model.check("in the end");
    assert!(stops > 4, "{stops}");
}

/// The states between the steps of a drop, put together by hand.
#[test]
fn an_interrupted_drop_is_finished_or_forgotten() {
    // 0: noted only; 1: merged, the books not; 2: all but the last note.
    for step in 0..3 {
        let mut model = four();
        let sidecar = model.world.path("alice.vhdx.json");
        let before = std::fs::read_to_string(&sidecar).unwrap();
        let old = model.world.path("alice.s1.avhdx");
        let kept = model.world.path("kept");
        std::fs::copy(&old, &kept).unwrap();
        if step > 0 {
            model.clone.drop_savepoint("s1").unwrap();
        }
        if step == 1 {
            std::fs::rename(&kept, &old).unwrap();
        } else {
            std::fs::remove_file(&kept).unwrap();
        }
        let noted = before.replace("\"savepoints\":", "\"dropping\": [\"s1\"],\n  \"savepoints\":");
        assert_ne!(noted, before);
        std::fs::write(&sidecar, noted).unwrap();
        // It is used as if nothing had happened, also by whoever may not write.
        let disk = model.clone.open_with(&OpenOptions::new()).unwrap();
        assert!(whole(&disk) == model.now, "{step}");
        drop(disk);
        let listed = model.clone.savepoints().unwrap();
        assert_eq!(listed.iter().any(|savepoint| savepoint.name == "s1"), step < 2, "{step}: what is gone is not listed");
        let repaired = model.clone.repair().unwrap();
        assert_eq!(repaired.done.iter().any(|done| done.contains("s1")), step < 2, "{step}: {:?}", repaired.done);
        model.saved.remove("s1");
        model.check(&format!("step {step}"));
        assert!(!std::fs::read_to_string(&sidecar).unwrap().contains("dropping"), "{step}");
    }
}

#[test]
fn droppers_that_meet_finish_together() {
    let mut model = four();
    std::thread::scope(|scope| {
        for names in [["s1", "s2"], ["s2", "s1"], ["s2", "s3"]] {
            let clone = &model.clone;
            scope.spawn(move || {
                for name in names {
                    for _ in 0..50 {
                        match clone.drop_savepoint(name) {
                            Ok(()) | Err(StoreError::NoSavepoint { .. }) => break,
                            // Somebody else holds the sidecar or the leaf.
                            Err(e) if e.kind() == ErrorKind::InUse => std::thread::sleep(Duration::from_millis(20)),
                            Err(e) => panic!("{name}: {e}"),
                        }
                    }
                }
            });
        }
    });
    ["s1", "s2", "s3"].iter().for_each(|name| drop(model.saved.remove(*name)));
    model.check("all gone but s0");
    assert_eq!(model.world.leftovers(), Vec::<String>::new());
}

/// A savepoint that is smaller than what stands on it hides what lies below.
#[test]
fn a_shorter_savepoint_hides_what_lies_below_also_when_it_is_gone() {
    let world = World::new();
    let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
    let leaf = world.path("alice.vhdx");
    let image = world.store.image("app").unwrap().path();
    let put = |parent: &Path, size: u64| {
        let options = CreateOptions::child().size(size).overwrite(true).parent_policy(ParentPolicy::Anywhere);
        Disk::create_child(&leaf, parent, &options).unwrap()
    };
    let short = put(&image, 2 * MIB);
    short.write_at(&[7; 100], 0).unwrap();
    short.close().unwrap();
    clone.save("short").unwrap();
    let long = put(&world.path("alice.short.avhdx"), 8 * MIB);
    long.write_at(&[8; 100], 5 * MIB).unwrap();
    let before = whole(&long);
    long.close().unwrap();
    assert!(before[3 * MIB as usize..4 * MIB as usize].iter().all(|&b| b == 0), "the image has something there");
    assert!(content(1)[3 * MIB as usize] != 0);
    clone.drop_savepoint("short").unwrap();
    let after = clone.open_with(&OpenOptions::new()).unwrap();
    assert!(whole(&after) == before);
    assert_eq!(clone.parents().unwrap().len(), 1);
}

const STORE: &str = "DIFFDISK_TEST_FOLD_STORE";

/// Run by [`a_killed_dropper_loses_nothing`] until it is killed.
#[test]
fn dropper_child() {
    let Some(dir) = std::env::var_os(STORE) else { return };
    let store = Store::open(Path::new(&dir).join("images")).unwrap();
    let clone = store.clone_at(Path::new(&dir).join("alice.vhdx")).unwrap();
    for name in ["s1", "s3", "s0", "s2"] {
        match clone.drop_savepoint(name) {
            Ok(()) | Err(StoreError::NoSavepoint { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_killed_dropper_loses_nothing() {
    let kills: u64 = std::env::var("DIFFDISK_FOLD_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let (mut interrupted, mut leftovers) = (0, 0);
    let mut model = four();
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["dropper_child", "--exact"])
            .env(STORE, model.world.dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(1500 + kill * 2711 % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += u64::from(std::fs::read_to_string(model.world.path("alice.vhdx.json")).unwrap().contains("dropping"));
        leftovers += u64::from(model.world.files().iter().any(|file| file.contains(".tmp")));
        let left: Vec<String> = model.clone.savepoints().unwrap().into_iter().map(|s| s.name).collect();
        assert!(left.iter().all(|name| model.saved.contains_key(name)));
        model.saved.retain(|name, _| left.contains(name));
        if kill % 2 == 0 {
            model.check(&format!("kill {kill}, before anything is repaired"));
        }
        assert!(model.world.store.sweep().unwrap().problems.is_empty());
        assert_eq!(model.world.leftovers(), Vec::<String>::new());
        model.clone.repair().unwrap();
        let left: Vec<String> = model.clone.savepoints().unwrap().into_iter().map(|s| s.name).collect();
        model.saved.retain(|name, _| left.contains(name));
        model.check(&format!("kill {kill}"));
        if model.saved.len() < 2 {
            model.clone.reset(&ResetOptions::default().discard_savepoints(true)).unwrap();
            model = four();
        }
    }
    assert!(!first(&model.clone, 1).is_empty());
    loud(&format!("fold: {kills} kills of a dropper, {interrupted} in the middle of a drop, {leftovers} left a file behind, nothing lost"));
}
