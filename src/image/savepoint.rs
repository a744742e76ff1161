//! Savepoints: states of a clone to come back to.
//!
//! A savepoint is what was the clone's file. Saving gives that file another name and puts a new empty child in its place:
//!
//! ```text
//!   step                                              a crash after it leaves, and what becomes of it
//!   1 make sure that nobody writes; keep the lock
//!   2 note the savepoint as pending                   a note without file: forgotten
//!   3 link the file to the savepoint's name, sync     one file with two names: the second is taken away
//!   4 a new child replaces the first name             the savepoint
//!   5 note that it is not pending any more
//! ```
//!
//! Where a file cannot have two names, step 3 renames it, and a crash leaves the clone without a file until it is settled, which every
//! use of the clone does first.
//!
//! Reverting puts a new empty child over a savepoint in place of the clone's file; that is one rename. Savepoints form a tree: those
//! made after the one that was reverted to stay, until they are dropped (`fold.rs`).

use super::clock::Timestamp;
use super::clone::CloneDisk;
use super::error::StoreError;
use super::files::{self, Durability};
use super::image;
use super::names::check_savepoint_name;
use super::open::linkage_of;
use super::record::{Record, Savepoint};
use super::seal::make_read_only;
use crate::chain::{Disk, OpenOptions, ParentPolicy};
use crate::guid::Guid;
use crate::kind::ErrorKind;
use crate::storage::FileStorage;
use std::path::{Path, PathBuf};

impl CloneDisk {
    /// Freezes the clone's present state under a name, to come back to.
    ///
    /// # Errors
    /// `Name`; `SavepointExists`; `InUse` while somebody has the clone open; `Io`, `Create`.
    pub fn save(&self, name: &str) -> Result<(), StoreError> {
        check_savepoint_name(name)?;
        let (mut held, mut record) = self.hold()?;
        if record.savepoint(name).is_some() {
            return Err(StoreError::SavepointExists { clone: self.path.clone(), name: name.to_owned() });
        }
        if !files::exists(&self.path)? {
            return Err(self.missing());
        }
        image::settle(&self.path)?;
        // Shared, so that the new child can open it as its parent; nobody who wants to write gets past it.
        let reader = FileStorage::open_read(&self.path).map_err(|e| match e.kind() {
            ErrorKind::InUse => StoreError::in_use(&self.path),
            _ => StoreError::storage("open", &self.path)(e),
        })?;
        let disk = Disk::open(&self.path, &OpenOptions::new().parents(ParentPolicy::Deny)).map_err(StoreError::open(&self.path))?;
        let (guid, block_size) = (disk.leaf.header.data_write.get(), disk.leaf.geometry.block_size());
        drop(disk);
        let parent = self.linkage()?;
        let mut line = self.line(&record, parent)?;
        let file = self.savepoint_file(name)?;
        let place = self.dir().join(&file);
        record.savepoints.push(Savepoint {
            name: name.to_owned(),
            file,
            data_write_guid: guid,
            parent,
            created: Timestamp::now(),
            pending: true,
        });
        held.replace(&record, Durability::Durable)?;
        line.insert(0, place.clone());
        let frozen = freeze(&self.path, &place).and_then(|()| files::sync_dir(self.dir(), Durability::Durable));
        let done = frozen.and_then(|()| self.put_leaf(&line, Some(block_size), Durability::Durable));
        drop(reader);
        let settled = self.settle_savepoints(&mut record);
        let noted = self.note(&mut held, &mut record, Durability::Durable);
        done.and(settled.map(drop)).and(noted)
    }

    /// A free name for a savepoint's file. It is taken when another clone had this one's name and was renamed.
    pub(super) fn savepoint_file(&self, name: &str) -> Result<String, StoreError> {
        for n in 1.. {
            let number = if n == 1 { String::new() } else { format!("-{n}") };
            let file = format!("{}.{name}{number}.avhdx", self.name());
            if !files::exists(&self.dir().join(&file))? {
                return Ok(file);
            }
        }
        unreachable!("the numbers do not end")
    }

    /// The savepoints, oldest first.
    ///
    /// # Errors
    /// `NoClone`.
    pub fn savepoints(&self) -> Result<Vec<Savepoint>, StoreError> {
        let Record { savepoints, dropping, .. } = self.record()?;
        // One whose file is gone was dropped by somebody who died before the last note.
        let is_gone = |savepoint: &Savepoint| -> Result<bool, StoreError> {
            Ok(dropping.contains(&savepoint.name) && !files::exists(&self.dir().join(&savepoint.file))?)
        };
        let mut there = Vec::new();
        for savepoint in savepoints.into_iter().filter(|savepoint| !savepoint.pending) {
            if !is_gone(&savepoint)? {
                there.push(savepoint);
            }
        }
        Ok(there)
    }

    /// The savepoint that the clone stands on; `None` when it stands on its image, or alone.
    ///
    /// # Errors
    /// `NoClone`; `InUse` while somebody writes to the clone.
    pub fn current_savepoint(&self) -> Result<Option<Savepoint>, StoreError> {
        let parent = self.linkage()?;
        Ok(self.savepoints()?.into_iter().find(|savepoint| Some(savepoint.data_write_guid) == parent))
    }

    /// The files that stand on a savepoint: other savepoints, and the clone's own file.
    ///
    /// # Errors
    /// `NoClone`, `NoSavepoint`.
    pub fn standing_on(&self, name: &str) -> Result<Vec<PathBuf>, StoreError> {
        let mut record = self.record()?;
        record.ask_the_files(self.dir());
        let guid = Some(record.savepoint(name).ok_or_else(|| self.no_savepoint(&record, name))?.data_write_guid);
        let others = record.savepoints.iter().filter(|other| other.parent == guid);
        let mut found: Vec<PathBuf> = others.map(|other| self.dir().join(&other.file)).collect();
        // One that is being written cannot be asked, and is in the way as well.
        if files::exists(&self.path)? && self.linkage().map_or_else(|e| e.kind() == ErrorKind::InUse, |parent| parent == guid) {
            found.push(self.path.clone());
        }
        Ok(found)
    }

    /// Goes back to a savepoint. What was changed since the last save is lost; all savepoints stay.
    ///
    /// # Errors
    /// `NoSavepoint`; `InUse` while somebody has the clone open; `Protected`.
    pub fn revert(&self, name: &str) -> Result<(), StoreError> {
        let (_held, record) = self.hold()?;
        self.refuse_if_protected(&record)?;
        let savepoint = record.savepoint(name).ok_or_else(|| self.no_savepoint(&record, name))?;
        let line = self.line(&record, Some(savepoint.data_write_guid))?;
        let block_size = self.block_size();
        // A clone whose file was deleted by hand can still go back.
        let claim = if files::exists(&self.path)? { Some(self.claim()?) } else { None };
        self.put_leaf(&line, block_size, Durability::Durable)?;
        drop(claim);
        Ok(())
    }

    pub(super) fn no_savepoint(&self, record: &Record, name: &str) -> StoreError {
        let have = record.savepoints.iter().map(|savepoint| savepoint.name.clone()).collect();
        StoreError::NoSavepoint { clone: self.path.clone(), name: name.to_owned(), have }
    }

    /// Finishes or undoes what is pending, and forgets savepoints whose file is gone and that nobody needs. Says whether anything
    /// changed. The caller holds the sidecar.
    pub(super) fn settle_savepoints(&self, record: &mut Record) -> Result<bool, StoreError> {
        let before = (record.savepoints.clone(), record.dropping.clone());
        record.ask_the_files(self.dir());
        let all = record.savepoints.clone();
        let mut kept = Vec::new();
        for mut savepoint in std::mem::take(&mut record.savepoints) {
            let place = self.dir().join(&savepoint.file);
            let needed = all.iter().any(|other| other.parent == Some(savepoint.data_write_guid));
            match (savepoint.pending, files::exists(&self.path)?, files::exists(&place)?) {
                (true, _, false) => {}
                (false, _, false) if !needed && !self.stands_on(savepoint.data_write_guid) => {}
                (true, false, true) => files::rename(&place, &self.path)?,
                (true, true, true) if same_file(&self.path, &place)? => files::remove(&place)?,
                (true, true, true) => {
                    savepoint.pending = false;
                    make_read_only(&place)?;
                    kept.push(savepoint);
                }
                (false, _, _) => kept.push(savepoint),
            }
        }
        record.savepoints = kept;
        Ok((&record.savepoints, &record.dropping) != (&before.0, &before.1))
    }

    /// Whether the clone stands on this; also when that cannot be told.
    fn stands_on(&self, guid: Guid) -> bool {
        linkage_of(&self.path).map_or(true, |parent| parent == Some(guid))
    }
}

/// Gives the clone's file the savepoint's name as well, or instead.
fn freeze(leaf: &Path, place: &PathBuf) -> Result<(), StoreError> {
    match std::fs::hard_link(leaf, place) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(StoreError::io("create", place)(e)),
        // No second names here.
        Err(_) => files::rename(leaf, place),
    }
}

fn same_file(a: &Path, b: &Path) -> Result<bool, StoreError> {
    Ok(files::id_at(a)? == files::id_at(b)?)
}
