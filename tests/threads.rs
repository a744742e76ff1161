//! Many threads on one disk: reads are those of registers (P9), what was flushed survives (P1), a flush serves everybody who waits.
//!
//! Eight threads read, write, zero, trim and flush a child over a parent without a zero, on a disk of few blocks, so that space is
//! given up and reused all the time under readers that hold no lock. Every cell of 128 bytes carries a value that names it and
//! the request that wrote it. After a round everything that no sync has hardened is thrown away and the disk opened again.

#[path = "support/threads/history.rs"]
mod history;
#[path = "support/loud.rs"]
mod loud;

use diffdisk::storage::sim::{FaultStorage, Rng};
use diffdisk::storage::{MemoryStorage, Storage, StorageId, SyncSite};
use diffdisk::{Cancel, CompactOptions, CreateOptions, Disk, NoProgress, OpenOptions};
use history::{Event, ZERO};
use loud::loud;
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 6;
const SIZE: u64 = BLOCKS * MIB;
/// A quarter of a sector, so that unaligned writers meet in one.
const CELL: u64 = 128;
/// Cells that are looked at, around the end of each block.
const AROUND: u64 = 24;
const THREADS: u64 = 8;
const OPS: u64 = 1500;

/// Gives the other threads a chance between a look-up and its I/O, and counts syncs.
#[derive(Debug)]
struct Hesitant {
    inner: FaultStorage,
    turn: AtomicU64,
}

impl Hesitant {
    fn new(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { inner: FaultStorage::new(inner).unwrap(), turn: AtomicU64::new(0) })
    }

    fn hesitate(&self) {
        for _ in 0..[0, 1, 0, 3, 0, 0, 2][self.turn.fetch_add(1, Ordering::Relaxed) as usize % 7] {
            std::thread::yield_now();
        }
    }
}

impl Storage for Hesitant {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.hesitate();
        let result = self.inner.read_at(buf, at);
        self.hesitate();
        result
    }
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.hesitate();
        let result = self.inner.write_at(buf, at);
        self.hesitate();
        result
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync(&self, site: SyncSite) -> io::Result<()> {
        self.hesitate();
        self.inner.sync(site)
    }
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.hesitate();
        self.inner.punch(at, len)
    }
    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        self.inner.next_data(at)
    }
    fn allocated(&self) -> io::Result<u64> {
        self.inner.allocated()
    }
    fn id(&self) -> StorageId {
        self.inner.id()
    }
}

fn content(cell: u64, value: u64) -> [u8; CELL as usize] {
    let mut out = [0; CELL as usize];
    if value != ZERO {
        for (i, word) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = (value ^ (cell << 40) ^ ((i as u64) << 58)).to_le_bytes();
        }
    }
    out
}

/// The value that a cell holds; an error for anything that was not written to this very cell as a whole.
fn value_of(cell: u64, bytes: &[u8]) -> Result<u64, String> {
    if bytes.iter().all(|&b| b == 0) {
        return Ok(ZERO);
    }
    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap()) ^ (cell << 40);
    if bytes == content(cell, value) { Ok(value) } else { Err(format!("cell {cell} holds {:02x?}", &bytes[..24])) }
}

fn fill(first_cell: u64, cells: u64, value: u64) -> Vec<u8> {
    (first_cell..first_cell + cells).flat_map(|cell| content(cell, value)).collect()
}

/// The parent's values are small numbers, one for each disk.
fn parent(value: u64) -> Arc<MemoryStorage> {
    let bytes = Arc::new(MemoryStorage::new());
    let disk = Disk::create_on(bytes.clone(), &CreateOptions::dynamic(SIZE).block_size(MIB)).unwrap();
    disk.write_at(&fill(0, SIZE / CELL, value), 0).unwrap();
    disk.close().unwrap();
    bytes
}

/// The cells that are looked at: those around each end of a block.
fn hot_cells() -> impl Iterator<Item = u64> {
    (0..SIZE / CELL).filter(is_hot)
}

fn is_hot(cell: &u64) -> bool {
    (cell + AROUND) % (MIB / CELL) < 2 * AROUND
}

fn hot_cell(rng: &mut Rng) -> u64 {
    let edge = rng.below(BLOCKS + 1) * MIB / CELL;
    (edge + rng.below(2 * AROUND)).saturating_sub(AROUND).min(SIZE / CELL - 1)
}

struct Flush {
    called: u64,
}

/// What one thread did.
#[derive(Default)]
struct Log {
    events: Vec<(u64, Event)>,
    flushes: Vec<Flush>,
    foreign: Vec<String>,
}

struct Round<'a> {
    disk: &'a Disk,
    clock: &'a AtomicU64,
    /// Whether the threads pause writing now and then and only zero and read, so that blocks of zeros live for a while.
    calms: bool,
}

impl Round<'_> {
    fn stamp(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn zeroed(&self, log: &mut Log, from: u64, to: u64, call: impl FnOnce()) {
        let issued = self.stamp();
        call();
        let done = self.stamp();
        let event = Event { is_write: true, value: ZERO, issued, done };
        log.events.extend(hot_cells().filter(|cell| (from..to).contains(cell)).map(|cell| (cell, event)));
    }

    fn write(&self, log: &mut Log, rng: &mut Rng) {
        let first = hot_cell(rng);
        // Whole sectors, or some quarters of one or two.
        let (first, cells) = if rng.below(3) > 0 { (first / 4 * 4, 4 * (1 + rng.below(4))) } else { (first, 1 + rng.below(5)) };
        let cells = cells.min(SIZE / CELL - first);
        let issued = self.stamp();
        let value = issued + 1000;
        self.disk.write_at(&fill(first, cells, value), first * CELL).unwrap();
        let done = self.stamp();
        let event = Event { is_write: true, value, issued, done };
        log.events.extend((first..first + cells).filter(is_hot).map(|cell| (cell, event)));
    }

    fn read(&self, log: &mut Log, rng: &mut Rng) {
        let first = hot_cell(rng);
        let cells = (1 + rng.below(32)).min(SIZE / CELL - first);
        let mut buf = vec![0xEE; (cells * CELL) as usize];
        let issued = self.stamp();
        self.disk.read_at(&mut buf, first * CELL).unwrap();
        let done = self.stamp();
        for (bytes, cell) in buf.chunks_exact(CELL as usize).zip(first..) {
            match value_of(cell, bytes) {
                Ok(value) if is_hot(&cell) => log.events.push((cell, Event { is_write: false, value, issued, done })),
                Ok(_) => {}
                Err(what) => log.foreign.push(what),
            }
        }
    }

    fn work(&self, seed: u64) -> Log {
        let (mut log, mut rng) = (Log::default(), Rng::new(seed));
        for op in 0..OPS {
            let block = rng.below(BLOCKS);
            let (from, to) = (block * MIB / CELL, (block + 1) * MIB / CELL);
            let is_calm = self.calms && op % 300 >= 220;
            match if is_calm { 64 + rng.below(4) } else { rng.below(64) } {
                // In two steps, so that the block keeps its place.
                64 => {
                    let half = MIB / 2 / CELL;
                    for first in [from, from + half] {
                        self.zeroed(&mut log, first, first + half, || self.disk.write_zeroes(first * CELL, MIB / 2).unwrap());
                    }
                }
                65.. => self.read(&mut log, &mut rng),
                0..24 => self.write(&mut log, &mut rng),
                24..55 => self.read(&mut log, &mut rng),
                55..58 => self.zeroed(&mut log, from, to, || self.disk.trim(block * MIB, MIB).unwrap()),
                58 => self.zeroed(&mut log, from, to, || self.disk.write_zeroes(block * MIB, MIB).unwrap()),
                59 => {
                    let (first, cells) = (hot_cell(&mut rng), 1 + rng.below(12));
                    let cells = cells.min(SIZE / CELL - first);
                    self.zeroed(&mut log, first, first + cells, || self.disk.write_zeroes(first * CELL, cells * CELL).unwrap());
                }
                _ => {
                    let called = self.stamp();
                    self.disk.flush().unwrap();
                    log.flushes.push(Flush { called });
                }
            }
        }
        log
    }
}

/// What somebody who compacts while the others work did.
#[derive(Default)]
struct Compacted {
    runs: u64,
    moved: u64,
    dropped: u64,
    bitmaps: u64,
    punched: u64,
    busy: u64,
    cut: u64,
}

impl Compacted {
    /// Until the others are done, and then once more.
    fn work(disk: &Disk, over: &AtomicBool) -> Self {
        let mut sum = Self::default();
        loop {
            let last = over.load(Ordering::SeqCst);
            let report = disk.compact(&CompactOptions::new(), &NoProgress, &Cancel::new()).unwrap();
            sum.runs += 1;
            sum.moved += report.moved_blocks;
            sum.dropped += report.equal_blocks + report.zero_blocks;
            sum.bitmaps += report.freed_bitmaps;
            sum.punched += report.punched_bytes;
            sum.busy += report.busy_blocks;
            sum.cut += u64::from(report.file_after < report.file_before);
            if last {
                return sum;
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.moved += other.moved;
        self.dropped += other.dropped;
        self.bitmaps += other.bitmaps;
        self.punched += other.punched;
        self.busy += other.busy;
        self.cut += other.cut;
    }
}

#[test]
fn reads_are_those_of_registers_and_what_was_flushed_survives() {
    histories(7, Duration::from_secs(12), false);
}

/// The same while one more thread compacts the disk all the time: blocks move, are given up and come back under everybody's feet.
#[test]
fn a_compaction_disturbs_nobody() {
    let sum = histories(7, Duration::from_secs(8), true);
    assert!(sum.moved > 0 && sum.cut > 0, "nothing moved, or nothing was cut off");
    // Over a parent of zeros, whose children hold what it shows now and then.
    let sum = histories(ZERO, Duration::from_secs(8), true);
    assert!(sum.dropped > 0 && sum.moved > 0, "nothing was given up");
}

fn histories(inherited: u64, time: Duration, compacts: bool) -> Compacted {
    history::canaries();
    let parent: Arc<dyn Storage> = parent(inherited);
    let started = Instant::now();
    let clock = AtomicU64::new(1);
    let mut compacted = Compacted::default();
    let (mut rounds, mut checked, mut flushes, mut reused) = (0, 0, 0, 0);
    let mut leaf = Arc::new(MemoryStorage::new());
    let mut initial: HashMap<u64, u64> = HashMap::new();
    while rounds < if compacts { 2 } else { 4 } || (rounds < 60 && started.elapsed() < time) {
        // Every eighth round begins with an untouched child, so that there are first touches of all kinds.
        if rounds % 8 == 0 {
            leaf = Arc::new(MemoryStorage::new());
            Disk::create_child_on(leaf.clone(), vec![parent.clone()], &CreateOptions::child().block_size(MIB)).unwrap().close().unwrap();
            initial = hot_cells().map(|cell| (cell, inherited)).collect();
        }
        let file = Hesitant::new(leaf.clone());
        let disk = Disk::open_on(file.clone(), vec![parent.clone()], &OpenOptions::new().writable(true)).unwrap();
        let round = Round { disk: &disk, clock: &clock, calms: compacts };
        let over = AtomicBool::new(false);
        let logs: Vec<Log> = std::thread::scope(|scope| {
            let seeds = rounds * THREADS..(rounds + 1) * THREADS;
            let compactor = compacts.then(|| scope.spawn(|| Compacted::work(&disk, &over)));
            let workers: Vec<_> = seeds.map(|seed| (seed, &round)).map(|(seed, round)| scope.spawn(move || round.work(seed))).collect();
            let logs: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            over.store(true, Ordering::SeqCst);
            compactor.into_iter().for_each(|compactor| compacted.add(&compactor.join().unwrap()));
            logs.into_iter().map(|log| log.unwrap()).collect()
        });
        let mut events: HashMap<u64, Vec<Event>> = HashMap::new();
        let mut last_flush = 0;
        for log in logs {
            assert!(log.foreign.is_empty(), "P3: {:?}", log.foreign);
            checked += log.events.len();
            flushes += log.flushes.len();
            last_flush = log.flushes.iter().map(|flush| flush.called).chain([last_flush]).max().unwrap();
            log.events.into_iter().for_each(|(cell, event)| events.entry(cell).or_default().push(event));
        }
        // What the disk says when everybody is done is one more read.
        let now = values(&disk);
        let at = clock.fetch_add(2, Ordering::SeqCst);
        for (&cell, &value) in &now {
            events.entry(cell).or_default().push(Event { is_write: false, value, issued: at, done: at + 1 });
        }
        for (cell, events) in &events {
            history::check(initial[cell], events).unwrap_or_else(|what| panic!("P9: round {rounds}, cell {cell}: {what}"));
        }
        reused += file.inner.calls().punches;
        drop(disk);
        file.inner.power_cut().unwrap();
        initial = survivors(&leaf, &parent, &initial, &events, last_flush);
        rounds += 1;
    }
    loud(&format!(
        "threads: {rounds} rounds of {THREADS} threads, {checked} register events, {flushes} flushes, {reused} holes, 0 violations"
    ));
    assert!(reused > rounds, "space was given up and reused");
    if compacts {
        let Compacted { runs, moved, dropped, bitmaps, punched, busy, cut } = compacted;
        loud(&format!(
            "compaction beside them: {runs} times, {moved} blocks moved, {dropped} and {bitmaps} bitmaps given up, {punched} bytes punched, the \
             file cut {cut} times, {busy} blocks in use"
        ));
    }
    compacted
}

/// All hot cells.
fn values(disk: &Disk) -> HashMap<u64, u64> {
    let mut all = vec![0; SIZE as usize];
    disk.read_at(&mut all, 0).unwrap();
    let bytes = |cell: u64| &all[(cell * CELL) as usize..][..CELL as usize];
    hot_cells().map(|cell| (cell, value_of(cell, bytes(cell)).unwrap_or_else(|what| panic!("P3: {what}")))).collect()
}

/// Opens what the device holds, checks it, and returns the values it starts from.
fn survivors(
    leaf: &Arc<MemoryStorage>,
    parent: &Arc<dyn Storage>,
    initial: &HashMap<u64, u64>,
    events: &HashMap<u64, Vec<Event>>,
    last_flush: u64,
) -> HashMap<u64, u64> {
    let disk = Disk::open_on(leaf.clone(), vec![parent.clone()], &OpenOptions::new().writable(true)).unwrap();
    let report = disk.check().unwrap();
    assert!(report.is_sound(), "P4: {:?}", report.errors);
    let found = values(&disk);
    for (cell, &value) in &found {
        let events = events.get(cell).map_or(&[][..], Vec::as_slice);
        let survives = history::may_survive(initial[cell], events, last_flush, value);
        assert!(survives, "P1: cell {cell} holds {value:#x} after a power cut; the last flush was called at {last_flush}: {events:?}");
    }
    disk.close().unwrap();
    found
}

/// A disk over a parent of `value`, on storage that hesitates.
fn child(value: u64) -> (Arc<Hesitant>, Disk, Arc<MemoryStorage>) {
    let parent = parent(value);
    let file = Hesitant::new(Arc::new(MemoryStorage::new()));
    let disk = Disk::create_child_on(file.clone(), vec![parent.clone()], &CreateOptions::child().block_size(MIB)).unwrap();
    (file, disk, parent)
}

/// What one thread does at one time: thread, time.
type Phase<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Runs the phases on all threads at once, `times` times over; nobody begins a phase before all are done with the one before.
/// A thread that panics keeps step until the end, so that nobody waits for it for ever.
fn together(times: u64, phases: &[Phase<'_>]) {
    let (barrier, panicked) = (Barrier::new(THREADS as usize), Mutex::new(None));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (barrier, panicked) = (&barrier, &panicked);
            scope.spawn(move || {
                for (time, phase) in (0..times).flat_map(|time| phases.iter().map(move |phase| (time, phase))) {
                    barrier.wait();
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| phase(thread, time))) {
                        panicked.lock().unwrap().get_or_insert(panic);
                    }
                }
            });
        }
    });
    if let Some(panic) = panicked.into_inner().unwrap() {
        resume_unwind(panic);
    }
}

#[test]
fn unaligned_writers_of_one_sector_lose_nothing() {
    let (file, disk, parent) = child(9);
    let times = 400;
    // Each time another sector: half of the time the first touch of its block, else of a sector beside one that is present.
    let sector_at = |time: u64| (time % BLOCKS) * MIB + (time / BLOCKS) * 512;
    // Eight writers of 64 bytes: each fills half a cell, two of them one value.
    let piece = |thread: u64, time: u64| {
        let cell = sector_at(time) / CELL + thread / 2;
        (cell, content(cell, 1000 + time)[(thread % 2) as usize * 64..][..64].to_vec())
    };
    let verify = |disk: &Disk, time: u64| {
        let mut sector = [0; 512];
        disk.read_at(&mut sector, sector_at(time)).unwrap();
        for (bytes, cell) in sector.chunks_exact(CELL as usize).zip(sector_at(time) / CELL..) {
            assert_eq!(value_of(cell, bytes), Ok(1000 + time), "writer {time}");
        }
    };
    let write = |thread, time| disk.write_at(&piece(thread, time).1, sector_at(time) + thread * 64).unwrap();
    let look = |thread, time| {
        if thread == 0 {
            verify(&disk, time)
        }
    };
    together(times, &[&write, &look]);
    disk.flush().unwrap();
    drop(disk);
    file.inner.power_cut().unwrap();
    let disk = Disk::open_on(file, vec![parent], &OpenOptions::new()).unwrap();
    (0..times).for_each(|time| verify(&disk, time));
}

#[test]
fn the_first_touch_of_a_block_by_all_at_once_makes_one_block() {
    // Dynamic: the block appears whole. Child: sector by sector, with the first sector bitmap of its chunk.
    for is_child in [false, true] {
        for time in 0..40 {
            let file = Hesitant::new(Arc::new(MemoryStorage::new()));
            let parents: Vec<Arc<dyn Storage>> = if is_child { vec![parent(11)] } else { vec![] };
            let disk = match is_child {
                true => Disk::create_child_on(file.clone(), parents.clone(), &CreateOptions::child().block_size(MIB)),
                false => Disk::create_on(file.clone(), &CreateOptions::dynamic(SIZE).block_size(MIB)),
            };
            let disk = disk.unwrap();
            let at = |thread: u64| MIB + (thread * 37 + time) % 512 * 512;
            together(1, &[&|thread, _| disk.write_at(&fill(at(thread) / CELL, 4, 1000 + thread), at(thread)).unwrap()]);
            disk.flush().unwrap();
            drop(disk);
            file.inner.power_cut().unwrap();
            let disk = Disk::open_on(file, parents, &OpenOptions::new()).unwrap();
            let mut block = vec![0; MIB as usize];
            disk.read_at(&mut block, MIB).unwrap();
            for (bytes, cell) in block.chunks_exact(CELL as usize).zip(MIB / CELL..) {
                let writer = (0..THREADS).find(|&thread| at(thread) / 512 == cell / 4);
                let want = writer.map_or(if is_child { 11 } else { ZERO }, |thread| 1000 + thread);
                assert_eq!(value_of(cell, bytes), Ok(want), "child: {is_child}, time {time}");
            }
            let sizes = disk.info().unwrap().sizes;
            assert!(disk.check().unwrap().is_sound() && sizes.diverged <= MIB, "one block: {sizes:?}");
        }
    }
}

#[test]
fn one_commit_serves_all_flushers() {
    let (file, disk, _parent) = child(13);
    disk.write_at(&[1; 512], 0).unwrap();
    disk.flush().unwrap();
    let (times, before) = (200, file.inner.calls().syncs);
    let write = |thread: u64, time: u64| {
        let at = (thread * 200 + time) * 512 + (time % BLOCKS) * MIB;
        disk.write_at(&fill(at / CELL, 4, 1000 + time), at).unwrap();
    };
    together(times, &[&write, &|_, _| disk.flush().unwrap()]);
    let syncs = file.inner.calls().syncs - before;
    loud(&format!("threads: {} flushes by {THREADS} threads in {syncs} syncs", times * THREADS));
    // Two for each group, and what making room in the log costs now and then.
    assert!(syncs <= 2 * times + times / 10, "{syncs} syncs for {} flushes", times * THREADS);
    assert!(syncs >= times, "each group had something to harden");
}
