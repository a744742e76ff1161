//! Making a clone.
//!
//! ```text
//!   step                                    a crash after it leaves
//!   1 the store's record, locked            a record without clone, swept
//!   2 look whether the image is still there
//!   3 the sidecar, locked: takes the name   a sidecar without clone, swept
//!   4 (steps run on a hidden file)          the hidden file, swept
//!   5 the disk gets its name                the clone
//! ```

use super::catalog::Store;
use super::clock::Timestamp;
use super::clone::{CloneDisk, Origin, ResetOptions};
use super::error::StoreError;
use super::files::{self, Durability, Held};
use super::image::{self, Image};
use super::names::{self, Placeholders, asks_for_number, expand, user};
use super::record::{self, CloneId, Ground, Record};
use super::steps::Step;
use crate::chain::{CreateOptions, Disk, ParentPolicy};
use crate::kind::ErrorKind;
use crate::progress::Cancel;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The highest number that `{n}` stands for.
const MOST_NUMBERS: u64 = 1_000_000;

/// What to do when there is a clone of that name already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IfExists {
    /// Fail with `CloneExists`.
    #[default]
    Fail,
    /// Use it as it is, if it is a clone of the same image, whatever the generation.
    Reuse,
    /// Reset it to the image.
    Replace,
}

/// How to make a clone.
#[derive(Clone, Debug)]
pub struct CloneOptions {
    if_exists: IfExists,
    template: Vec<Step>,
    ttl: Option<Duration>,
    protected: bool,
    durable: bool,
    block_size: Option<u64>,
    cancel: Cancel,
}

impl Default for CloneOptions {
    fn default() -> Self {
        let if_exists = IfExists::default();
        Self { if_exists, template: Vec::new(), ttl: None, protected: false, durable: true, block_size: None, cancel: Cancel::new() }
    }
}

impl CloneOptions {
    /// What to do when there is a clone of that name already.
    #[must_use]
    pub fn if_exists(mut self, then: IfExists) -> Self {
        self.if_exists = then;
        self
    }

    /// Adds a step that runs on the fresh clone before anybody sees it. What it cost is in [`CloneDisk::steps`].
    #[must_use]
    pub fn template(mut self, step: Step) -> Self {
        self.template.push(step);
        self
    }

    /// How long the clone is to live: afterwards [`Store::prune_clones`] removes it.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Makes it protected from the start.
    #[must_use]
    pub fn protected(mut self, protected: bool) -> Self {
        self.protected = protected;
        self
    }

    /// Whether the new clone survives a power cut when the call returns. Default: yes. Without it a clone costs no sync at all, which
    /// is right for clones that a test run makes and throws away.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Block size of the clone. Default: 1 MiB up to 1 TiB, larger above.
    #[must_use]
    pub fn block_size(mut self, bytes: u64) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// Stops the steps when somebody asks for it.
    #[must_use]
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    fn durability(&self) -> Durability {
        Durability::new(self.durable)
    }
}

/// Removes what was put down unless the clone was finished.
struct Unfinished<'a> {
    store: &'a Store,
    id: CloneId,
    files: Vec<PathBuf>,
    finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            for file in self.files.drain(..).rev() {
                // What made the creation fail is reported; leftovers can be swept.
                let _ = files::remove(&file);
            }
            let _ = files::remove(&self.store.record_path(self.id));
        }
    }
}

impl Image {
    /// Makes a clone: a differencing disk that holds nothing yet. Costs the same whatever the size of the image.
    ///
    /// In the path `{user}`, `{date}`, `{image}` and `{n}` are filled in, `{n}` with a number that is free, and `.vhdx` is added
    /// where it is missing.
    ///
    /// # Errors
    /// `Name` for a path with unknown placeholders; `Disabled`; `CloneExists` as [`CloneOptions::if_exists`] says; `Foreign` when there is
    /// a file that is no clone of this store; `Invalid` for a place inside of the store; `Step`; `Io`, `Create`.
    pub fn create_clone(&self, path: impl AsRef<Path>, options: &CloneOptions) -> Result<CloneDisk, StoreError> {
        self.refuse_if_disabled()?;
        let pattern = path.as_ref();
        let values = Placeholders { image: self.name(), now: Timestamp::now() };
        if !asks_for_number(pattern) {
            let path = place(&expand(pattern, &values, 1)?)?;
            return match self.create_at(path.clone(), options) {
                Err(StoreError::CloneExists { .. }) if options.if_exists != IfExists::Fail => self.use_existing(path, options),
                result => result,
            };
        }
        let at = |n: u64| place(&expand(pattern, &values, n)?);
        for n in free_number(|n| files::exists(&at(n)?))?..=MOST_NUMBERS {
            match self.create_at(at(n)?, options) {
                Err(StoreError::CloneExists { .. }) => {}
                result => return result,
            }
        }
        let rule = format!("the numbers up to {MOST_NUMBERS} are taken; use another pattern");
        Err(StoreError::Invalid { what: pattern.display().to_string(), rule })
    }

    fn create_at(&self, path: PathBuf, options: &CloneOptions) -> Result<CloneDisk, StoreError> {
        let clone = CloneDisk { store: self.store.clone(), path, origin: Origin::Created };
        clone.refuse_inside_store()?;
        if files::exists(&clone.path)? {
            return Err(StoreError::CloneExists { path: clone.path });
        }
        let mut record = self.new_record(&clone, options);
        let mut recorded = self.store.create_record(&record, options.durability())?;
        let mut unfinished = Unfinished { store: &self.store, id: record.id, files: Vec::new(), finished: false };
        self.refuse_if_gone()?;
        self.refuse_if_other()?;
        // A sidecar that a power cut spoils is written again from the record, so two syncs are saved here.
        let mut reserved = clone.reserve(&record, Durability::Quick)?;
        unfinished.files.push(clone.sidecar());
        let mut create = CreateOptions::child().durable(options.durable).parent_policy(ParentPolicy::Deny);
        if let Some(block_size) = options.block_size {
            create = create.block_size(block_size);
        }
        if options.template.is_empty() {
            Disk::create_child(&clone.path, self.path(), &create).map(drop).map_err(exists_or(&clone.path))?;
        } else {
            self.create_with_steps(&clone, &create, options, (&mut record, &mut reserved, &mut recorded), &mut unfinished)?;
        }
        unfinished.finished = true;
        Ok(clone)
    }

    fn new_record(&self, clone: &CloneDisk, options: &CloneOptions) -> Record {
        let now = Timestamp::now();
        Record {
            format: record::FORMAT,
            id: CloneId::random(),
            store: self.store.id(),
            store_path: self.store.dir().to_path_buf(),
            path: clone.path.clone(),
            ground: Ground::Image(self.note()),
            flattening: false,
            next_image: None,
            virtual_size: self.manifest().virtual_size,
            created: now,
            created_by: user(),
            expires: options.ttl.map(|ttl| now.after(ttl)),
            protected: options.protected,
            removing: false,
            savepoints: Vec::new(),
            dropping: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// The clone is made under a hidden name, changed, and only then given its own.
    fn create_with_steps(
        &self,
        clone: &CloneDisk,
        create: &CreateOptions,
        options: &CloneOptions,
        (record, reserved, recorded): (&mut Record, &mut Held, &mut Held),
        unfinished: &mut Unfinished<'_>,
    ) -> Result<(), StoreError> {
        let (_, name) = files::split(&clone.path)?;
        let hidden = clone.dir().join(names::temporary_clone(name));
        Disk::create_child(&hidden, self.path(), create).map(drop).map_err(StoreError::create(&hidden))?;
        unfinished.files.push(hidden.clone());
        for step in &options.template {
            record.steps.push(step.run(&hidden, &options.cancel)?);
        }
        image::settle(&hidden)?;
        let made = CloneDisk { store: self.store.clone(), path: hidden.clone(), origin: Origin::Created };
        if made.linkage()? != Some(self.manifest().data_write_guid) {
            let what = "the steps have made it something else than a clone of its image".to_owned();
            return Err(StoreError::Damaged { path: hidden, what, next: "nothing was made; change the steps" });
        }
        reserved.replace(record, Durability::Quick)?;
        recorded.replace(record, options.durability())?;
        match files::rename(&hidden, &clone.path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(StoreError::CloneExists { path: clone.path.clone() }),
            result => result?,
        }
        // If its name cannot be made durable the clone goes again, with everything else.
        unfinished.files.push(clone.path.clone());
        files::sync_dir(clone.dir(), options.durability())
    }

    /// There is something at the path already.
    fn use_existing(&self, path: PathBuf, options: &CloneOptions) -> Result<CloneDisk, StoreError> {
        let mut clone = CloneDisk { store: self.store.clone(), path, origin: Origin::Reused };
        let record = clone.record().map_err(|e| match e {
            StoreError::NoClone { .. } => {
                let why = "it is not a clone that this store made; move it away or choose another name".to_owned();
                StoreError::Foreign { path: clone.path.clone(), why }
            }
            e => e,
        })?;
        match options.if_exists {
            IfExists::Fail => Err(StoreError::CloneExists { path: clone.path }),
            IfExists::Reuse => {
                let note = record.ground.note();
                let Some(guid) = record.ground.image() else {
                    let why = format!("it came from {} and was flattened; choose another name or replace it", note.reference());
                    return Err(StoreError::Foreign { path: clone.path, why });
                };
                let now = self.store.find(guid, &note.name, note.generation)?;
                let name = now.map_or_else(|| note.name.clone(), |image| image.name().to_owned());
                if name != self.name() {
                    let why = format!("it is a clone of {name}, not of {}; choose another name or replace it", self.name());
                    return Err(StoreError::Foreign { path: clone.path, why });
                }
                Ok(clone)
            }
            IfExists::Replace => {
                clone.origin = Origin::Replaced;
                clone.replace(self, options)?;
                Ok(clone)
            }
        }
    }
}

impl CloneDisk {
    /// As if it had been removed and made again, in one step. With a template it is removed and made again in two.
    fn replace(&self, image: &Image, options: &CloneOptions) -> Result<(), StoreError> {
        if !options.template.is_empty() {
            self.remove()?;
            return image.create_at(self.path.clone(), options).map(drop);
        }
        self.reset(&ResetOptions::default().to(image.reference()).discard_savepoints(true).durable(options.durable))?;
        if options.ttl.is_some() || options.protected {
            let (mut held, mut record) = self.hold()?;
            record.expires = options.ttl.map(|ttl| Timestamp::now().after(ttl));
            record.protected = options.protected;
            self.note(&mut held, &mut record, options.durability())?;
        }
        Ok(())
    }
}

/// A number that is free while the one before it is taken. Among ten thousand clones that takes two dozen looks, where the first free
/// one would take ten thousand.
fn free_number(is_taken: impl Fn(u64) -> Result<bool, StoreError>) -> Result<u64, StoreError> {
    let (mut taken, mut free) = (0, 1);
    while free < MOST_NUMBERS && is_taken(free)? {
        (taken, free) = (free, free * 2);
    }
    while free - taken > 1 {
        let middle = taken + (free - taken) / 2;
        if is_taken(middle)? { taken = middle } else { free = middle }
    }
    Ok(free)
}

/// The place a path means; its directory is made where it is missing.
fn place(path: &Path) -> Result<PathBuf, StoreError> {
    let (dir, _) = files::split(path)?;
    if !files::exists(dir)? {
        files::make_dir(dir)?;
    } else if !dir.is_dir() {
        let rule = "it is not a directory, so there can be no clone in it".to_owned();
        return Err(StoreError::Invalid { what: dir.display().to_string(), rule });
    }
    files::real_path(path)
}

fn exists_or(path: &Path) -> impl FnOnce(crate::chain::CreateError) -> StoreError {
    let path = path.to_path_buf();
    move |e| match e {
        crate::chain::CreateError::Storage(ref s) if s.kind() == ErrorKind::AlreadyExists => StoreError::CloneExists { path },
        e => StoreError::create(path)(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_number_stands_behind_a_taken_one() {
        for last in 0..200 {
            assert_eq!(free_number(|n| Ok(n <= last)).unwrap(), last + 1);
        }
        let free = free_number(|n| Ok(n <= 100 && n != 7)).unwrap();
        assert!(free == 7 || free == 101, "{free}");
    }
}
