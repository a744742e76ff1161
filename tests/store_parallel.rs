//! Many processes in one store at once, and processes that die in the middle.
//!
//! The test binary runs itself again: [`child`] does what its environment says. By default each of 20 processes makes a handful of clones;
//! `DIFFDISK_TEST_CLONES=200` is the full measure.
#![cfg(all(unix, feature = "store"))]

#[path = "support/store.rs"]
mod support;

use diffdisk::{CloneState, ErrorKind, OpenOptions, Store};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};
use support::*;

const PROCESSES: usize = 20;
const ROLE: &str = "DIFFDISK_TEST_ROLE";
const STORE: &str = "DIFFDISK_TEST_STORE";
const CLONES: &str = "DIFFDISK_TEST_CLONES";
/// Marks the lines of a child among those of the test harness.
const MARK: &str = "@@ ";

fn clones_each() -> usize {
    std::env::var(CLONES).ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

fn say(verb: &str, path: &Path) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{MARK}{verb} {}", path.display()).unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: what the processes of the tests below do.
#[test]
fn child() {
    let (Ok(role), Some(dir)) = (std::env::var(ROLE), std::env::var_os(STORE)) else { return };
    let store = Store::open(&dir).unwrap();
    let clones = Path::new(&dir).with_file_name("clones");
    match role.as_str() {
        "fill" => fill(&store, &clones),
        "churn" => loop {
            fill(&store, &clones);
        },
        "empty" => {
            for line in std::io::stdin().lock().lines() {
                store.clone_at(line.unwrap()).unwrap().remove().unwrap();
            }
        }
        "sweep" => {
            // Until nobody holds the other end any more.
            let waiter = std::thread::spawn(|| std::io::stdin().lock().lines().count());
            while !waiter.is_finished() {
                let sweep = store.sweep().unwrap();
                assert!(sweep.swept.is_empty(), "a sweep took the work of the living: {sweep:?}");
                store.clones().unwrap();
            }
        }
        other => panic!("no role {other}"),
    }
}

/// Makes clones under names that everybody wants, changes each, and removes every second one.
fn fill(store: &Store, clones: &Path) {
    let image = store.image("app").unwrap();
    for i in 0..clones_each() {
        let clone = image.create_clone(clones.join("c-{n}"), &quick()).unwrap();
        say("made", clone.path());
        let disk = clone.open().unwrap();
        disk.write_at(clone.name().as_bytes(), 0).unwrap();
        disk.close().unwrap();
        if i % 3 == 2 {
            clone.save("s").unwrap();
        }
        if i % 2 == 1 {
            say("removing", clone.path());
            clone.remove().unwrap();
        }
    }
}

fn spawn(role: &str, store: &Store) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(ROLE, role)
        .env(STORE, store.dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a child said, as (verb, path).
fn said(line: &str) -> Option<(String, PathBuf)> {
    let (verb, path) = line.strip_prefix(MARK)?.split_once(' ')?;
    Some((verb.to_owned(), path.into()))
}

/// The clones that a child made and did not remove.
fn kept(output: &[u8]) -> BTreeSet<PathBuf> {
    let mut kept = BTreeSet::new();
    for (verb, path) in String::from_utf8_lossy(output).lines().filter_map(said) {
        // A name may be used again, by others after it was removed; never while it is there.
        let fresh = if verb == "made" { kept.insert(path) } else { kept.remove(&path) };
        assert!(fresh, "one child made a clone twice");
    }
    kept
}

fn listed(store: &Store) -> BTreeSet<PathBuf> {
    store.clones().unwrap().into_iter().map(|clone| clone.path).collect()
}

#[test]
fn twenty_processes_lose_nothing_and_leave_nothing() {
    let world = World::new();
    world.image("app");
    std::fs::create_dir(world.path("clones")).unwrap();
    let before = world.files();
    let mut sweeper = spawn("sweep", &world.store);
    let children: Vec<Child> = (0..PROCESSES).map(|_| spawn("fill", &world.store)).collect();
    let mut expected = BTreeSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let kept = kept(&output.stdout);
        assert_eq!(kept.len(), clones_each().div_ceil(2));
        for path in kept {
            assert!(expected.insert(path), "two processes made the same clone");
        }
    }
    assert_eq!(listed(&world.store), expected);
    for path in &expected {
        let clone = world.store.clone_at(path).unwrap();
        let name = clone.name();
        assert_eq!(first(&clone, name.len()), name.as_bytes(), "each clone has its own content");
    }

    let paths: Vec<PathBuf> = expected.into_iter().collect();
    let mut children: Vec<Child> = (0..PROCESSES).map(|_| spawn("empty", &world.store)).collect();
    for (i, path) in paths.iter().enumerate() {
        writeln!(children[i % PROCESSES].stdin.as_mut().unwrap(), "{}", path.display()).unwrap();
    }
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    drop(sweeper.stdin.take());
    let output = sweeper.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mut after = world.files();
    after.retain(|file| file != "images/.index");
    assert_eq!(after, before);
    println!("{PROCESSES} processes made {} clones each", clones_each());
}

#[test]
fn a_killed_process_leaves_nothing_that_a_sweep_does_not_clear() {
    let world = World::new();
    world.image("app");
    std::fs::create_dir(world.path("clones")).unwrap();
    let before = world.files();
    for round in 0..16 {
        let mut child = spawn("churn", &world.store);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut made = BTreeSet::new();
        // The kill falls somewhere behind the line; how far is up to the machine.
        for (verb, path) in lines.filter_map(|line| said(&line)).take(1 + round) {
            if verb == "made" {
                made.insert(path)
            } else {
                made.remove(&path)
            };
        }
        child.kill().unwrap();
        child.wait().unwrap();
        age_empty_files(world.dir.path());
        let sweep = world.store.sweep().unwrap();
        assert!(sweep.problems.is_empty(), "round {round}: {sweep:?}");
        assert_eq!(world.leftovers(), Vec::<String>::new(), "round {round}");
        let clones = world.store.clones().unwrap();
        assert!(clones.iter().all(|clone| clone.state == CloneState::Ready), "round {round}: {clones:?}");
        let there: BTreeSet<PathBuf> = clones.iter().map(|clone| clone.path.clone()).collect();
        assert!(made.is_subset(&there), "round {round}: lost {:?}", made.difference(&there));
        for path in &there {
            let clone = world.store.clone_at(path).unwrap();
            let disk = clone.open_with(&OpenOptions::new()).unwrap();
            assert!(disk.check().unwrap().is_sound(), "round {round}");
            drop(disk);
            clone.remove().unwrap();
            assert_eq!(clone.open().unwrap_err().kind(), ErrorKind::NotFound);
        }
        assert!(world.store.clones().unwrap().is_empty());
        let mut after = world.files();
        after.retain(|file| file != "images/.index");
        assert_eq!(after, before, "round {round}, after {sweep:?}");
    }
}

/// A sweep leaves empty files alone for some seconds, because they may not be locked yet. Here their maker is dead.
fn age_empty_files(dir: &Path) {
    for file in files_below(dir) {
        let path = dir.join(file);
        if std::fs::metadata(&path).unwrap().len() == 0 {
            let file = std::fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        }
    }
}
