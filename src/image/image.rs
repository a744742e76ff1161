//! An image: one sealed generation, and how it is made.

use super::catalog::Store;
use super::clock::Timestamp;
use super::error::StoreError;
use super::files::{self, Durability};
use super::load::{self, Resume, Workspace};
use super::manifest::Manifest;
use super::names::check_image_name;
use super::record::StepCost;
use super::seal::{self, Sealing};
use super::source::{Opened, Source};
use super::steps::Step;
use crate::chain::{CreateOptions, Disk, OpenOptions, ParentPolicy};
use crate::progress::{Cancel, Phase, Progress};
use crate::sync::Arc;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How to make an image.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    block_size: Option<u64>,
    logical_sector: Option<u32>,
    size: Option<u64>,
    labels: BTreeMap<String, String>,
    steps: Vec<Step>,
    resume: bool,
}

impl ImageOptions {
    /// Block size of the image, a power of two from 1 to 256 MiB.
    #[must_use]
    pub fn block_size(mut self, bytes: u64) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// Logical sector size, 512 (default) or 4096. An image of a VHDX has its source's.
    #[must_use]
    pub fn logical_sector(mut self, bytes: u32) -> Self {
        self.logical_sector = Some(bytes);
        self
    }

    /// The disk's size, where it is to be larger than the source.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// Adds a label to the manifest.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds a step that changes the image between loading and sealing, for instance to mask what developers must not see.
    #[must_use]
    pub fn modify(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Goes on where an interrupted attempt with the same source stopped, and leaves it to be resumed if this one is interrupted.
    /// Without this an interrupted attempt leaves nothing.
    #[must_use]
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }
}

/// One sealed generation of an image.
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) store: Store,
    name: String,
    generation: u32,
    manifest: Arc<Manifest>,
}

impl Image {
    pub(super) fn new(store: Store, name: &str, generation: u32, manifest: Manifest) -> Self {
        Self { store, name: name.to_owned(), generation, manifest: Arc::new(manifest) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its generation, from 1.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// `NAME@GENERATION`.
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.generation)
    }

    /// What it holds and where that came from.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its disk.
    pub fn path(&self) -> PathBuf {
        self.file("vhdx")
    }

    pub(super) fn file(&self, ending: &str) -> PathBuf {
        self.store.image_dir(&self.name).join(format!("{}.{ending}", self.generation))
    }

    pub(super) fn digests_path(&self) -> PathBuf {
        self.file("blake3")
    }

    pub(super) fn manifest_path(&self) -> PathBuf {
        self.file("json")
    }

    /// Opens its disk, read-only.
    ///
    /// # Errors
    /// `Open` when that fails.
    pub fn open(&self) -> Result<Disk, StoreError> {
        self.refuse_if_missing()?;
        Disk::open(self.path(), &OpenOptions::new().parents(ParentPolicy::Deny)).map_err(StoreError::open(self.path()))
    }

    /// Whether its disk is where it was.
    pub(super) fn refuse_if_missing(&self) -> Result<(), StoreError> {
        if files::exists(&self.path())? {
            return Ok(());
        }
        let next = "restore it from a copy, or refresh the image";
        Err(StoreError::NoFile { what: format!("the disk of {}", self.reference()), path: self.path(), next })
    }

    /// Before something is made to stand on it: its disk is there, and the one that was sealed. A file that was put in its place would be what new
    /// clones show, and what `verify` says is too late for them.
    pub(super) fn refuse_if_other(&self) -> Result<(), StoreError> {
        self.refuse_if_missing()?;
        let path = self.path();
        let disk = Disk::open(&path, &OpenOptions::new().parents(ParentPolicy::Deny)).map_err(StoreError::open(&path))?;
        let found = disk.leaf.header.data_write.get();
        if found == self.manifest.data_write_guid {
            return Ok(());
        }
        let what = format!(
            "its data write GUID is {found} and not {}, which was sealed: it is another disk, or was written to",
            self.manifest.data_write_guid
        );
        Err(StoreError::Damaged { path, what, next: "restore it from a copy, or refresh the image" })
    }

    /// The clones that stand on it, which keep it from being removed.
    ///
    /// # Errors
    /// `Io` or `Damaged` when the records of the clones cannot be read.
    pub fn clones(&self) -> Result<Vec<PathBuf>, StoreError> {
        self.store.users_of(self.manifest.data_write_guid)
    }

    /// Whether new clones may be made of it.
    ///
    /// # Errors
    /// `Io` when the store cannot be read.
    pub fn is_enabled(&self) -> Result<bool, StoreError> {
        Ok(!files::exists(&self.file("disabled"))?)
    }

    /// Says whether new clones may be made of it. Clones that it has live on; `latest` passes it over.
    ///
    /// # Errors
    /// `Io` when the store cannot be written.
    pub fn set_enabled(&self, enabled: bool) -> Result<(), StoreError> {
        let path = self.file("disabled");
        if enabled {
            files::remove(&path)?;
        } else {
            files::write(&path, &serde_json::json!({ "disabled": Timestamp::now(), "by": super::names::user() }), Durability::Durable)?;
        }
        files::sync_dir(&self.store.image_dir(&self.name), Durability::Durable)
    }
}

impl Store {
    /// Makes the first generation of a new image: loads the source, runs the steps, seals.
    ///
    /// Until it returns there is no such image; when it fails or is cancelled there is none afterwards.
    ///
    /// # Errors
    /// `Name`, `ImageExists`; `Source` and `Tool` when the source cannot be used; `Step` when a step fails; `Cancelled`; `InUse` while
    /// another process makes the same image; `Io`, `Create`, `Disk` when reading or writing fails.
    pub fn create_image(
        &self,
        name: &str,
        source: Source,
        options: &ImageOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Image, StoreError> {
        check_image_name(name)?;
        let lock = self.lock_name(name)?;
        if !self.generation_numbers(name)?.is_empty() {
            return Err(StoreError::ImageExists { name: name.to_owned(), store: self.dir().to_path_buf() });
        }
        let workspace = Workspace::new(self, lock, name, 1);
        self.make(&workspace, name, 1, source, options, progress, cancel)
    }

    /// Makes the next generation of an image, from a new source or from where the last generation came from. Older generations and
    /// their clones are not touched.
    ///
    /// # Errors
    /// As [`Store::create_image`]; `NoImage`; `Source` when the last generation came from a stream and no source is given.
    pub fn refresh_image(
        &self,
        name: &str,
        source: Option<Source>,
        options: &ImageOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Image, StoreError> {
        let lock = self.lock_name(name)?;
        let generations = self.generations(name)?;
        let last = generations.last().expect("an image has a generation");
        let source = match source.or_else(|| Source::again(&last.manifest.source)) {
            Some(source) => source,
            None => {
                let why = "the last generation came from a stream; say where the new one comes from".to_owned();
                return Err(StoreError::Source { source_name: last.reference(), why });
            }
        };
        let generation = last.generation + 1;
        let workspace = Workspace::new(self, lock, name, generation);
        self.make(&workspace, name, generation, source, options, progress, cancel)
    }

    #[expect(clippy::too_many_arguments, reason = "the two public acts above, with what they found out")]
    fn make(
        &self,
        workspace: &Workspace,
        name: &str,
        generation: u32,
        source: Source,
        options: &ImageOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Image, StoreError> {
        let created = Timestamp::now();
        if !options.resume {
            workspace.clear()?;
        }
        let build = || {
            let source = source.open(workspace, progress, cancel)?;
            let disk = begin_disk(workspace, &source, options)?;
            let resume = if options.resume { Resume::Possible } else { Resume::No };
            load::load(workspace, &source, &disk.0, disk.1, resume, progress, cancel)?;
            disk.0.close().map_err(StoreError::disk(workspace.disk()))?;
            let info = source.info.clone();
            drop(source);
            let modified_by = modify(workspace, &options.steps, progress, cancel)?;
            let labels = options.labels.clone();
            let sealing = Sealing { name: name.to_owned(), generation, created, source: info, modified_by, labels };
            seal::seal(self, workspace, sealing, progress, cancel)
        };
        build().inspect_err(|_| {
            if !options.resume {
                // The failure is what to report; what cannot be removed is swept.
                let _ = workspace.clear();
            }
        })
    }
}

/// The disk to load into, new or resumed, and how far it is loaded.
fn begin_disk(workspace: &Workspace, source: &Opened, options: &ImageOptions) -> Result<(Disk, u64), StoreError> {
    let path = workspace.disk();
    let sector = source.sector().or(options.logical_sector).unwrap_or(512);
    let size = options.size.unwrap_or(0).max(source.disk_size(u64::from(sector)));
    if let Some(done) = workspace.resumable(&source.info) {
        let disk = Disk::open(&path, &OpenOptions::new().writable(true)).map_err(StoreError::open(&path))?;
        if disk.size() == size && disk.logical_sector_size() == sector {
            return Ok((disk, done));
        }
    }
    workspace.clear()?;
    let mut create = CreateOptions::dynamic(size).logical_sector(sector).durable(options.resume);
    if let Some(block_size) = options.block_size {
        create = create.block_size(block_size);
    }
    Ok((Disk::create(&path, &create).map_err(StoreError::create(&path))?, 0))
}

fn modify(workspace: &Workspace, steps: &[Step], progress: &dyn Progress, cancel: &Cancel) -> Result<Vec<StepCost>, StoreError> {
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    // What a step leaves of the disk when it is interrupted cannot be resumed.
    workspace.forget_journal()?;
    progress.phase(Phase::Modify, Some(steps.len() as u64));
    let path = workspace.disk();
    let mut costs = Vec::new();
    for step in steps {
        costs.push(step.run(&path, cancel)?);
        progress.advance(costs.len() as u64);
    }
    settle(&path)?;
    Ok(costs)
}

/// Replays the log that a step may have left.
pub(super) fn settle(path: &Path) -> Result<(), StoreError> {
    let disk = Disk::open(path, &OpenOptions::new().writable(true).parents(ParentPolicy::Deny)).map_err(StoreError::open(path))?;
    disk.close().map_err(StoreError::disk(path))
}
