//! A simulated disk that remembers the order of everything, so that every legal power cut can be tried.
//!
//! Tests of crash safety that pull a real plug see one crash in a second. Here a [`SimWorld`] holds files in memory and records
//! one ordered [`Trace`] of what was asked of them: writes, lengths, holes, syncs, names, and the marks a test sets at the start
//! and the end of its own calls. Live reads see everything at once, as a page cache does. Afterwards a [`CrashWalk`] goes
//! through the trace and, at any cut, builds the images that a power cut may leave:
//!
//! 1. Everything asked for before the beginning of a finished sync of its file is there.
//! 2. Every later *atom* may be there or not, independently of all others. Atoms are the 512-byte (or 4 KiB) pieces of a write,
//!    each change of a length, each lengthening that a write past the end implies, each hole, and each directory operation. Where atoms
//!    overlap the later one of those that are there wins. A piece that is written in part goes out whole, with what was there.
//! 3. A piece that landed beyond a lost lengthening vanishes, or lengthens the file ([`BeyondEnd`]). In the harsh mode
//!    ([`FreshSpace::Junk`]) space that was never synced as zeros does not read as zeros.
//! 4. In the harsh mode for metadata one piece in flight reads as junk or not at all ([`Flight`]). Where writes to both headers of
//!    a VHDX are under way, one piece of each may: a device with a queue loses more than one sector, and MS-VHDX 2.2.2 has two
//!    headers, and a flush between their writes, for no other reason.
//! 5. A rename that no sync of the directory covers is there or not, never half.
//!
//! No thread, no clock, no randomness but the seed ([`Fixed`] takes the engine's own away). [`Choice`]s name images, so a violation
//! can be built again from its trace.
//! [`FaultStorage`] is the companion for storage that fails while the program lives on.

mod choice;
mod crash;
mod enumerate;
mod fault;
mod fixed;
mod sparse;
#[cfg(test)]
mod tests;
mod volume;

pub use choice::{BeyondEnd, Choice, Class, Flight, FreshSpace, Torn};
pub use crash::{Atom, CrashImage, CrashOptions, CrashWalk};
pub use enumerate::{Limits, Rng, Share};
pub use fault::{CallKind, Calls, Fault, FaultStorage, Lost, Repeat};
pub use fixed::Fixed;
pub(crate) use fixed::log_start;

use super::{Storage, StorageId, SyncSite};
use crate::sync::process::AtomicU64;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering};
use sparse::{Page, SparseFile, spread};
use std::collections::BTreeMap;
use std::fmt;
use std::io;

/// A file of a [`SimWorld`], whatever its name is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub usize);

/// One thing that was asked of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields say what the call was given")]
pub enum Event {
    /// Bytes written.
    Write { file: FileId, at: u64, bytes: Arc<[u8]> },
    /// A length set.
    SetLen { file: FileId, len: u64 },
    /// A hole made.
    Punch { file: FileId, at: u64, len: u64 },
    /// A sync began.
    SyncBegin { file: FileId, site: SyncSite },
    /// A sync returned success; `begin` is the index of its beginning. With a `range` (start and end) it is the second half of a
    /// durable write and covers nothing else.
    SyncEnd { file: FileId, site: SyncSite, begin: usize, range: Option<(u64, u64)> },
    /// A file came to be under a name.
    Create { file: FileId, name: String },
    /// A name moved, replacing what had the new one.
    Rename { from: String, to: String },
    /// A file got a second name.
    Link { name: String, second: String },
    /// A name went away.
    Unlink { name: String },
    /// The directory was synced.
    SyncDir,
    /// A remark of the test, usually the issue or the completion of a call.
    Mark(u64),
}

/// What a world held at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    files: Vec<SparseFile>,
    names: BTreeMap<String, FileId>,
}

impl Snapshot {
    fn file_mut(&mut self, file: FileId) -> &mut SparseFile {
        if self.files.len() <= file.0 {
            self.files.resize_with(file.0 + 1, SparseFile::default);
        }
        &mut self.files[file.0]
    }

    fn name_hash(&self) -> u128 {
        let mut hash = 0_u128;
        for (name, file) in &self.names {
            let text = name.bytes().fold(0xCBF2_9CE4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
            hash = hash.wrapping_add(spread(text, file.0 as u64 + 1));
        }
        hash
    }

    fn hash(&self) -> u128 {
        let files = self.files.iter().enumerate();
        files.fold(self.name_hash(), |hash, (i, file)| hash.wrapping_add(in_file(i, file.hash())))
    }
}

/// Keeps equal content in different files apart while sums of page hashes stay sums.
fn in_file(index: usize, hash: u128) -> u128 {
    hash.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835_u128.wrapping_add(2 * index as u128))
}

/// What happened, in order, and what the world held before.
#[derive(Clone, Debug)]
pub struct Trace {
    start: Snapshot,
    seed: u64,
    durable_writes: bool,
    /// The events in order. Tests may edit them to ask "what if".
    pub events: Vec<Event>,
}

impl Trace {
    /// Every barrier that was passed, in order of first appearance.
    pub fn sites(&self) -> Vec<SyncSite> {
        let mut sites = Vec::new();
        for event in &self.events {
            if let Event::SyncEnd { site, .. } = event
                && !sites.contains(site)
            {
                sites.push(*site);
            }
        }
        sites
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>5}  {:<10} {:>4}  {:>12} {:>9}  detail", "#", "event", "file", "at", "bytes")?;
        for (i, event) in self.events.iter().enumerate() {
            let mut row = |what: &str, file: Option<FileId>, at: Option<u64>, len: Option<u64>, detail: &dyn fmt::Display| {
                let file = file.map_or(String::new(), |file| file.0.to_string());
                let at = at.map_or(String::new(), |at| format!("{at:#x}"));
                let len = len.map_or(String::new(), |len| len.to_string());
                writeln!(f, "{i:>5}  {what:<10} {file:>4}  {at:>12} {len:>9}  {detail}")
            };
            match event {
                Event::Write { file, at, bytes } => {
                    let first = bytes.iter().take(12).map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
                    row("write", Some(*file), Some(*at), Some(bytes.len() as u64), &first)?;
                }
                Event::SetLen { file, len } => row("set_len", Some(*file), Some(*len), None, &"")?,
                Event::Punch { file, at, len } => row("punch", Some(*file), Some(*at), Some(*len), &"")?,
                Event::SyncBegin { file, site } => row("sync", Some(*file), None, None, &format_args!("{site:?} begins"))?,
                Event::SyncEnd { file, site, begin, range } => {
                    let (at, len) = (range.map(|(start, _)| start), range.map(|(start, end)| end - start));
                    row("synced", Some(*file), at, len, &format_args!("{site:?} of {begin}"))?;
                }
                Event::Create { file, name } => row("create", Some(*file), None, None, name)?,
                Event::Rename { from, to } => row("rename", None, None, None, &format_args!("{from} -> {to}"))?,
                Event::Link { name, second } => row("link", None, None, None, &format_args!("{name} = {second}"))?,
                Event::Unlink { name } => row("unlink", None, None, None, name)?,
                Event::SyncDir => row("sync dir", None, None, None, &"")?,
                Event::Mark(mark) => row("mark", None, None, None, mark)?,
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct World {
    device: u64,
    seed: u64,
    /// Whether its files offer durable writes of a range.
    durable_writes: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    now: Snapshot,
    start: Snapshot,
    events: Vec<Event>,
    recording: bool,
}

impl Inner {
    fn record(&mut self, event: impl FnOnce() -> Event) {
        if self.recording {
            self.events.push(event());
        }
    }
}

/// A directory of simulated files and the record of what was done to them.
///
/// ```
/// use diffdisk::storage::{Storage, SyncSite, sim::{CrashOptions, CrashWalk, SimWorld}};
/// let world = SimWorld::new(7);
/// let file = world.create("a");
/// file.write_at(&[1; 512], 0)?;
/// file.sync(SyncSite::Payload)?;
/// file.write_at(&[2; 1024], 0)?;
/// let trace = world.trace();
/// let mut walk = CrashWalk::new(&trace, CrashOptions::default());
/// walk.go_to(world.cut());
/// let mut images = std::collections::HashSet::new();
/// walk.for_each_choice(&mut |_, image| { images.insert(image.hash()); true });
/// assert_eq!(images.len(), 6); // the two pieces there or not, and with the lengthening lost, the second may vanish
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SimWorld {
    world: Arc<World>,
}

impl SimWorld {
    /// An empty directory. `seed` drives junk and the random part of enumerations.
    pub fn new(seed: u64) -> Self {
        Self::from_snapshot(Snapshot::default(), seed, true, true)
    }

    fn from_snapshot(now: Snapshot, seed: u64, durable_writes: bool, recording: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let start = now.clone();
        let inner = Inner { now, start, events: Vec::new(), recording };
        let device = (0x51 << 56) | NEXT.fetch_add(1, Ordering::Relaxed);
        Self { world: Arc::new(World { device, seed, durable_writes: AtomicBool::new(durable_writes), inner: Mutex::new(inner) }) }
    }

    /// A new empty file whose name is durable at once, as if it had always been there.
    ///
    /// # Panics
    /// When the name is taken.
    pub fn create(&self, name: &str) -> Arc<SimStorage> {
        let mut inner = self.world.inner.lock();
        let file = FileId(inner.now.files.len());
        assert!(inner.now.names.insert(name.to_owned(), file).is_none(), "{name} is there already");
        inner.now.files.push(SparseFile::default());
        inner.start.file_mut(file);
        inner.start.names.insert(name.to_owned(), file);
        drop(inner);
        Arc::new(SimStorage { world: Arc::clone(&self.world), file })
    }

    /// The file under a name.
    pub fn open(&self, name: &str) -> Option<Arc<SimStorage>> {
        let file = *self.world.inner.lock().now.names.get(name)?;
        Some(Arc::new(SimStorage { world: Arc::clone(&self.world), file }))
    }

    /// Whether the files offer [`Storage::write_durable`] as something cheaper than a sync (they do, unless told otherwise). To be
    /// settled before a disk is opened on one.
    pub fn offer_durable_writes(&self, offer: bool) {
        self.world.durable_writes.store(offer, Ordering::Relaxed);
    }

    fn offers_durable_writes(&self) -> bool {
        self.world.durable_writes.load(Ordering::Relaxed)
    }

    /// Writes a remark into the trace.
    pub fn mark(&self, mark: u64) {
        self.world.inner.lock().record(|| Event::Mark(mark));
    }

    /// The length of the trace: the cut after everything so far.
    pub fn cut(&self) -> usize {
        self.world.inner.lock().events.len()
    }

    /// What happened since the beginning, or since [`SimWorld::forget`].
    pub fn trace(&self) -> Trace {
        let inner = self.world.inner.lock();
        Trace {
            start: inner.start.clone(),
            seed: self.world.seed,
            durable_writes: self.offers_durable_writes(),
            events: inner.events.clone(),
        }
    }

    /// The events from a cut on.
    pub fn events_since(&self, cut: usize) -> Vec<Event> {
        self.world.inner.lock().events.get(cut..).unwrap_or_default().to_vec()
    }

    /// Takes the present content as durable and empties the trace.
    pub fn forget(&self) {
        let mut inner = self.world.inner.lock();
        inner.start = inner.now.clone();
        inner.events.clear();
    }

    /// A second world with the present content, all durable. Costs almost nothing.
    pub fn fork(&self) -> Self {
        Self::from_snapshot(self.world.inner.lock().now.clone(), self.world.seed, self.offers_durable_writes(), true)
    }
}

/// A file of a [`SimWorld`].
#[derive(Debug)]
pub struct SimStorage {
    world: Arc<World>,
    file: FileId,
}

impl SimStorage {
    /// Which file of its world this is.
    pub fn file(&self) -> FileId {
        self.file
    }

    /// Whether any byte between two places differs from the other file's, as both are now. Past an end there are zeros.
    /// Files that descend from one another are compared in no time.
    pub fn differs(&self, other: &Self, from: u64, to: u64) -> bool {
        let mine = self.world.inner.lock().now.files[self.file.0].clone();
        mine.differs(&other.world.inner.lock().now.files[other.file.0], from, to)
    }
}

impl Storage for SimStorage {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let inner = self.world.inner.lock();
        let file = &inner.now.files[self.file.0];
        if file.fails_in(at, buf.len() as u64) {
            return Err(io::Error::other("simulated unreadable piece"));
        }
        Ok(file.read(buf, at))
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        if at.checked_add(buf.len() as u64).is_none() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if buf.is_empty() {
            return Ok(0);
        }
        let mut inner = self.world.inner.lock();
        inner.now.files[self.file.0].write(buf, at);
        inner.record(|| Event::Write { file: self.file, at, bytes: buf.into() });
        Ok(buf.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.world.inner.lock().now.files[self.file.0].len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.world.inner.lock();
        inner.now.files[self.file.0].set_len(len);
        inner.record(|| Event::SetLen { file: self.file, len });
        Ok(())
    }

    fn sync(&self, site: SyncSite) -> io::Result<()> {
        let mut inner = self.world.inner.lock();
        let begin = inner.events.len();
        inner.record(|| Event::SyncBegin { file: self.file, site });
        inner.record(|| Event::SyncEnd { file: self.file, site, begin, range: None });
        Ok(())
    }

    fn writes_durably(&self) -> bool {
        self.world.durable_writes.load(Ordering::Relaxed)
    }

    /// A write, and a sync of its range and nothing else: the least that a system may do.
    fn write_durable(&self, buf: &[u8], at: u64, site: SyncSite) -> io::Result<()> {
        self.write_at(buf, at)?;
        let mut inner = self.world.inner.lock();
        let begin = inner.events.len();
        inner.record(|| Event::SyncBegin { file: self.file, site });
        inner.record(|| Event::SyncEnd { file: self.file, site, begin, range: Some((at, at + buf.len() as u64)) });
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let mut inner = self.world.inner.lock();
        inner.now.files[self.file.0].zero(at, len);
        inner.record(|| Event::Punch { file: self.file, at, len });
        Ok(())
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        Ok(self.world.inner.lock().now.files[self.file.0].next_data(at))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.world.inner.lock().now.files[self.file.0].allocated())
    }

    fn id(&self) -> StorageId {
        StorageId { device: self.world.device, object: self.file.0 as u64 }
    }
}

/// A page that no program would write.
fn junk_page(seed: u64) -> Arc<Page> {
    let mut rng = Rng::new(seed ^ 0x6A75_6E6B);
    let mut page = [0; sparse::PAGE];
    for word in page.as_chunks_mut::<8>().0 {
        *word = rng.next_u64().to_le_bytes();
    }
    Arc::new(Page::new(page))
}
