//! What the loom models share: how a model is run and counted, memory that two must not touch at once, and a file.

use crate::storage::{Storage, StorageId, SyncSite};
use crate::sync::{Arc, AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64 as Count, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Involuntary switches in one interleaving; most bugs need no more than two.
const PREEMPTIONS: usize = 3;
/// Bytes of stack of a model's threads: the engine keeps pages on it.
const STACK: usize = 512 << 10;

/// Runs a model in all its interleavings, or in as many as `DIFFDISK_LOOM_SECONDS` (10) allow, and prints their number.
pub(crate) fn try_all(name: &str, model: impl Fn() + Send + Sync + 'static) {
    let seconds = std::env::var("DIFFDISK_LOOM_SECONDS").map_or(10, |text| text.parse().expect("DIFFDISK_LOOM_SECONDS is a number"));
    let preemptions = std::env::var("LOOM_MAX_PREEMPTIONS").map_or(PREEMPTIONS, |text| text.parse().expect("a number"));
    let (runs, began) = (Arc::new(Count::new(0)), Instant::now());
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 200_000;
    builder.checkpoint_interval = 16;
    builder.max_duration = Some(Duration::from_secs(seconds));
    let counted = Arc::clone(&runs);
    let model = Arc::new(model);
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        let model = Arc::clone(&model);
        // Loom gives the first thread a small stack.
        spawn(move || model()).join().expect("a model that fails panics by itself");
    });
    let how = if began.elapsed().as_secs() >= seconds { "cut off by the time box" } else { "all of them" };
    let runs = runs.load(Relaxed);
    println!("loom: {name}: {runs} interleavings, {how}, at most {preemptions} preemptions, {:.1} s", began.elapsed().as_secs_f64());
    assert!(runs > 1, "a model without a choice shows nothing");
}

/// What a model needs that is made once, in an execution of its own: locks of the checker live nowhere else.
pub(crate) fn made_once<T: Send + 'static>(make: impl Fn() -> T + Send + Sync + 'static) -> T {
    let (made, make) = (Arc::new(Mutex::new(None)), Arc::new(make));
    let keep = Arc::clone(&made);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 200_000;
    builder.check(move || {
        let (keep, make) = (Arc::clone(&keep), Arc::clone(&make));
        spawn(move || *keep.lock().unwrap() = Some(make())).join().expect("it is made");
    });
    let made = made.lock().unwrap().take();
    made.expect("the execution has run")
}

/// A thread of a model.
pub(crate) fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> loom::thread::JoinHandle<T> {
    loom::thread::Builder::new().stack_size(STACK).spawn(work).expect("loom has threads left")
}

/// Memory that one may touch, or several may look at: loom fails the model where the order between two of them is open.
pub(crate) struct Place(loom::cell::UnsafeCell<u64>);

// SAFETY: the cell is only ever used through `with` and `with_mut`, which loom checks for races; no pointer is followed.
#[expect(unsafe_code, reason = "a place that is checked for races must be shared between threads; built for loom alone")]
unsafe impl Sync for Place {}

impl Place {
    pub(crate) fn new() -> Self {
        Self(loom::cell::UnsafeCell::new(0))
    }

    pub(crate) fn change(&self) {
        self.0.with_mut(|_| ());
    }

    pub(crate) fn look(&self) {
        self.0.with(|_| ());
    }
}

const PAGE: u64 = 4096;
type Pages = BTreeMap<u64, Arc<[u8; PAGE as usize]>>;

#[derive(Clone, Debug, Default)]
struct Bytes {
    len: u64,
    pages: Pages,
}

/// A file without locks of the checker, so that a model's interleavings are those of the engine. Each call on it is a place to
/// switch at, and orders nothing. Knows what is durable: what had been written when the last successful sync began.
#[derive(Debug)]
pub(crate) struct Quiet {
    id: u64,
    now: Mutex<(Bytes, Bytes)>,
    switch: AtomicU64,
    syncs_left: Count,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        static NEXT: Count = Count::new(0);
        Self { id: NEXT.fetch_add(1, Relaxed), now: Mutex::default(), switch: AtomicU64::new(0), syncs_left: Count::new(u64::MAX) }
    }

    /// Another file with the same bytes, all of them durable.
    pub(crate) fn copy(&self) -> Self {
        let now = self.now.lock().unwrap().0.clone();
        Self { now: Mutex::new((now.clone(), now)), ..Self::new() }
    }

    /// What a power cut leaves that keeps nothing but what is durable.
    pub(crate) fn durable(&self) -> Self {
        let durable = self.now.lock().unwrap().1.clone();
        Self { now: Mutex::new((durable.clone(), durable)), ..Self::new() }
    }

    /// All syncs fail from here on but the next `good`.
    pub(crate) fn fail_after(&self, good: u64) {
        self.syncs_left.store(good, Relaxed);
    }

    fn switch(&self) {
        self.switch.fetch_add(1, Ordering::Relaxed);
    }
}

impl Storage for Quiet {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let _ = self.switch.load(Ordering::Relaxed);
        let bytes = &self.now.lock().unwrap().0;
        let n = bytes.len.saturating_sub(at).min(buf.len() as u64);
        for (byte, at) in buf.iter_mut().zip(at..at + n) {
            *byte = bytes.pages.get(&(at / PAGE)).map_or(0, |page| page[(at % PAGE) as usize]);
        }
        Ok(n as usize)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.switch();
        let bytes = &mut self.now.lock().unwrap().0;
        for (&byte, at) in buf.iter().zip(at..) {
            let page = bytes.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[(at % PAGE) as usize] = byte;
        }
        bytes.len = bytes.len.max(at + buf.len() as u64);
        Ok(buf.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.now.lock().unwrap().0.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.switch();
        let bytes = &mut self.now.lock().unwrap().0;
        assert!(len.is_multiple_of(PAGE), "disks end at whole pages");
        bytes.pages.retain(|page, _| page * PAGE < len);
        bytes.len = len;
        Ok(())
    }

    fn sync(&self, _: SyncSite) -> io::Result<()> {
        self.switch();
        let written = self.now.lock().unwrap().0.clone();
        if self.syncs_left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err() {
            return Err(io::Error::other("the device is gone"));
        }
        self.switch();
        self.now.lock().unwrap().1 = written;
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.switch();
        let bytes = &mut self.now.lock().unwrap().0;
        bytes.pages.retain(|page, _| !(at..at + len).contains(&(page * PAGE)));
        Ok(())
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let bytes = &self.now.lock().unwrap().0;
        let first = bytes.pages.range(at / PAGE..).next();
        Ok(first.map(|(page, _)| ((page * PAGE).max(at), (page + 1) * PAGE)))
    }

    fn id(&self) -> StorageId {
        StorageId { device: u64::MAX, object: self.id }
    }
}
