//! A whole disk under shuttle: 3 to 5 threads, random operations, thousands of schedules.
//!
//! Built for `--cfg shuttle` alone, where every lock and atomic of the engine is a place at which the scheduler may change threads,
//! and so is every call on the file. The threads work on a child of two blocks over a parent: writes of a sector or across the
//! border of the blocks, zeros, trims, flushes, reads, lists of extents. Every sector is a register whose history must make sense
//! (P9); at the end everything that no sync hardened is thrown away, and what was flushed must be there (P1) in a sound file (P4).
//!
//! `DIFFDISK_SHUTTLE_SCHEDULES` (10,000) and `DIFFDISK_SHUTTLE_SECONDS` (60) bound the run. What fails prints its schedule;
//! `DIFFDISK_SHUTTLE_REPLAY=<schedule>` runs that one again, and schedules that failed once stand in [`FOUND`].

#![cfg(shuttle)]

#[path = "support/threads/history.rs"]
mod history;

use diffdisk::storage::sim::{FaultStorage, Fixed, Rng};
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{CreateOptions, Disk, Extent, OpenOptions};
use history::{Event, ZERO};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
const SIZE: u64 = 2 * MIB;
/// What the parent holds in the sectors that are looked at.
const PARENT: u64 = 7;
/// Calls of each thread.
const CALLS: u64 = 5;

/// Schedules that failed once, each with the seed of its operations.
const FOUND: [(u64, &str); 0] = [];

/// The sectors that are looked at: the first ones of block 0, and those on both sides of the border.
const HOT: [u64; 6] = [0, 1, 2, MIB / SECTOR - 1, MIB / SECTOR, MIB / SECTOR + 1];

static RUNS: AtomicU64 = AtomicU64::new(0);
static EVENTS: AtomicU64 = AtomicU64::new(0);

fn content(sector: u64, value: u64) -> [u8; SECTOR as usize] {
    let mut out = [0; SECTOR as usize];
    if value != ZERO {
        for (i, word) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = (value ^ sector << 40 ^ (i as u64) << 56).to_le_bytes();
        }
    }
    out
}

fn value_of(sector: u64, bytes: &[u8]) -> u64 {
    let value = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) ^ sector << 40;
    let zero = bytes.iter().all(|&byte| byte == 0);
    assert!(zero || bytes == content(sector, value), "P3: sector {sector} holds {:02x?}", &bytes[..16]);
    if zero { ZERO } else { value }
}

struct Shared {
    disk: Disk,
    /// Not a checked atomic: the order of stamps is the order of what happens, and drawing one is no place to switch.
    clock: AtomicU64,
}

impl Shared {
    fn stamp(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn timed(&self, log: &mut Vec<(u64, Event)>, sectors: &[u64], value: u64, call: impl FnOnce()) {
        let issued = self.stamp();
        call();
        let done = self.stamp();
        let hot = sectors.iter().filter(|sector| HOT.contains(sector));
        log.extend(hot.map(|&sector| (sector, Event { is_write: true, value, issued, done })));
    }

    fn read(&self, log: &mut Vec<(u64, Event)>, first: u64, count: u64) {
        let mut bytes = vec![0xEE; (count * SECTOR) as usize];
        let issued = self.stamp();
        self.disk.read_at(&mut bytes, first * SECTOR).expect("a read");
        let done = self.stamp();
        for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR as usize)).filter(|(sector, _)| HOT.contains(sector)) {
            log.push((sector, Event { is_write: false, value: value_of(sector, bytes), issued, done }));
        }
    }

    /// One thread's calls. Returns what it saw, and when its last flush was called.
    fn work(&self, seed: u64) -> (Vec<(u64, Event)>, u64) {
        let (mut rng, mut log, mut flushed) = (Rng::new(seed), Vec::new(), 0);
        for call in 0..CALLS {
            let value = 1000 + seed % 1000 * 100 + call;
            let block = rng.below(2);
            let first = HOT[rng.below(HOT.len() as u64) as usize];
            let whole: Vec<u64> = (block * MIB / SECTOR..(block + 1) * MIB / SECTOR).collect();
            match rng.below(16) {
                0..6 => {
                    let count = 1 + rng.below(2);
                    let sectors: Vec<u64> = (first..first + count).collect();
                    let bytes: Vec<u8> = sectors.iter().flat_map(|&sector| content(sector, value)).collect();
                    self.timed(&mut log, &sectors, value, || self.disk.write_at(&bytes, first * SECTOR).expect("a write"));
                }
                6..10 => self.read(&mut log, first, 1 + rng.below(2)),
                10 => self.timed(&mut log, &whole, ZERO, || self.disk.trim(block * MIB, MIB).expect("a trim")),
                11 => self.timed(&mut log, &whole, ZERO, || self.disk.write_zeroes(block * MIB, MIB).expect("zeros")),
                12 => self.timed(&mut log, &[first], ZERO, || self.disk.write_zeroes(first * SECTOR, SECTOR).expect("zeros")),
                13 => {
                    // Whatever the others do: the list covers the disk, without a gap or an overlap.
                    let extents: Vec<Extent> = self.disk.extents(0, SIZE).expect("a list").collect::<Result<_, _>>().expect("extents");
                    let end = extents.iter().fold(0, |end, extent| {
                        assert_eq!(extent.offset, end, "extents: {extents:?}");
                        end + extent.len
                    });
                    assert_eq!(end, SIZE);
                }
                _ => {
                    let called = self.stamp();
                    self.disk.flush().expect("a flush");
                    flushed = called;
                }
            }
        }
        (log, flushed)
    }
}

fn world(seed: u64) {
    RUNS.fetch_add(1, Ordering::Relaxed);
    let _fixed = Fixed::new(seed, 0);
    let parent: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let disk = Disk::create_on(parent.clone(), &CreateOptions::dynamic(SIZE).block_size(MIB)).expect("a parent");
    for sector in HOT {
        disk.write_at(&content(sector, PARENT), sector * SECTOR).expect("it is filled");
    }
    disk.close().expect("it is closed");
    let file = Arc::new(MemoryStorage::new());
    let device = Arc::new(FaultStorage::new(file.clone()).expect("a device"));
    let disk = Disk::create_child_on(device.clone(), vec![parent.clone()], &CreateOptions::child().block_size(MIB)).expect("a child");
    let mut rng = Rng::new(seed);
    let threads = 3 + rng.below(3);
    let shared = Arc::new(Shared { disk, clock: AtomicU64::new(1) });
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let shared = Arc::clone(&shared);
            let seed = rng.next_u64() / 1000 * 1000 + thread;
            shuttle::thread::spawn(move || shared.work(seed))
        })
        .collect();
    let (mut events, mut last_flush) = (BTreeMap::<u64, Vec<Event>>::new(), 0);
    for worker in workers {
        let (log, flushed) = worker.join().expect("a thread ends");
        last_flush = last_flush.max(flushed);
        log.into_iter().for_each(|(sector, event)| events.entry(sector).or_default().push(event));
    }
    let mut now = Vec::new();
    HOT.iter().for_each(|&sector| shared.read(&mut now, sector, 1));
    now.into_iter().for_each(|(sector, event)| events.entry(sector).or_default().push(event));
    for (sector, events) in &events {
        EVENTS.fetch_add(events.len() as u64, Ordering::Relaxed);
        history::check(PARENT, events).unwrap_or_else(|what| panic!("P9: sector {sector}: {what}: {events:?}"));
    }
    drop(shared);
    device.power_cut().expect("the power goes");
    let disk = Disk::open_on(file, vec![parent], &OpenOptions::new().writable(true)).expect("it opens again");
    let report = disk.check().expect("it can be checked");
    assert!(report.is_sound(), "P4: {:?}", report.errors);
    for sector in HOT {
        let mut bytes = [0; SECTOR as usize];
        disk.read_at(&mut bytes, sector * SECTOR).expect("a read");
        let (value, events) = (value_of(sector, &bytes), events.get(&sector).map_or(&[][..], Vec::as_slice));
        let survives = history::may_survive(PARENT, events, last_flush, value);
        assert!(survives, "P1: sector {sector} holds {value} after a power cut; the last flush was called at {last_flush}: {events:?}");
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(10_000_000);
    config.silence_warnings = true;
    config
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Some schedules of one set of operations.
fn run(scheduler: impl Scheduler + 'static, seed: u64) {
    Runner::new(scheduler, config()).run(move || world(seed));
}

#[test]
fn reads_are_those_of_registers_in_every_schedule() {
    history::canaries();
    let seed = number("DIFFDISK_SHUTTLE_SEED", 1);
    if let Ok(schedule) = std::env::var("DIFFDISK_SHUTTLE_REPLAY") {
        return shuttle::replay(move || world(seed), &schedule);
    }
    for (seed, schedule) in FOUND {
        shuttle::replay(move || world(seed), schedule);
    }
    let (wanted, seconds) = (number("DIFFDISK_SHUTTLE_SCHEDULES", 10_000), number("DIFFDISK_SHUTTLE_SECONDS", 60));
    let (began, mut sets) = (Instant::now(), 0);
    // A few schedules of each set of operations, half of them by chance and half with few switches at telling places.
    while RUNS.load(Ordering::Relaxed) < wanted && began.elapsed() < Duration::from_secs(seconds) {
        let set = seed + sets;
        println!("shuttle: operations of seed {set} (DIFFDISK_SHUTTLE_SEED={set} with DIFFDISK_SHUTTLE_REPLAY)");
        run(RandomScheduler::new_from_seed(set, 50), set);
        run(PctScheduler::new_from_seed(set, 3, 50), set);
        sets += 1;
    }
    let runs = RUNS.load(Ordering::Relaxed);
    println!(
        "shuttle: {runs} schedules of {sets} sets of operations, {} register events, 0 violations, {:.0} s",
        EVENTS.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64()
    );
    assert!(runs >= 100, "a stage that tried almost nothing");
}
