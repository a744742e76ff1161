//! Freezing a leaf while it is used: content before and after, crashes and faults at every step, many threads, long chains.

#[path = "support/threads/history.rs"]
mod history;
#[path = "support/loud.rs"]
mod loud;

use diffdisk::storage::sim::{CallKind, CrashOptions, CrashWalk, Event as SimEvent, Fault, FaultStorage, Lost, Repeat, Rng, SimWorld};
use diffdisk::storage::{MemoryStorage, Storage, Volume};
use diffdisk::{
    Cancel, CompactOptions, CreateOptions, DataWriteGuid, Disk, DiskError, ErrorKind, ExtentKind, FlushMode, Guid, LiveDisk,
    MAX_CHAIN_DEPTH, NoProgress, OpenOptions, ParentPolicy, SwitchError,
};
use history::Event;
use loud::loud;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// A directory with an image and a live clone of it.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(size: u64) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        let base = Disk::create(world.path("app.vhdx"), &CreateOptions::dynamic(size)).unwrap();
        base.write_at(b"golden", 0).unwrap();
        base.close().unwrap();
        Disk::create_child(world.path("alice.vhdx"), world.path("app.vhdx"), &CreateOptions::child()).unwrap().close().unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn live(&self) -> LiveDisk {
        LiveDisk::open(self.path("alice.vhdx"), &OpenOptions::new()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn word(path: &Path, at: u64) -> [u8; 6] {
    let disk = Disk::open(path, &OpenOptions::new()).unwrap();
    let mut word = [0; 6];
    disk.read_at(&mut word, at).unwrap();
    word
}

#[test]
fn the_frozen_file_holds_what_was_and_the_new_leaf_what_comes() {
    let world = World::new(8 * MIB);
    let live = world.live();
    live.write_at(b"before", SECTOR).unwrap();
    live.trim(2 * MIB, MIB).unwrap();
    let switched = live.freeze_and_switch(world.path("alice.noon.avhdx")).unwrap();
    assert!(switched.left_open.is_none(), "{:?}", switched.left_open);
    assert_eq!(world.names(), ["alice.noon.avhdx", "alice.vhdx", "app.vhdx"]);
    live.write_at(b"after!", SECTOR).unwrap();
    let mut seen = [0; 6];
    live.read_at(&mut seen, SECTOR).unwrap();
    assert_eq!(&seen, b"after!");
    live.read_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"golden");
    let kinds: Vec<ExtentKind> = live.extents(0, 2 * SECTOR).unwrap().map(|e| e.unwrap().kind).collect();
    assert!(matches!(kinds[..], [ExtentKind::Data { layer: 2, .. }, ExtentKind::Data { layer: 0, .. }]), "{kinds:?}");
    assert_eq!(live.info().unwrap().chain.len(), 3);

    // The frozen file is closed, locked as a parent is, and read by others while the clone is open.
    assert_eq!(&word(&world.path("alice.noon.avhdx"), SECTOR), b"before");
    let noon = Disk::open(world.path("alice.noon.avhdx"), &OpenOptions::new()).unwrap();
    assert!(!noon.info().unwrap().log_dirty && noon.check().unwrap().is_sound());
    assert_eq!(noon.info().unwrap().data_write_guid, switched.data_write_guid);
    drop(noon);
    let writer = Disk::open(world.path("alice.noon.avhdx"), &OpenOptions::new().writable(true));
    assert_eq!(writer.unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(Disk::open(world.path("alice.vhdx"), &OpenOptions::new()).unwrap_err().kind(), ErrorKind::InUse);
    live.close().unwrap();
    assert_eq!(&word(&world.path("alice.vhdx"), SECTOR), b"after!");
    assert_eq!(&word(&world.path("alice.vhdx"), 0), b"golden");
    assert!(Disk::open(world.path("alice.vhdx"), &OpenOptions::new()).unwrap().check().unwrap().is_sound());
}

#[test]
fn an_untouched_leaf_and_a_disk_without_parents_can_be_frozen_too() {
    let world = World::new(8 * MIB);
    let live = world.live();
    for n in 0..3 {
        live.freeze_and_switch(world.path(&format!("alice.{n}.avhdx"))).unwrap();
    }
    live.close().unwrap();
    assert_eq!(&word(&world.path("alice.vhdx"), 0), b"golden");
    for options in [CreateOptions::dynamic(4 * MIB), CreateOptions::fixed(4 * MIB)] {
        let live = LiveDisk::from(Disk::create(world.path("own.vhdx"), &options).unwrap());
        live.write_at(b"before", 0).unwrap();
        live.freeze_and_switch(world.path("own.base.vhdx")).unwrap();
        live.write_at(b"after!", 0).unwrap();
        live.close().unwrap();
        assert_eq!((&word(&world.path("own.vhdx"), 0), &word(&world.path("own.base.vhdx"), 0)), (b"after!", b"before"));
        for name in ["own.vhdx", "own.base.vhdx"] {
            std::fs::remove_file(world.path(name)).unwrap();
        }
    }
}

#[test]
fn compacting_and_saving_take_turns_and_the_way_of_flushing_stays() {
    let world = World::new(32 * MIB);
    for mode in [FlushMode::default(), FlushMode::PayloadInLog] {
        let live = LiveDisk::open(world.path("alice.vhdx"), &OpenOptions::new().flush_mode(mode)).unwrap();
        let name = |n: u64| world.path(&format!("alice.{mode:?}{n}.avhdx"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..10 {
                    live.compact(&CompactOptions::new(), &NoProgress, &Cancel::new()).unwrap();
                }
            });
            for n in 0..6 {
                for block in 0..8 {
                    live.write_at(&tag(block, n + 1), block * MIB).unwrap();
                    live.trim((16 + block) * MIB, MIB).unwrap();
                }
                live.flush().unwrap();
                live.freeze_and_switch(name(n)).unwrap();
            }
        });
        live.close().unwrap();
        for n in 0..6 {
            let disk = Disk::open(name(n), &OpenOptions::new()).unwrap();
            assert!(disk.check().unwrap().is_sound());
            for block in 0..8 {
                let mut bytes = [0; 512];
                disk.read_at(&mut bytes, block * MIB).unwrap();
                assert_eq!(untag(block, &bytes), Ok(n + 1), "{mode:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_frozen_says_why_and_goes_on() {
    let world = World::new(8 * MIB);
    let live = world.live();
    live.write_at(b"before", 0).unwrap();
    let taken = live.freeze_and_switch(world.path("app.vhdx")).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
    std::fs::create_dir(world.path("sub")).unwrap();
    let elsewhere = live.freeze_and_switch(world.path("sub/x.avhdx")).unwrap_err();
    assert!(matches!(elsewhere, SwitchError::OtherDirectory { .. }), "{elsewhere}");
    let nowhere = LiveDisk::from(Disk::create_on(Arc::new(MemoryStorage::new()), &CreateOptions::dynamic(MIB)).unwrap());
    assert!(matches!(nowhere.freeze_and_switch("x.avhdx").unwrap_err(), SwitchError::NoPath));
    let alone = OpenOptions::new().parents(ParentPolicy::Deny);
    live.close().unwrap();
    let live = LiveDisk::open(world.path("alice.vhdx"), &alone).unwrap();
    let parentless = live.freeze_and_switch(world.path("x.avhdx")).unwrap_err();
    assert!(matches!(parentless, SwitchError::Disk(DiskError::ParentNotOpen)), "{parentless}");
    live.close().unwrap();
    assert_eq!(world.names(), ["alice.vhdx", "app.vhdx", "sub"]);
    assert_eq!(&word(&world.path("alice.vhdx"), 0), b"before");
}

/// A volume in memory whose files count their calls.
#[derive(Debug, Default)]
struct Memory {
    files: Mutex<BTreeMap<String, Arc<FaultStorage>>>,
    /// What the next calls of each sort answer.
    failing: Mutex<HashMap<&'static str, io::ErrorKind>>,
}

impl Memory {
    fn get(&self, name: &str) -> Arc<FaultStorage> {
        Arc::clone(&self.files.lock().unwrap()[name])
    }

    fn answer(&self, call: &'static str) -> io::Result<()> {
        self.failing.lock().unwrap().get(call).map_or(Ok(()), |kind| Err((*kind).into()))
    }

    /// A live child of a parent that is `value` all over.
    fn live(&self, size: u64, value: u8) -> LiveDisk {
        let base = self.create_new("base").unwrap();
        let disk = Disk::create_on(base, &CreateOptions::dynamic(size).block_size(MIB)).unwrap();
        disk.write_at(&vec![value; size as usize], 0).unwrap();
        disk.close().unwrap();
        let leaf = self.create_new("leaf").unwrap();
        LiveDisk::from(Disk::create_child_on(leaf, vec![self.get("base")], &CreateOptions::child().block_size(MIB)).unwrap())
    }

    /// The chain under a name: found by identity, as the store does it.
    fn chain(&self, name: &str) -> Vec<Arc<dyn Storage>> {
        let all: Vec<Arc<FaultStorage>> = self.files.lock().unwrap().values().cloned().collect();
        let mut chain = vec![self.get(name) as Arc<dyn Storage>];
        while let Some(parent) = linkage(chain.last().unwrap()) {
            chain.push(all.iter().find(|file| identity(&(Arc::clone(file) as _)) == Some(parent)).expect("the parent is there").clone());
        }
        chain
    }

    fn open(&self, name: &str) -> Disk {
        let mut chain = self.chain(name).into_iter();
        Disk::open_on(chain.next().unwrap(), chain.collect(), &OpenOptions::new()).unwrap()
    }
}

fn alone(file: &Arc<dyn Storage>) -> Option<Disk> {
    Disk::open_on(Arc::clone(file), Vec::new(), &OpenOptions::new().parents(ParentPolicy::Deny)).ok()
}

fn linkage(file: &Arc<dyn Storage>) -> Option<Guid> {
    Some(alone(file).unwrap().info().unwrap().parent?.linkage)
}

fn identity(file: &Arc<dyn Storage>) -> Option<Guid> {
    Some(alone(file)?.info().unwrap().data_write_guid.get())
}

impl Volume for Memory {
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        self.answer("create")?;
        let file = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new()))?);
        self.files.lock().unwrap().insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }
    fn rename(&self, from: &str, to: &str, _replace: bool) -> io::Result<()> {
        self.answer("rename")?;
        let mut files = self.files.lock().unwrap();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }
    fn link(&self, name: &str, second: &str) -> io::Result<()> {
        self.answer("link")?;
        let mut files = self.files.lock().unwrap();
        let file = Arc::clone(&files[name]);
        files.insert(second.to_owned(), file);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().unwrap().remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.answer("sync_dir")
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().unwrap().keys().cloned().collect())
    }
}

fn tag(cell: u64, value: u64) -> [u8; SECTOR as usize] {
    let mut out = [0; SECTOR as usize];
    for (i, part) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        part[..8].copy_from_slice(&value.to_le_bytes());
        part[8..].copy_from_slice(&((cell << 8) | i as u64).to_le_bytes());
    }
    out
}

/// What was written to the cell; the parent's value is 0x0101..01 and comes without a tag.
fn untag(cell: u64, bytes: &[u8]) -> Result<u64, String> {
    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    if bytes == tag(cell, value) || bytes.iter().all(|&b| b == 1) { Ok(value) } else { Err(format!("cell {cell}: {:x?}", &bytes[..32])) }
}

const INITIAL: u64 = 0x0101_0101_0101_0101;
const WRITERS: u64 = 8;
/// Shared cells, the writers' own cells behind them.
const SHARED: u64 = 24;
const OWN: u64 = 64;

/// Eight threads write, read and flush; a ninth freezes. Shared cells are registers across the switches. Each thread also counts up in
/// cells of its own: a frozen state must hold, of each thread, everything up to some write and nothing after it.
#[test]
fn eight_writers_and_a_saver() {
    history::canaries();
    let volume = Arc::new(Memory::default());
    let live = volume.live(4 * MIB, 1);
    let clock = AtomicU64::new(1);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let stamp = || clock.fetch_add(1, Ordering::SeqCst);
    // Cells are scattered over the blocks, so that there are first touches in every leaf.
    let at = |cell: u64| (cell * 7919 * SECTOR) % (4 * MIB);
    assert_eq!((0..SHARED + WRITERS * OWN).map(at).collect::<HashSet<_>>().len() as u64, SHARED + WRITERS * OWN);
    let saves = std::env::var("DIFFDISK_LIVE_SAVES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let (mut events, mut counts): (HashMap<u64, Vec<Event>>, Vec<u64>) = Default::default();
    let mut frozen: Vec<(String, u64, u64)> = Vec::new();
    std::thread::scope(|scope| {
        let (live, stamp, stop, written, at) = (&live, &stamp, &stop, &written, &at);
        let writers: Vec<_> = (0..WRITERS)
            .map(|thread| {
                scope.spawn(move || {
                    let (mut rng, mut log, mut count) = (Rng::new(thread), Vec::new(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        match rng.below(8) {
                            0..3 => {
                                count += 1;
                                let cell = SHARED + thread * OWN + count % OWN;
                                live.write_at(&tag(cell, count), at(cell)).unwrap();
                                written.fetch_add(1, Ordering::Relaxed);
                            }
                            3 | 4 => {
                                let cell = rng.below(SHARED);
                                let issued = stamp();
                                live.write_at(&tag(cell, issued), at(cell)).unwrap();
                                log.push((cell, Event { is_write: true, value: issued, issued, done: stamp() }));
                            }
                            5 | 6 => {
                                let cell = rng.below(SHARED);
                                let mut bytes = [0; SECTOR as usize];
                                let issued = stamp();
                                live.read_at(&mut bytes, at(cell)).unwrap();
                                let value = untag(cell, &bytes).unwrap();
                                log.push((cell, Event { is_write: false, value, issued, done: stamp() }));
                            }
                            _ if rng.below(8) == 0 => live.flush().unwrap(),
                            _ => std::thread::yield_now(),
                        }
                    }
                    (log, count)
                })
            })
            .collect();
        for n in 0..saves {
            let name = format!("frozen{n}");
            while written.load(Ordering::Relaxed) < n * 60 {
                std::thread::yield_now();
            }
            let issued = stamp();
            let switched = live.freeze_and_switch_in(volume.clone(), "leaf", &name).unwrap();
            assert!(switched.left_open.is_none(), "{:?}", switched.left_open);
            frozen.push((name, issued, stamp()));
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            let (log, count) = writer.join().unwrap();
            log.into_iter().for_each(|(cell, event)| events.entry(cell).or_default().push(event));
            counts.push(count);
        }
    });
    live.close().unwrap();
    let cells = |disk: &Disk| -> Vec<u64> {
        let read = |cell| {
            let mut bytes = [0; SECTOR as usize];
            disk.read_at(&mut bytes, at(cell)).unwrap();
            untag(cell, &bytes).unwrap()
        };
        (0..SHARED + WRITERS * OWN).map(read).collect()
    };
    let mut least = vec![0; WRITERS as usize];
    let end = stamp();
    for (name, issued, done) in frozen.iter().cloned().chain([("leaf".to_owned(), end, end + 1)]) {
        let seen = cells(&volume.open(&name));
        assert!(alone(&(volume.get(&name) as _)).unwrap().check().unwrap().is_sound(), "{name}");
        for cell in 0..SHARED {
            events.entry(cell).or_default().push(Event { is_write: false, value: seen[cell as usize], issued, done });
        }
        for thread in 0..WRITERS {
            let own = &seen[(SHARED + thread * OWN) as usize..][..OWN as usize];
            let newest = own.iter().copied().filter(|&n| n != INITIAL).max().unwrap_or(0);
            for (n, &value) in own.iter().enumerate() {
                // The newest write to this cell that is not after `newest`.
                let want = (0..OWN).filter_map(|back| newest.checked_sub(back)).find(|k| k % OWN == n as u64 && *k > 0).unwrap_or(INITIAL);
                assert_eq!(value, want, "{name}: thread {thread} had written {newest}, and cell {n} is not of that moment");
            }
            assert!(newest >= least[thread as usize], "{name}: a later state holds less");
            least[thread as usize] = newest;
        }
    }
    assert_eq!(least, counts, "the last state holds everything");
    for (cell, events) in &events {
        history::check(INITIAL, events).unwrap_or_else(|what| panic!("cell {cell}: {what}"));
    }
    let total: u64 = counts.iter().sum();
    loud(&format!("live: {saves} saves under {WRITERS} writers, {total} counted writes, {} registers, 0 violations", events.len()));
    assert!(total > 1000, "there was something to freeze");
}

/// What a script did to one cell, and when: marks are numbers of events in the trace.
struct Ledger {
    world: SimWorld,
    next: u64,
    /// Value, issued.
    writes: Vec<(u64, u64, usize)>,
    /// Called, returned.
    flushes: Vec<(usize, usize)>,
    saves: Vec<(usize, usize)>,
}

const CRASH_CELLS: u64 = 6;

fn crash_at(cell: u64) -> u64 {
    (cell % 3) * MIB + (cell / 3) * 8 * SECTOR
}

impl Ledger {
    fn write(&mut self, live: &LiveDisk, cell: u64) {
        self.next += 1;
        self.writes.push((cell, self.next, self.world.cut()));
        // Whole pages, so that they may ride in the log; the first sector is looked at.
        live.write_at(&tag(cell, self.next).repeat(8), crash_at(cell)).unwrap();
    }

    fn flush(&mut self, live: &LiveDisk) {
        let called = self.world.cut();
        live.flush().unwrap();
        self.flushes.push((called, self.world.cut()));
    }

    /// Whether a cell may hold a value after a crash at the cut.
    fn may_hold(&self, cell: u64, value: u64, cut: usize) -> bool {
        let safe = self.flushes.iter().filter(|(_, returned)| *returned <= cut).map(|(called, _)| *called).max().unwrap_or(0);
        let mine = || self.writes.iter().filter(|write| write.0 == cell);
        // The last write before the last flush, or any later one that had been issued.
        let flushed = mine().filter(|write| write.2 < safe).map(|write| write.1).next_back().unwrap_or(INITIAL);
        value == flushed || mine().any(|write| write.1 == value && write.2 >= safe && write.2 <= cut)
    }
}

/// Files have no second names here.
#[derive(Debug)]
struct NoLinks(SimWorld);

impl Volume for NoLinks {
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        self.0.create_new(name)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.0.rename(from, to, replace)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
}

/// Whatever a crash leaves between two calls of a switch, the clone opens and holds what was flushed or written since, and the frozen
/// file, once the clone stands on it, holds exactly what was there at the switch.
fn crash_everywhere(has_links: bool, mode: FlushMode, options: CrashOptions) -> (usize, [usize; 3], Result<(), String>) {
    let world = SimWorld::new(11);
    let base = world.create("base");
    let disk = Disk::create_on(base.clone(), &CreateOptions::dynamic(3 * MIB).block_size(MIB)).unwrap();
    disk.write_at(&vec![1; 3 * MIB as usize], 0).unwrap();
    disk.close().unwrap();
    let leaf = world.create("leaf");
    let child = CreateOptions::child().block_size(MIB);
    Disk::create_child_on(leaf.clone(), vec![base.clone()], &child).unwrap().close().unwrap();
    world.forget();
    let live = LiveDisk::from(Disk::open_on(leaf, vec![base], &OpenOptions::new().writable(true).flush_mode(mode)).unwrap());
    let volume: Arc<dyn Volume> = if has_links { Arc::new(view(&world)) } else { Arc::new(NoLinks(view(&world))) };
    let mut ledger = Ledger { world: view(&world), next: 0, writes: Vec::new(), flushes: Vec::new(), saves: Vec::new() };
    ledger.write(&live, 0);
    ledger.write(&live, 1);
    ledger.flush(&live);
    // A first write of a page in space that is there already: where payload may ride in the log, this does.
    ledger.write(&live, 3);
    ledger.flush(&live);
    ledger.write(&live, 1);
    ledger.write(&live, 3);
    let frozen_content: Vec<u64> = (0..CRASH_CELLS)
        .map(|cell| {
            let mut bytes = [0; SECTOR as usize];
            live.read_at(&mut bytes, crash_at(cell)).unwrap();
            untag(cell, &bytes).unwrap()
        })
        .collect();
    let called = world.cut();
    live.freeze_and_switch_in(volume, "leaf", "frozen").unwrap();
    // Saving flushes what it freezes.
    ledger.flushes.push((called, world.cut()));
    ledger.saves.push((called, world.cut()));
    ledger.write(&live, 0);
    ledger.write(&live, 4);
    ledger.flush(&live);
    ledger.write(&live, 4);
    live.close().unwrap();
    let end = world.cut();
    ledger.flushes.push((end, end));

    let trace = world.trace();
    let mut walk = CrashWalk::new(&trace, options);
    // Clone on its image, clone on the frozen file, clone without a file of its name.
    let (mut states, mut kinds, mut violation) = (HashSet::new(), [0; 3], Ok(()));
    loop {
        let cut = walk.cut();
        walk.for_each_choice(&mut |_, image| {
            if states.insert((image.hash(), cut)) {
                violation = examine(&image.boot(false), &ledger, cut, &frozen_content, &mut kinds);
            }
            violation.is_ok()
        });
        if violation.is_err() || walk.step().is_none() {
            return (states.len(), kinds, violation);
        }
    }
}

/// The same world: it is a handle.
fn view(world: &SimWorld) -> SimWorld {
    world.clone()
}

fn examine(world: &SimWorld, ledger: &Ledger, cut: usize, frozen_content: &[u64], kinds: &mut [usize; 3]) -> Result<(), String> {
    let base: Arc<dyn Storage> = world.open("base").expect("never touched");
    let frozen = world.open("frozen").map(|file| file as Arc<dyn Storage>);
    let (leaf, kind): (Arc<dyn Storage>, _) = match (world.open("leaf"), &frozen) {
        (Some(leaf), _) => (leaf, None),
        // Where files have one name only: whoever keeps the books gives it back.
        (None, Some(frozen)) => (Arc::clone(frozen), Some(2)),
        (None, None) => return Err("there is no clone".into()),
    };
    let mut parents = vec![base.clone()];
    let on_image = linkage(&leaf) == identity(&base);
    if !on_image {
        let frozen = frozen.ok_or("the clone's parent has no name")?;
        if linkage(&leaf) != identity(&frozen) {
            return Err("the clone stands on nothing that is there".into());
        }
        parents.insert(0, frozen);
    }
    kinds[kind.unwrap_or(usize::from(!on_image))] += 1;
    let cells = |leaf: Arc<dyn Storage>, parents: Vec<Arc<dyn Storage>>| -> Result<Vec<u64>, String> {
        let disk = Disk::open_on(leaf, parents, &OpenOptions::new()).map_err(|e| e.to_string())?;
        let report = disk.check().map_err(|e| e.to_string())?;
        if !report.is_sound() {
            return Err(format!("{:?}", report.errors));
        }
        let read = |cell| {
            let mut bytes = [0; SECTOR as usize];
            disk.read_at(&mut bytes, crash_at(cell)).map_err(|e| e.to_string())?;
            untag(cell, &bytes)
        };
        (0..CRASH_CELLS).map(read).collect()
    };
    for (cell, value) in (0..).zip(cells(leaf, parents.clone())?) {
        if !ledger.may_hold(cell, value, cut) {
            return Err(format!("at cut {cut} cell {cell} holds {value}: {:?}, flushes {:?}", ledger.writes, ledger.flushes));
        }
    }
    if !on_image && cells(parents.remove(0), parents)? != frozen_content {
        return Err(format!("at cut {cut} the frozen file is not what it was when it was frozen"));
    }
    if ledger.saves.iter().any(|(_, returned)| *returned <= cut) && on_image {
        return Err(format!("at cut {cut} the save had returned, and the clone does not stand on it"));
    }
    Ok(())
}

#[test]
fn a_crash_at_any_step_leaves_the_clone_before_or_after() {
    let options = CrashOptions::default();
    let (states, kinds, violation) = crash_everywhere(true, FlushMode::default(), options.clone());
    violation.unwrap();
    assert!(states > 300 && kinds[0] > 50 && kinds[1] > 50 && kinds[2] == 0, "{states} states, {kinds:?}");
    assert_ne!(crash_everywhere(true, FlushMode::PayloadInLog, options.clone()).0, states, "payload rides in the log");
    let (more, one_name, violation) = crash_everywhere(false, FlushMode::PayloadInLog, options.clone());
    violation.unwrap();
    assert!(one_name.iter().all(|&n| n > 0), "{one_name:?}");
    loud(&format!("live: {states} + {more} crash states of a switch, {kinds:?} and {one_name:?}, 0 violations"));
    // The test sees what each sync of a directory is for.
    let blind = CrashOptions { no_op_dir: true, ..options };
    assert!(crash_everywhere(true, FlushMode::default(), blind).2.is_err(), "without syncs of the directory something must go wrong");
}

#[test]
fn the_trace_of_a_switch_has_the_steps_in_order() {
    let world = SimWorld::new(1);
    let leaf = world.create("leaf");
    let live = LiveDisk::from(Disk::create_on(leaf, &CreateOptions::dynamic(MIB)).unwrap());
    live.write_at(&[1; 512], 0).unwrap();
    let cut = world.cut();
    live.freeze_and_switch_in(Arc::new(view(&world)), "leaf", "frozen").unwrap();
    let events = world.events_since(cut);
    let place = |what: &dyn Fn(&SimEvent) -> bool| events.iter().position(what).expect("it happened");
    let link = place(&|e| matches!(e, SimEvent::Link { name, second } if name == "leaf" && second == "frozen"));
    let rename = place(&|e| matches!(e, SimEvent::Rename { to, .. } if to == "leaf"));
    let syncs: Vec<usize> = (0..events.len()).filter(|&i| matches!(events[i], SimEvent::SyncDir)).collect();
    assert!(syncs.len() == 2 && link < syncs[0] && syncs[0] < rename && rename < syncs[1], "{syncs:?}, {link}, {rename}");
}

#[test]
fn a_switch_that_cannot_be_finished_is_finished_by_a_later_flush() {
    for call in ["link", "rename"] {
        let volume = Arc::new(Memory::default());
        let live = volume.live(2 * MIB, 1);
        live.write_at(&tag(0, 5), 0).unwrap();
        volume.failing.lock().unwrap().insert(call, io::ErrorKind::StorageFull);
        let failed = live.freeze_and_switch_in(volume.clone(), "leaf", "frozen").unwrap_err();
        assert!(matches!(failed, SwitchError::Unfinished(_)) && failed.kind() == ErrorKind::NoSpace, "{failed}");
        // The disk goes on, and no flush says yes.
        live.write_at(&tag(0, 6), 0).unwrap();
        assert_eq!(live.flush().unwrap_err().kind(), ErrorKind::NoSpace);
        assert!(!live.is_degraded());
        let mut bytes = [0; 512];
        live.read_at(&mut bytes, 0).unwrap();
        assert_eq!(untag(0, &bytes), Ok(6));
        let again = live.freeze_and_switch_in(volume.clone(), "leaf", "frozen2").unwrap_err();
        assert_eq!(again.kind(), ErrorKind::NoSpace, "one after the other");
        volume.failing.lock().unwrap().clear();
        live.flush().unwrap();
        assert!(volume.exists("frozen").unwrap());
        live.freeze_and_switch_in(volume.clone(), "leaf", "frozen2").unwrap();
        live.close().unwrap();
        let value = |name: &str| {
            let mut bytes = [0; 512];
            volume.open(name).read_at(&mut bytes, 0).unwrap();
            untag(0, &bytes).unwrap()
        };
        assert_eq!((value("frozen"), value("frozen2"), value("leaf")), (5, 6, 6), "{call}");
    }
}

#[test]
fn a_failed_sync_of_the_directory_latches() {
    let volume = Arc::new(Memory::default());
    let live = volume.live(2 * MIB, 1);
    live.write_at(&tag(0, 5), 0).unwrap();
    volume.failing.lock().unwrap().insert("sync_dir", io::ErrorKind::Other);
    live.freeze_and_switch_in(volume.clone(), "leaf", "frozen").unwrap_err();
    volume.failing.lock().unwrap().clear();
    assert!(live.is_degraded());
    assert!(matches!(live.write_at(&[2; 512], 0), Err(DiskError::Latched { .. })));
    assert!(live.flush().is_err(), "final");
    let mut bytes = [0; 512];
    live.read_at(&mut bytes, 0).unwrap();
    assert_eq!(untag(0, &bytes), Ok(5), "reads go on");
    drop(live);
    let mut chain = volume.chain("leaf").into_iter();
    let disk = Disk::open_on(chain.next().unwrap(), chain.collect(), &OpenOptions::new().writable(true)).unwrap();
    disk.read_at(&mut bytes, 0).unwrap();
    assert_eq!(untag(0, &bytes), Ok(5), "reopening recovers");
}

/// Every write, sync and change of length of either leaf fails once, in the middle of a switch: what was flushed before is there
/// afterwards, whatever the switch says.
#[test]
fn a_fault_anywhere_loses_nothing_that_was_flushed() {
    let (mut runs, mut failed, mut latched, mut left_open) = (0, 0, 0, 0);
    for (kind, fault) in [
        (CallKind::Write, Fault::Error(io::ErrorKind::Other)),
        (CallKind::Write, Fault::Error(io::ErrorKind::StorageFull)),
        (CallKind::SetLen, Fault::Error(io::ErrorKind::StorageFull)),
        (CallKind::Sync, Fault::Sync(io::ErrorKind::Other, Lost::OnDevice)),
        (CallKind::Read, Fault::Error(io::ErrorKind::Other)),
    ] {
        for k in 1.. {
            let volume = Arc::new(Memory::default());
            let live = volume.live(2 * MIB, 1);
            live.write_at(&tag(0, 5), 0).unwrap();
            live.write_at(&tag(1, 6), MIB).unwrap();
            live.flush().unwrap();
            live.write_at(&tag(0, 7), 0).unwrap();
            live.write_at(&tag(2, 9), 4 * SECTOR).unwrap();
            let old = volume.get("leaf");
            old.arm(kind, k, Repeat::Once, fault);
            let switched = live.freeze_and_switch_in(volume.clone(), "leaf", "frozen");
            let hit = old.hits() > 0;
            old.heal();
            runs += 1;
            failed += u64::from(switched.is_err());
            latched += u64::from(live.is_degraded());
            left_open += u64::from(switched.as_ref().is_ok_and(|switched| switched.left_open.is_some()));
            let wrote = live.write_at(&tag(1, 8), MIB).is_ok();
            let flushed = wrote && live.flush().is_ok();
            assert!(switched.is_err() || flushed, "{kind:?} {k}: the disk goes on after a save that worked");
            drop(live);
            for name in ["leaf", "frozen"].into_iter().filter(|name| volume.exists(name).unwrap()) {
                volume.get(name).power_cut().unwrap();
            }
            let disk = volume.open("leaf");
            let value = |disk: &Disk, cell: u64, at: u64| {
                let mut bytes = [0; 512];
                disk.read_at(&mut bytes, at).unwrap();
                untag(cell, &bytes).unwrap()
            };
            let (zero, one) = (value(&disk, 0, 0), value(&disk, 1, MIB));
            let expected = if flushed { zero == 7 && one == 8 } else { [5, 7].contains(&zero) && [6, 8].contains(&one) };
            assert!(expected, "{kind:?} {k}, {switched:?}: {zero}, {one}");
            if switched.is_ok() {
                let frozen = volume.open("frozen");
                let all = (value(&frozen, 0, 0), value(&frozen, 1, MIB), value(&frozen, 2, 4 * SECTOR));
                assert_eq!(all, (7, 6, 9), "{kind:?} {k}");
            }
            if !hit {
                break;
            }
        }
    }
    loud(&format!(
        "live: {runs} faults in a switch, {failed} saves failed, {latched} disks latched, {left_open} frozen with a log, nothing lost"
    ));
    assert!(failed > 3 && latched > 1 && left_open > 3, "{runs}, {failed}, {latched}, {left_open}");
}

/// A hundred and more leaves: reads cost one call of one file, however deep what they read lies, and the chain ends where it must.
#[test]
fn depth_is_free_and_has_an_end() {
    let volume = Arc::new(Memory::default());
    let live = volume.live(2 * MIB, 1);
    let saves = MAX_CHAIN_DEPTH as u64 - 2;
    let reads = || volume.files.lock().unwrap().values().map(|file| file.calls().reads).sum::<u64>();
    let mut worst = 0;
    for n in 0..saves {
        live.write_at(&tag(n, n), n * SECTOR).unwrap();
        live.freeze_and_switch_in(volume.clone(), "leaf", &format!("frozen{n}")).unwrap();
        for _ in 0..2 {
            let before = reads();
            for cell in [0, n / 2, n] {
                let mut bytes = [0; 512];
                live.read_at(&mut bytes, cell * SECTOR).unwrap();
                assert_eq!(untag(cell, &bytes), Ok(cell));
            }
            worst = reads() - before;
        }
        assert!(worst <= 3, "three warm reads in a chain of {n} cost {worst} reads of files");
    }
    let deep = live.freeze_and_switch_in(volume.clone(), "leaf", "one more").unwrap_err();
    assert!(matches!(deep, SwitchError::Chain(_)), "{deep}");
    assert_eq!(deep.kind(), ErrorKind::Unsupported);
    live.close().unwrap();
    let disk = volume.open("leaf");
    for n in 0..saves {
        let mut bytes = [0; 512];
        disk.read_at(&mut bytes, n * SECTOR).unwrap();
        assert_eq!(untag(n, &bytes), Ok(n));
    }
    let _: DataWriteGuid = disk.info().unwrap().data_write_guid;
}
