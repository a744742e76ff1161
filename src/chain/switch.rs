//! What a switch of leaves is made of: the next leaf, the names of the files, and the frozen leaf's way to become a parent.
//!
//! The order of the steps, and what a crash after each leaves, stands in [`live`](super::live).

use super::ancestor::{self, Ancestor, MAX_CHAIN_DEPTH};
use super::disk::{Disk, Parents};
use super::error::{ChainError, CreateError, OpenError};
use super::gate::directory_of;
use super::open::{as_ancestor, blueprint, locator_to};
use super::options::{CreateOptions, FlushMode, OpenOptions};
use crate::disk::error::DiskError;
use crate::disk::layer::Layer;
use crate::format::ParentLocator;
use crate::guid::DataWriteGuid;
use crate::kind::ErrorKind;
use crate::storage::{self, DirVolume, FileStorage, Operation, Storage, StorageError, Volume};
use crate::sync::Arc;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a switch did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Switched {
    /// The identity of the frozen content, which the new leaf names as its parent.
    pub data_write_guid: DataWriteGuid,
    /// How long requests of other threads had to wait at most: for those under way to end, and for a pointer to change. There are two such
    /// moments, the switch and the exchange of the parents' handles; this is the longer one.
    pub pause: Duration,
    /// Why the frozen file could not be closed and opened again read-only. It is a sound parent all the same; its log is replayed in memory
    /// by whoever opens it.
    pub left_open: Option<SwitchError>,
}

/// A leaf cannot be frozen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The disk was not opened by a path.
    #[error("the disk was not opened by its path, so nothing can take its name")]
    NoPath,
    /// A switch is made of renames in one directory.
    #[error("{} is not in the directory of the disk, {}", frozen.display(), dir.display())]
    OtherDirectory {
        /// Where the frozen file was to be.
        frozen: PathBuf,
        /// Where the disk is.
        dir: PathBuf,
    },
    /// The chain would become too deep, or is not open.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The next leaf cannot be made.
    #[error("the new leaf: {0}")]
    Leaf(#[source] CreateError),
    /// The present leaf is latched or cannot be flushed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk goes on with the next leaf, and the files could not be brought into line. The next flush tries again.
    #[error("the disk goes on, and the save is not finished: {0}; the next flush tries again")]
    Unfinished(#[source] DiskError),
    /// The frozen file cannot be opened as a parent.
    #[error("the frozen file: {0}")]
    Reopen(#[from] OpenError),
}

impl From<CreateError> for SwitchError {
    fn from(e: CreateError) -> Self {
        Self::Leaf(e)
    }
}

impl SwitchError {
    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoPath | Self::OtherDirectory { .. } => ErrorKind::InvalidInput,
            Self::Chain(e) => e.kind(),
            Self::Leaf(e) => e.kind(),
            Self::Disk(e) | Self::Unfinished(e) => e.kind(),
            Self::Reopen(e) => e.kind(),
        }
    }
}

/// How the files of a switch get their names.
#[derive(Debug)]
pub(super) struct Names {
    volume: Arc<dyn Volume>,
    hidden: String,
    leaf: String,
    frozen: String,
    /// Where the frozen file will be; `None` in a volume that has no paths.
    frozen_path: Option<PathBuf>,
    step: Step,
}

/// How far the files are. Each step is taken once; one that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    NameFrozen,
    SyncFrozen,
    NameLeaf,
    SyncLeaf,
    Done,
}

impl Names {
    /// Steps 5 and 6 of the module [`live`](super::live).
    fn publish(&mut self) -> Result<(), StorageError> {
        let renamed = |e| StorageError::new(Operation::Rename, 0, e);
        let synced = |e| StorageError::new(Operation::Sync, 0, e);
        let volume = &*self.volume;
        loop {
            self.step = match self.step {
                Step::NameFrozen => {
                    match volume.link(&self.leaf, &self.frozen) {
                        // Until the next leaf has the name there is no file of that name, and a crash leaves it so: whoever keeps the
                        // books finds the frozen file and gives it back.
                        Err(e) if e.kind() == std::io::ErrorKind::Unsupported => volume.rename(&self.leaf, &self.frozen, false),
                        result => result,
                    }
                    .map_err(renamed)?;
                    Step::SyncFrozen
                }
                // The name of a parent before anything names it.
                Step::SyncFrozen => {
                    volume.sync_dir().map_err(synced)?;
                    Step::NameLeaf
                }
                Step::NameLeaf => {
                    volume.rename(&self.hidden, &self.leaf, true).map_err(renamed)?;
                    Step::SyncLeaf
                }
                Step::SyncLeaf => {
                    volume.sync_dir().map_err(synced)?;
                    Step::Done
                }
                Step::Done => return Ok(()),
            }
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        if matches!(self.step, Step::NameFrozen | Step::SyncFrozen | Step::NameLeaf) {
            // What was written since the switch was never flushed. A leftover can be swept.
            let _ = self.volume.remove(&self.hidden);
        }
    }
}

/// A switch that took place in memory.
#[derive(Debug)]
pub(super) struct Pending {
    old: Arc<Disk>,
    names: Names,
    is_settled: bool,
}

/// Why a switch could not be settled.
pub(super) struct SettleFailed {
    pub(super) cause: DiskError,
    /// Whether nothing can be known any more, so that trying again is no use.
    pub(super) is_final: bool,
}

impl Pending {
    pub(super) fn new(old: Arc<Disk>, names: Names) -> Self {
        Self { old, names, is_settled: false }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Steps 4 to 6: what is frozen is durable, then the names are what they should be.
    pub(super) fn settle(&mut self) -> Result<(), SettleFailed> {
        if self.is_settled {
            return Ok(());
        }
        self.old.flush().map_err(|cause| SettleFailed { cause, is_final: self.old.is_degraded() })?;
        self.names.publish().map_err(|e| SettleFailed { is_final: e.operation == Operation::Sync, cause: e.into() })?;
        self.is_settled = true;
        Ok(())
    }

    /// Step 7. Returns what the next leaf is to stand on from now on; `None` for what it stands on already.
    pub(super) fn finish(self, maps_ancestors: bool) -> Result<Option<Parents>, SwitchError> {
        self.old.writer()?.close()?;
        let ended = self.old.leaf.original.end_writing().map_err(|e| StorageError::new(Operation::Lock, 0, e));
        ended.map_err(OpenError::Storage)?;
        let Some(path) = &self.names.frozen_path else { return Ok(None) };
        let file = as_ancestor(FileStorage::open_read(path).map_err(OpenError::Storage)?, maps_ancestors);
        let layer = Layer::open(file, Some(path.clone())).map_err(OpenError::from)?;
        let (wanted, found) = (self.old.writer()?.data_write_guid(), layer.header.data_write);
        if wanted != found {
            let found = vec![("the frozen file".to_owned(), found)];
            return Err(ChainError::LinkageMismatch { expected: wanted.get(), found }.into());
        }
        Ok(Some(Parents::Line(ancestor::share(layer, maps_ancestors, self.old.parents.line()))))
    }
}

impl Parents {
    fn line(&self) -> Option<&Arc<Ancestor>> {
        match self {
            Self::Line(line) => Some(line),
            Self::None | Self::NotOpened => None,
        }
    }
}

/// Step 1 for a disk in a file of the file system.
pub(super) fn next_leaf(old: &Disk, frozen: &Path) -> Result<(Disk, Names), SwitchError> {
    let leaf = old.leaf.path.as_deref().ok_or(SwitchError::NoPath)?;
    let dir = directory_of(leaf);
    let frozen_name = frozen.file_name().and_then(|name| name.to_str());
    let (Some(frozen_name), true) = (frozen_name, directory_of(frozen) == dir) else {
        return Err(SwitchError::OtherDirectory { frozen: frozen.to_path_buf(), dir });
    };
    let name = leaf.file_name().and_then(|name| name.to_str()).ok_or(SwitchError::NoPath)?;
    let frozen_path = dir.join(frozen_name);
    let volume = Arc::new(DirVolume::open(&dir).map_err(CreateError::Storage)?);
    let locator = |identity| locator_to(&dir, &frozen_path, identity);
    let place = Place { leaf: name, leaf_path: Some(leaf.to_path_buf()), frozen: frozen_name, frozen_path: Some(frozen_path.clone()) };
    next_leaf_in(old, volume, place, locator)
}

/// The names of a switch.
pub(super) struct Place<'a> {
    pub(super) leaf: &'a str,
    pub(super) leaf_path: Option<PathBuf>,
    pub(super) frozen: &'a str,
    pub(super) frozen_path: Option<PathBuf>,
}

/// Step 1: the next leaf under a hidden name, and the names that follow.
pub(super) fn next_leaf_in(
    old: &Disk,
    volume: Arc<dyn Volume>,
    place: Place<'_>,
    locator: impl FnOnce(DataWriteGuid) -> Result<ParentLocator, CreateError>,
) -> Result<(Disk, Names), SwitchError> {
    if volume.exists(place.frozen).map_err(|e| CreateError::Storage(StorageError::new(Operation::Open, 0, e)))? {
        let taken = StorageError::new(Operation::Open, 0, std::io::ErrorKind::AlreadyExists.into());
        return Err(CreateError::Storage(taken).into());
    }
    let identity = begin(old)?;
    let plan = blueprint(&options_after(old), Some((old, locator(identity)?)))?;
    let lay_down = |file: &Arc<dyn Storage>| plan.lay_down(&**file).map_err(CreateError::from);
    // Synced with its identity in `stand_on`, before it gets a name.
    let (file, hidden, ()) = storage::create_hidden(&*volume, place.leaf, lay_down)?;
    // From here on `Names` removes the hidden file if nothing comes of it.
    let (leaf, frozen) = (place.leaf.to_owned(), place.frozen.to_owned());
    let names = Names { volume, hidden, leaf, frozen, frozen_path: place.frozen_path, step: Step::NameFrozen };
    Ok((stand_on(old, file, place.leaf_path)?, names))
}

/// The present leaf gets the identity that the next one names: it has one once its session has begun.
fn begin(old: &Disk) -> Result<DataWriteGuid, SwitchError> {
    if matches!(old.parents, Parents::NotOpened) {
        return Err(DiskError::ParentNotOpen.into());
    }
    if old.layers().count() >= MAX_CHAIN_DEPTH {
        return Err(ChainError::TooDeep { limit: MAX_CHAIN_DEPTH }.into());
    }
    let writer = old.writer()?;
    writer.begin()?;
    Ok(writer.data_write_guid())
}

fn options_after(old: &Disk) -> CreateOptions {
    let log = u64::from(old.leaf.header.log_length);
    CreateOptions::child().size(old.size()).block_size(old.leaf.geometry.block_size()).log_size(log)
}

/// The next leaf, ready to be written: no first write after the switch waits for the sync with which a session begins.
fn stand_on(old: &Disk, file: Arc<dyn Storage>, path: Option<PathBuf>) -> Result<Disk, SwitchError> {
    let line = Ancestor::new(Arc::clone(&old.leaf), old.parents.line());
    let probe = Layer::open(file, path).map_err(|e| SwitchError::Leaf(e.into()))?;
    let rides = old.writer()?.riders.is_some();
    let mode = if rides { FlushMode::PayloadInLog } else { FlushMode::default() };
    let next = Disk::on_line(probe, Arc::new(line), &OpenOptions::new().flush_mode(mode)).map_err(|e| SwitchError::Leaf(e.into()))?;
    next.writer()?.inherit_nothing();
    next.writer()?.begin()?;
    Ok(next)
}
