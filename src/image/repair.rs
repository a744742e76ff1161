//! Putting right what moved or was damaged: a clone's files, and its note of where its parent is.
//!
//! What is inside a file is put right by [`Disk::repair`], which tries it on a draft first and writes only what is better in every respect
//! (`docs/design/0008`), and only where [`Disk::examine`] finds an error or a warning that it calls repairable. Images are sealed and never repaired: they
//! are restored, or made anew.
//!
//! The store opens clones by identity and needs no paths. Windows, `qemu` and every other program follow the paths in the parent locator,
//! and those are wrong once a store was moved or an image renamed. Repair writes the right ones, with proof: the identity in the locator
//! must be the one that the parent has, or nothing is written.

use super::catalog::Store;
use super::clone::{CloneDisk, Origin};
use super::error::StoreError;
use super::files::{self, Durability};
use super::open::linkage_of;
use super::record::Ground;
use super::seal::make_read_only;
use crate::chain::{Disk, LinkProof, OpenOptions, ParentPolicy};
use crate::disk::check::Repair;
use crate::disk::repair::RepairStep;
use crate::kind::ErrorKind;
use crate::progress::{Cancel, NoProgress};
use crate::tools::RepairOptions;
use std::path::{Path, PathBuf};

/// What a repair did to one clone.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// The clone.
    pub clone: PathBuf,
    /// What was put right; empty when nothing had to be.
    pub done: Vec<String>,
    /// Why it could not be put right.
    pub failed: Option<StoreError>,
}

/// How deep a repair looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// Into every file.
    Files,
    /// Into the books and the locators: only an image has moved.
    Books,
}

impl CloneDisk {
    /// Puts right what a crash, a move, a renamed image or a failing disk left: what is inside the clone's file and its savepoints' (see
    /// [`Disk::repair`]), the sidecar, the store's record, the paths in the files.
    ///
    /// # Errors
    /// `InUse` while somebody has it open; `NoImage` when no image of the store has the identity that it stands on; `Work` when a damaged file
    /// cannot be repaired, `Open` when it does not open afterwards either ([`CloneDisk::check`] tells everything).
    pub fn repair(&self) -> Result<Repaired, StoreError> {
        self.repair_as(Depth::Files)
    }

    fn repair_as(&self, depth: Depth) -> Result<Repaired, StoreError> {
        let mut repaired = Repaired { clone: self.path.clone(), done: Vec::new(), failed: None };
        let sidecar_was_there = files::exists(&self.sidecar())?;
        let found = self.record()?;
        for name in found.dropping {
            match self.drop_savepoint(&name) {
                Ok(()) => repaired.done.push(format!("the savepoint {name} was being dropped, and that is finished")),
                // The note was all that there was, or the clone is in use and can go on as it is.
                Err(StoreError::NoSavepoint { .. } | StoreError::SavepointsInTheWay { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let (mut held, mut record) = self.hold()?;
        match (found.flattening, record.ground.image()) {
            (false, _) => {}
            (true, None) => repaired.done.push("it was being flattened, and that is finished".to_owned()),
            (true, Some(_)) => repaired.done.push("it was being flattened, and that is taken back: it stands on its image".to_owned()),
        }
        if !sidecar_was_there {
            repaired.done.push("its sidecar was missing and has been written again".to_owned());
        }
        if !files::exists(&self.path)? {
            return Err(self.missing());
        }
        // From the image upwards, so that a savepoint is in order before something is checked against it.
        let savepoints: Vec<PathBuf> = record.savepoints.iter().map(|savepoint| self.dir().join(&savepoint.file)).collect();
        for savepoint in &savepoints {
            if files::exists(savepoint)? && !is_read_only(savepoint)? {
                make_read_only(savepoint)?;
                repaired.done.push(format!("{} is frozen and is read-only again", savepoint.display()));
            }
        }
        if depth == Depth::Files {
            for file in savepoints.iter().chain([&self.path]) {
                let steps = mend(file)?;
                repaired.done.extend(steps.iter().map(|step| format!("{}: {step}", file.display())));
            }
        }
        for file in savepoints.iter().chain([&self.path]) {
            let Some(parent) = self.line(&record, linkage_of(file)?)?.into_iter().next() else { continue };
            if leads_to(file, &parent) {
                continue;
            }
            relink(file, &parent)?;
            repaired.done.push(format!("{} names its parent {}", file.display(), parent.display()));
        }
        let note = record.ground.note();
        if let Some(guid) = self.root(&record, self.linkage()?)
            && let Some(image) = self.store.find(guid, &note.name, note.generation)?
            && record.ground != Ground::Image(image.note())
        {
            record.stand_on(&image);
            repaired.done.push(format!("it is noted as a clone of {}", image.reference()));
        }
        record.next_image = None;
        let stored = files::read_if_there::<super::record::Record>(&self.store.record_path(record.id)).ok().flatten();
        if record.path != self.path || record.store_path != self.store.dir() || stored.as_ref() != Some(&record) {
            record.store_path = self.store.dir().to_path_buf();
            self.note(&mut held, &mut record, Durability::Durable)?;
            repaired.done.push("the store's record of it is up to date".to_owned());
        }
        Ok(repaired)
    }
}

impl Store {
    /// Repairs every clone that the store knows.
    ///
    /// # Errors
    /// `Io` or `Damaged` when the records cannot be read. What goes wrong with single clones is in the result.
    pub fn repair_clones(&self) -> Result<Vec<Repaired>, StoreError> {
        let paths = self.records()?.into_iter().map(|record| record.path).collect();
        Ok(self.repair_all(paths, Depth::Files))
    }

    pub(super) fn repair_clones_of(&self, image: &str) -> Result<Vec<Repaired>, StoreError> {
        let generations = self.generations(image)?;
        let is_of = |guid| generations.iter().any(|image| image.manifest().data_write_guid == guid);
        let paths =
            self.records()?.into_iter().filter(|record| record.ground.image().is_some_and(is_of)).map(|record| record.path).collect();
        Ok(self.repair_all(paths, Depth::Books))
    }

    fn repair_all(&self, paths: Vec<PathBuf>, depth: Depth) -> Vec<Repaired> {
        let one = |path: PathBuf| {
            let clone = CloneDisk { store: self.clone(), path, origin: Origin::Found };
            clone.repair_as(depth).unwrap_or_else(|e| Repaired { clone: clone.path, done: Vec::new(), failed: Some(e) })
        };
        paths.into_iter().map(one).collect()
    }
}

/// Whether the paths in a file lead any reader to its parent.
pub(super) fn leads_to(file: &Path, parent: &Path) -> bool {
    let found = Disk::open(file, &OpenOptions::new().parents(ParentPolicy::Anywhere)).ok().and_then(|disk| {
        let layer = disk.layers().nth(1)?;
        layer.path.clone()
    });
    found.is_some_and(|found| Some(found) == std::fs::canonicalize(parent).ok())
}

fn relink(file: &Path, parent: &Path) -> Result<(), StoreError> {
    while_writable(file, || Disk::relink(file, parent, LinkProof::Required))?.map_err(|source| match source.kind() {
        ErrorKind::InUse => StoreError::in_use(file),
        _ => StoreError::Relink { path: file.to_path_buf(), source },
    })
}

/// Repairs a file of the clone's own, where it must be; nothing that a reader sees changes, nor its identity. Returns what was done.
fn mend(file: &Path) -> Result<Vec<RepairStep>, StoreError> {
    let alone = OpenOptions::new().parents(ParentPolicy::Deny);
    let found = match Disk::examine(file, &alone, &NoProgress, &Cancel::new()) {
        Ok(found) => found,
        // Who comes next says that it is missing, in better words.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::work(file)(e)),
    };
    if !found.errors.iter().chain(&found.warnings).any(|finding| finding.repair == Repair::Repairable) {
        return Ok(Vec::new());
    }
    let repaired = while_writable(file, || Disk::repair(file, &RepairOptions::new(), &NoProgress, &Cancel::new()))?;
    repaired.map(|report| report.steps).map_err(StoreError::work(file))
}

/// Does something to a file that may be a savepoint, and so read-only.
fn while_writable<T>(file: &Path, work: impl FnOnce() -> T) -> Result<T, StoreError> {
    let failed = |e| StoreError::io("make writable", file)(e);
    let permissions = std::fs::metadata(file).map_err(failed)?.permissions();
    let read_only = permissions.readonly();
    if read_only {
        make_writable(file, permissions).map_err(StoreError::io("make writable", file))?;
    }
    let result = work();
    if read_only {
        make_read_only(file)?;
    }
    Ok(result)
}

pub(super) fn is_read_only(path: &Path) -> Result<bool, StoreError> {
    Ok(std::fs::metadata(path).map_err(StoreError::io("look at", path))?.permissions().readonly())
}

/// A savepoint's file, for the moment in which its locator is written.
fn make_writable(file: &Path, mut permissions: std::fs::Permissions) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        permissions.set_mode(permissions.mode() | 0o200);
    }
    #[cfg(not(unix))]
    #[expect(clippy::permissions_set_readonly_false, reason = "it makes a file writable for all on Unix only, and this is not Unix")]
    permissions.set_readonly(false);
    std::fs::set_permissions(file, permissions)
}
