//! Opening a clone: which files it stands on, found by identity.
//!
//! The disk itself says what it stands on: its parent locator holds the identity of its parent. Paths in locators may be out of date
//! (images are renamed, stores are moved), so they are not followed. The store looks for the identity among the clone's savepoints
//! and its images, and hands the engine the whole line.

use super::clone::CloneDisk;
use super::error::StoreError;
use super::files;
use super::record::{Record, Savepoint};
use crate::chain::{Disk, OpenOptions, ParentPolicy};
use crate::guid::Guid;
use crate::kind::ErrorKind;
use std::path::{Path, PathBuf};

/// The identity of what a file stands on; `None` when it is a disk without a parent.
pub(super) fn linkage_of(path: &Path) -> Result<Option<Guid>, StoreError> {
    let disk = Disk::open(path, &OpenOptions::new().parents(ParentPolicy::Deny)).map_err(StoreError::open(path))?;
    let locator = disk.leaf.metadata.parent_locator.as_ref();
    Ok(locator.map(|locator| locator.linkage().unwrap_or(Guid::ZERO)))
}

impl CloneDisk {
    /// Opens the clone for writing.
    ///
    /// # Errors
    /// `InUse` while somebody else has it open; `NoImage` when its image is not in the store; `Open`.
    pub fn open(&self) -> Result<Disk, StoreError> {
        self.open_with(&OpenOptions::new().writable(true))
    }

    /// Opens the clone as the options say, except that the store says where the parents are.
    ///
    /// # Errors
    /// As [`CloneDisk::open`].
    pub fn open_with(&self, options: &OpenOptions) -> Result<Disk, StoreError> {
        let mut record = self.record()?;
        if record.flattening || record.savepoints.iter().any(|savepoint| savepoint.pending) {
            record = self.hold()?.1;
        }
        // Somebody may put another leaf there between the look and the opening, or drop a savepoint; once is enough to tell.
        let mut result = self.open_once(&record, options);
        if result.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound)) {
            result = self.open_once(&self.record()?, options);
        }
        if options.writable && result.is_ok() {
            self.touch();
        }
        result
    }

    pub(super) fn open_once(&self, record: &Record, options: &OpenOptions) -> Result<Disk, StoreError> {
        let line = self.line(record, self.linkage()?)?;
        Disk::open(&self.path, &options.clone().parents(ParentPolicy::Paths(line))).map_err(StoreError::open(&self.path))
    }

    /// The files that the clone stands on, nearest first: savepoints, then the image, unless it was flattened.
    ///
    /// # Errors
    /// `NoImage` when its image is not in the store; `Open` when its own file cannot be read; `Foreign` when that is a disk without a parent and
    /// nobody flattened the clone.
    pub fn parents(&self) -> Result<Vec<PathBuf>, StoreError> {
        self.line(&self.record()?, self.linkage()?)
    }

    /// The identity of what the clone stands on.
    pub(super) fn linkage(&self) -> Result<Option<Guid>, StoreError> {
        match linkage_of(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Err(self.missing()),
            result => result,
        }
    }

    /// The files below something that stands on `parent`, nearest first. All of them are there.
    pub(super) fn line(&self, record: &Record, parent: Option<Guid>) -> Result<Vec<PathBuf>, StoreError> {
        let line = self.files_below(record, parent)?;
        for path in &line {
            if files::exists(path)? {
                continue;
            }
            let name = path.file_name().and_then(|name| name.to_str());
            let savepoint = record.savepoints.iter().find(|savepoint| path.parent() == Some(self.dir()) && name == Some(&savepoint.file));
            let (what, next) = match savepoint {
                Some(savepoint) => (format!("the savepoint {} under the clone {}", savepoint.name, self.name()), "bring it back"),
                None => (format!("the disk of the image under the clone {}", self.name()), "restore it from a copy"),
            };
            return Err(StoreError::NoFile { what, path: path.clone(), next });
        }
        Ok(line)
    }

    /// The same, whether they are there or not.
    pub(super) fn files_below(&self, record: &Record, parent: Option<Guid>) -> Result<Vec<PathBuf>, StoreError> {
        let mut record = record.clone();
        record.ask_the_files(self.dir());
        let (savepoints, root) = record.descend(parent);
        let mut line: Vec<PathBuf> = savepoints.into_iter().map(|savepoint| self.dir().join(&savepoint.file)).collect();
        let note = record.ground.note();
        match root {
            Some(root) => match self.store.find(root, &note.name, note.generation)? {
                Some(image) => line.push(image.path()),
                None => return Err(self.image_is_gone(root, &record)),
            },
            None if record.flattening || record.ground.image().is_none() => {}
            None => {
                let why = format!(
                    "it is a disk without a parent, and is known as a clone of {}; if somebody flattened it, `clone flatten` takes note of that",
                    note.reference()
                );
                return Err(StoreError::Foreign { path: self.path.clone(), why });
            }
        }
        Ok(line)
    }

    /// The identity below all savepoints, for something that stands on `parent`.
    pub(super) fn root(&self, record: &Record, parent: Option<Guid>) -> Option<Guid> {
        let mut record = record.clone();
        record.ask_the_files(self.dir());
        record.descend(parent).1
    }

    /// Leaves a mark of when it was used last: the sidecar's time of change. Nothing depends on it, so nothing waits for it.
    fn touch(&self) {
        #[cfg(unix)]
        {
            use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            let times = Timestamps { last_access: now, last_modification: now };
            let _ = utimensat(CWD, self.sidecar(), &times, AtFlags::empty());
        }
    }
}

impl Record {
    /// The savepoints below something that stands on `parent`, nearest first, and what the last of them stands on.
    fn descend(&self, mut parent: Option<Guid>) -> (Vec<&Savepoint>, Option<Guid>) {
        let mut line = Vec::new();
        // Each savepoint at most once: a record cannot lead in circles.
        for _ in 0..self.savepoints.len() {
            let Some(savepoint) = self.savepoints.iter().find(|savepoint| Some(savepoint.data_write_guid) == parent) else { break };
            line.push(savepoint);
            parent = savepoint.parent;
        }
        (line, parent)
    }
}
