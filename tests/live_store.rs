//! Clones that are saved while they are used: what others see meanwhile, and what a killed process leaves.

#[path = "support/loud.rs"]
mod loud;
#[path = "support/store.rs"]
mod support;

use diffdisk::{CloneDisk, Disk, ErrorKind, LiveClone, OpenOptions, ParentPolicy, Store, StoreError, SwitchError};
use loud::loud;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{World, first, quick};

fn live(world: &World) -> (CloneDisk, LiveClone) {
    let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
    let live = clone.open_live().unwrap();
    (clone, live)
}

#[test]
fn a_clone_is_saved_while_it_is_used() {
    let world = World::new();
    let (clone, live) = live(&world);
    for n in 0..3_u8 {
        live.write_at(&[10 + n; 9], 0).unwrap();
        let saved = live.save(&format!("s{n}")).unwrap();
        assert_eq!(saved.savepoint.name, format!("s{n}"));
        // Who asks meanwhile sees the savepoints, and that the clone is in use.
        let names: Vec<String> = clone.savepoints().unwrap().into_iter().map(|s| s.name).collect();
        assert_eq!(names.len(), usize::from(n) + 1);
        assert_eq!(clone.save("offline").unwrap_err().kind(), ErrorKind::InUse);
        assert_eq!(clone.revert("s0").unwrap_err().kind(), ErrorKind::InUse);
        assert!(world.store.sweep().unwrap().swept.is_empty());
    }
    live.write_at(&[99], 0).unwrap();
    assert!(matches!(live.save("s1").unwrap_err(), StoreError::SavepointExists { .. }));
    assert!(matches!(live.save("../s").unwrap_err(), StoreError::Name { .. }));
    let savepoints = clone.savepoints().unwrap();
    for savepoint in &savepoints {
        let metadata = std::fs::metadata(world.path(&savepoint.file)).unwrap();
        assert!(metadata.permissions().readonly(), "{}", savepoint.file);
    }
    live.close().unwrap();
    assert_eq!(first(&clone, 2), [99, 12]);
    assert_eq!(clone.current_savepoint().unwrap().unwrap().name, "s2");
    assert_eq!(clone.parents().unwrap().len(), 4);
    for n in [1_u8, 0, 2] {
        clone.revert(&format!("s{n}")).unwrap();
        assert_eq!(first(&clone, 9), [10 + n; 9]);
    }
    assert!(clone.repair().unwrap().done.is_empty(), "every locator leads where it should");
    // The books are those of a clone that was saved while nobody used it.
    clone.save("offline").unwrap();
    let live = clone.open_live().unwrap();
    live.save("online").unwrap();
    live.close().unwrap();
    assert_eq!(first(&clone, 9), [12; 9]);
    assert_eq!(world.store.clones().unwrap()[0].savepoints, 5);
}

#[test]
fn a_save_that_cannot_happen_leaves_everything_as_it_was() {
    let world = World::new();
    let (clone, live) = live(&world);
    live.write_at(&[5; 9], 0).unwrap();
    // The savepoint's first name is taken, so it gets another one.
    std::fs::write(world.path("alice.s.avhdx"), b"somebody's").unwrap();
    let saved = live.save("s").unwrap();
    assert_eq!(saved.savepoint.file, "alice.s-2.avhdx");
    // A chain has an end; the note of the savepoint that did not come about is taken back.
    let mut deep = None;
    for n in 0..260 {
        if let Err(e) = live.save(&format!("deep{n}")) {
            deep = Some((n, e));
            break;
        }
    }
    let (n, error) = deep.expect("there is a limit");
    assert!(matches!(error, StoreError::Switch { source: SwitchError::Chain(_), .. }), "{error}");
    assert_eq!(clone.savepoints().unwrap().len(), n + 1);
    live.write_at(&[6; 9], 0).unwrap();
    live.close().unwrap();
    assert_eq!(first(&clone, 9), [6; 9]);
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// What a process that died between the steps of an online save leaves, put together by hand.
#[test]
fn an_interrupted_online_save_is_undone_or_finished() {
    for (step, expect_saved) in [(0, false), (1, false), (2, true)] {
        let world = World::new();
        let (clone, live) = live(&world);
        live.write_at(&[5; 9], 0).unwrap();
        live.save("s").unwrap();
        live.close().unwrap();
        let (leaf, frozen) = (world.path("alice.vhdx"), world.path("alice.s.avhdx"));
        let sidecar = world.path("alice.vhdx.json");
        let text = std::fs::read_to_string(&sidecar).unwrap();
        std::fs::write(&sidecar, text.replace("\"name\": \"s\",", "\"name\": \"s\", \"pending\": true,")).unwrap();
        let hidden = world.path(".alice.vhdx.0123456789abcdef.tmp");
        if step < 2 {
            std::fs::rename(&leaf, &hidden).unwrap();
            std::fs::rename(&frozen, &leaf).unwrap();
        }
        if step == 1 {
            std::fs::hard_link(&leaf, &frozen).unwrap();
        }
        let swept = world.store.sweep().unwrap();
        assert!(swept.problems.is_empty(), "{:?}", swept.problems);
        assert_eq!((first(&clone, 9), clone.savepoints().unwrap().len()), (vec![5; 9], usize::from(expect_saved)), "{step}");
        assert!(!hidden.exists() && frozen.exists() == expect_saved, "{step}: {:?}", world.files());
        let again = clone.open_live().unwrap();
        again.save("t").unwrap();
        again.close().unwrap();
    }
}

const STORE: &str = "DIFFDISK_TEST_LIVE_STORE";
const CELL: u64 = 4096;
const CELLS: u64 = 40;

fn cell(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(CELL as usize / 8)
}

/// Run by [`a_killed_saver_loses_nothing`] until it is killed: counts in cells, flushes and saves now and then, and says so.
#[test]
fn saver_child() {
    let Some(dir) = std::env::var_os(STORE) else { return };
    let store = Store::open(Path::new(&dir).join("images")).unwrap();
    let live = store.clone_at(Path::new(&dir).join("alice.vhdx")).unwrap().open_live().unwrap();
    let mut out = std::io::stdout();
    let newest = counted(|at, bytes| live.read_at(bytes, at).unwrap()).0;
    for n in newest + 1.. {
        live.write_at(&cell(n), n % CELLS * CELL).unwrap();
        if n % 7 == 0 {
            live.flush().unwrap();
            writeln!(out, "flushed {n}").unwrap();
        }
        if n % 11 == 0 {
            live.save(&format!("at{n}")).unwrap();
            writeln!(out, "saved {n}").unwrap();
        }
        out.flush().unwrap();
    }
}

/// The newest count, and whether every cell is what it was at that moment.
fn counted(read: impl Fn(u64, &mut [u8])) -> (u64, bool) {
    let mut bytes = vec![0; CELL as usize];
    let values: Vec<u64> = (0..CELLS)
        .map(|n| {
            read(n * CELL, &mut bytes);
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            if bytes == cell(value) && value < 1 << 40 && (value % CELLS == n || value == 0) { value } else { 0 }
        })
        .collect();
    let newest = values.iter().copied().max().unwrap();
    let want = |n: u64| (0..CELLS).filter_map(|back| newest.checked_sub(back)).find(|k| k % CELLS == n).unwrap_or(0);
    (newest, (0..CELLS).all(|n| values[n as usize] == want(n)))
}

/// A process that writes, flushes and saves is killed at any moment. Whoever comes next finds each savepoint that was reported exactly as
/// it was, and in the clone everything that was flushed.
#[test]
fn a_killed_saver_loses_nothing() {
    let kills: u64 = std::env::var("DIFFDISK_LIVE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let world = World::new();
    // The first cells of the image hold something else than counts.
    let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
    let (mut saved, mut flushed, mut pending) = (BTreeMap::new(), 0_u64, 0);
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["saver_child", "--exact", "--nocapture"])
            .env(STORE, world.dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        // Until it is well under way, and a little longer, by another amount each time.
        while said.len() < 6 {
            said.extend(lines.next().map(|line| line.unwrap()));
        }
        std::thread::sleep(Duration::from_micros(kill * 731 % 9000));
        child.kill().unwrap();
        said.extend(lines.map_while(Result::ok));
        child.wait().unwrap();
        for line in &said {
            let number = |rest: &str| rest.parse::<u64>().ok();
            if let Some(n) = line.strip_prefix("saved ").and_then(number) {
                saved.insert(format!("at{n}"), n);
                flushed = flushed.max(n);
            } else if let Some(n) = line.strip_prefix("flushed ").and_then(number) {
                flushed = flushed.max(n);
            }
        }
        pending += u64::from(std::fs::read_to_string(world.path("alice.vhdx.json")).unwrap().contains("pending"));
        let sweep = world.store.sweep().unwrap();
        assert!(sweep.problems.is_empty(), "{:?}", sweep.problems);
        assert_eq!(world.leftovers(), Vec::<String>::new());
        let disk = clone.open_with(&OpenOptions::new()).unwrap();
        assert!(disk.check().unwrap().is_sound());
        let (newest, _) = counted(|at, bytes| disk.read_at(bytes, at).unwrap());
        assert!(newest >= flushed, "kill {kill}: {flushed} was flushed and the newest is {newest}");
        drop(disk);
        let savepoints = clone.savepoints().unwrap();
        for (name, n) in &saved {
            let savepoint = savepoints.iter().find(|s| s.name == *name).unwrap_or_else(|| panic!("kill {kill}: {name} is gone"));
            let disk = open_savepoint(&world, &savepoint.file);
            assert_eq!(counted(|at, bytes| disk.read_at(bytes, at).unwrap()), (*n, true), "kill {kill}: {name}");
        }
        // What was under way when the process died is whole as well, if it came about.
        for savepoint in savepoints.iter().filter(|s| !saved.contains_key(&s.name)) {
            let disk = open_savepoint(&world, &savepoint.file);
            let (newest, whole) = counted(|at, bytes| disk.read_at(bytes, at).unwrap());
            assert!(whole && savepoint.name == format!("at{newest}"), "kill {kill}: {} holds {newest}", savepoint.name);
        }
        // Keep the chain short.
        clone.reset(&diffdisk::ResetOptions::default().discard_savepoints(true)).unwrap();
        (saved, flushed) = (BTreeMap::new(), 0);
    }
    loud(&format!("live: {kills} kills of a saver, {pending} in the middle of a save, nothing lost"));
}

fn open_savepoint(world: &World, file: &str) -> Disk {
    Disk::open(world.path(file), &OpenOptions::new().parents(ParentPolicy::Anywhere)).unwrap()
}
