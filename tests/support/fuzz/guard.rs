//! What no input may do, whatever else it does.

use super::alloc::measured;
use super::forge::MIB;
use diffdisk::storage::{MemoryStorage, Storage, StorageId, SyncSite};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most bytes that an input may hold at a time, the storage in memory that it writes to included.
const MEMORY: u64 = 64 * MIB;
/// Most CPU time of an input. The CPU's and not the wall's: on a busy machine a find must not depend on the neighbours.
const TIME: Duration = Duration::from_secs(2);

/// CPU time of this thread where the system says it, time otherwise.
fn clock() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|text| text.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| START.get_or_init(Instant::now).elapsed(), Duration::from_nanos)
}

/// Runs `work` within the limits; `more` is what it may hold besides, for what is not the engine's.
pub fn bounded<T>(what: &str, more: u64, work: impl FnOnce() -> T) -> T {
    let started = clock();
    let (value, _, peak) = measured(work);
    let took = clock().saturating_sub(started);
    assert!(peak <= MEMORY + more, "{what} held {} KiB", peak >> 10);
    assert!(took <= TIME, "{what} took {took:?}");
    value
}

/// A file of which every access is looked at.
#[derive(Debug)]
pub struct Watched {
    inner: Arc<dyn Storage>,
    sealed: bool,
    /// How far behind the end of the file a read may begin: a block may be cut by the end, a structure may not.
    slack: AtomicU64,
}

impl Watched {
    /// One that nobody may write to.
    pub fn sealed(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { inner, sealed: true, slack: AtomicU64::new(0) })
    }

    /// One that may be written to anywhere but in its first 64 KiB.
    pub fn open(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { inner, sealed: false, slack: AtomicU64::new(0) })
    }

    /// From here on blocks of this size are read.
    pub fn expect_blocks(&self, block: u64) {
        self.slack.store(block, Ordering::Relaxed);
    }

    fn may_change(&self, at: u64) {
        assert!(!self.sealed, "a file that is only read is changed at {at:#x}");
        assert!(at >= 0x1_0000, "the file type identifier is changed");
    }
}

impl Storage for Watched {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let len = self.inner.len()?;
        let end = len.saturating_add(self.slack.load(Ordering::Relaxed));
        assert!(buf.is_empty() || at < end, "a read of {} bytes at {at:#x} in a file of {len:#x}", buf.len());
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.may_change(at);
        self.inner.write_at(buf, at)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.may_change(len);
        self.inner.set_len(len)
    }

    fn sync(&self, site: SyncSite) -> io::Result<()> {
        assert!(!self.sealed, "a file that is only read is synced for {site:?}");
        self.inner.sync(site)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.may_change(at);
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

/// The first place where two files differ, leaving out what is between `skip`'s ends.
pub fn difference(a: &MemoryStorage, b: &MemoryStorage, skip: std::ops::Range<u64>) -> Option<u64> {
    let lens = [a, b].map(|file| file.len().expect("memory has a length"));
    if lens[0] != lens[1] {
        return Some(lens[0].min(lens[1]));
    }
    let mut bufs = [vec![0; 64 << 10], vec![0; 64 << 10]];
    let mut at = 0;
    loop {
        let next =
            [a, b].into_iter().filter_map(|file| file.next_data(at).expect("memory can be searched")).map(|(start, _)| start).min()?;
        // Chunks are 64 KiB, so the same stretch of both is looked at.
        let stop = (next / (64 << 10) + 1) * (64 << 10);
        for (file, buf) in [a, b].into_iter().zip(&mut bufs) {
            buf.fill(0);
            let _ = file.read_at(buf, next).expect("memory can be read");
        }
        let len = (stop - next) as usize;
        let [x, y] = [&bufs[0][..len], &bufs[1][..len]];
        if x != y
            && let Some(i) = (0..len).find(|&i| x[i] != y[i] && !skip.contains(&(next + i as u64)))
        {
            return Some(next + i as u64);
        }
        at = stop;
    }
}
