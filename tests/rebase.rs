//! Rebasing children onto other parents, against arrays of bytes; every storage call fails in turn, and every legal power cut is tried.
//!
//! `DIFFDISK_SEED` sets another seed, `DIFFDISK_REBASE_WORLDS` another number of worlds.

#[path = "support/cow.rs"]
#[expect(dead_code, reason = "nobody compares files here")]
mod cow;
#[path = "support/loud.rs"]
mod loud;
#[path = "convert/rig.rs"]
#[expect(dead_code, reason = "the counting files and the directory are for the conversions")]
mod rig;

use cow::CowStorage;
use diffdisk::storage::Storage;
use diffdisk::storage::sim::{CrashOptions, CrashWalk, SimWorld};
use diffdisk::{
    Cancel, CreateOptions, DataWriteGuid, Disk, ErrorKind, NoProgress, OpenError, OpenOptions, RebaseOptions, Rebased, ToolError, rebase,
    rebase_on,
};
use loud::loud;
use rig::{Faulty, Repeat};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

const SECTOR: usize = 512;
const MIB: usize = 1 << 20;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn from_env(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn storages(files: &[Arc<CowStorage>]) -> Vec<Arc<dyn Storage>> {
    files.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect()
}

fn open(leaf: &Arc<CowStorage>, below: &[Arc<CowStorage>], writable: bool) -> Result<Disk, OpenError> {
    Disk::open_on(leaf.clone(), storages(below), &OpenOptions::new().writable(writable))
}

fn read_all(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0xEE; disk.size() as usize];
    disk.read_at(&mut all, 0).expect("it can be read");
    all
}

fn identity(disk: &Disk) -> DataWriteGuid {
    disk.info().expect("it tells about itself").data_write_guid
}

/// A disk and what it shows.
#[derive(Clone)]
struct Shown {
    /// Leaf first.
    files: Vec<Arc<CowStorage>>,
    bytes: Vec<u8>,
}

impl Shown {
    fn base(size: usize, block: u64) -> Self {
        let file = CowStorage::new();
        let disk = Disk::create_on(file.clone(), &CreateOptions::dynamic(size as u64).block_size(block)).expect("a base");
        disk.close().expect("it closes");
        Self { files: vec![file], bytes: vec![0; size] }
    }

    fn child(&self, size: usize, block: u64) -> Self {
        let file = CowStorage::new();
        let options = CreateOptions::child().size(size as u64).block_size(block);
        Disk::create_child_on(file.clone(), storages(&self.files), &options).expect("a child").close().expect("it closes");
        let mut bytes = self.bytes.clone();
        bytes.resize(size, 0);
        Self { files: std::iter::once(file).chain(self.files.iter().cloned()).collect(), bytes }
    }

    fn session(&mut self, act: impl FnOnce(&Disk, &mut [u8])) {
        let disk = open(&self.files[0], &self.files[1..], true).expect("it opens");
        act(&disk, &mut self.bytes);
        disk.close().expect("it closes");
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.session(|disk, shown| {
            disk.write_at(bytes, at as u64).expect("a write");
            shown[at..at + bytes.len()].copy_from_slice(bytes);
        });
    }

    fn scribble(&mut self, rng: &mut Rng, times: usize, within: Range<usize>) -> Vec<Range<usize>> {
        let mut touched = Vec::new();
        for _ in 0..times {
            let at = within.start + rng.below(within.len());
            let most = [700, 9000, 400_000][rng.below(3)];
            let end = (at + 1 + rng.below(most)).min(within.end);
            let byte = if rng.below(4) == 0 { 0 } else { 1 + rng.below(255) as u8 };
            self.write(at, &vec![byte; end - at]);
            touched.push(at..end);
        }
        touched
    }

    /// The same files, to be changed apart: only the leaf is copied.
    fn fork(&self) -> Self {
        let mut twin = self.clone();
        twin.files[0] = self.files[0].copy();
        twin
    }
}

/// Old parent, new parent, child, and which of the child's sectors are its own.
struct World {
    old: Shown,
    new: Shown,
    child: Shown,
    own: Vec<bool>,
}

impl World {
    fn new(rng: &mut Rng) -> Self {
        let mut size = || (1 + rng.below(5 * MIB) / SECTOR) * SECTOR;
        let (one, two, three) = (size(), size(), size());
        let size = one.max(two);
        let sizes = [size, if rng.below(3) == 0 { two } else { size }, if rng.below(3) == 0 { three } else { size }];
        let mut old = Shown::base(sizes[0], 1 << 20);
        old.scribble(rng, 6, 0..sizes[0]);
        // Half of the worlds keep the changes of parent and child apart.
        let half = if rng.below(2) == 0 { Some(sizes.into_iter().min().unwrap_or(0) / 2 / MIB * MIB) } else { None };
        let of_parent = half.map_or(0..sizes[1], |half| half..sizes[1]);
        let new = match rng.below(3) {
            // The same content in another file, then changed.
            0 => {
                let mut new = Shown::base(sizes[1], 2 << 20);
                let common = sizes[0].min(sizes[1]);
                let bytes = old.bytes[..common].to_vec();
                new.write(0, &bytes);
                new.scribble(rng, 4, of_parent);
                new
            }
            // A child of the old parent: the family is known, and hardly anything is read.
            1 => {
                let mut new = old.child(sizes[1], 1 << 20);
                new.scribble(rng, 4, of_parent);
                new
            }
            _ => old.clone(),
        };
        let mut child = old.child(sizes[2], (1 << 20) << rng.below(2));
        let of_child = 0..half.filter(|&half| half > 0).unwrap_or(sizes[2]);
        let times = 1 + rng.below(5);
        let mut touched = child.scribble(rng, times, of_child.clone());
        // A whole block of zeros, where the parent has something.
        let block = rng.below(of_child.end.div_ceil(MIB)) * MIB;
        let end = (block + 2 * MIB).min(of_child.end);
        if old.bytes.get(block..end).is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0)) {
            child.write(block, &vec![0; end - block]);
            child.session(|disk, _| disk.write_zeroes(block as u64, (end - block) as u64).expect("zeros"));
            touched.push(block..end);
        }
        // Sometimes the child made the parent's change itself.
        if rng.below(3) == 0 && half.is_none() {
            let at = rng.below(sizes[1].min(sizes[2]));
            let end = (at + 5000).min(sizes[1]).min(sizes[2]);
            let bytes = new.bytes[at..end].to_vec();
            child.write(at, &bytes);
            touched.push(at..end);
        }
        let mut own = vec![false; sizes[2] / SECTOR];
        for range in touched {
            own[range.start / SECTOR..range.end.div_ceil(SECTOR)].fill(true);
        }
        Self { old, new, child, own }
    }

    fn go(&self, child: &Shown, options: &RebaseOptions) -> Result<Rebased, ToolError> {
        let leaf = child.files[0].clone();
        rebase_on(leaf, storages(&child.files[1..]), storages(&self.new.files), options, &NoProgress, &Cancel::new())
    }

    /// What a rebase must answer, and what the child must show after it.
    fn expected(&self, unit: usize) -> (Rebased, Vec<u8>) {
        let shown = &self.child.bytes;
        let even = |bytes: &[u8]| {
            let mut all = bytes.to_vec();
            all.resize(shown.len(), 0);
            all
        };
        let (old, new) = (even(&self.old.bytes), even(&self.new.bytes));
        let (mut done, mut after) = (Rebased::default(), shown.clone());
        for at in (0..shown.len()).step_by(unit) {
            let end = (at + unit).min(shown.len());
            let range = at..end;
            if old[range.clone()] == new[range.clone()] {
                continue;
            }
            let own = self.own[at / SECTOR..end.div_ceil(SECTOR)].iter().any(|&own| own);
            match (own, shown[range.clone()] == new[range.clone()]) {
                (false, _) => {
                    done.inherited += (end - at) as u64;
                    after[range.clone()].copy_from_slice(&new[range]);
                }
                (true, true) => done.agreed += (end - at) as u64,
                (true, false) => match done.conflicts.last_mut() {
                    Some(last) if last.end == at as u64 => last.end = end as u64,
                    _ => done.conflicts.push(at as u64..end as u64),
                },
            }
        }
        if done.conflicts.is_empty() {
            done.is_linked = true;
            (done, after)
        } else {
            (done, shown.clone())
        }
    }
}

#[test]
fn a_rebased_child_is_what_the_model_says() {
    let seed = from_env("DIFFDISK_SEED", 20_261_125);
    let worlds = from_env("DIFFDISK_REBASE_WORLDS", 60);
    let mut rng = Rng(seed);
    let (mut linked, mut refused, mut kept) = (0, 0, 0);
    for number in 0..worlds {
        let world = World::new(&mut rng);
        let unit = [512, 4096, 65_536][rng.below(3)];
        let workers = 1 + 3 * (number as usize % 2);
        let options = RebaseOptions::new().unit(unit as u32).workers(workers);
        let before = identity(&open(&world.child.files[0], &world.child.files[1..], false).expect("it opens"));
        let told = world.go(&world.child, &options.clone().dry_run(true)).expect("a look");
        let (expected, after) = world.expected(unit);
        assert_eq!(told, Rebased { is_linked: false, ..expected.clone() }, "world {number} of seed {seed}: a look");

        let moved = world.child.fork();
        let done = world.go(&moved, &options).expect("a rebase");
        assert_eq!(done, expected, "world {number} of seed {seed}");
        let below = if done.is_linked { &world.new.files[..] } else { &world.child.files[1..] };
        let disk = open(&moved.files[0], below, false).unwrap_or_else(|e| panic!("world {number} of seed {seed}: {e}"));
        assert!(read_all(&disk) == after, "world {number} of seed {seed}: the content");
        assert!(disk.check().expect("it can be checked").is_sound());
        // What nobody can see the difference of keeps its identity; what changed has another.
        assert_eq!(identity(&disk) == before, done.inherited == 0 || !done.is_linked, "world {number} of seed {seed}: the identity");
        *if done.is_linked { &mut linked } else { &mut refused } += 1;

        let stays = world.child.fork();
        let grandchild = stays.child(stays.bytes.len(), 1 << 20);
        let done = world.go(&stays, &options.keep_content(true)).expect("a rebase that keeps the content");
        assert!(done.is_linked && done.conflicts.is_empty() && done.inherited == 0, "{done:?}");
        let disk = open(&stays.files[0], &world.new.files, false).unwrap_or_else(|e| panic!("world {number} of seed {seed}: {e}"));
        assert!(read_all(&disk) == world.child.bytes, "world {number} of seed {seed}: the content was to stay");
        assert!(disk.check().expect("it can be checked").is_sound());
        assert_eq!(identity(&disk), before, "world {number} of seed {seed}: the identity was to stay");
        let line: Vec<_> = std::iter::once(stays.files[0].clone()).chain(world.new.files.iter().cloned()).collect();
        let above = open(&grandchild.files[0], &line, false).expect("its children still open");
        assert!(read_all(&above) == world.child.bytes);
        kept += usize::from(done.copied > 0);
    }
    loud(&format!("rebase: {worlds} worlds, {linked} linked, {refused} refused for conflicts, {kept} with something to copy, seed {seed}"));
    assert!(linked > 9 && refused > 9 && kept > 9, "one-sided: {linked} {refused} {kept}");
}

/// A child of a small old parent, and a new one that differs in three places that the child does not hold: other data, new data where the
/// old one had nothing in a whole block, and zeros where it had data.
fn small() -> World {
    let mut old = Shown::base(4 * MIB, 1 << 20);
    old.write(0, &[1; 8192]);
    old.write(2 * MIB, &[2; 4096]);
    let mut new = Shown::base(4 * MIB, 1 << 20);
    new.write(0, &[3; 4096]);
    new.write(4096, &[1; 4096]);
    new.write(MIB, &[4; 4096]);
    let mut child = old.child(4 * MIB, 1 << 20);
    child.write(3 * MIB, &[9; 512]);
    child.write(16_384, &[8; 512]);
    let mut own = vec![false; 4 * MIB / SECTOR];
    own[3 * MIB / SECTOR] = true;
    own[16_384 / SECTOR] = true;
    World { old, new, child, own }
}

/// What a child may be after a rebase that did not come to its end: on its old parent, or on the new one.
struct Outcome<'a> {
    world: &'a World,
    keep: bool,
    before: DataWriteGuid,
    after: Vec<u8>,
}

impl<'a> Outcome<'a> {
    fn new(world: &'a World, keep: bool) -> Self {
        let before = identity(&open(&world.child.files[0], &world.child.files[1..], false).expect("it opens"));
        let after = if keep { world.child.bytes.clone() } else { world.expected(4096).1 };
        Self { world, keep, before, after }
    }

    fn options(&self) -> RebaseOptions {
        RebaseOptions::new().keep_content(self.keep).workers(1)
    }

    /// Whether the child stands on the new parent; panics unless it is one of the two. `Err` when a header cannot be read.
    fn look(&self, leaf: &Arc<dyn Storage>) -> Result<bool, OpenError> {
        let opened = |below: &[Arc<CowStorage>]| Disk::open_on(Arc::clone(leaf), storages(below), &OpenOptions::new());
        let (disk, moved) = match opened(&self.world.old.files) {
            Ok(disk) => (disk, false),
            Err(OpenError::Chain(_)) => (opened(&self.world.new.files)?, true),
            Err(e) => return Err(e),
        };
        let expected = if moved { &self.after } else { &self.world.child.bytes };
        assert!(read_all(&disk) == *expected, "moved: {moved}");
        assert!(disk.check().expect("it can be checked").is_sound());
        if self.keep {
            assert_eq!(identity(&disk), self.before);
        } else if moved {
            assert_ne!(identity(&disk), self.before, "the content changed and the identity did not");
        }
        Ok(moved)
    }

    /// Doing it again comes to the end.
    fn finish(&self, leaf: &Arc<dyn Storage>) {
        let below = if self.look(leaf).expect("it opens") { &self.world.new } else { &self.world.old };
        let new = storages(&self.world.new.files);
        let done = rebase_on(Arc::clone(leaf), storages(&below.files), new, &self.options(), &NoProgress, &Cancel::new());
        assert!(done.expect("it works the second time").is_linked);
        assert!(self.look(leaf).expect("it opens"));
    }
}

fn copy_into(file: &dyn Storage, from: &CowStorage) {
    let mut bytes = vec![0; from.len().expect("a length") as usize];
    from.read_at(&mut bytes, 0).expect("a read");
    file.set_len(bytes.len() as u64).expect("a length");
    for (at, page) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
        if page.iter().any(|&byte| byte != 0) {
            file.write_at(page, at).expect("a write");
        }
    }
}

#[test]
fn a_power_cut_leaves_a_child_of_either_parent() {
    for keep in [false, true] {
        let world = small();
        let outcome = Outcome::new(&world, keep);
        let sim = SimWorld::new(8);
        let file = sim.create("child");
        let id = file.file();
        copy_into(&*file, &world.child.files[0]);
        sim.forget();
        let (old, new) = (storages(&world.old.files), storages(&world.new.files));
        let done = rebase_on(file, old, new, &outcome.options(), &NoProgress, &Cancel::new()).expect("a rebase");
        assert!(done.is_linked && (done.inherited > 0) != keep && (done.copied > 0) == keep, "{done:?}");
        let (trace, end) = (sim.trace(), sim.cut());
        let mut walk = CrashWalk::new(&trace, CrashOptions { harsh: true, ..CrashOptions::default() });
        let (mut states, mut seen, mut refused) = (HashSet::new(), [0, 0], 0);
        loop {
            let over = walk.cut() == end;
            walk.for_each_choice(&mut |_, image| {
                if !states.insert((image.hash(), over)) {
                    return true;
                }
                let leaf: Arc<dyn Storage> = image.file(id).expect("the child is there");
                match outcome.look(&leaf) {
                    Ok(moved) => {
                        assert!(moved || !over, "what was done is undone");
                        seen[usize::from(moved)] += 1;
                        if states.len() % 8 == 0 {
                            outcome.finish(&leaf);
                        }
                    }
                    // A header that cannot be read at all, beside one that names no log, is reported and not passed over.
                    Err(OpenError::Storage(e)) if e.operation == diffdisk::storage::Operation::Read => refused += 1,
                    Err(e) => panic!("{e}"),
                }
                true
            });
            if walk.step().is_none() {
                break;
            }
        }
        loud(&format!("rebase, content kept: {keep}: {} states after a power cut, {seen:?} on the old and the new parent", states.len()));
        assert!(states.len() > 200 && seen[0] > 50 && seen[1] > 10 && refused < states.len() / 3, "{seen:?}, {refused} refused");
    }
}

#[test]
fn every_call_fails_in_turn_and_the_child_is_one_of_the_two() {
    let mut met = 0;
    for keep in [false, true] {
        let world = small();
        let outcome = Outcome::new(&world, keep);
        for repeat in [Repeat::Once, Repeat::FromThen] {
            for k in 1.. {
                let rig = Faulty::new(k, repeat);
                let twin = world.child.fork();
                let leaf: Arc<dyn Storage> = twin.files[0].clone();
                let old = rig.wrap_all(&storages(&world.old.files));
                let new = rig.wrap_all(&storages(&world.new.files));
                let result = rebase_on(rig.wrap(&leaf), old, new, &outcome.options(), &NoProgress, &Cancel::new());
                let hit = rig.heal();
                let moved = outcome.look(&leaf).unwrap_or_else(|e| panic!("{repeat:?} at call {k}: {e}"));
                assert!(moved || result.is_err(), "{repeat:?} at call {k}: {result:?}, and nothing moved");
                outcome.finish(&leaf);
                if !hit {
                    assert!(result.expect("nothing failed").is_linked);
                    break;
                }
                met += 1;
            }
        }
    }
    loud(&format!("rebase: {met} faults met, the child always on one of its parents"));
    assert!(met > 100, "only {met} faults were met");
}

#[test]
fn what_makes_no_sense_is_refused_and_a_cancel_changes_nothing() {
    let world = small();
    let child = world.child.files[0].clone();
    let go = |leaf: &Arc<CowStorage>, old: &[Arc<CowStorage>], new: &[Arc<CowStorage>], options: &RebaseOptions, cancel: &Cancel| {
        rebase_on(leaf.clone(), storages(old), storages(new), options, &NoProgress, cancel).expect_err("it makes no sense").kind()
    };
    let (plain, none) = (RebaseOptions::new(), Cancel::new());
    let over_child = world.child.child(4 * MIB, 1 << 20);
    assert_eq!(go(&child, &world.old.files, &over_child.files, &plain, &none), ErrorKind::InvalidInput);
    assert_eq!(go(&world.old.files[0], &[], &world.new.files, &plain, &none), ErrorKind::InvalidInput);
    assert_eq!(go(&child, &world.old.files, &[], &plain, &none), ErrorKind::InvalidInput);
    assert_eq!(go(&child, &world.old.files, &world.new.files, &RebaseOptions::new().unit(256), &none), ErrorKind::InvalidInput);
    let stopped = Cancel::new();
    stopped.cancel();
    for keep in [false, true] {
        assert_eq!(
            go(&child, &world.old.files, &world.new.files, &RebaseOptions::new().keep_content(keep), &stopped),
            ErrorKind::Cancelled
        );
        let disk = open(&child, &world.old.files, false).expect("it opens");
        assert!(read_all(&disk) == world.child.bytes);
    }
}

#[test]
fn files_by_name_are_rebased_too() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    for (name, byte) in [("one.vhdx", 1), ("two.vhdx", 2)] {
        let disk = Disk::create(path(name), &CreateOptions::dynamic(8 << 20))?;
        disk.write_at(&[byte; 4096], 0)?;
        disk.close()?;
    }
    let clone = Disk::create_child(path("clone.vhdx"), path("one.vhdx"), &CreateOptions::child())?;
    clone.write_at(&[7; 100], 100)?;
    clone.close()?;
    let go = |child: &str, onto: &str, options: &RebaseOptions| rebase(path(child), path(onto), options, &NoProgress, &Cancel::new());
    let found = go("clone.vhdx", "two.vhdx", &RebaseOptions::new())?;
    assert!(found.conflicts == vec![0..4096; 1] && !found.is_linked, "{found:?}");
    assert_eq!(go("clone.vhdx", "clone.vhdx", &RebaseOptions::new()).unwrap_err().kind(), ErrorKind::InvalidInput);
    let kept = go("clone.vhdx", "two.vhdx", &RebaseOptions::new().keep_content(true))?;
    assert_eq!((kept.copied, kept.is_linked), (4096 - 512, true));
    std::fs::remove_file(path("one.vhdx"))?;
    let clone = Disk::open(path("clone.vhdx"), &OpenOptions::new())?;
    let mut bytes = [0; 4096];
    clone.read_at(&mut bytes, 0)?;
    assert!(bytes[..100] == [1; 100] && bytes[100..200] == [7; 100] && bytes[200..] == [1; 3896]);
    Ok(())
}
