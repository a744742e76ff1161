//! A clone: a differencing disk over an image, and what may be done to it.
//!
//! Every act that changes a clone holds its sidecar from beginning to end, and makes sure that nobody has the disk open: it takes the
//! disk's own lock and keeps it until the act is done.

use super::catalog::Store;
use super::clock::Timestamp;
use super::error::StoreError;
use super::files::{self, Durability, Held};
use super::image::Image;
use super::names::{self, clone_name, sidecar_of};
use super::record::{CloneId, Ground, ImageNote, NextImage, Record, StepCost};
use super::registry::CloneSummary;
use crate::chain::{CreateOptions, Disk, OpenOptions, ParentPolicy};
use crate::guid::Guid;
use crate::kind::ErrorKind;
use crate::storage::FileStorage;
use std::path::{Path, PathBuf};

/// How a [`CloneDisk`] came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// It was made just now.
    Created,
    /// It was there and is used again, with all that is in it.
    Reused,
    /// It was there and was reset.
    Replaced,
    /// It was looked up.
    Found,
}

/// A clone of an image. Holding this value holds nothing: other processes may use, reset or remove the clone.
#[derive(Clone, Debug)]
pub struct CloneDisk {
    pub(super) store: Store,
    pub(super) path: PathBuf,
    pub(super) origin: Origin,
}

/// How to reset a clone.
#[derive(Clone, Debug)]
pub struct ResetOptions {
    to: Option<String>,
    discard_savepoints: bool,
    durable: bool,
}

impl Default for ResetOptions {
    fn default() -> Self {
        Self { to: None, discard_savepoints: false, durable: true }
    }
}

impl ResetOptions {
    /// To this image instead of the one that the clone was made of: `latest` for the newest generation of the same image, or a
    /// reference like `app@3`.
    #[must_use]
    pub fn to(mut self, reference: impl Into<String>) -> Self {
        self.to = Some(reference.into());
        self
    }

    /// Removes the clone's savepoints, which a reset refuses otherwise.
    #[must_use]
    pub fn discard_savepoints(mut self, discard: bool) -> Self {
        self.discard_savepoints = discard;
        self
    }

    /// Whether the reset survives a power cut when the call returns. Default: yes.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }
}

impl CloneDisk {
    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name: the file's, without `.vhdx`.
    pub fn name(&self) -> String {
        clone_name(&self.path)
    }

    /// How this value came about.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// What the steps cost that ran when it was made.
    ///
    /// # Errors
    /// `NoClone` when it is gone.
    pub fn steps(&self) -> Result<Vec<StepCost>, StoreError> {
        Ok(self.record()?.steps)
    }

    /// Its identity, whatever its path.
    ///
    /// # Errors
    /// `NoClone` when it is gone.
    pub fn id(&self) -> Result<CloneId, StoreError> {
        Ok(self.record()?.id)
    }

    /// Sizes, image, times.
    ///
    /// # Errors
    /// `NoClone` when it is gone.
    pub fn summary(&self) -> Result<CloneSummary, StoreError> {
        Ok(self.store.summarize(&Record { path: self.path.clone(), ..self.record()? }, None).0)
    }

    /// Its note, from the sidecar or, where that is gone or spoiled, from the store.
    pub(super) fn record(&self) -> Result<Record, StoreError> {
        let sidecar = sidecar_of(&self.path);
        let record = match files::read_if_there::<Record>(&sidecar) {
            Ok(Some(record)) => record,
            Ok(None) => self.store.record_at(&self.path)?.ok_or_else(|| self.unknown())?,
            Err(e) => self.store.record_at(&self.path)?.ok_or(e)?,
        };
        self.accept(&record)?;
        Ok(record)
    }

    fn accept(&self, record: &Record) -> Result<(), StoreError> {
        record.check_format(&sidecar_of(&self.path))?;
        if record.store != self.store.id() {
            let why = format!("it is a clone of the store {}; name that store", record.store_path.display());
            return Err(StoreError::Foreign { path: self.path.clone(), why });
        }
        Ok(())
    }

    pub(super) fn unknown(&self) -> StoreError {
        StoreError::NoClone { clone: self.path.display().to_string(), store: self.store.dir().to_path_buf() }
    }

    /// It is known, and its file is not there.
    pub(super) fn missing(&self) -> StoreError {
        let next = "bring it back, revert to a savepoint if it has one, or remove the clone";
        StoreError::NoFile { what: format!("the file of the clone {}", self.name()), path: self.path.clone(), next }
    }

    pub(super) fn sidecar(&self) -> PathBuf {
        sidecar_of(&self.path)
    }

    /// The directory that the clone and its savepoints are in.
    pub(super) fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Takes the right to change the clone. A sidecar that is gone or spoiled is put back from the store's record; what a crash left
    /// of a savepoint is settled.
    pub(super) fn hold(&self) -> Result<(Held, Record), StoreError> {
        self.hold_taken(Held::take(&self.sidecar())?)
    }

    /// The same, once the lock of the sidecar has been asked for.
    pub(super) fn hold_taken(&self, taken: Option<Held>) -> Result<(Held, Record), StoreError> {
        let sidecar = self.sidecar();
        let (mut held, mut record) = match taken {
            Some(mut held) => match held.read::<Record>() {
                Ok(record) => (held, record),
                Err(e) => {
                    let record = self.store.record_at(&self.path)?.ok_or(e)?;
                    held.replace(&record, Durability::Durable)?;
                    (held, record)
                }
            },
            None => {
                let record = self.store.record_at(&self.path)?.ok_or_else(|| self.unknown())?;
                (Held::create(&sidecar, &record, Durability::Durable)?, record)
            }
        };
        self.accept(&record)?;
        if let Ok(Some(stored)) = files::read_if_there::<Record>(&self.store.record_path(record.id)) {
            record.next_image = stored.next_image;
        }
        let is_settled = self.settle_savepoints(&mut record)?;
        if self.settle_ground(&mut record)? || is_settled {
            held.replace(&record, Durability::Durable)?;
        }
        Ok((held, record))
    }

    /// Writes down what has changed: in the sidecar, then in the store.
    pub(super) fn note(&self, held: &mut Held, record: &mut Record, durability: Durability) -> Result<(), StoreError> {
        record.path.clone_from(&self.path);
        held.replace(record, durability)?;
        self.store.put_record(record, durability)
    }

    /// Takes the disk's lock, so that nobody opens it until the act is done.
    pub(super) fn claim(&self) -> Result<FileStorage, StoreError> {
        FileStorage::open_write(&self.path).map_err(|e| match e.kind() {
            ErrorKind::InUse => StoreError::in_use(&self.path),
            ErrorKind::NotFound => self.missing(),
            _ => StoreError::storage("open", &self.path)(e),
        })
    }

    pub(super) fn refuse_if_protected(&self, record: &Record) -> Result<(), StoreError> {
        if record.protected { Err(StoreError::Protected { clone: self.path.clone() }) } else { Ok(()) }
    }

    /// Puts a new empty leaf over the files of `line`, nearest first, in place of the present one. The caller holds the lock of
    /// that one.
    pub(super) fn put_leaf(&self, line: &[PathBuf], block_size: Option<u64>, durability: Durability) -> Result<(), StoreError> {
        let (parent, below) = line.split_first().expect("a clone stands on something");
        let mut options =
            CreateOptions::child().overwrite_locked().durable(durability.is_durable()).parent_policy(ParentPolicy::Paths(below.to_vec()));
        if let Some(block_size) = block_size {
            options = options.block_size(block_size);
        }
        Disk::create_child(&self.path, parent, &options).map(drop).map_err(StoreError::create(&self.path))
    }

    /// The block size of the leaf, for the leaf that follows it.
    pub(super) fn block_size(&self) -> Option<u64> {
        let alone = OpenOptions::new().parents(ParentPolicy::Deny);
        Disk::open(&self.path, &alone).ok().map(|disk| disk.leaf.geometry.block_size())
    }

    /// Forgets every change: the clone is as fresh as on the day it was made, or stands on another generation.
    ///
    /// # Errors
    /// `InUse` while somebody has it open; `Protected`; `SavepointsInTheWay`; `NoImage`, `Disabled`.
    pub fn reset(&self, options: &ResetOptions) -> Result<(), StoreError> {
        let durability = Durability::new(options.durable);
        let (mut held, mut record) = self.hold()?;
        self.refuse_if_protected(&record)?;
        if !record.savepoints.is_empty() && !options.discard_savepoints {
            let names = record.savepoints.iter().map(|savepoint| savepoint.name.clone()).collect();
            let next = "a reset would lose them; revert to one of them, or say that they may be discarded (`--discard-savepoints`)";
            return Err(StoreError::SavepointsInTheWay { clone: self.path.clone(), names, next });
        }
        let image = self.reset_target(&record, options)?;
        image.refuse_if_other()?;
        let guid = image.manifest().data_write_guid;
        let block_size = self.block_size();
        let claim = self.claim()?;
        if record.ground.image() != Some(guid) {
            // Said before it is done, so that nobody removes the image in between (see the module `image`).
            record.next_image = Some(NextImage { guid });
            self.store.put_record(&record, durability)?;
            image.refuse_if_gone()?;
        }
        self.put_leaf(&[image.path()], block_size, durability)?;
        drop(claim);
        for savepoint in std::mem::take(&mut record.savepoints) {
            files::remove(&self.dir().join(&savepoint.file))?;
        }
        record.next_image = None;
        record.stand_on(&image);
        self.note(&mut held, &mut record, durability)
    }

    pub(super) fn reset_target(&self, record: &Record, options: &ResetOptions) -> Result<Image, StoreError> {
        let note = record.ground.note();
        let current = match record.ground.image() {
            Some(guid) => self.store.find(guid, &note.name, note.generation)?,
            None => None,
        };
        let image = match (options.to.as_deref(), current, record.ground.image()) {
            (None, Some(image), _) => return Ok(image),
            (None, None, Some(guid)) => return Err(self.image_is_gone(guid, record)),
            (None, None, None) => {
                let what = format!("resetting {}", self.path.display());
                let rule = format!(
                    "it was flattened and stands on no image; say which one it is to become a clone of (it came from {}; `--to IMAGE`)",
                    note.reference()
                );
                return Err(StoreError::Invalid { what, rule });
            }
            (Some("latest"), current, _) => {
                let name = current.map_or_else(|| note.name.clone(), |image| image.name().to_owned());
                self.store.image(&name)?
            }
            (Some(reference), ..) => self.store.image(reference)?,
        };
        if record.ground.image() != Some(image.manifest().data_write_guid) {
            image.refuse_if_disabled()?;
        }
        Ok(image)
    }

    pub(super) fn image_is_gone(&self, guid: Guid, record: &Record) -> StoreError {
        let hint = format!(
            "the clone {} stands on it (data write GUID {guid}); bring that file back into the store, or reset the clone to another image",
            self.path.display()
        );
        StoreError::NoImage { reference: record.ground.note().reference(), store: self.store.dir().to_path_buf(), hint }
    }

    /// Gives the clone another name, or another place on the same file system.
    ///
    /// # Errors
    /// `InUse`; `CloneExists` when there is something; `SavepointsInTheWay` when it has savepoints and would change directory;
    /// `Invalid` for a place inside of the store.
    pub fn rename(&self, new_path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let values = names::Placeholders { image: "", now: Timestamp::now() };
        let new_path = files::real_path(&names::expand(new_path.as_ref(), &values, 1)?)?;
        let (held, mut record) = self.hold()?;
        let renamed = Self { store: self.store.clone(), path: new_path, origin: self.origin };
        renamed.refuse_inside_store()?;
        if renamed.dir() != self.dir() && !record.savepoints.is_empty() {
            let names = record.savepoints.iter().map(|savepoint| savepoint.name.clone()).collect();
            let next = "a clone with savepoints keeps its directory; drop them first";
            return Err(StoreError::SavepointsInTheWay { clone: self.path.clone(), names, next });
        }
        let claim = self.claim()?;
        record.path.clone_from(&renamed.path);
        // 1. the new sidecar takes the name   crash: it is without a clone, swept
        // 2. the disk changes its name        crash: the record is brought up to date by a sweep
        // 3. record, old sidecar
        let reserved = renamed.reserve(&record, Durability::Durable)?;
        let moved = match files::exists(&renamed.path)? {
            true => Err(StoreError::CloneExists { path: renamed.path.clone() }),
            false => files::rename(&self.path, &renamed.path),
        };
        if let Err(e) = moved {
            reserved.remove()?;
            return Err(e);
        }
        files::sync_dir(renamed.dir(), Durability::Durable)?;
        self.store.put_record(&record, Durability::Durable)?;
        held.remove()?;
        drop((claim, reserved));
        if renamed.dir() != self.dir() {
            // Only for other programs, which follow the path in the file; it can be repeated at any time.
            let _ = renamed.repair();
        }
        Ok(renamed)
    }

    /// Refuses a place inside of the store: a file like `app/2.vhdx` would be taken for what a crash left of an image, and be cleared away.
    pub(super) fn refuse_inside_store(&self) -> Result<(), StoreError> {
        if !self.path.starts_with(self.store.dir()) {
            return Ok(());
        }
        let what = self.path.display().to_string();
        let rule = format!("it lies inside of the store {}, where images live; choose a directory of your own", self.store.dir().display());
        Err(StoreError::Invalid { what, rule })
    }

    /// Takes a path for a clone by putting its sidecar there. One that a crash left without a clone is replaced.
    pub(super) fn reserve(&self, record: &Record, durability: Durability) -> Result<Held, StoreError> {
        let sidecar = self.sidecar();
        let taken = || StoreError::CloneExists { path: self.path.clone() };
        for _ in 0..2 {
            match Held::create(&sidecar, record, durability) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                result => return result,
            }
            if files::exists(&self.path)? {
                return Err(taken());
            }
            let Some(stale) = Held::take_now(&sidecar).map_err(|_| taken())? else { continue };
            match stale.read::<Record>() {
                // Our own, nobody holds it, and there is neither a disk nor savepoints to go with it.
                Ok(old) if old.store == self.store.id() && old.savepoints.is_empty() && !files::exists(&self.path)? => stale.remove()?,
                _ => return Err(StoreError::CloneExists { path: sidecar }),
            }
        }
        Err(taken())
    }

    /// Refuses resets, reverts, removal and pruning from now on, or no longer.
    ///
    /// # Errors
    /// `NoClone`; `InUse` while somebody else changes the clone.
    pub fn set_protected(&self, protected: bool) -> Result<(), StoreError> {
        let (mut held, mut record) = self.hold()?;
        record.protected = protected;
        self.note(&mut held, &mut record, Durability::Durable)
    }

    /// Sets the time from which on [`Store::prune_clones`] removes it.
    ///
    /// # Errors
    /// `NoClone`; `InUse` while somebody else changes the clone.
    pub fn set_expiry(&self, expires: Option<Timestamp>) -> Result<(), StoreError> {
        let (mut held, mut record) = self.hold()?;
        record.expires = expires;
        self.note(&mut held, &mut record, Durability::Durable)
    }
}

impl Record {
    /// Notes which image the clone stands on.
    pub(super) fn stand_on(&mut self, image: &Image) {
        self.ground = Ground::Image(image.note());
        self.virtual_size = image.manifest().virtual_size;
    }
}

impl Image {
    /// It, as records name it.
    pub(super) fn note(&self) -> ImageNote {
        ImageNote { name: self.name().to_owned(), generation: self.generation(), guid: self.manifest().data_write_guid }
    }

    pub(super) fn refuse_if_disabled(&self) -> Result<(), StoreError> {
        if self.is_enabled()? { Ok(()) } else { Err(StoreError::Disabled { image: self.reference() }) }
    }

    /// Whether somebody has begun to remove it.
    pub(super) fn refuse_if_gone(&self) -> Result<(), StoreError> {
        if files::exists(&self.manifest_path())? {
            return Ok(());
        }
        let hint = "it has just been removed".to_owned();
        Err(StoreError::NoImage { reference: self.reference(), store: self.store.dir().to_path_buf(), hint })
    }
}
