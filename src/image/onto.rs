//! What the toolbox does to clones: the store knows where the parents are, and keeps the books.
//!
//! # Another generation
//!
//! A reset forgets the changes; this keeps them, where the clone's own sectors and what changed between the generations do not meet
//! (`tools/rebase.rs` says what that means). The books, in this order:
//!
//! ```text
//!   1 note the image that the clone is about to stand on    crash: neither image is removed until a repair
//!   2 rebase                                                crash: the clone stands on the old or on the new image
//!   3 note which one it is                                  crash: a repair notes it
//! ```

use super::clone::{CloneDisk, ResetOptions};
use super::error::StoreError;
use super::files::Durability;
use super::record::NextImage;
use crate::chain::{OpenOptions, ParentPolicy};
use crate::disk::compact::{CompactOptions, CompactReport};
use crate::progress::{Cancel, Progress};
use crate::tools::{self, RebaseOptions, Rebased};

impl CloneDisk {
    /// Puts the clone onto another image, usually a newer generation of its own: `latest`, or a reference like `app@3`. Where its parents are
    /// the store says; otherwise it happens as the options want.
    ///
    /// ```
    /// use diffdisk::{Cancel, CloneOptions, ImageOptions, NoProgress, RebaseOptions, Source, Store};
    /// # let dir = tempfile::tempdir()?;
    /// # let (raw, alice) = (dir.path().join("db.img"), dir.path().join("alice.vhdx"));
    /// # let store = Store::open(dir.path().join("images"))?;
    /// std::fs::write(&raw, [1; 4 << 20])?;
    /// let image = store.create_image("app", Source::raw(&raw), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
    /// let clone = image.create_clone(&alice, &CloneOptions::default())?;
    /// let disk = clone.open()?;
    /// disk.write_at(b"mine", 1 << 20)?;
    /// disk.close()?;
    ///
    /// let mut newer = vec![1; 4 << 20];
    /// newer[0] = 2;
    /// std::fs::write(&raw, newer)?;
    /// store.refresh_image("app", None, &ImageOptions::default(), &NoProgress, &Cancel::new())?;
    /// let done = clone.rebase("latest", &RebaseOptions::new(), &NoProgress, &Cancel::new())?;
    /// assert!(done.is_linked && done.conflicts.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `InUse` while somebody has it open; `Protected`; `SavepointsInTheWay` (drop them first); `NoImage`, `Disabled`; `Work`. Conflicts are no
    /// error: they are in the result, and nothing was done.
    pub fn rebase(&self, to: &str, options: &RebaseOptions, progress: &dyn Progress, cancel: &Cancel) -> Result<Rebased, StoreError> {
        let (mut held, mut record) = self.hold()?;
        self.refuse_if_protected(&record)?;
        if !record.savepoints.is_empty() {
            let names = record.savepoints.iter().map(|savepoint| savepoint.name.clone()).collect();
            let next = "they show the old image; drop them first";
            return Err(StoreError::SavepointsInTheWay { clone: self.path.clone(), names, next });
        }
        let image = self.reset_target(&record, &ResetOptions::default().to(to))?;
        let line = self.line(&record, self.linkage()?)?;
        let guid = image.manifest().data_write_guid;
        record.next_image = Some(NextImage { guid });
        self.store.put_record(&record, Durability::Durable)?;
        image.refuse_if_gone()?;
        let options = options.clone().parents(ParentPolicy::Paths(line));
        let done = tools::rebase(&self.path, image.path(), &options, progress, cancel);
        record.next_image = None;
        // Asked rather than concluded: after a failure of its last step it may be either.
        if self.linkage().is_ok_and(|parent| parent == guid) {
            record.stand_on(&image);
        }
        let noted = self.note(&mut held, &mut record, Durability::Durable);
        let done = done.map_err(|source| match source.kind() {
            crate::kind::ErrorKind::InUse => StoreError::in_use(&self.path),
            _ => StoreError::Work { source },
        })?;
        noted.map(|()| done)
    }

    /// Gives space back that the clone's file does not need; see [`crate::Disk::compact`]. Its savepoints are frozen and stay as they are. A clone
    /// that is open is compacted by whoever has it open ([`crate::LiveDisk::compact`]).
    ///
    /// # Errors
    /// `InUse` while somebody has it open; `Work`.
    pub fn compact(&self, options: &CompactOptions, progress: &dyn Progress, cancel: &Cancel) -> Result<CompactReport, StoreError> {
        let disk = self.open_with(&OpenOptions::new().writable(true))?;
        let done = disk.compact(options, progress, cancel).map_err(|source| StoreError::Work { source });
        // What was done before it was stopped is done, so the disk is closed in any case.
        let closed = disk.close().map_err(StoreError::disk(&self.path));
        let report = done?;
        closed.map(|()| report)
    }
}
