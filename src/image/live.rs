//! A clone that is in use and can be saved meanwhile.
//!
//! What the engine does is told in `chain/live.rs`; this adds the books. In this order:
//!
//! ```text
//!   1 hold the sidecar, note the savepoint as pending    crash: a note without file, forgotten
//!   2 the switch                                         crash: the clone as it was, or one file with two names, or the savepoint
//!   3 note that it is not pending any more               crash: the next who uses the clone finds the file and does so
//! ```
//!
//! A switch that cannot be finished (`chain/live.rs` says when) keeps the sidecar held, so that nobody takes the pending savepoint for one that
//! died. The next save, or closing, looks again.

use super::clock::Timestamp;
use super::clone::CloneDisk;
use super::error::StoreError;
use super::files::{Durability, Held};
use super::names::check_savepoint_name;
use super::record::{Record, Savepoint};
use crate::chain::{LiveDisk, OpenOptions};
use crate::guid::Guid;
use crate::sync::{Arc, Mutex};
use std::ops::Deref;
use std::time::Duration;

/// What an online save did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Saved {
    /// The savepoint.
    pub savepoint: Savepoint,
    /// How long writers had to wait at most.
    pub pause: Duration,
}

/// An open clone that can be saved while it is read and written; see [`CloneDisk::open_live`]. Data calls are those of [`LiveDisk`].
#[derive(Debug)]
pub struct LiveClone {
    clone: CloneDisk,
    disk: Arc<LiveDisk>,
    /// A save whose switch could not be finished: what is held until it is.
    unfinished: Mutex<Option<(Held, Record)>>,
}

impl Deref for LiveClone {
    type Target = LiveDisk;

    fn deref(&self) -> &LiveDisk {
        &self.disk
    }
}

impl CloneDisk {
    /// Opens the clone for writing, so that it can be saved while it is in use.
    ///
    /// ```
    /// use diffdisk::{Cancel, CloneOptions, ImageOptions, NoProgress, Source, Store};
    /// # let dir = tempfile::tempdir()?;
    /// # let (raw, alice) = (dir.path().join("db.img"), dir.path().join("alice.vhdx"));
    /// # std::fs::write(&raw, [7; 1 << 20])?;
    /// # let store = Store::open(dir.path().join("images"))?;
    /// let image = store.create_image("app", Source::raw(&raw), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
    /// let live = image.create_clone(&alice, &CloneOptions::default())?.open_live()?;
    /// live.write_at(b"before", 0)?;
    /// let saved = live.save("before-migration")?;
    /// live.write_at(b"after!", 0)?;
    /// live.close()?;
    /// println!("writers waited {:?}", saved.pause);
    ///
    /// let clone = store.clone_at(&alice)?;
    /// clone.revert("before-migration")?;
    /// let mut word = [0; 6];
    /// clone.open()?.read_at(&mut word, 0)?;
    /// assert_eq!(&word, b"before");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`CloneDisk::open`].
    pub fn open_live(&self) -> Result<LiveClone, StoreError> {
        self.open_live_with(&OpenOptions::new())
    }

    /// The same as the options say, except that the store says where the parents are, and that the disk is writable.
    ///
    /// # Errors
    /// As [`CloneDisk::open`].
    pub fn open_live_with(&self, options: &OpenOptions) -> Result<LiveClone, StoreError> {
        let disk = self.open_with(&options.clone().writable(true))?;
        Ok(LiveClone { clone: self.clone(), disk: Arc::new(LiveDisk::new(disk, options)), unfinished: Mutex::new(None) })
    }
}

impl LiveClone {
    /// The clone.
    pub fn clone_disk(&self) -> &CloneDisk {
        &self.clone
    }

    /// Its disk, for an export. [`LiveClone::close`] wants it back.
    pub fn disk(&self) -> Arc<LiveDisk> {
        Arc::clone(&self.disk)
    }

    /// Freezes the clone's present state under a name, to come back to, while others go on reading and writing it.
    ///
    /// The savepoint holds every write that was acknowledged before the call. Those that run at the same time are in it or not.
    ///
    /// # Errors
    /// `Name`; `SavepointExists`; `InUse` while somebody else changes the clone; `Switch`, `Io`. The error says whether the save takes effect
    /// later (`SwitchError::Unfinished`).
    pub fn save(&self, name: &str) -> Result<Saved, StoreError> {
        check_savepoint_name(name)?;
        let mut unfinished = self.unfinished.lock();
        self.book(&mut unfinished)?;
        let (mut held, mut record) = self.clone.hold()?;
        if record.savepoint(name).is_some() {
            return Err(StoreError::SavepointExists { clone: self.clone.path.clone(), name: name.to_owned() });
        }
        let (guid, parent) = self.identity()?;
        let file = self.clone.savepoint_file(name)?;
        let place = self.clone.dir().join(&file);
        let savepoint = Savepoint { name: name.to_owned(), file, data_write_guid: guid, parent, created: Timestamp::now(), pending: true };
        record.savepoints.push(savepoint.clone());
        held.replace(&record, Durability::Durable)?;
        let switched = self.disk.freeze_and_switch(&place);
        if switched.is_err() && !self.disk.is_settled() {
            *unfinished = Some((held, record));
        } else {
            let settled = self.clone.settle_savepoints(&mut record);
            let noted = self.clone.note(&mut held, &mut record, Durability::Durable);
            if switched.is_ok() {
                settled.map(drop).and(noted)?;
            }
        }
        let switched = switched.map_err(|source| StoreError::Switch { clone: self.clone.path.clone(), source })?;
        debug_assert_eq!(switched.data_write_guid.get(), guid, "the identity stays for the whole session");
        Ok(Saved { savepoint: Savepoint { pending: false, ..savepoint }, pause: switched.pause })
    }

    /// The identities of the leaf, which stays once its session has begun, and of what it stands on.
    fn identity(&self) -> Result<(Guid, Option<Guid>), StoreError> {
        self.disk.identity().map_err(StoreError::disk(&self.clone.path))
    }

    /// Enters a save into the books whose switch was finished after it had failed.
    fn book(&self, unfinished: &mut Option<(Held, Record)>) -> Result<(), StoreError> {
        if unfinished.is_none() {
            return Ok(());
        }
        self.disk.flush().map_err(StoreError::disk(&self.clone.path))?;
        let (mut held, mut record) = unfinished.take().expect("just looked");
        self.clone.settle_savepoints(&mut record)?;
        self.clone.note(&mut held, &mut record, Durability::Durable)
    }

    /// Flushes and closes the clone, as [`LiveDisk::close`] does.
    ///
    /// # Errors
    /// As [`LiveDisk::close`]; `InUse` while somebody holds what [`LiveClone::disk`] gave.
    pub fn close(self) -> Result<(), StoreError> {
        let path = self.clone.path.clone();
        let booked = self.book(&mut self.unfinished.lock());
        let disk = Arc::into_inner(self.disk).ok_or_else(|| StoreError::in_use(&path))?;
        let closed = disk.close().map_err(StoreError::disk(&path));
        booked.and(closed)
    }
}
