//! Dropping a savepoint that something stands on: what it holds goes up into whatever stands on it.
//!
//! ```text
//!     before                     after
//!     image ← s1 ← s2 ← s3       image ← s1 ← s3'      s3' shows what s3 showed, and has its identity
//! ```
//!
//! No file that anybody reads is changed. The merged file is made beside the old one, from the two layers that become one, and takes its name by
//! a rename. It keeps the data write GUID of the file it replaces, because what a reader sees through it is the same: whatever stands on that
//! file goes on recognising its parent. Who has the old files open, a live clone for instance, reads on in them; their space is given back
//! when they are closed.
//!
//! ```text
//!   step                                          a crash after it leaves
//!   1 note that the savepoint is being dropped    the note: whoever comes next asks the files themselves what they stand on
//!   2 make the merged file, hidden, synced        a leftover, swept
//!   3 it takes the name of the old one, synced    the savepoint, with one file less on it
//!   4 note what that stands on now                the same
//!     2 to 4 for everything that stands on it
//!   5 remove the savepoint's file, forget it      no savepoint
//! ```
//!
//! Step 2 is the long one, and the sidecar is not held meanwhile: the clone can be opened, used and saved. After it everything is looked at again,
//! and if something else has changed what was merged (another drop, a removal), the merged file is thrown away and the round begins anew. So any
//! number of droppers may meet, and one that died is taken up by the next drop or repair.

use super::clone::CloneDisk;
use super::error::StoreError;
use super::files::{self, Durability, Held};
use super::names;
use super::open::linkage_of;
use super::record::{Record, Savepoint};
use super::seal::make_read_only;
use crate::chain::{CreateOptions, Disk, ExtentKind, OpenOptions, ParentPolicy};
use crate::guid::Guid;
use crate::kind::ErrorKind;
use crate::progress::{Cancel, NoProgress, Phase, Progress};
use crate::storage::{DirVolume, FileStorage, Storage, StorageId, Volume};
use crate::sync::Arc;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;
/// How often to look at a file that is being written, and how long to wait in between.
const LOOKS: usize = 20;
const BETWEEN: Duration = Duration::from_millis(2);

/// What dropping a savepoint did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// Files that were written anew, because they stood on it.
    pub merged: usize,
    /// Bytes that were copied for that.
    pub bytes: u64,
}

/// Something that stands on a savepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Child {
    Savepoint(String),
    Leaf,
}

/// One file that is to be merged with the savepoint under it.
struct Fold {
    child: Child,
    child_path: PathBuf,
    savepoint: Savepoint,
    savepoint_path: PathBuf,
    /// Which files were read.
    ids: [StorageId; 2],
    /// The two layers and what they stand on. For a leaf its file is held for writing, so that nobody else writes it.
    disk: Disk,
    /// What the merged file will stand on, nearest first.
    below: Vec<PathBuf>,
}

/// The merged file. Goes away unless it is given a name.
struct Merged {
    disk: Disk,
    path: PathBuf,
    bytes: u64,
}

impl Drop for Merged {
    fn drop(&mut self) {
        // Gone from here once it has its name; what cannot be removed is swept.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl CloneDisk {
    /// Removes a savepoint. What stands on it, savepoints or the clone itself, is merged with it first and goes on showing what it showed.
    ///
    /// # Errors
    /// As [`CloneDisk::drop_savepoint_with`].
    pub fn drop_savepoint(&self, name: &str) -> Result<(), StoreError> {
        self.drop_savepoint_with(name, &NoProgress, &Cancel::new()).map(drop)
    }

    /// The same for savepoints that hold much: to be watched and stopped, and to be called from a thread of the caller's while the clone goes on
    /// being used. An open clone is in the way only where it stands on the savepoint itself; once it was saved again, it is not.
    ///
    /// It may be stopped or killed at any moment: the savepoint is there then or not, and every other one and the clone show what they
    /// showed. Calling it again, or [`CloneDisk::repair`], goes on.
    ///
    /// # Errors
    /// `NoSavepoint`; `SavepointsInTheWay` while somebody has the clone open and it stands on the savepoint; `InUse` while somebody else changes the
    /// clone; `Cancelled`; `Open`, `Create`, `Disk`, `Io`.
    pub fn drop_savepoint_with(&self, name: &str, progress: &dyn Progress, cancel: &Cancel) -> Result<Dropped, StoreError> {
        let dropped = self.drop_in_rounds(name, progress, cancel);
        if dropped.is_err()
            && let Ok((mut held, mut record)) = self.hold()
            && record.dropping.iter().any(|other| other == name)
        {
            record.dropping.retain(|other| other != name);
            // The failure is what to report; the note does no harm.
            let _ = self.note(&mut held, &mut record, Durability::Durable);
        }
        dropped
    }

    fn drop_in_rounds(&self, name: &str, progress: &dyn Progress, cancel: &Cancel) -> Result<Dropped, StoreError> {
        let mut dropped = Dropped::default();
        let mut is_first = true;
        loop {
            let (mut held, mut record) = self.hold()?;
            let savepoint = match record.savepoint(name) {
                Some(savepoint) => savepoint.clone(),
                None if is_first => return Err(self.no_savepoint(&record, name)),
                // Somebody else has finished it.
                None => return Ok(dropped),
            };
            is_first = false;
            let Some(child) = self.child_of(&record, &savepoint)? else {
                files::remove(&self.dir().join(&savepoint.file))?;
                record.savepoints.retain(|other| other.name != name);
                record.dropping.retain(|other| other != name);
                self.note(&mut held, &mut record, Durability::Durable)?;
                return Ok(dropped);
            };
            let fold = self.begin_fold(&record, savepoint, child)?;
            note_dropping(&mut held, &mut record, name)?;
            drop(held);
            let merged = fold.merge(self, progress, cancel)?;
            let (mut held, mut record) = self.hold()?;
            if !fold.is_true(&record)? {
                continue;
            }
            // Another dropper may have given up and taken the note back.
            note_dropping(&mut held, &mut record, name)?;
            dropped.merged += 1;
            dropped.bytes += merged.bytes;
            fold.install(&merged)?;
            if let Child::Savepoint(child) = &fold.child
                && let Some(child) = record.savepoints.iter_mut().find(|other| other.name == *child)
            {
                child.parent = fold.savepoint.parent;
            }
            self.note(&mut held, &mut record, Durability::Durable)?;
        }
    }

    /// Something that stands on the savepoint.
    fn child_of(&self, record: &Record, savepoint: &Savepoint) -> Result<Option<Child>, StoreError> {
        let on_it = |other: &&Savepoint| other.parent == Some(savepoint.data_write_guid);
        let child = record.savepoints.iter().find(on_it).map(|other| Child::Savepoint(other.name.clone()));
        if !files::exists(&self.path)? || leaf_linkage(&self.path)? != Some(savepoint.data_write_guid) {
            return Ok(child);
        }
        // Looked at first, so that nothing is merged in vain.
        match self.claim() {
            Ok(_) => Ok(child.or(Some(Child::Leaf))),
            Err(StoreError::InUse { .. }) => {
                let next = "the clone is open and stands on it; close it, or save it under another name first";
                Err(StoreError::SavepointsInTheWay { clone: self.path.clone(), names: vec![savepoint.name.clone()], next })
            }
            Err(e) => Err(e),
        }
    }

    fn begin_fold(&self, record: &Record, savepoint: Savepoint, child: Child) -> Result<Fold, StoreError> {
        let savepoint_path = self.dir().join(&savepoint.file);
        let below = self.line(record, savepoint.parent)?;
        let mut line = below.clone();
        line.insert(0, savepoint_path.clone());
        let (child_path, disk) = match &child {
            Child::Savepoint(name) => {
                let child = record.savepoint(name).expect("just found");
                let path = self.dir().join(&child.file);
                let disk = Disk::open(&path, &OpenOptions::new().parents(ParentPolicy::Paths(line))).map_err(StoreError::open(&path))?;
                (path, disk)
            }
            Child::Leaf => {
                let leaf = Arc::new(self.claim()?);
                let open = |path: &PathBuf| match FileStorage::open_read(path) {
                    Ok(file) => Ok(Arc::new(file) as Arc<dyn Storage>),
                    Err(e) => Err(StoreError::storage("open", path)(e)),
                };
                let parents = line.iter().map(open).collect::<Result<Vec<_>, _>>()?;
                (self.path.clone(), Disk::open_on(leaf, parents, &OpenOptions::new()).map_err(StoreError::open(&self.path))?)
            }
        };
        let ids = [disk.leaf.original.id(), files::id_at(&savepoint_path)?];
        Ok(Fold { child, child_path, savepoint, savepoint_path, ids, disk, below })
    }
}

impl Fold {
    /// Step 2: makes the file that shows what the two show.
    fn merge(&self, clone: &CloneDisk, progress: &dyn Progress, cancel: &Cancel) -> Result<Merged, StoreError> {
        let (_, name) = files::split(&clone.path)?;
        let path = clone.dir().join(names::temporary_clone(name));
        let block_size = self.disk.leaf.geometry.block_size();
        let disk = match self.below.split_first() {
            Some((parent, below)) => {
                let options = CreateOptions::child().size(self.disk.size()).parent_policy(ParentPolicy::Paths(below.to_vec()));
                Disk::create_child(&path, parent, &options.block_size(block_size).durable(false))
            }
            // The clone was flattened, and this savepoint is the lowest file of it.
            None => {
                let options = CreateOptions::dynamic(self.disk.size()).logical_sector(self.disk.logical_sector_size());
                Disk::create(&path, &options.block_size(block_size).durable(false))
            }
        }
        .map_err(StoreError::create(&path))?;
        let mut merged = Merged { disk, path, bytes: 0 };
        self.copy(&mut merged, progress, cancel)?;
        // Flushed and its log emptied, and still locked, so that no sweep takes it for a leftover.
        merged.disk.writer().and_then(|writer| writer.close()).map_err(StoreError::disk(&merged.path))?;
        if self.child != Child::Leaf {
            make_read_only(&merged.path)?;
        }
        Ok(merged)
    }

    fn copy(&self, merged: &mut Merged, progress: &dyn Progress, cancel: &Cancel) -> Result<(), StoreError> {
        let (from, to) = (&self.disk, &merged.disk);
        let (read, write) = (|e| StoreError::disk(&self.child_path)(e), |e| StoreError::disk(&merged.path)(e));
        to.writer().and_then(|writer| writer.begin_as(from.leaf.header.data_write)).map_err(write)?;
        // A savepoint that is smaller than what stands on it hides what lies below it there.
        let seen_below = from.layers().nth(1).map_or(u64::MAX, |layer| layer.geometry.size());
        progress.phase(Phase::Merge, Some(from.size()));
        let mut buffer = vec![0; PIECE];
        let cancelled =
            || StoreError::Cancelled { doing: "dropping the savepoint", left: "it is still there, and nothing else has changed" };
        for extent in from.extents(0, from.size()).map_err(read)? {
            let extent = extent.map_err(read)?;
            let end = extent.offset + extent.len;
            match extent.kind {
                ExtentKind::Data { layer: 0 | 1, .. } => {
                    let mut at = extent.offset;
                    while at < end {
                        if cancel.is_cancelled() {
                            return Err(cancelled());
                        }
                        let part = &mut buffer[..(end - at).min(PIECE as u64) as usize];
                        from.read_at(part, at).map_err(read)?;
                        to.write_at(part, at).map_err(write)?;
                        at += part.len() as u64;
                        merged.bytes += part.len() as u64;
                        progress.advance(at);
                    }
                }
                ExtentKind::Zero { layer: Some(0 | 1) } => to.write_zeroes(extent.offset, extent.len).map_err(write)?,
                ExtentKind::Zero { .. } if end > seen_below => {
                    let start = extent.offset.max(seen_below);
                    to.write_zeroes(start, end - start).map_err(write)?;
                }
                ExtentKind::Data { .. } | ExtentKind::Zero { .. } => {}
            }
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            progress.advance(end);
        }
        Ok(())
    }

    /// Whether what was merged is what is there.
    fn is_true(&self, record: &Record) -> Result<bool, StoreError> {
        let same = |path: &Path, id: StorageId| match files::id_at(path) {
            Ok(now) => Ok(now == id),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        };
        let stands = match &self.child {
            // Its lock is ours.
            Child::Leaf => true,
            Child::Savepoint(name) => record.savepoint(name).is_some_and(|child| child.parent == Some(self.savepoint.data_write_guid)),
        };
        let is_there = record.savepoint(&self.savepoint.name) == Some(&self.savepoint);
        Ok(stands && is_there && same(&self.child_path, self.ids[0])? && same(&self.savepoint_path, self.ids[1])?)
    }

    /// Step 3.
    fn install(&self, merged: &Merged) -> Result<(), StoreError> {
        let (dir, name) = files::split(&self.child_path)?;
        let (_, hidden) = files::split(&merged.path)?;
        let volume = DirVolume::open(dir).map_err(StoreError::storage("open", dir))?;
        volume.rename(hidden, name, true).map_err(StoreError::io("rename", &merged.path))?;
        files::sync_dir(dir, Durability::Durable)
    }
}

impl Record {
    /// Asks the savepoints' files what they stand on: while one is being dropped, what is written here may be older.
    pub(super) fn ask_the_files(&mut self, dir: &Path) {
        if self.dropping.is_empty() {
            return;
        }
        for savepoint in &mut self.savepoints {
            if let Ok(parent) = linkage_of(&dir.join(&savepoint.file)) {
                savepoint.parent = parent;
            }
        }
        let Self { savepoints, dropping, .. } = self;
        dropping.retain(|name| savepoints.iter().any(|savepoint| savepoint.name == *name));
    }
}

/// Step 1, unless it is done.
fn note_dropping(held: &mut Held, record: &mut Record, name: &str) -> Result<(), StoreError> {
    if record.dropping.iter().any(|other| other == name) {
        return Ok(());
    }
    record.dropping.push(name.to_owned());
    held.replace(record, Durability::Durable)
}

/// What a clone's file stands on, also while somebody is writing to it: that does not change then.
fn leaf_linkage(path: &Path) -> Result<Option<Guid>, StoreError> {
    let result = linkage_of(path);
    if !result.as_ref().is_err_and(|e| e.kind() == ErrorKind::InUse) {
        return result;
    }
    let alone = OpenOptions::new().parents(ParentPolicy::Deny);
    for _ in 0..LOOKS {
        let file = FileStorage::peek(path).map_err(StoreError::storage("open", path))?;
        // A header that is being written right now is not read right.
        if let Ok(disk) = Disk::open_on(Arc::new(file), Vec::new(), &alone) {
            let locator = disk.leaf.metadata.parent_locator.as_ref();
            return Ok(locator.map(|locator| locator.linkage().unwrap_or(Guid::ZERO)));
        }
        std::thread::sleep(BETWEEN);
    }
    result
}
