//! Flattening: a clone that holds everything it shows, and needs no image any more.
//!
//! What happens in the file is told in `tools/hydrate.rs`: it takes in what it inherits, and one entry of its log takes the link away. The books follow:
//!
//! ```text
//!   step                                                a crash after it leaves
//!   1 hold the sidecar, open the file for writing       the clone as it was
//!   2 note in both books that it is being flattened     the note, which whoever comes next takes back, because the file has a parent
//!   3 hydrate, cut                                      before the cut: as 2; after it: a disk without a parent and the note, so whoever
//!                                                       comes next does step 4
//!   4 note that it stands alone: sidecar, record        the store's record may still name the image, which then stays until a sweep
//!                                                       or a repair has brought the record up to date
//! ```
//!
//! The image is needed until the store's record says otherwise, and that is the last step, so no image is removed under a clone that has not been cut.
//! The note of step 2 tells a file that was cut from one that somebody put in the clone's place: without it a clone's file that has no parent is
//! left alone until somebody says [`CloneDisk::flatten`].
//!
//! Afterwards it is a clone in everything but that: it is listed, saved, reverted, renamed, protected, expires and is removed as before. Its savepoints
//! stand on one another, and the lowest stands alone. A reset needs to be told onto which image, and makes it an ordinary clone again.

use super::clone::CloneDisk;
use super::error::StoreError;
use super::files::{self, Durability};
use super::open::linkage_of;
use super::record::Record;
use crate::chain::{Disk, OpenOptions};
use crate::kind::ErrorKind;
use crate::progress::{Cancel, Progress};
use crate::tools::{Hydrated, ToolError};

impl CloneDisk {
    /// Copies everything that the clone can read from its image into its own file and cuts the link. It is no clone of the image any more: the image may
    /// be removed. A clone that was flattened already is left as it is; one that another program flattened is taken note of.
    ///
    /// ```
    /// use diffdisk::{Cancel, CloneOptions, ImageOptions, NoProgress, Source, Store};
    /// # let dir = tempfile::tempdir()?;
    /// # let (raw, alice) = (dir.path().join("db.img"), dir.path().join("alice.vhdx"));
    /// # std::fs::write(&raw, [7; 1 << 20])?;
    /// # let store = Store::open(dir.path().join("images"))?;
    /// let image = store.create_image("app", Source::raw(&raw), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
    /// let clone = image.create_clone(&alice, &CloneOptions::default())?;
    /// assert!(clone.flatten(&NoProgress, &Cancel::new())?.is_cut);
    /// image.remove()?;
    /// let mut byte = [0];
    /// clone.open()?.read_at(&mut byte, 0)?;
    /// assert_eq!(byte, [7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `InUse` while somebody has it open; `SavepointsInTheWay` (drop them first); `NoImage`; `Cancelled` and `Work`: it is linked as it was, what was
    /// copied is kept, and calling again goes on.
    pub fn flatten(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Hydrated, StoreError> {
        let (mut held, mut record) = self.hold()?;
        let alone = Hydrated { is_cut: true, ..Hydrated::default() };
        if !self.may_flatten(&record)? {
            return Ok(alone);
        }
        if self.linkage()?.is_none() {
            // The caller says that this is the clone. Nobody may be writing to it, and its name must last before the books rely on it.
            drop(self.claim()?);
            files::sync_dir(self.dir(), Durability::Durable)?;
            record.ground = record.ground.cut();
            return self.note(&mut held, &mut record, Durability::Durable).map(|()| alone);
        }
        let disk = self.open_once(&record, &OpenOptions::new().writable(true))?;
        record.flattening = true;
        let noted = self.note(&mut held, &mut record, Durability::Durable);
        let done = noted.and_then(|()| {
            let done = self.cut(&disk, progress, cancel);
            // What was done before it was stopped is done, so the disk is closed in any case.
            let closed = disk.close().map_err(StoreError::disk(&self.path));
            done.and_then(|done| closed.map(|()| done))
        });
        // Asked rather than concluded: after a failure of the last step it may be either. Nothing is noted that could not be told.
        let noted = match self.settle_ground(&mut record) {
            Ok(true) => self.note(&mut held, &mut record, Durability::Durable),
            _ => Ok(()),
        };
        done.and_then(|done| noted.map(|()| done))
    }

    /// The same for a clone that this process has open, while it goes on being read and written: `disk` is what [`CloneDisk::open`] gave.
    ///
    /// ```
    /// use diffdisk::{Cancel, CloneOptions, ImageOptions, NoProgress, Source, Store};
    /// # let dir = tempfile::tempdir()?;
    /// # let (raw, alice) = (dir.path().join("db.img"), dir.path().join("alice.vhdx"));
    /// # std::fs::write(&raw, [7; 1 << 20])?;
    /// # let store = Store::open(dir.path().join("images"))?;
    /// let image = store.create_image("app", Source::raw(&raw), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
    /// let clone = image.create_clone(&alice, &CloneOptions::default())?;
    /// let disk = clone.open()?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| disk.write_at(b"meanwhile", 0));
    ///     clone.flatten_open(&disk, &NoProgress, &Cancel::new())
    /// })?;
    /// image.remove()?; // its file stays until the disk is closed, and nothing is read from it
    /// disk.close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`CloneDisk::flatten`]; `Invalid` when `disk` is another file. When the last step itself fails the disk is latched, and the note stays until
    /// somebody opens or repairs the clone.
    pub fn flatten_open(&self, disk: &Disk, progress: &dyn Progress, cancel: &Cancel) -> Result<Hydrated, StoreError> {
        let (mut held, mut record) = self.hold()?;
        if !self.may_flatten(&record)? {
            return Ok(Hydrated { is_cut: true, ..Hydrated::default() });
        }
        if disk.leaf.original.id() != files::id_at(&self.path)? {
            let what = format!("flattening {}", self.path.display());
            return Err(StoreError::Invalid { what, rule: "the open disk is another file".to_owned() });
        }
        record.flattening = true;
        let noted = self.note(&mut held, &mut record, Durability::Durable);
        let done = noted.and_then(|()| self.cut(disk, progress, cancel));
        match &done {
            Ok(_) => record.ground = record.ground.cut(),
            // Cut or not, the file knows, and whoever opens it next.
            Err(_) if disk.is_degraded() => return done,
            Err(_) => {}
        }
        record.flattening = false;
        let noted = self.note(&mut held, &mut record, Durability::Durable);
        done.and_then(|done| noted.map(|()| done))
    }

    /// Whether there is a link to cut.
    fn may_flatten(&self, record: &Record) -> Result<bool, StoreError> {
        if record.ground.image().is_none() {
            return Ok(false);
        }
        if record.savepoints.is_empty() {
            return Ok(true);
        }
        let names = record.savepoints.iter().map(|savepoint| savepoint.name.clone()).collect();
        let next = "they stand on the image, and cutting the clone off would leave them behind; drop them first";
        Err(StoreError::SavepointsInTheWay { clone: self.path.clone(), names, next })
    }

    fn cut(&self, disk: &Disk, progress: &dyn Progress, cancel: &Cancel) -> Result<Hydrated, StoreError> {
        disk.flatten(progress, cancel).map_err(|source| match source {
            ToolError::Cancelled => {
                let left = "it is linked as it was, what was copied is kept, and the same again goes on";
                StoreError::Cancelled { doing: "flattening the clone", left }
            }
            source => StoreError::Work { source },
        })
    }

    /// Finds out what the clone stands on, where a note says that somebody was about to change that: by flattening it, or by putting it on another
    /// image. Says whether anything changed. The caller holds the sidecar, so whoever left the note is done or dead.
    pub(super) fn settle_ground(&self, record: &mut Record) -> Result<bool, StoreError> {
        if !record.flattening && record.next_image.is_none() {
            return Ok(false);
        }
        let parent = match linkage_of(&self.path) {
            Ok(parent) => parent,
            // Somebody has it open, or it is gone or damaged: whoever can tell settles it.
            Err(e) if matches!(e.kind(), ErrorKind::InUse | ErrorKind::NotFound | ErrorKind::Damaged) => return Ok(false),
            Err(e) => return Err(e),
        };
        let mut changed = false;
        if record.flattening {
            if parent.is_none() {
                record.ground = record.ground.cut();
            }
            record.flattening = false;
            changed = true;
        }
        if let Some(next) = &record.next_image {
            let root = self.root(record, parent);
            if root == Some(next.guid)
                && let Some(image) = self.store.find_by_identity(next.guid)?
            {
                record.stand_on(&image);
                record.next_image = None;
                changed = true;
            } else if root == record.ground.image() {
                record.next_image = None;
                changed = true;
            }
        }
        Ok(changed)
    }
}
