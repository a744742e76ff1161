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
use crate::chain::{Disk, OpenOptions, ParentPolicy};
use crate::disk::compact::{CompactOptions, CompactReport};
use crate::progress::{Cancel, Progress};
use crate::tools::{self, Hydrated, RebaseOptions, Rebased, ResizeOptions, Resized, ToolError};

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
    /// `InUse` while somebody has it open; `Protected`; `SavepointsInTheWay` (drop them first); `Invalid` when it was flattened; `NoImage`, `Disabled`; `Work`. Conflicts are no
    /// error: they are in the result, and nothing was done.
    pub fn rebase(&self, to: &str, options: &RebaseOptions, progress: &dyn Progress, cancel: &Cancel) -> Result<Rebased, StoreError> {
        let (mut held, mut record) = self.hold()?;
        self.refuse_if_protected(&record)?;
        if !record.savepoints.is_empty() {
            let names = record.savepoints.iter().map(|savepoint| savepoint.name.clone()).collect();
            let next = "they show the old image; drop them first";
            return Err(StoreError::SavepointsInTheWay { clone: self.path.clone(), names, next });
        }
        if record.ground.image().is_none() {
            let what = format!("rebasing {}", self.path.display());
            let rule = "it was flattened and stands on no image; a reset puts it on one, without its changes".to_owned();
            return Err(StoreError::Invalid { what, rule });
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
        if self.linkage().is_ok_and(|parent| parent == Some(guid)) {
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
    /// `InUse` while somebody has it open; `Cancelled`; `Work`.
    pub fn compact(&self, options: &CompactOptions, progress: &dyn Progress, cancel: &Cancel) -> Result<CompactReport, StoreError> {
        self.on_disk("giving space back", |disk| disk.compact(options, progress, cancel))
    }

    /// Copies everything that the clone can read from its savepoints and its image into its own file; the link stays. See
    /// [`crate::Disk::hydrate`]. A clone that is open is hydrated by whoever has it open ([`crate::LiveDisk::hydrate`]).
    ///
    /// ```
    /// use diffdisk::{Cancel, CloneOptions, ImageOptions, NoProgress, Source, Store};
    /// # let dir = tempfile::tempdir()?;
    /// # let (raw, alice) = (dir.path().join("db.img"), dir.path().join("alice.vhdx"));
    /// # std::fs::write(&raw, [7; 1 << 20])?;
    /// # let store = Store::open(dir.path().join("images"))?;
    /// let image = store.create_image("app", Source::raw(&raw), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
    /// let clone = image.create_clone(&alice, &CloneOptions::default())?;
    /// assert_eq!(clone.hydrate(&NoProgress, &Cancel::new())?.copied, 1 << 20);
    /// assert_eq!(clone.hydrate(&NoProgress, &Cancel::new())?.copied, 0, "there is nothing left to copy");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `InUse` while somebody has it open; `Cancelled`: what was copied is kept, and calling again goes on; `Work`.
    pub fn hydrate(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Hydrated, StoreError> {
        self.on_disk("hydrating the clone", |disk| disk.hydrate(progress, cancel))
    }

    /// Gives the clone another virtual size, all or nothing; see [`crate::Disk::resize`]. Smaller only where the options say so and where nothing is
    /// lost. Its savepoints are frozen and keep the size they have: the clone has that size again when it is reverted to one of them, and the image's
    /// when it is reset.
    ///
    /// ```
    /// use diffdisk::{Cancel, CloneOptions, ImageOptions, NoProgress, ResizeOptions, Source, Store};
    /// # let dir = tempfile::tempdir()?;
    /// # let (raw, alice) = (dir.path().join("db.img"), dir.path().join("alice.vhdx"));
    /// # std::fs::write(&raw, [7; 1 << 20])?;
    /// # let store = Store::open(dir.path().join("images"))?;
    /// let image = store.create_image("app", Source::raw(&raw), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
    /// let clone = image.create_clone(&alice, &CloneOptions::default())?;
    /// clone.resize(1 << 30, &ResizeOptions::new(), &NoProgress, &Cancel::new())?;
    /// assert_eq!(clone.open()?.size(), 1 << 30);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `InUse` while somebody has it open; `Protected`; `Cancelled`; `Work` for a size that no disk can have, or that loses content.
    pub fn resize(&self, size: u64, options: &ResizeOptions, progress: &dyn Progress, cancel: &Cancel) -> Result<Resized, StoreError> {
        let (_held, record) = self.hold()?;
        self.refuse_if_protected(&record)?;
        let line = self.line(&record, self.linkage()?)?;
        let options = options.clone().open(OpenOptions::new().parents(ParentPolicy::Paths(line)));
        Disk::resize(&self.path, size, &options, progress, cancel).map_err(|source| match source {
            ToolError::Cancelled => StoreError::Cancelled { doing: "resizing the clone", left: "it has the size it had" },
            source => StoreError::work(&self.path)(source),
        })
    }

    /// Opens the clone for a verb that works on one open disk and may be stopped anywhere.
    fn on_disk<T>(&self, doing: &'static str, work: impl FnOnce(&Disk) -> Result<T, ToolError>) -> Result<T, StoreError> {
        let disk = self.open()?;
        let done = work(&disk).map_err(|source| match source {
            ToolError::Cancelled => StoreError::Cancelled { doing, left: "what was done is kept, and the same again goes on" },
            source => StoreError::Work { source },
        });
        // What was done before it was stopped is done, so the disk is closed in any case.
        let closed = disk.close().map_err(StoreError::disk(&self.path));
        let report = done?;
        closed.map(|()| report)
    }
}
