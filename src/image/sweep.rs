//! Clearing away what crashes left, and nothing else.
//!
//! Everything that is made here is made under a name that says so, or is listed in a file that somebody holds while it is made. So a
//! leftover is told from work in progress by its lock, and from somebody else's file by its name. What is neither is reported and left
//! alone.

use super::catalog::{Problem, Store, entries, is_retired, numbered};
use super::clone::{CloneDisk, Origin};
use super::error::StoreError;
use super::files::{self, Durability, Held};
use super::image::Image;
use super::manifest::Manifest;
use super::names::{check_image_name, made_as, sidecar_of};
use super::record::Record;
use crate::kind::ErrorKind;
use crate::storage::FileStorage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A new file is locked an instant after it is made. One that is empty and this young may be in that instant.
const INSTANT: Duration = Duration::from_secs(10);

/// Something that was cleared away or put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// What.
    pub path: PathBuf,
    /// What it was, and what was done.
    pub what: String,
}

/// What a sweep did.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Cleared away or put right.
    pub swept: Vec<Swept>,
    /// Not as it should be, and left alone.
    pub problems: Vec<Problem>,
}

impl Sweep {
    fn did(&mut self, path: &Path, what: impl Into<String>) {
        self.swept.push(Swept { path: path.to_path_buf(), what: what.into() });
    }

    fn left(&mut self, path: &Path, what: impl Into<String>) {
        self.problems.push(Problem { path: path.to_path_buf(), what: what.into() });
    }
}

impl Store {
    /// Clears away what crashed processes left in the store and beside its clones, and forgets clones that are gone. What running
    /// processes are working on is not touched; it may be called at any time.
    ///
    /// # Errors
    /// `Io` when the store cannot be read or written.
    pub fn sweep(&self) -> Result<Sweep, StoreError> {
        let mut sweep = Sweep::default();
        self.sweep_work(&mut sweep)?;
        self.sweep_images(&mut sweep)?;
        sweep_temporaries(self.dir(), &mut sweep, |_| true)?;
        if files::exists(&self.records_dir())? {
            sweep_temporaries(&self.records_dir(), &mut sweep, |_| true)?;
            self.sweep_clones(&mut sweep)?;
        }
        sweep.problems.extend(self.images()?.problems);
        Ok(sweep)
    }

    /// Images that nobody is making any more.
    fn sweep_work(&self, sweep: &mut Sweep) -> Result<(), StoreError> {
        let work = self.work_dir();
        if !files::exists(&work)? {
            return Ok(());
        }
        sweep_temporaries(&work, sweep, |_| true)?;
        let mut by_image: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for (file, path) in entries(&work)? {
            match file.split_once('@') {
                Some((name, _)) if check_image_name(name).is_ok() => by_image.entry(name.to_owned()).or_default().push(path),
                _ if file.ends_with(".lock") => {
                    if let Ok(lock) = FileStorage::open_write(&path) {
                        files::remove(&path)?;
                        drop(lock);
                    }
                }
                _ if made_as(&file).is_some() => {}
                _ => sweep.left(&path, "it is not ours, and was left alone"),
            }
        }
        for (name, paths) in by_image {
            let Some(_lock) = unless_in_use(self.lock_name(&name))? else { continue };
            for path in paths {
                files::remove(&path)?;
                sweep.did(&path, "the image was never finished; its parts were removed");
            }
        }
        Ok(())
    }

    fn sweep_images(&self, sweep: &mut Sweep) -> Result<(), StoreError> {
        for (name, dir) in entries(self.dir())? {
            if !dir.is_dir() || check_image_name(&name).is_err() {
                continue;
            }
            sweep_temporaries(&dir, sweep, |_| true)?;
            let found = entries(&dir)?;
            let manifest = |generation: u32| found.iter().any(|(file, _)| numbered(file, ".json") == Some(generation));
            let parts = [".vhdx", ".blake3", ".disabled"];
            let unfinished = |file: &str| parts.iter().any(|ending| numbered(file, ending).is_some_and(|n| !manifest(n)));
            if !found.is_empty() && !found.iter().any(|(file, _)| unfinished(file) || is_retired(file)) {
                continue;
            }
            let Some(lock) = unless_in_use(self.lock_name(&name))? else { continue };
            for (file, path) in found.iter().filter(|(file, _)| is_retired(file)) {
                let generation = file.trim_start_matches('.').trim_end_matches(".retired").parse().unwrap_or_default();
                let Some(manifest) = files::read_if_there::<Manifest>(path)? else { continue };
                match Image::new(self.clone(), &name, generation, manifest).finish_removal(&lock) {
                    Ok(()) => sweep.did(path, "the removal of the image was finished"),
                    Err(StoreError::HasClones { .. }) => sweep.did(path, "the removal of the image was undone, it has clones"),
                    Err(e) => return Err(e),
                }
            }
            // Under the lock, looked at again: a maker may have finished since.
            let sealed = self.generation_numbers(&name)?;
            for (file, path) in entries(&dir).unwrap_or_default() {
                if parts.iter().any(|ending| numbered(&file, ending).is_some_and(|n| !sealed.contains(&n))) {
                    files::remove(&path)?;
                    sweep.did(&path, "the image was never finished; its parts were removed");
                }
            }
            // Stays while there is anything in it.
            let _ = std::fs::remove_dir(&dir);
        }
        Ok(())
    }

    fn sweep_clones(&self, sweep: &mut Sweep) -> Result<(), StoreError> {
        let records = self.records()?;
        let dirs: BTreeSet<PathBuf> = records.iter().filter_map(|record| Some(record.path.parent()?.to_path_buf())).collect();
        for dir in dirs {
            if !dir.is_dir() {
                sweep.left(&dir, "the clones recorded there cannot be seen; mount it, or remove them by name");
                continue;
            }
            sweep_temporaries(&dir, sweep, |made_as| is_clones(&dir, made_as))?;
            let is_sidecar = |file: &str| file.to_ascii_lowercase().ends_with(".vhdx.json");
            let mut sidecars: Vec<PathBuf> =
                entries(&dir)?.into_iter().filter(|(file, _)| is_sidecar(file)).map(|(_, path)| path).collect();
            // Of the two that an unfinished renaming leaves, the one with a disk first: the store knows the clone's path before the other is judged.
            // Each is looked at once: clones come and go meanwhile, and an order that changes while it is sorted by is none.
            sidecars.sort_by_cached_key(|sidecar| !sidecar.with_extension("").exists());
            for sidecar in sidecars {
                self.sweep_sidecar(&sidecar, sweep)?;
            }
        }
        for record in records {
            let dir_is_there = record.path.parent().is_some_and(Path::is_dir);
            if dir_is_there && !files::exists(&record.path)? && !files::exists(&sidecar_of(&record.path))? {
                self.forget(&record, sweep)?;
            }
        }
        Ok(())
    }

    /// Forgets a clone of which nothing is left, unless somebody is just making it, or it is known under another path by now.
    fn forget(&self, record: &Record, sweep: &mut Sweep) -> Result<(), StoreError> {
        let path = self.record_path(record.id);
        let Some(Some(held)) = unless_in_use(Held::take_now(&path))? else { return Ok(()) };
        let now: Record = held.read()?;
        if now.path == record.path && !files::exists(&now.path)? && !files::exists(&sidecar_of(&now.path))? {
            held.remove()?;
            sweep.did(&record.path, "the clone is gone; its record was removed");
        }
        Ok(())
    }

    fn sweep_sidecar(&self, sidecar: &Path, sweep: &mut Sweep) -> Result<(), StoreError> {
        let leaf = sidecar.with_extension("");
        let Ok(Some(record)) = files::read_if_there::<Record>(sidecar) else {
            return self.sweep_spoiled(sidecar, &leaf, sweep);
        };
        if record.store != self.id() {
            return Ok(());
        }
        if self.is_in_order(&record, &leaf)? {
            return Ok(());
        }
        // Whoever holds it is making, renaming or removing it, and has not died. Who just did has left it in order.
        let Some(Some(held)) = unless_in_use(Held::take_now(sidecar))? else { return Ok(()) };
        let Ok(record) = held.read::<Record>() else { return Ok(()) };
        if self.is_in_order(&record, &leaf)? {
            return Ok(());
        }
        let clone = CloneDisk { store: self.clone(), path: leaf.clone(), origin: Origin::Found };
        let (mut held, mut record) = clone.hold_taken(Some(held))?;
        let stored = files::read_if_there::<Record>(&self.record_path(record.id))?;
        if files::exists(&leaf)? {
            // Renamed, or moved by hand, or a savepoint was pending. A copy of a clone that is still in its place is no clone.
            let elsewhere = stored.as_ref().is_some_and(|stored| stored.path != leaf && stored.path.exists());
            if elsewhere {
                sweep.left(&leaf, "it is a copy of a clone, and was left alone");
                return Ok(());
            }
            clone.note(&mut held, &mut record, Durability::Durable)?;
            sweep.did(&leaf, "the store's record of the clone was brought up to date");
            return Ok(());
        }
        if let Some(stored) = &stored
            && stored.path != leaf
            && files::exists(&stored.path)?
            && files::read_if_there::<Record>(&sidecar_of(&stored.path)).is_ok_and(|other| other.is_some_and(|other| other.id == record.id))
        {
            held.remove()?;
            sweep.did(sidecar, "a renaming of the clone was not finished; the other name's sidecar was removed");
            return Ok(());
        }
        let has_files = record.savepoints.iter().any(|savepoint| clone.dir().join(&savepoint.file).exists());
        if has_files && !record.removing {
            sweep.left(&leaf, "the clone's file is gone and its savepoints are there; revert to one of them, or remove the clone");
            return Ok(());
        }
        // As in `CloneDisk::remove`: the disk must be gone for good before what it stands on goes, and that before what names it.
        files::sync_dir(clone.dir(), Durability::Durable)?;
        clone.remove_savepoints(&record)?;
        held.remove()?;
        if stored.is_some_and(|stored| stored.path == leaf) {
            files::remove(&self.record_path(record.id))?;
        }
        sweep.did(&leaf, "the clone is gone; what was left of it was removed");
        Ok(())
    }
}

impl Store {
    /// A sidecar that says nothing. It is written without a sync when a clone is made, so a power cut may leave its name and not its
    /// content. Where the store's record says whose it is and there is no disk, the clone was never made.
    fn sweep_spoiled(&self, sidecar: &Path, leaf: &Path, sweep: &mut Sweep) -> Result<(), StoreError> {
        let ours = self.records()?.into_iter().find(|record| record.path == leaf);
        if let Some(record) = ours
            && !files::exists(leaf)?
            && !record.savepoints.iter().any(|savepoint| leaf.with_file_name(&savepoint.file).exists())
            && let Some(Some(held)) = unless_in_use(Held::take_now(sidecar))?
        {
            held.remove()?;
            files::remove(&self.record_path(record.id))?;
            sweep.did(leaf, "the clone was never finished; what was left of it was removed");
            return Ok(());
        }
        sweep.left(sidecar, "it is not a sidecar of ours, or it is spoiled; `clone repair` writes it again if the clone is known");
        Ok(())
    }

    /// Whether the clone with this sidecar is there, known, and nothing is pending.
    fn is_in_order(&self, record: &Record, leaf: &Path) -> Result<bool, StoreError> {
        let stored = files::read_if_there::<Record>(&self.record_path(record.id))?;
        let pending = record.flattening || record.savepoints.iter().any(|savepoint| savepoint.pending);
        let is_known = |stored: Record| stored.path == *leaf && stored.ground == record.ground && !stored.flattening;
        Ok(!pending && stored.is_some_and(is_known) && files::exists(leaf)?)
    }
}

/// Whether a file that was being made would have been part of a clone, and nobody is making that clone.
fn is_clones(dir: &Path, made_as: &str) -> bool {
    let name = made_as.to_ascii_lowercase();
    let leaf = match name.ends_with(".vhdx.json") {
        true => &made_as[..made_as.len() - ".json".len()],
        false if name.ends_with(".vhdx") => made_as,
        false => return false,
    };
    !FileStorage::open_read(&sidecar_of(&dir.join(leaf))).is_err_and(|e| e.kind() == ErrorKind::InUse)
}

/// Removes files that were being made when their maker died.
fn sweep_temporaries(dir: &Path, sweep: &mut Sweep, is_ours: impl Fn(&str) -> bool) -> Result<(), StoreError> {
    for (file, path) in entries(dir)? {
        if !made_as(&file).is_some_and(&is_ours) {
            continue;
        }
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        let age = metadata.modified().ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
        if !metadata.is_file() || (metadata.len() == 0 && age < INSTANT) {
            continue;
        }
        let Ok(lock) = FileStorage::open_write(&path) else { continue };
        files::remove(&path)?;
        drop(lock);
        sweep.did(&path, "it was never finished and has been removed");
    }
    Ok(())
}

/// `None` when somebody is using it, or has just done away with it.
fn unless_in_use<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), ErrorKind::InUse | ErrorKind::NotFound) => Ok(None),
        Err(e) => Err(e),
    }
}
