//! Power cuts in the middle of what the store does: create, clone, save, revert, reset, resize, hydrate, flatten, rename, remove.
//!
//! Each act runs once in a child under `strace`; its real system calls are replayed in memory, and at every cut every legal directory
//! is built: each change of a name that no sync hardened is there or not, each file has all, half or none of what was written to it
//! since its last sync (`support/store_crash`). Then the store is opened, swept and repaired, and must show the act done or not
//! done, done if it had returned, and everything else as it was. `DIFFDISK_STORE_CRASH_STATES` is the number of states at each act
//! (60); without `strace` the tests say that they are skipped.

#![cfg(target_os = "linux")]

#[path = "support/loud.rs"]
mod loud;
#[path = "support/store_crash/mod.rs"]
mod store_crash;

use diffdisk::{
    Cancel, CloneBase, CloneDisk, CloneOptions, Disk, ErrorKind, ExtentKind, ImageOptions, NoProgress, ResetOptions, ResizeOptions, Source,
    Store,
};
use loud::loud;
use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;
use store_crash::files::Files;
use store_crash::trace::{self, DONE, Event};
use store_crash::walk::{self, State};

/// Tells the child what to do, and where.
const ACT: &str = "DIFFDISK_STORE_ACT";
const PLACE: &str = "DIFFDISK_STORE_PLACE";

/// The tests share a machine; what one of them lays out is not to be counted by another.
static TURN: Mutex<()> = Mutex::new(());

const ACTS: [&str; 15] = [
    "open a new store",
    "create an image",
    "create a second generation",
    "create a clone",
    "save",
    "revert",
    "reset",
    "drop a savepoint",
    "resize a clone",
    "hydrate a clone",
    "flatten a clone",
    "rename a clone",
    "rename an image",
    "remove a clone",
    "remove an image",
];

struct Place(PathBuf);

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn store(&self) -> Store {
        Store::open(self.path("images")).expect("the store opens")
    }

    fn clone(&self, name: &str) -> CloneDisk {
        self.store().clone_at(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn create_image(&self, name: &str, byte: u8) {
        let options = ImageOptions::default();
        self.store().create_image(name, Source::reader(source(byte)), &options, &NoProgress, &Cancel::new()).expect("an image");
    }

    fn create_clone(&self, name: &str) {
        self.create_clone_of("base", name);
    }

    fn create_clone_of(&self, image: &str, name: &str) {
        self.store().image(image).expect("the image").create_clone(self.path(name), &CloneOptions::default()).expect("a clone");
    }

    fn change(&self, name: &str, byte: u8) {
        let disk = self.clone(name).open().expect("it opens");
        disk.write_at(&[byte; 512], 0).expect("a write");
        disk.close().expect("it closes");
    }

    /// What everything begins with, and what the act needs.
    fn prepare(&self, act: &str) {
        if act == "open a new store" {
            return;
        }
        self.create_image("base", b'b');
        self.create_clone("keep.vhdx");
        self.change("keep.vhdx", b'k');
        self.clone("keep.vhdx").save("s").expect("a savepoint");
        self.change("keep.vhdx", b'K');
        match act {
            "save" | "reset" | "rename a clone" | "rename an image" => {
                self.create_clone("alice.vhdx");
                self.change("alice.vhdx", b'5');
            }
            "revert" | "drop a savepoint" | "remove a clone" => {
                self.create_clone("alice.vhdx");
                self.change("alice.vhdx", b'5');
                self.clone("alice.vhdx").save("s").expect("a savepoint");
                if act == "drop a savepoint" {
                    self.clone("alice.vhdx").save("t").expect("another");
                    self.clone("alice.vhdx").revert("s").expect("back");
                }
                self.change("alice.vhdx", b'6');
            }
            "resize a clone" | "hydrate a clone" | "flatten a clone" => {
                self.create_image("old", b'o');
                self.create_clone_of("old", "alice.vhdx");
                self.change("alice.vhdx", b'5');
            }
            "remove an image" => self.create_image("old", b'o'),
            _ => {}
        }
    }

    fn perform(&self, act: &str) {
        let alice = || self.clone("alice.vhdx");
        match act {
            "open a new store" => drop(self.store()),
            "create an image" => self.create_image("app", b'a'),
            "create a second generation" => {
                let (options, source) = (ImageOptions::default(), Source::reader(source(b'2')));
                self.store().refresh_image("base", Some(source), &options, &NoProgress, &Cancel::new()).map(drop).expect("a generation");
            }
            "create a clone" => self.create_clone("bob.vhdx"),
            "save" => alice().save("s").expect("a savepoint"),
            "revert" => alice().revert("s").expect("back"),
            "reset" => alice().reset(&ResetOptions::default()).expect("as new"),
            "drop a savepoint" => alice().drop_savepoint("t").expect("dropped"),
            "resize a clone" => drop(alice().resize(1 << 30, &ResizeOptions::new(), &NoProgress, &Cancel::new()).expect("larger")),
            "hydrate a clone" => drop(alice().hydrate(&NoProgress, &Cancel::new()).expect("hydrated")),
            "flatten a clone" => drop(alice().flatten(&NoProgress, &Cancel::new()).expect("cut")),
            "rename a clone" => drop(alice().rename(self.path("carol.vhdx")).expect("renamed")),
            "rename an image" => drop(self.store().rename_image("base", "fond").expect("renamed")),
            "remove a clone" => alice().remove().expect("removed"),
            "remove an image" => self.store().image("old").expect("the image").remove().expect("removed"),
            other => panic!("nobody knows how to {other}"),
        }
    }

    fn has_image(&self, reference: &str, byte: u8) -> bool {
        match self.store().image(reference) {
            Ok(image) => {
                let verified = image.verify(&NoProgress, &Cancel::new());
                assert!(verified.is_ok(), "{reference} is listed and does not verify: {verified:?}");
                assert_eq!(read_first(&image.open().expect("an image opens")), byte, "{reference}");
                true
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NotFound, "{reference}: {e}");
                false
            }
        }
    }

    /// The first byte of a clone that works; `None` when there is no such clone.
    fn first(&self, name: &str) -> Option<u8> {
        let clone = match self.store().clone_at(self.path(name)) {
            Ok(clone) => clone,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NotFound, "{name}: {e}");
                return None;
            }
        };
        let disk = match clone.open() {
            Ok(disk) => disk,
            Err(e) => panic!("{name} is there and does not open: {e}"),
        };
        let report = disk.check().expect("it can be checked");
        assert!(report.is_sound(), "{name}: {:?}", report.errors);
        let byte = read_first(&disk);
        disk.write_at(b"new", 4096).expect("it can be written");
        disk.close().expect("it closes");
        Some(byte)
    }

    /// A byte that the clone inherits, or has inherited.
    fn second(&self, name: &str) -> u8 {
        let mut byte = [0];
        self.clone(name).open().expect("it opens").read_at(&mut byte, 60_000).expect("a read");
        byte[0]
    }

    fn savepoints(&self, name: &str) -> Vec<String> {
        self.clone(name).savepoints().expect("a list").into_iter().map(|savepoint| savepoint.name).collect()
    }

    /// Recovers, and holds the place against what the act may leave.
    fn examine(&self, act: &str, is_done: bool) {
        let store = self.store();
        if act == "open a new store" {
            self.create_image("base", b'b');
            assert!(self.has_image("base@1", b'b'));
            return;
        }
        let swept = store.sweep().unwrap_or_else(|e| panic!("the sweep failed: {e}"));
        for repaired in store.repair_clones().unwrap_or_else(|e| panic!("the repair failed: {e}")) {
            assert!(repaired.failed.is_none(), "after {:?} repair failed: {repaired:?}", swept.swept);
        }
        let again = store.sweep().expect("another sweep");
        assert!(again.swept.is_empty(), "a second sweep found work: {:?} after {:?}", again.swept, swept.swept);
        assert!(again.problems.is_empty(), "problems are left: {:?} after {:?}", again.problems, swept.swept);
        let left = temporaries(&self.0);
        assert!(left.is_empty(), "the sweep left {left:?}");

        // What the act has nothing to do with.
        let base = if act == "rename an image" && self.has_image("fond@1", b'b') { "fond" } else { "base" };
        assert!(self.has_image(&format!("{base}@1"), b'b'), "a sealed image is lost");
        assert_eq!((self.first("keep.vhdx"), self.savepoints("keep.vhdx")), (Some(b'K'), vec!["s".to_owned()]), "a clone is lost");
        let users = store.image(&format!("{base}@1")).expect("the image").clones().expect("its clones");
        assert!(users.iter().any(|path| path.ends_with("keep.vhdx")), "the store forgot a clone: {users:?}");

        let (old, new) = self.outcome(act, base);
        assert!(old != new, "neither done nor undone, or both: old {old}, new {new}");
        assert!(new || !is_done || act.starts_with("remove"), "it had returned, and is undone");
    }

    /// Whether the act is undone, and whether it is done. What it left is used, too.
    fn outcome(&self, act: &str, base: &str) -> (bool, bool) {
        match act {
            "create an image" => {
                let there = self.has_image("app@1", b'a');
                if !there {
                    self.create_image("app", b'a');
                    assert!(self.has_image("app@1", b'a'));
                }
                (!there, there)
            }
            "create a second generation" => {
                let there = self.has_image("base@2", b'2');
                (!there, there)
            }
            "create a clone" => {
                let there = self.first("bob.vhdx");
                match there {
                    None => self.create_clone("bob.vhdx"),
                    Some(byte) => assert_eq!(byte, b'b'),
                }
                self.known("bob.vhdx", base);
                (there.is_none(), there.is_some())
            }
            "save" => {
                assert_eq!(self.first("alice.vhdx"), Some(b'5'));
                let savepoints = self.savepoints("alice.vhdx");
                if savepoints.is_empty() {
                    self.clone("alice.vhdx").save("s").expect("now it can be saved");
                }
                self.change("alice.vhdx", b'7');
                self.clone("alice.vhdx").revert("s").expect("back");
                assert_eq!(self.first("alice.vhdx"), Some(b'5'));
                self.known("alice.vhdx", base);
                (savepoints.is_empty(), savepoints == ["s"])
            }
            "revert" => {
                let byte = self.first("alice.vhdx");
                assert_eq!(self.savepoints("alice.vhdx"), ["s"]);
                self.clone("alice.vhdx").revert("s").expect("back");
                assert_eq!(self.first("alice.vhdx"), Some(b'5'));
                (byte == Some(b'6'), byte == Some(b'5'))
            }
            "reset" => {
                let byte = self.first("alice.vhdx");
                self.known("alice.vhdx", base);
                (byte == Some(b'5'), byte == Some(b'b'))
            }
            "drop a savepoint" => {
                assert_eq!(self.first("alice.vhdx"), Some(b'6'));
                let savepoints = self.savepoints("alice.vhdx");
                self.clone("alice.vhdx").revert("s").expect("back");
                (savepoints == ["s", "t"], savepoints == ["s"])
            }
            "resize a clone" => {
                let size = self.clone("alice.vhdx").open().expect("it opens").size();
                assert_eq!((self.first("alice.vhdx"), self.second("alice.vhdx")), (Some(b'5'), b'o'));
                self.known("alice.vhdx", "old");
                (size != 1 << 30, size == 1 << 30)
            }
            // Nothing that anybody sees tells it from what was there before, except that it needs nothing of the image.
            "hydrate a clone" => {
                assert_eq!((self.first("alice.vhdx"), self.second("alice.vhdx")), (Some(b'5'), b'o'));
                self.known("alice.vhdx", "old");
                let disk = self.clone("alice.vhdx").open().expect("it opens");
                let extents = disk.extents(0, disk.size()).expect("extents").map(|extent| extent.expect("an extent"));
                let inherits = extents.map(|extent| extent.kind).any(|kind| matches!(kind, ExtentKind::Data { layer: 1, .. }));
                (inherits, !inherits)
            }
            "flatten a clone" => {
                assert_eq!((self.first("alice.vhdx"), self.second("alice.vhdx")), (Some(b'5'), b'o'));
                let is_alone = matches!(self.clone("alice.vhdx").summary().expect("a summary").base, CloneBase::Alone { .. });
                let removed = self.store().image("old").expect("the image").remove();
                match &removed {
                    Ok(()) => assert_eq!((self.first("alice.vhdx"), self.second("alice.vhdx")), (Some(b'5'), b'o')),
                    Err(e) => assert_eq!(e.kind(), ErrorKind::InUse, "{e}"),
                }
                assert_eq!(removed.is_ok(), is_alone);
                (!is_alone, is_alone)
            }
            "rename a clone" => {
                let (old, new) = (self.first("alice.vhdx"), self.first("carol.vhdx"));
                assert!([old, new].iter().flatten().all(|&byte| byte == b'5'));
                self.known(if new.is_some() { "carol.vhdx" } else { "alice.vhdx" }, base);
                (old.is_some(), new.is_some())
            }
            "rename an image" => {
                assert_eq!(self.first("alice.vhdx"), Some(b'5'));
                self.known("alice.vhdx", base);
                (self.has_image("base@1", b'b'), self.has_image("fond@1", b'b'))
            }
            "remove a clone" => {
                let byte = self.first("alice.vhdx");
                let left: Vec<String> = names(&self.0).into_iter().filter(|name| name.starts_with("alice")).collect();
                if byte.is_none() {
                    assert!(left.is_empty(), "of a clone that is gone there is still {left:?}");
                    self.create_clone("alice.vhdx");
                }
                (byte == Some(b'6'), byte.is_none())
            }
            "remove an image" => {
                let there = self.has_image("old@1", b'o');
                if !there {
                    self.create_image("old", b'o');
                    assert!(self.has_image("old@1", b'o'), "its name can be used again");
                }
                (there, !there)
            }
            other => panic!("nobody knows what {other} leaves"),
        }
    }

    fn known(&self, name: &str, base: &str) {
        let users = self.store().image(&format!("{base}@1")).expect("the image").clones().expect("its clones");
        assert!(users.iter().any(|path| path.ends_with(name)), "the store does not know {name}: {users:?}");
    }
}

fn source(byte: u8) -> &'static [u8] {
    vec![byte; 70_000].leak()
}

fn read_first(disk: &Disk) -> u8 {
    let mut byte = [0];
    disk.read_at(&mut byte, 0).expect("a read");
    byte[0]
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

fn temporaries(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            found.extend(temporaries(&path));
        } else if name.ends_with(".tmp") {
            found.push(path);
        }
    }
    found
}

/// Run under `strace` by the tests below: one act, and the mark that it is over.
#[test]
fn the_act() {
    let (Ok(act), Ok(place)) = (std::env::var(ACT), std::env::var(PLACE)) else { return };
    let place = Place(PathBuf::from(place));
    place.perform(&act);
    let gone = std::fs::remove_file(place.path(DONE)).expect_err("nobody made it");
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
}

/// An act as it happened: what was there, what was done, what is there now.
struct Recorded {
    dir: tempfile::TempDir,
    start: Files,
    end: Files,
    events: Vec<Event>,
}

/// Memory, where there is a file system in it: thousands of small directories are made and thrown away.
fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    tempfile::tempdir_in(if shm.is_dir() { shm } else { Path::new("/tmp") }).expect("a directory")
}

fn record(act: &str) -> Recorded {
    let dir = scratch();
    let place = Place(dir.path().join("place"));
    std::fs::create_dir(&place.0).expect("a directory");
    place.prepare(act);
    let start = Files::load(&place.0);
    let mut end = start.clone();
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args(["the_act", "--exact", "--nocapture", "--test-threads=1"]).env(ACT, act).env(PLACE, &place.0);
    let events = trace::record(&child, &place.0, &mut end);
    assert_eq!(end.hash_of_names(), Files::load(&place.0).hash_of_names(), "{act}: the trace leads where the act led");
    Recorded { dir, start, end, events }
}

/// Tries up to `most` states of an act, evenly spread. Returns how many were tried, and the first that broke a promise.
fn try_states(act: &str, recorded: &Recorded, without: Option<usize>, most: usize) -> (usize, Option<String>) {
    let place = Place(recorded.dir.path().join("place"));
    let (mut seen, mut all) = (HashSet::new(), 0_usize);
    walk::states(&recorded.start, &recorded.end, &recorded.events, without, &mut |state| {
        all += usize::from(seen.insert((state.files.hash(), state.is_done)));
        true
    });
    let stride = all.div_ceil(most).max(1);
    let (mut tried, mut number, mut broken) = (0, 0, None);
    seen.clear();
    walk::states(&recorded.start, &recorded.end, &recorded.events, without, &mut |state: State| {
        if !seen.insert((state.files.hash(), state.is_done)) {
            return true;
        }
        number += 1;
        if !(number - 1_usize).is_multiple_of(stride) {
            return true;
        }
        tried += 1;
        state.files.lay_out(&place.0);
        let result = catch_unwind(AssertUnwindSafe(|| place.examine(act, state.is_done)));
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
            broken = Some(format!("{act}: {text}\n  {}, returned: {}", state.story, state.is_done));
        }
        broken.is_none()
    });
    (tried, broken)
}

fn most() -> usize {
    std::env::var("DIFFDISK_STORE_CRASH_STATES").map_or(60, |text| text.parse().expect("DIFFDISK_STORE_CRASH_STATES is a number"))
}

fn may_trace() -> bool {
    let able = trace::can_trace();
    if let Err(why) = &able {
        loud(&format!("store crash: skipped: {why}"));
    }
    able.is_ok()
}

/// Panics are how a broken promise is told; thousands of them would drown what is printed.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(before);
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn every_act_is_done_or_not_done() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    if !may_trace() {
        return;
    }
    let (began, mut states, mut broken) = (Instant::now(), 0, Vec::new());
    let only = std::env::var("DIFFDISK_STORE_CRASH_ACT").ok();
    for act in ACTS.into_iter().filter(|act| only.as_ref().is_none_or(|only| only == act)) {
        let recorded = record(act);
        let (tried, violation) = quietly(|| try_states(act, &recorded, None, most()));
        states += tried;
        broken.extend(violation);
    }
    loud(&format!(
        "store crash: {} acts, {states} states, {} violations, {:.0} s",
        ACTS.len(),
        broken.len(),
        began.elapsed().as_secs_f64()
    ));
    assert!(states > if only.is_some() { 8 } else { 12 * ACTS.len() }, "almost nothing was tried");
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

// Why nobody misses a sync.
const INSIDE: &str = "the engine's own order inside a file; `tests/crash.rs` tries it by the sector";
const LOCATOR: &str = "a locator is changed under the log; `tests/rebase.rs` tries it by the sector";
const CLOSED: &str = "the file was closed, and so synced, just before";
const ANEW: &str = "a record is written anew from the clone's sidecar";
const NAMED: &str = "the directory had its name before, or loses it in the next sweep";
const LATER: &str = "a later sync of the same directory comes before anything that depends on it";
const RULE: &str = "no state was found that needs it; a sidecar is synced before it gets its name in every act, as one rule";
const SETTLED: &str = "the note before it and the file itself say the same; whoever comes next concludes it from them";
const COURTESY: &str = "the sidecar's name of the image is a courtesy; identities find it";

/// Syncs that nobody misses when they do nothing: the act, the path (without the unique part of a file that is being made), how many, and why. One more
/// than that fails the test.
const NOT_MISSED: [(&str, &str, usize, &str); 27] = [
    ("open a new store", "/images", 1, NAMED),
    ("create an image", "/images/.work/.app@1.vhdx", 6, INSIDE),
    ("create an image", "/images/.work/app@1.vhdx", 1, CLOSED),
    ("create a second generation", "/images/.work/.base@2.vhdx", 6, INSIDE),
    ("create a second generation", "/images/.work/base@2.vhdx", 1, CLOSED),
    ("create a second generation", "/images", 1, NAMED),
    ("save", "", 2, LATER),
    ("save", "/images/.clones", 1, ANEW),
    ("reset", "", 2, LATER),
    ("reset", "/.alice.vhdx.json", 1, RULE),
    ("reset", "/images/.clones", 1, ANEW),
    ("drop a savepoint", "/.alice.vhdx.json", 1, RULE),
    ("drop a savepoint", "/images/.clones", 1, ANEW),
    ("resize a clone", "/alice.vhdx", 9, INSIDE),
    ("hydrate a clone", "/alice.vhdx", 6, INSIDE),
    ("flatten a clone", "/alice.vhdx", 8, INSIDE),
    ("flatten a clone", "/.alice.vhdx.json", 2, RULE),
    ("flatten a clone", "", 1, SETTLED),
    ("flatten a clone", "/images/.clones", 2, ANEW),
    ("rename a clone", "/images/.clones", 1, ANEW),
    ("rename an image", "/alice.vhdx", 6, LOCATOR),
    ("rename an image", "/keep.s.avhdx", 6, LOCATOR),
    ("rename an image", "/.alice.vhdx.json", 1, COURTESY),
    ("rename an image", "/.keep.vhdx.json", 1, COURTESY),
    ("rename an image", "", 2, LATER),
    ("rename an image", "/images/.clones", 2, ANEW),
    ("remove an image", "/images", 1, NAMED),
];

/// A path without the unique part of a file that is being made.
fn settled(path: &str) -> &str {
    path.strip_suffix(".tmp").and_then(|made| made.rsplit_once('.')).map_or(path, |(name, _)| name)
}

/// Every sync of every act, left out once: does anybody notice? Those that nobody misses are printed, with what they harden, and must be
/// explained in [`NOT_MISSED`]. Part of the deep stage, because it takes minutes.
#[test]
fn every_sync_is_missed_when_it_does_nothing() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    if std::env::var_os("DIFFDISK_STORE_CRASH_SENSITIVITY").is_none() {
        return loud("store sensitivity: skipped: DIFFDISK_STORE_CRASH_SENSITIVITY is not set");
    }
    if !may_trace() {
        return;
    }
    let (began, mut syncs, mut states, mut silent) = (Instant::now(), 0, 0, BTreeMap::new());
    let only = std::env::var("DIFFDISK_STORE_CRASH_ACT").ok();
    for act in ACTS.into_iter().filter(|act| only.as_ref().is_none_or(|only| only == act)) {
        let recorded = record(act);
        let paths = recorded.events.iter().filter_map(|event| match event {
            Event::Sync { path, .. } | Event::Write { durable: Some(path), .. } => Some(path.clone()),
            _ => None,
        });
        for (number, path) in paths.enumerate() {
            let (tried, violation) = quietly(|| try_states(act, &recorded, Some(number), most()));
            (syncs, states) = (syncs + 1, states + tried);
            let line = violation.as_ref().and_then(|text| text.lines().next()).unwrap_or("NOT NOTICED");
            let why = NOT_MISSED.iter().find(|(of, at, ..)| (*of, *at) == (act, settled(&path)));
            let why = why.filter(|_| violation.is_none()).map_or("", |(.., why)| why);
            println!("{act}: sync {number} of {path:?}: {} {why}", line.chars().take(140).collect::<String>());
            if violation.is_none() {
                *silent.entry((act, settled(&path).to_owned())).or_insert(0_usize) += 1;
            }
        }
    }
    let missed = syncs - silent.values().sum::<usize>();
    loud(&format!(
        "store sensitivity: {missed} of {syncs} syncs missed when they do nothing, {states} states, {:.0} s",
        began.elapsed().as_secs_f64()
    ));
    let explained =
        |act: &str, path: &str| NOT_MISSED.iter().find(|(of, at, ..)| (*of, *at) == (act, path)).map_or(0, |(_, _, most, _)| *most);
    let unexplained: Vec<_> = silent.iter().filter(|((act, path), count)| **count > explained(act, path)).collect();
    assert!(unexplained.is_empty(), "needless, or the checker is blind: {unexplained:?}");
    assert!(missed > if only.is_some() { 0 } else { 30 }, "only {missed} of {syncs} are missed");
}
