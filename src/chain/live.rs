//! A disk that can be frozen while it is written: its leaf becomes a parent, and a new leaf takes over.
//!
//! A [`LiveDisk`] is a [`Disk`] behind a shared lock. Requests hold the lock shared for as long as they run; a switch holds it exclusively
//! for as long as it takes to put one pointer in the place of another. Everything slow stands before or after that moment:
//!
//! ```text
//!   step                                                       a crash after it leaves
//!   1 prepare the next leaf: laid down under a hidden name,    the disk as it was, and a leftover that its name gives away
//!     its session begun, synced
//!   2 flush the present leaf, while others go on writing       the same
//!   3 PAUSE: requests under way end, the next leaf takes over  the disk as it was: what was written since is in a file without a name,
//!                                                              and no flush has returned
//!   4 flush the frozen leaf: its content is durable            the same
//!   5 the frozen file gets its own name as well, synced        one file with two names
//!   6 the next leaf takes the first name, synced               the disk after the switch
//!   7 close the frozen leaf's log, open it read-only           the disk after the switch; a dirty log of a parent is replayed in memory
//! ```
//!
//! **Flushes wait for step 6.** A write to the next leaf may be acknowledged before that leaf has a name, because an acknowledged write
//! promises nothing yet. A flush promises, so [`LiveDisk::flush`] first sees to it that steps 4 to 6 are done, whoever does them, and only
//! then flushes the leaf that the writes are in. That is why no sync stands in the pause.
//!
//! **What can fail** in steps 4 to 6 and leave no doubt (no space for the log entry, a directory that cannot be written) is tried again by the
//! next flush; until it works, flushes fail with the cause, reads and writes go on. A failed sync is final, as everywhere: the disk is
//! latched, and reopening finds it as it was before step 3.
//!
//! The frozen leaf becomes an ancestor the moment it is switched from. Its tables are in memory, so reads do not notice step 7, in which the
//! file changes under them only where nobody looks (the log, the homes of pages that are in memory, its unused tail). Then the line of parents is
//! put together anew on a read-only handle, and the writable one is closed.
//!
//! Lock order: `saving` → `flushing` → `now` → `pending`, except that whoever holds `pending` takes nothing but the locks of a disk.

use super::disk::Disk;
use super::error::OpenError;
use super::extents::Extent;
use super::info::DiskInfo;
use super::open::locator_on;
use super::options::OpenOptions;
use super::switch::{Names, Pending, Place, SwitchError, Switched, next_leaf, next_leaf_in};
use crate::disk::error::DiskError;
#[cfg(feature = "store")]
use crate::guid::Guid;
use crate::storage::Volume;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, RwLock};
use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

/// Extents that are looked up under one hold of the lock.
const EXTENTS_AT_ONCE: usize = 256;

/// A disk whose leaf can be frozen under a name while any number of threads read and write it.
///
/// Everything [`Disk`] can do to data, this can do as well, except lending places to a host with an I/O engine of its own
/// ([`Disk::begin_write`]); a request costs one shared lock more.
///
/// ```
/// use diffdisk::{CreateOptions, Disk, LiveDisk, OpenOptions};
/// # let dir = tempfile::tempdir()?;
/// # let at = |name: &str| dir.path().join(name);
/// Disk::create(at("app.vhdx"), &CreateOptions::dynamic(1 << 30))?.close()?;
/// Disk::create_child(at("alice.vhdx"), at("app.vhdx"), &CreateOptions::child())?.close()?;
///
/// let live = LiveDisk::open(at("alice.vhdx"), &OpenOptions::new())?;
/// live.write_at(b"before", 0)?;
/// let switched = live.freeze_and_switch(at("alice.noon.avhdx"))?;
/// live.write_at(b"after!", 0)?;
/// live.close()?;
/// println!("writers waited {:?}", switched.pause);
///
/// let read = |name: &str| -> Result<[u8; 6], Box<dyn std::error::Error>> {
///     let mut word = [0; 6];
///     Disk::open(at(name), &OpenOptions::new())?.read_at(&mut word, 0)?;
///     Ok(word)
/// };
/// assert_eq!(&read("alice.noon.avhdx")?, b"before");
/// assert_eq!(&read("alice.vhdx")?, b"after!");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LiveDisk {
    /// The disk of this moment. Replaced by a switch, and changed in place when its parents are put together anew.
    now: RwLock<Arc<Disk>>,
    /// Held shared by whoever keeps a copy of the `Arc` without holding `now`.
    flushing: RwLock<()>,
    /// One switch at a time.
    saving: Mutex<()>,
    /// A switch whose steps 4 to 7 are not all done.
    pending: Mutex<Option<Pending>>,
    /// Whether steps 4 to 6 of the last switch are done.
    is_settled: AtomicBool,
    maps_ancestors: bool,
}

impl LiveDisk {
    /// Opens a disk for writing and the whole chain it stands on. The options are taken to be `writable`.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, OpenError> {
        Ok(Self::new(Disk::open(path, &options.clone().writable(true))?, options))
    }

    /// A disk that was opened as the options say.
    pub(crate) fn new(disk: Disk, options: &OpenOptions) -> Self {
        Self { maps_ancestors: options.map_ancestors, ..Self::from(disk) }
    }

    /// Begins the session, and says which identity the content has from then on and which one the parent has, if there is one.
    #[cfg(feature = "store")]
    pub(crate) fn identity(&self) -> Result<(Guid, Option<Guid>), DiskError> {
        self.pinned(|disk| {
            let writer = disk.writer()?;
            writer.begin()?;
            let parent = disk.leaf.metadata.parent_locator.as_ref().map(|locator| locator.linkage().unwrap_or(Guid::ZERO));
            Ok((writer.data_write_guid().get(), parent))
        })
    }

    /// Whether the files are what the disk is: no switch is half done.
    #[cfg(feature = "store")]
    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Acquire)
    }

    /// The virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.now.read().size()
    }

    /// The logical sector size in bytes, 512 or 4096.
    pub fn logical_sector_size(&self) -> u32 {
        self.now.read().logical_sector_size()
    }

    /// Whether an earlier failed sync or metadata write put an end to writing.
    pub fn is_degraded(&self) -> bool {
        self.now.read().is_degraded()
    }

    /// As [`Disk::read_at`].
    ///
    /// # Errors
    /// As [`Disk::read_at`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.now.read().read_at(buf, offset)
    }

    /// As [`Disk::write_at`].
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        self.now.read().write_at(buf, offset)
    }

    /// As [`Disk::write_zeroes`].
    ///
    /// # Errors
    /// As [`Disk::write_zeroes`].
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.now.read().write_zeroes(offset, len)
    }

    /// As [`Disk::trim`].
    ///
    /// # Errors
    /// As [`Disk::trim`].
    pub fn trim(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.now.read().trim(offset, len)
    }

    /// Returns when every write that was acknowledged before the call survives a power cut, in whichever leaf it is. Finishes a switch
    /// that is under way.
    ///
    /// # Errors
    /// As [`Disk::flush`]; the cause when a switch cannot be finished.
    pub fn flush(&self) -> Result<(), DiskError> {
        self.pinned(|disk| {
            self.settle()?;
            disk.flush()
        })
    }

    /// As [`Disk::extents`], looked up piece by piece: what a piece says was true when it was looked up, and a switch in between makes
    /// layer 0 of one piece layer 1 of the next.
    ///
    /// # Errors
    /// As [`Disk::extents`].
    pub fn extents(&self, offset: u64, len: u64) -> Result<LiveExtents<'_>, DiskError> {
        let _ = self.now.read().range(offset, len)?;
        Ok(LiveExtents { live: self, at: offset, end: offset + len, ahead: VecDeque::new() })
    }

    /// As [`Disk::info`].
    ///
    /// # Errors
    /// As [`Disk::info`].
    pub fn info(&self) -> Result<DiskInfo, DiskError> {
        self.pinned(Disk::info)
    }

    /// Freezes the disk's present content under a name in the directory of its file, and goes on with a new leaf that stands on it, under
    /// the old name. Requests of other threads wait only for those under way to end and for a pointer to change.
    ///
    /// When it returns `Ok` the switch survives a power cut. See the module for what a crash in between leaves: the disk before or after
    /// the switch, and nothing that was flushed is lost.
    ///
    /// # Errors
    /// `NoPath`, `OtherDirectory`, `Chain` (too deep), `Leaf` when the next leaf cannot be made, `Disk` when the present one is latched
    /// or cannot be flushed: nothing has changed. `Unfinished` when the switch took place in memory and the files could not be brought
    /// into line: the next flush tries again.
    pub fn freeze_and_switch(&self, frozen: impl AsRef<Path>) -> Result<Switched, SwitchError> {
        self.switch(|disk| next_leaf(disk, frozen.as_ref()))
    }

    /// The same for a disk on storages of the caller, in a volume of the caller that has this disk's leaf under the name `leaf`.
    ///
    /// # Errors
    /// As [`LiveDisk::freeze_and_switch`].
    pub fn freeze_and_switch_in(&self, volume: Arc<dyn Volume>, leaf: &str, frozen: &str) -> Result<Switched, SwitchError> {
        let place = Place { leaf, leaf_path: None, frozen, frozen_path: None };
        self.switch(|disk| next_leaf_in(disk, volume, place, |identity| Ok(locator_on(identity))))
    }

    fn switch(&self, make: impl FnOnce(&Disk) -> Result<(Disk, Names), SwitchError>) -> Result<Switched, SwitchError> {
        let _one = self.saving.lock();
        self.settle()?;
        let _ = self.finish();
        let old = Arc::clone(&self.now.read());
        old.writer()?.check_latch()?;
        let (next, names) = make(&old)?;
        let data_write_guid = old.writer()?.data_write_guid();
        old.flush()?;
        let next = Arc::new(next);
        let began = Instant::now();
        {
            let mut now = self.now.write();
            *self.pending.lock() = Some(Pending::new(old, names));
            // Release, and stored while nobody can be in a request: whoever sees the next leaf sees that it is not settled.
            self.is_settled.store(false, Ordering::Release);
            *now = next;
        }
        let pause = began.elapsed();
        self.settle().map_err(SwitchError::Unfinished)?;
        let (left_open, exchange) = self.finish();
        Ok(Switched { data_write_guid, pause: pause.max(exchange), left_open })
    }

    /// Sees to steps 4 to 6 of a switch under way.
    fn settle(&self) -> Result<(), DiskError> {
        if self.is_settled.load(Ordering::Acquire) {
            return Ok(());
        }
        let settled = match &mut *self.pending.lock() {
            Some(pending) => pending.settle(),
            None => Ok(()),
        };
        match settled {
            Ok(()) => {
                self.is_settled.store(true, Ordering::Release);
                Ok(())
            }
            Err(failed) => {
                // Outside of `pending`: see the lock order.
                if failed.is_final
                    && let Some(writer) = &self.now.read().writer
                {
                    let _ = writer.latch(failed.cause.clone());
                }
                Err(failed.cause)
            }
        }
    }

    /// Step 7 of a switch that is settled. Says why the frozen leaf could not be closed, if so (it goes on as a parent with a log), and how
    /// long others had to wait while the parents were exchanged.
    fn finish(&self) -> (Option<SwitchError>, Duration) {
        let Some(pending) = self.pending.lock().take_if(|pending| pending.is_settled()) else { return (None, Duration::ZERO) };
        match pending.finish(self.maps_ancestors) {
            Ok(None) => (None, Duration::ZERO),
            Ok(Some(line)) => {
                // Whoever copied the `Arc` has let go of it once this lock is ours. Flushes wait here for one another, reads and writes do not.
                let _nobody = self.flushing.write();
                let began = Instant::now();
                let mut now = self.now.write();
                let disk = Arc::get_mut(&mut now).expect("copies are kept under `flushing` or `saving` only");
                disk.parents = line;
                drop(now);
                (None, began.elapsed())
            }
            Err(e) => (Some(e), Duration::ZERO),
        }
    }

    /// Asks the disk of this moment something that takes no time.
    pub(crate) fn with<T>(&self, ask: impl FnOnce(&Disk) -> T) -> T {
        ask(&self.now.read())
    }

    /// Works on the disk of this moment and keeps it from being switched: for work that moves blocks, which nobody may do to a frozen leaf.
    pub(crate) fn without_switches<T>(&self, act: impl FnOnce(&Disk) -> T) -> Result<T, DiskError> {
        let _one = self.saving.lock();
        self.settle()?;
        let _ = self.finish();
        self.pinned(|disk| Ok(act(disk)))
    }

    /// Works on the disk of this moment without keeping a switch from happening.
    fn pinned<T>(&self, act: impl FnOnce(&Disk) -> Result<T, DiskError>) -> Result<T, DiskError> {
        let _pin = self.flushing.read();
        let disk = Arc::clone(&self.now.read());
        act(&disk)
    }

    /// Finishes a switch under way and closes the disk, as [`Disk::close`] does.
    ///
    /// # Errors
    /// As [`Disk::close`]; the cause when a switch cannot be finished.
    pub fn close(self) -> Result<(), DiskError> {
        self.settle()?;
        let _ = self.finish();
        Arc::into_inner(self.now.into_inner()).expect("nobody else can have the disk now").close()
    }
}

impl From<Disk> for LiveDisk {
    /// A disk that was opened or made for writing.
    fn from(disk: Disk) -> Self {
        Self {
            now: RwLock::new(Arc::new(disk)),
            flushing: RwLock::new(()),
            saving: Mutex::new(()),
            pending: Mutex::new(None),
            is_settled: AtomicBool::new(true),
            maps_ancestors: false,
        }
    }
}

/// The extents of a range; see [`LiveDisk::extents`].
#[derive(Debug)]
#[must_use]
pub struct LiveExtents<'a> {
    live: &'a LiveDisk,
    at: u64,
    end: u64,
    ahead: VecDeque<Extent>,
}

impl Iterator for LiveExtents<'_> {
    type Item = Result<Extent, DiskError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ahead.is_empty() && self.at < self.end {
            let disk = self.live.now.read();
            let found: Result<VecDeque<Extent>, DiskError> =
                disk.extents(self.at, self.end - self.at).and_then(|extents| extents.take(EXTENTS_AT_ONCE).collect());
            match found {
                Ok(found) => self.ahead = found,
                Err(e) => {
                    self.at = self.end;
                    return Some(Err(e));
                }
            }
        }
        let extent = self.ahead.pop_front()?;
        self.at = extent.offset + extent.len;
        Some(Ok(extent))
    }
}
