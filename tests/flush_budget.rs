//! What things cost, counted at the storage: syncs of a flush, reads of a read through a deep chain, writes of a rewrite, allocations
//! of both.

#[path = "support/alloc.rs"]
mod alloc;
#[path = "support/loud.rs"]
mod loud;

use alloc::measured;
use diffdisk::storage::{MemoryStorage, Storage, StorageId, SyncSite};
use diffdisk::{CreateOptions, Disk, FlushMode, OpenOptions};
use loud::loud;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Counts the calls that reach the storage under it.
#[derive(Debug, Default)]
struct Counting {
    inner: MemoryStorage,
    reads: AtomicU64,
    writes: AtomicU64,
    // Room is made beforehand, so that counting does not allocate where nothing may.
    syncs: Mutex<Vec<SyncSite>>,
    /// Whether a durable write is said to be cheaper than a write and a sync. It is counted as a sync.
    durably: AtomicBool,
}

impl Counting {
    fn new() -> Arc<Self> {
        Arc::new(Self { syncs: Mutex::new(Vec::with_capacity(4096)), ..Self::default() })
    }

    fn reads(&self) -> u64 {
        self.reads.swap(0, Ordering::Relaxed)
    }

    fn writes(&self) -> u64 {
        self.writes.swap(0, Ordering::Relaxed)
    }

    /// Forgets all that was counted.
    fn reset(&self) {
        self.reads();
        self.writes();
        self.syncs();
    }

    /// The syncs since the last question.
    fn syncs(&self) -> Vec<SyncSite> {
        self.syncs.lock().unwrap().drain(..).collect()
    }
}

impl Storage for Counting {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.inner.write_at(buf, at)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self, site: SyncSite) -> io::Result<()> {
        self.syncs.lock().unwrap().push(site);
        self.inner.sync(site)
    }

    fn writes_durably(&self) -> bool {
        self.durably.load(Ordering::Relaxed)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
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

fn stored(file: &Arc<Counting>) -> Arc<dyn Storage> {
    Arc::clone(file) as Arc<dyn Storage>
}

/// A base with block 0 full, and a child of it open for writing.
fn pair(size: u64) -> (Arc<Counting>, Arc<Counting>, Disk) {
    let (base, child) = (Counting::new(), Counting::new());
    let disk = Disk::create_on(stored(&base), &CreateOptions::dynamic(size).block_size(MIB)).unwrap();
    disk.write_at(&vec![0xA0; MIB as usize], 0).unwrap();
    disk.close().unwrap();
    let disk = Disk::create_child_on(stored(&child), vec![stored(&base)], &CreateOptions::child().block_size(MIB)).unwrap();
    disk.close().unwrap();
    let disk = Disk::open_on(stored(&child), vec![stored(&base)], &OpenOptions::new().writable(true)).unwrap();
    for file in [&base, &child] {
        file.reset();
    }
    (base, child, disk)
}

#[test]
fn flushes_keep_the_budget() {
    let (base, file, disk) = pair(64 * GIB);
    disk.flush().unwrap();
    assert_eq!(file.syncs(), [SyncSite::Inheritance], "nobody knows what an earlier handle left in the air");
    disk.flush().unwrap();
    assert_eq!(file.syncs(), [], "nothing was written since the open");

    disk.write_at(&[1; 4096], 5 * MIB).unwrap();
    let identity = file.syncs();
    disk.flush().unwrap();
    let first = file.syncs();
    loud(&format!(
        "flush: starting to write costs {} syncs at the first write {identity:?} and {} at the first flush {first:?}",
        identity.len(),
        first.len()
    ));
    assert!(first.len() <= 2, "the first flush has the budget of every other: {first:?}");
    assert!(identity.len() <= 2, "a handful of syncs for the identity: {identity:?}");

    disk.flush().unwrap();
    assert_eq!(file.syncs(), [], "nothing dirty");
    let mut buf = [0; 8192];
    disk.read_at(&mut buf, 0).unwrap();
    disk.flush().unwrap();
    assert_eq!(file.syncs(), [], "reads make nothing dirty");

    for round in 0..10 {
        disk.write_at(&[round; 4096], 5 * MIB).unwrap();
        disk.flush().unwrap();
        assert_eq!(file.syncs().len(), 1, "only rewrites");
    }
    for round in 0..200_u64 {
        // New bits in a block that is there, and then a new block, and both.
        disk.write_at(&[2; 4096], 5 * MIB + 8192 * (1 + round % 120)).unwrap();
        if round % 2 == 0 {
            disk.write_at(&[3; 4096], (6 + round) * MIB).unwrap();
        }
        disk.flush().unwrap();
        let syncs = file.syncs();
        assert!(syncs.len() <= 2, "round {round}: {syncs:?}");
    }
    disk.trim(6 * MIB, 2 * MIB).unwrap();
    disk.flush().unwrap();
    assert!(file.syncs().len() <= 2, "a trim");
    disk.close().unwrap();
    assert_eq!((base.writes(), base.syncs()), (0, Vec::new()), "the parent is never written");
}

/// Payload rides in the log also while every write touches a new block and the file grows: but for the first flush of a session and those
/// that find the log full, a flush is one durable write.
#[test]
fn first_writes_into_new_blocks_ride() {
    let (base, file, disk) = pair(64 * GIB);
    disk.close().unwrap();
    file.durably.store(true, Ordering::Relaxed);
    let options = OpenOptions::new().writable(true).flush_mode(FlushMode::PayloadInLog);
    let disk = Disk::open_on(stored(&file), vec![stored(&base)], &options).unwrap();
    file.syncs();
    for (writes, flushes, most) in [(1, 150, 8), (32, 20, 8)] {
        let mut others = 0;
        for round in 0..flushes {
            for i in 0..writes {
                // Twelve bitmap pages and more: blocks that lie far from each other.
                disk.write_at(&[7; 4096], (1 + round * writes + i) * 7 * MIB + 4096 * writes).unwrap();
            }
            file.syncs();
            disk.flush().unwrap();
            others += u64::from(file.syncs() != [SyncSite::Log]);
        }
        loud(&format!("flush: {writes} first writes, payload in the log: {others} of {flushes} flushes took a sync"));
        assert!(others <= most, "{others} of {flushes} flushes took a sync");
    }
    let grown = file.len().unwrap();
    disk.close().unwrap();
    assert!(file.len().unwrap() + 64 * MIB < grown, "what the file was longer than it had to be is given back");
}

#[test]
fn a_second_session_starts_as_cheaply() {
    let (base, file, disk) = pair(GIB);
    disk.write_at(&[1; 4096], 0).unwrap();
    disk.close().unwrap();
    file.syncs();
    let disk = Disk::open_on(stored(&file), vec![stored(&base)], &OpenOptions::new().writable(true)).unwrap();
    disk.close().unwrap();
    let idle = file.syncs();
    disk_rewrite_only(&base, &file);
    loud(&format!("flush: an idle writable session costs {} syncs {idle:?}", idle.len()));
    assert!(idle.is_empty(), "nothing was written: {idle:?}");
}

/// A session of rewrites only needs an identity, but no log.
fn disk_rewrite_only(base: &Arc<Counting>, file: &Arc<Counting>) {
    let disk = Disk::open_on(stored(file), vec![stored(base)], &OpenOptions::new().writable(true)).unwrap();
    disk.write_at(&[9; 4096], 0).unwrap();
    disk.flush().unwrap();
    let syncs = file.syncs();
    assert!(!syncs.contains(&SyncSite::Log) && !syncs.contains(&SyncSite::LogStart), "{syncs:?}");
    disk.close().unwrap();
    file.syncs();
}

#[test]
fn ten_thousand_scattered_first_writes() {
    let (_base, file, disk) = pair(64 * GIB);
    let mut seed = 1_u64;
    for _ in 0..10_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (seed >> 16) % (64 * GIB / 4096) * 4096;
        disk.write_at(&[seed as u8; 4096], at).unwrap();
    }
    let before = file.syncs();
    disk.flush().unwrap();
    let flush = file.syncs();
    loud(&format!(
        "flush: 10000 scattered first writes of 4 KiB over 64 GiB: {} syncs while writing, {} in the flush {flush:?}",
        before.len(),
        flush.len()
    ));
    // The budget of any other flush, plus what starting costs; a batch that outgrows the log may need a few more.
    assert!(before.len() + flush.len() <= 8, "{before:?} {flush:?}");
    disk.write_at(&[0; 4096], 0).unwrap();
    disk.flush().unwrap();
    file.syncs();
    disk.flush().unwrap();
    assert_eq!(file.syncs(), [], "nothing dirty");
}

/// A base with data and 32 children with none: nearest first.
fn deep() -> Vec<Arc<Counting>> {
    let base = Counting::new();
    let disk = Disk::create_on(stored(&base), &CreateOptions::dynamic(256 * MIB).block_size(MIB)).unwrap();
    disk.write_at(&vec![0xA0; 8 << 20], 0).unwrap();
    disk.close().unwrap();
    let mut files = vec![base];
    for _ in 0..32 {
        let child = Counting::new();
        let parents = files.iter().map(stored).collect();
        Disk::create_child_on(stored(&child), parents, &CreateOptions::child()).unwrap().close().unwrap();
        files.insert(0, child);
    }
    files
}

#[test]
fn depth_costs_nothing_once_warm() {
    let files = deep();
    let disk = Disk::open_on(stored(&files[0]), files[1..].iter().map(stored).collect(), &OpenOptions::new()).unwrap();
    let mut buf = vec![0; 4096];
    for at in (0..8 * MIB).step_by(4096) {
        disk.read_at(&mut buf, at).unwrap();
    }
    let all = |what: fn(&Counting) -> u64| files.iter().map(|f| what(f)).sum::<u64>();
    files.iter().for_each(|f| f.reset());
    for i in 0..1000_u64 {
        let ((), calls, _) = measured(|| disk.read_at(&mut buf, i * 37 % 2048 * 4096).unwrap());
        assert_eq!(all(Counting::reads), 1, "one storage read for 4 KiB through 32 children");
        assert_eq!(calls, 0, "a warm read allocates nothing");
        assert!(buf.iter().all(|&b| b == 0xA0));
    }
    for at in [100, 101, 150, 255] {
        let ((), calls, _) = measured(|| disk.read_at(&mut buf, at * MIB).unwrap());
        assert_eq!((all(Counting::reads), calls), (0, 0), "zeros that nobody has are not read");
    }
    assert_eq!(all(Counting::writes), 0);
}

#[test]
fn a_rewrite_is_one_write_and_allocates_nothing() {
    let (base, file, disk) = pair(GIB);
    disk.write_at(&vec![1; 4 << 20], 8 * MIB).unwrap();
    disk.flush().unwrap();
    let data = [7; 4096];
    let mut buf = [0; 4096];
    disk.write_at(&data, 8 * MIB).unwrap();
    disk.read_at(&mut buf, 8 * MIB).unwrap();
    file.reset();
    // The memory storage may allocate its own page on a first touch; these pages are all there.
    for i in 0..1000_u64 {
        let at = 8 * MIB + i * 37 % 1024 * 4096;
        let ((), calls, _) = measured(|| disk.write_at(&data, at).unwrap());
        assert_eq!((file.writes(), file.reads()), (1, 0), "one storage write, and nothing else");
        assert_eq!(calls, 0, "a rewrite allocates nothing");
        let ((), calls, _) = measured(|| disk.read_at(&mut buf, at).unwrap());
        assert_eq!((file.writes(), file.reads()), (0, 1), "one storage read");
        assert_eq!((calls, buf), (0, data), "a hot read allocates nothing");
    }
    // A block written in part: its bits are known, the rest is the parent's.
    disk.write_at(&data, 4096).unwrap();
    disk.read_at(&mut buf, 4096).unwrap();
    disk.read_at(&mut buf, 0).unwrap();
    file.reset();
    base.reset();
    for _ in 0..100 {
        let ((), calls, _) = measured(|| disk.write_at(&data, 4096).unwrap());
        assert_eq!((calls, file.writes(), file.reads()), (0, 1, 0), "a rewrite of present sectors of a partial block");
        let ((), calls, _) = measured(|| disk.read_at(&mut buf, 4096).unwrap());
        assert_eq!((calls, file.reads(), base.reads()), (0, 1, 0));
        let ((), calls, _) = measured(|| disk.read_at(&mut buf, 0).unwrap());
        assert_eq!((calls, file.reads(), base.reads()), (0, 0, 1), "the parent answers");
    }
}

#[test]
fn hot_calls_cost_one_call_and_no_memory_at_any_depth() {
    for depth in [1, 2, 8, 32] {
        let files = {
            let mut files = deep();
            files.drain(..32 - depth);
            files
        };
        let open = || {
            let parents = files[1..].iter().map(stored).collect();
            Disk::open_on(stored(&files[0]), parents, &OpenOptions::new().writable(true)).unwrap()
        };
        let disk = open();
        let data = [7; 4096];
        let mut buf = [0; 4096];
        // Even pages are the leaf's, odd ones the base's.
        for page in (0..512).step_by(2) {
            disk.write_at(&data, page * 4096).unwrap();
        }
        disk.flush().unwrap();
        for page in 0..512 {
            disk.read_at(&mut buf, page * 4096).unwrap();
        }
        files.iter().for_each(|f| f.reset());
        let counted = || files.iter().fold((0, 0), |(r, w), file| (r + file.reads(), w + file.writes()));
        for i in 0..512_u64 {
            let page = i * 37 % 512;
            let ((), calls, _) = measured(|| disk.read_at(&mut buf, page * 4096).unwrap());
            assert_eq!((counted(), calls), ((1, 0), 0), "a read of page {page} at depth {depth}");
            assert_eq!(buf[0], if page % 2 == 0 { 7 } else { 0xA0 });
            let own = page & !1;
            let ((), calls, _) = measured(|| disk.write_at(&data, own * 4096).unwrap());
            assert_eq!((counted(), calls), ((0, 1), 0), "a rewrite of page {own} at depth {depth}");
        }
        assert!(files.iter().all(|file| file.syncs().is_empty()), "nothing was synced");
    }
}
