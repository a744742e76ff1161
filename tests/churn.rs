//! Trim and write again, over and over, in a file that is nearly full.
//!
//! Space goes from block to block here more often than in any other test: the storage takes half of the blocks that the disk has, so
//! most first touches live on what a trim gave up, and many find nothing. `src/mapping/twin.rs` checks each step of the free space
//! against a slow list of intervals (tests have debug assertions on); this test checks what users see: a piece holds what was last
//! written to it, and never another block's bytes, the parent's under a trim, or old bytes of the file; the file never exceeds what the
//! storage has; and after a failed write there is room again as soon as something is trimmed and flushed.
//!
//! `DIFFDISK_CHURN_SECONDS` sets for how long (8), `DIFFDISK_SEED` another seed.

#[path = "support/loud.rs"]
mod loud;

use diffdisk::storage::sim::Rng;
use diffdisk::storage::{MemoryStorage, Storage, StorageId, SyncSite};
use diffdisk::{CreateOptions, Disk, ErrorKind, OpenOptions};
use loud::loud;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 48;
const UNIT: u64 = 64 << 10;
const UNITS: u64 = BLOCKS * MIB / UNIT;
/// What the storage takes: head, log, metadata, BAT, a sector bitmap block, and half of the blocks.
const ROOM: u64 = (5 + BLOCKS / 2) * MIB;

/// A file that may not grow past [`ROOM`].
#[derive(Debug)]
struct Nearly {
    inner: MemoryStorage,
    refused: AtomicU64,
}

impl Nearly {
    fn may_reach(&self, end: u64) -> io::Result<()> {
        if end <= ROOM {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(io::ErrorKind::StorageFull.into())
    }
}

impl Storage for Nearly {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read_at(buf, at)
    }
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.may_reach(at + buf.len() as u64)?;
        self.inner.write_at(buf, at)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.may_reach(len)?;
        self.inner.set_len(len)
    }
    fn sync(&self, site: SyncSite) -> io::Result<()> {
        self.inner.sync(site)
    }
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.punch(at, len)
    }
    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        self.inner.next_data(at)
    }
    fn id(&self) -> StorageId {
        self.inner.id()
    }
}

/// What a unit holds: the parent's bytes, zeros, or what a write of this number left.
type Value = Option<u64>;
const ZEROS: Value = None;
const PARENT: Value = Some(0);

fn bytes(unit: u64, value: Value) -> Vec<u8> {
    let Some(tag) = value else { return vec![0; UNIT as usize] };
    let word = |i: u64| ((tag << 24 | unit << 14 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1).to_le_bytes();
    (0..UNIT / 8).flat_map(word).collect()
}

/// A disk and, for each unit, what it held at the last flush and everything issued since, newest last.
struct World {
    file: Arc<Nearly>,
    parent: Arc<MemoryStorage>,
    disk: Option<Disk>,
    units: Vec<Vec<Value>>,
    tag: u64,
}

impl World {
    fn new() -> Self {
        let parent = Arc::new(MemoryStorage::new());
        let base = Disk::create_on(parent.clone(), &CreateOptions::dynamic(BLOCKS * MIB).block_size(MIB)).unwrap();
        for unit in 0..UNITS {
            base.write_at(&bytes(unit, PARENT), unit * UNIT).unwrap();
        }
        base.close().unwrap();
        let file = Arc::new(Nearly { inner: MemoryStorage::new(), refused: AtomicU64::new(0) });
        let options = CreateOptions::child().block_size(MIB);
        let disk = Disk::create_child_on(file.clone(), vec![parent.clone()], &options).unwrap();
        Self { file, parent, disk: Some(disk), units: vec![vec![PARENT]; UNITS as usize], tag: 0 }
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the disk is open")
    }

    /// Notes the outcome of a request for units: after a failure each is old or new.
    fn note(&mut self, units: std::ops::Range<u64>, value: Value, result: Result<(), diffdisk::DiskError>) -> bool {
        let done = result.is_ok();
        if let Err(e) = result {
            assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
        }
        for unit in units {
            self.units[unit as usize].push(value);
            if !done {
                let found = self.look(unit, 2);
                self.units[unit as usize].push(found);
            }
        }
        done
    }

    /// Reads a unit, which must hold one of its last `among` values.
    fn look(&self, unit: u64, among: usize) -> Value {
        let mut buf = vec![0xEE; UNIT as usize];
        self.disk().read_at(&mut buf, unit * UNIT).unwrap();
        let values = &self.units[unit as usize];
        let allowed = &values[values.len().saturating_sub(among)..];
        let found = allowed.iter().rev().find(|&&value| bytes(unit, value) == buf);
        *found.unwrap_or_else(|| panic!("unit {unit} holds {:02x?}... and not one of {allowed:?}", &buf[..16]))
    }

    fn flush(&mut self) -> bool {
        match self.disk().flush() {
            Ok(()) => {
                for values in &mut self.units {
                    let newest = *values.last().expect("a unit has a value");
                    values.clear();
                    values.push(newest);
                }
                true
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                false
            }
        }
    }

    /// Opens the file again; what no flush has hardened is there or not.
    fn reopen(&mut self) {
        self.disk = None;
        let parents: Vec<Arc<dyn Storage>> = vec![self.parent.clone()];
        self.disk = Some(Disk::open_on(self.file.clone(), parents, &OpenOptions::new().writable(true)).unwrap());
        for unit in 0..UNITS {
            let found = self.look(unit, usize::MAX);
            self.units[unit as usize] = vec![found];
        }
    }
}

#[test]
fn space_that_goes_from_block_to_block_shows_nobody_elses_bytes() {
    let number = |name: &str, or: u64| std::env::var(name).map_or(or, |text| text.parse().expect("a number"));
    let (seconds, seed) = (number("DIFFDISK_CHURN_SECONDS", 8), number("DIFFDISK_SEED", 0x5EED));
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut rng = Rng::new(seed);
    let mut world = World::new();
    let (mut operations, mut trims, mut full, mut reopened, mut checks) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    while Instant::now() < until {
        operations += 1;
        let block = rng.below(BLOCKS);
        let per = MIB / UNIT;
        match rng.below(100) {
            0..45 => {
                let first = block * per + rng.below(per);
                let units = first..(first + 1 + rng.below(3)).min(UNITS);
                world.tag += 1;
                let value = Some(world.tag);
                let data: Vec<u8> = units.clone().flat_map(|unit| bytes(unit, value)).collect();
                let result = world.disk().write_at(&data, units.start * UNIT);
                if !world.note(units, value, result) {
                    full += 1;
                }
            }
            45..75 => {
                trims += 1;
                let result = world.disk().trim(block * MIB, MIB);
                world.note(block * per..(block + 1) * per, ZEROS, result);
            }
            75..80 => {
                let result = world.disk().write_zeroes(block * MIB, MIB / 2);
                world.note(block * per..block * per + per / 2, ZEROS, result);
            }
            80..94 => {
                world.flush();
            }
            94..97 => {
                let unit = rng.below(UNITS);
                world.look(unit, 1);
            }
            97 => {
                reopened += 1;
                world.reopen();
            }
            98 => {
                // Closing cuts free space off the end.
                if world.flush() {
                    reopened += 1;
                    world.disk.take().expect("the disk is open").close().unwrap();
                    world.reopen();
                }
            }
            _ => {
                checks += 1;
                let report = world.disk().check().unwrap();
                assert!(report.is_sound(), "{:?}", report.errors);
                assert!(world.file.len().unwrap() <= ROOM);
            }
        }
    }
    world.reopen();
    let report = world.disk().check().unwrap();
    assert!(report.is_sound(), "{:?}", report.errors);
    loud(&format!(
        "churn: {operations} operations in {seconds} s, {trims} trims, {full} writes found no space, {reopened} times reopened, {checks} checks, \
         {} MiB of {} used at the end, seed {seed}",
        world.file.len().unwrap() / MIB,
        ROOM / MIB
    ));
    assert!(operations > 100 && trims > 20 && full > 0, "nothing was churned");
}
