//! Removing clones and images, one by one or those that nobody needs any more.
//!
//! A clone is gone when its disk is: what follows is tidying. An image is taken away before anybody looks whether it has clones, and put
//! back if it has, because a clone may be in the making (the module `image` says why that is enough).

use super::catalog::Store;
use super::clock::Timestamp;
use super::clone::{CloneDisk, Origin};
use super::error::StoreError;
use super::files::{self, Durability, Held};
use super::image::Image;
use super::load::NameLock;
use super::record::Record;
use crate::kind::ErrorKind;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a prune did.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// What was removed: references of images, paths of clones.
    pub removed: Vec<String>,
    /// What would have been removed if something were not in the way, and what that is.
    pub kept: Vec<(String, StoreError)>,
}

impl Pruned {
    /// The first failure among what was kept. What stays because it is in use or protected is what was asked for; anything else is
    /// something that could not be looked at or removed, and whoever prunes every night has to hear of it.
    pub fn failure(&self) -> Option<&StoreError> {
        // By variant and not by kind: a directory that may not be read is "denied" too.
        let is_wanted = |why: &StoreError| matches!(why, StoreError::Protected { .. }) || why.kind() == ErrorKind::InUse;
        self.kept.iter().map(|(_, why)| why).find(|why| !is_wanted(why))
    }
}

impl CloneDisk {
    /// Removes the clone with its savepoints.
    ///
    /// # Errors
    /// `InUse` while somebody has it open; `Protected`; `NoClone`.
    pub fn remove(&self) -> Result<(), StoreError> {
        let (mut held, mut record) = self.hold()?;
        self.refuse_if_protected(&record)?;
        let claim = match self.claim() {
            Ok(claim) => Some(claim),
            // Its file was deleted by hand; the rest goes now.
            Err(StoreError::NoFile { .. }) => None,
            Err(e) => return Err(e),
        };
        if !record.savepoints.is_empty() && !record.removing {
            record.removing = true;
            held.replace(&record, Durability::Durable)?;
        }
        // 1. the disk                   crash: the clone is there, or gone and the rest is swept
        // 2. its name, synced           only where savepoints follow: a power cut may keep their end and lose the disk's, and the disk
        //                               would be back with nothing to stand on
        // 3. savepoints                 crash: the sidecar names those that are left; a sweep removes them
        // 4. their names, synced        a power cut may keep the sidecar's end and lose a savepoint's, and nobody would know whose it is
        // 5. sidecar, record
        files::remove(&self.path)?;
        drop(claim);
        if !record.savepoints.is_empty() {
            files::sync_dir(self.dir(), Durability::Durable)?;
        }
        self.remove_savepoints(&record)?;
        // Held, so that a sweep does not take the last step for that of somebody who died before it.
        let path = self.store.record_path(record.id);
        let recorded = Held::take(&path);
        #[cfg(unix)]
        // Left by a server that was killed.
        let _ = std::fs::remove_file(super::control::socket_of(&self.path));
        held.remove()?;
        files::remove(&path)?;
        drop(recorded);
        Ok(())
    }

    /// Removes the savepoints' files for good, which must be before what names them goes. The clone's disk is gone already, and that lasts.
    pub(super) fn remove_savepoints(&self, record: &Record) -> Result<(), StoreError> {
        if record.savepoints.is_empty() {
            return Ok(());
        }
        for savepoint in &record.savepoints {
            files::remove(&self.dir().join(&savepoint.file))?;
        }
        files::sync_dir(self.dir(), Durability::Durable)
    }
}

impl Image {
    /// Removes this generation.
    ///
    /// # Errors
    /// `HasClones`, which names them; `InUse` while another process makes or changes an image of this name; `Io`.
    pub fn remove(&self) -> Result<(), StoreError> {
        let lock = self.store.lock_name(self.name())?;
        self.refuse_if_gone()?;
        let retired = self.retired_path();
        files::rename(&self.manifest_path(), &retired)?;
        self.finish_removal(&lock)
    }

    fn retired_path(&self) -> PathBuf {
        self.store.image_dir(self.name()).join(format!(".{}.retired", self.generation()))
    }

    /// The manifest has been taken away: removes the rest, or puts it back if there are clones.
    pub(super) fn finish_removal(&self, _lock: &NameLock) -> Result<(), StoreError> {
        let users = self.store.users_of(self.manifest().data_write_guid);
        match users {
            Ok(users) if users.is_empty() => {}
            Ok(clones) => {
                files::rename(&self.retired_path(), &self.manifest_path())?;
                return Err(StoreError::HasClones { image: self.reference(), clones });
            }
            Err(e) => {
                files::rename(&self.retired_path(), &self.manifest_path())?;
                return Err(e);
            }
        }
        // The manifest's new name must last before anything goes that it names: a power cut may keep the later change and lose the
        // earlier one, and there would be an image without a disk.
        files::sync_dir(&self.store.image_dir(self.name()), Durability::Durable)?;
        for file in [self.path(), self.digests_path(), self.file("disabled"), self.retired_path()] {
            files::remove(&file)?;
        }
        // Stays while there are other generations in it.
        let _ = std::fs::remove_dir(self.store.image_dir(self.name()));
        files::sync_dir(self.store.dir(), Durability::Durable)
    }
}

impl Store {
    /// Removes generations that have no clones, except the newest `keep` of each image (or of the one named).
    ///
    /// # Errors
    /// `NoImage`; `Io`. What keeps a generation from being removed is in the result.
    pub fn prune_images(&self, name: Option<&str>, keep: usize) -> Result<Pruned, StoreError> {
        let names: BTreeSet<String> = match name {
            Some(name) => BTreeSet::from([name.to_owned()]),
            None => self.images()?.images.iter().map(|image| image.name().to_owned()).collect(),
        };
        let mut pruned = Pruned::default();
        for name in names {
            let generations = self.generations(&name)?;
            let surplus = generations.len().saturating_sub(keep);
            for image in &generations[..surplus] {
                match image.remove() {
                    Ok(()) => pruned.removed.push(image.reference()),
                    Err(e) => pruned.kept.push((image.reference(), e)),
                }
            }
        }
        Ok(pruned)
    }

    /// Removes the clones whose time has come. Those that are protected or in use stay.
    ///
    /// # Errors
    /// `Io` or `Damaged` when the records cannot be read. What keeps a clone from being removed is in the result.
    pub fn prune_clones(&self) -> Result<Pruned, StoreError> {
        let now = Timestamp::now();
        let expired = |record: &Record| record.expires.is_some_and(|expires| expires <= now);
        let mut pruned = Pruned::default();
        for record in self.records()?.into_iter().filter(expired) {
            let clone = CloneDisk { store: self.clone(), path: record.path.clone(), origin: Origin::Found };
            // The sidecar counts: the time may have been put off.
            match clone.record().map(|record| expired(&record)) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(e) => {
                    pruned.kept.push((shown(&record.path), e));
                    continue;
                }
            }
            match clone.remove() {
                Ok(()) => pruned.removed.push(shown(&record.path)),
                // Somebody else has removed it.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => pruned.kept.push((shown(&record.path), e)),
            }
        }
        Ok(pruned)
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn what_could_not_be_looked_at_is_a_failure_and_what_is_protected_is_none() {
        let of = |why| Pruned { removed: Vec::new(), kept: vec![("app@1".to_owned(), why)] };
        let denied = StoreError::io("list", "images/.clones")(io::ErrorKind::PermissionDenied.into());
        assert_eq!(denied.kind(), ErrorKind::Denied);
        assert!(of(denied).failure().is_some(), "a directory that may not be read");
        assert!(of(StoreError::Protected { clone: "alice".into() }).failure().is_none());
        assert!(of(StoreError::HasClones { image: "app@1".to_owned(), clones: Vec::new() }).failure().is_none());
        assert!(Pruned::default().failure().is_none());
    }
}
