//! Opening and creating disks: the leaf, then each parent through the gate, identity verified before a byte of it is used.

use super::ParentPolicy;
use super::ancestor::{self, Ancestor, MAX_CHAIN_DEPTH};
use super::disk::{Disk, Parents};
use super::error::{ChainError, CreateError, OpenError};
use super::gate::{self, Gate, GateError, absolute_locator_path, directory_of, relative_locator_path};
use super::options::{CreateOptions, FlushMode, NewKind, OpenOptions};
use crate::disk::create::Blueprint;
use crate::disk::layer::Layer;
use crate::disk::writer::Writer;
use crate::format::{Metadata, ParentLocator};
use crate::geometry::{MAX_BLOCK_SIZE, MIN_BLOCK_SIZE};
use crate::guid::{DataWriteGuid, Guid};
use crate::kind::ErrorKind;
use crate::storage::{self, DirVolume, FileStorage, MappedStorage, Operation, Storage, StorageError, StorageId};
use crate::sync::Arc;
use std::path::{Path, PathBuf};

/// The default block size doubles with the disk from here on, so that the BAT stays within a few MiB.
const BLOCKS_BY_DEFAULT: u64 = 1 << 20;

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Not a byte of the file changes; a dirty log is replayed into memory.
    ReadOnly,
    /// A dirty log is replayed to disk.
    Writable,
}

impl Disk {
    /// Opens a disk and the whole chain it stands on.
    ///
    /// Read-only opening changes no byte of any file; a dirty log is replayed into memory. Writable opening replays the leaf's
    /// log to disk. Parents are always opened read-only.
    ///
    /// # Errors
    /// `Format` for files that contradict MS-VHDX; `Chain` when a parent is missing, forbidden, changed, or does not fit;
    /// `Storage` when a file cannot be opened or somebody else holds its lock (kind `InUse`).
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let file = if options.writable { FileStorage::open_write(path)? } else { FileStorage::open_read(path)? };
        let access = if options.writable { Access::Writable } else { Access::ReadOnly };
        // Parents first: a chain that does not open must not leave a replayed leaf behind.
        let probe = Layer::open(Arc::new(file), Some(path.to_owned()))?;
        let parents = match (&options.parents, probe.has_parent()) {
            (_, false) => Parents::None,
            (ParentPolicy::Deny, true) => Parents::NotOpened,
            (_, true) => {
                let dir = directory_of(path);
                let gate = Gate::new(&options.parents, &dir, &options.windows_paths);
                Parents::Line(open_line(&gate, &probe, dir, options.map_ancestors)?)
            }
        };
        Self::assemble(probe, parents, access, options)
    }

    /// Opens a disk on storages of the caller, parents nearest first. Locators count for nothing; identities are verified as
    /// always. The storages must not change while they are open.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_on(leaf: Arc<dyn Storage>, parents: Vec<Arc<dyn Storage>>, options: &OpenOptions) -> Result<Self, OpenError> {
        let access = if options.writable { Access::Writable } else { Access::ReadOnly };
        let probe = Layer::open(leaf, None)?;
        let parents = match (&options.parents, probe.has_parent()) {
            (_, false) => Parents::None,
            (ParentPolicy::Deny, true) => Parents::NotOpened,
            (_, true) => Parents::Line(open_given_line(&probe, parents)?),
        };
        Self::assemble(probe, parents, access, options)
    }

    fn assemble(probe: Layer, parents: Parents, access: Access, options: &OpenOptions) -> Result<Self, OpenError> {
        let mut leaf = probe;
        if access == Access::Writable {
            leaf.replay()?;
            if leaf.header.log_length == 0 {
                return Err(OpenError::NoLog);
            }
            // Fails now rather than at the first change when no further header can be written.
            leaf.header.next_sequence(leaf.slot)?;
        }
        let leaf = Arc::new(leaf);
        let mut writer = (access == Access::Writable).then(|| Writer::new(Arc::clone(&leaf)));
        if let (FlushMode::PayloadInLog, Some(writer)) = (options.flush_mode, &mut writer) {
            writer.let_payload_ride();
        }
        let disk = Self { leaf, parents, writer };
        if options.untrusted {
            disk.refuse_overlaps()?;
        }
        Ok(disk)
    }

    /// Creates a fixed or dynamic disk and opens it for writing. The file appears whole or not at all.
    ///
    /// # Errors
    /// `Geometry` or `Option` for sizes outside their ranges; `Storage` when the file cannot be made or the name is taken
    /// (kind `AlreadyExists`, unless [`CreateOptions::overwrite`]).
    pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<Self, CreateError> {
        let path = path.as_ref();
        create_file(path, &directory_of(path), options, &blueprint(options, None)?, Parents::None)
    }

    /// Creates a differencing disk over `parent` and opens it for writing. The parent may be a differencing disk itself; it is
    /// opened read-only and not changed.
    ///
    /// # Errors
    /// As [`Disk::create`]; `Parent` when the parent or its chain cannot be opened.
    pub fn create_child(path: impl AsRef<Path>, parent: impl AsRef<Path>, options: &CreateOptions) -> Result<Self, CreateError> {
        let (path, parent) = (path.as_ref(), parent.as_ref());
        let open = OpenOptions::new().parents(options.parents.clone());
        let parent_disk = Self::open(parent, &open).map_err(|e| CreateError::Parent(Box::new(e)))?;
        let dir = directory_of(path);
        let locator = locator(&dir, parent, parent_disk.leaf.header.data_write)?;
        let blueprint = blueprint(options, Some((&parent_disk, locator)))?;
        let line = Parents::Line(parent_disk.into_line());
        create_file(path, &dir, options, &blueprint, line)
    }

    /// Lays a differencing disk over `parent`, which is open read-only, down on the empty storage of a file that is going to be
    /// `path`, and opens it for writing.
    pub(crate) fn lay_child(
        storage: Arc<dyn Storage>,
        path: &Path,
        parent: Self,
        parent_path: &Path,
        options: &CreateOptions,
    ) -> Result<Self, CreateError> {
        let locator = locator(&directory_of(path), parent_path, parent.leaf.header.data_write)?;
        blueprint(options, Some((&parent, locator)))?.lay_down(&*storage)?;
        finish(&storage, options)?;
        Ok(Self::adopt_child(storage, path.to_owned(), parent.into_line())?.just_made(options))
    }

    /// Creates a fixed or dynamic disk on an empty storage of the caller and opens it for writing.
    ///
    /// # Errors
    /// As [`Disk::create`]; `NotEmpty`.
    pub fn create_on(storage: Arc<dyn Storage>, options: &CreateOptions) -> Result<Self, CreateError> {
        blueprint(options, None)?.lay_down(&*storage)?;
        finish(&storage, options)?;
        Ok(Self::open_on(storage, Vec::new(), &OpenOptions::new().writable(true))?.just_made(options))
    }

    /// Creates a differencing disk on an empty storage of the caller, over parents given nearest first, and opens it for
    /// writing. Its parent locator has a path of the right form that leads nowhere.
    ///
    /// # Errors
    /// As [`Disk::create_child`].
    pub fn create_child_on(
        storage: Arc<dyn Storage>,
        parents: Vec<Arc<dyn Storage>>,
        options: &CreateOptions,
    ) -> Result<Self, CreateError> {
        let mut below = parents.clone().into_iter();
        let nearest = below.next().ok_or(CreateError::ParentPath("no parent was given"))?;
        let parent = Self::open_on(nearest, below.collect(), &OpenOptions::new()).map_err(|e| CreateError::Parent(Box::new(e)))?;
        let locator = locator_on(parent.leaf.header.data_write);
        blueprint(options, Some((&parent, locator)))?.lay_down(&*storage)?;
        finish(&storage, options)?;
        Ok(Self::open_on(storage, parents, &OpenOptions::new().writable(true))?.just_made(options))
    }

    /// A disk that was laid down a moment ago and synced, unless the caller did not want that.
    fn just_made(self, options: &CreateOptions) -> Self {
        if options.durable
            && let Some(writer) = &self.writer
        {
            writer.inherit_nothing();
        }
        self
    }

    /// A file that is written from now on, over a line of parents that it stands on.
    pub(super) fn on_line(probe: Layer, line: Arc<Ancestor>, options: &OpenOptions) -> Result<Self, OpenError> {
        Self::assemble(probe, Parents::Line(line), Access::Writable, options)
    }

    /// A disk that becomes the parent of a new child, as the line the child stands on.
    fn into_line(self) -> Arc<Ancestor> {
        let below = match self.parents {
            Parents::Line(line) => Some(line),
            Parents::None | Parents::NotOpened => None,
        };
        let layer = Arc::into_inner(self.leaf).expect("a read-only disk shares its leaf with nobody");
        ancestor::share(layer, false, below.as_ref())
    }

    /// A file that was laid down a moment ago, open for writing over parents that are open already.
    pub(crate) fn over(leaf: Arc<dyn Storage>, line: Option<Arc<Ancestor>>) -> Result<Self, OpenError> {
        let probe = Layer::open(leaf, None)?;
        Self::assemble(probe, line.into(), Access::Writable, &OpenOptions::new())
    }

    fn adopt_child(leaf: Arc<dyn Storage>, path: PathBuf, line: Arc<Ancestor>) -> Result<Self, CreateError> {
        let probe = Layer::open(leaf, Some(path))?;
        Ok(Self::assemble(probe, Parents::Line(line), Access::Writable, &OpenOptions::new())?)
    }
}

/// The locator of a child on storages of the caller: a path of the right form that leads nowhere.
pub(super) fn locator_on(identity: DataWriteGuid) -> ParentLocator {
    ParentLocator::new(identity, &[("relative_path", r".\parent.vhdx")])
}

fn finish(storage: &Arc<dyn Storage>, options: &CreateOptions) -> Result<(), CreateError> {
    if options.durable {
        storage::sync(&**storage, storage::SyncSite::CreateOn)?;
    }
    Ok(())
}

/// Creates a file and opens it. `dir` is the directory that `path` lies in. The file is read back before it gets its name: afterwards
/// nothing can fail any more that would leave a file nobody knows of.
fn create_file(path: &Path, dir: &Path, options: &CreateOptions, blueprint: &Blueprint, parents: Parents) -> Result<Disk, CreateError> {
    let invalid = || StorageError::new(Operation::Open, 0, std::io::ErrorKind::InvalidInput.into());
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(invalid)?;
    let volume = DirVolume::open(dir)?;
    // A file that somebody has open, as a disk or as a parent, is not replaced under them: its lock is held until the new
    // one has the name.
    let _replaced = if options.overwrite && !options.holds_lock { lock_if_there(path)? } else { None };
    let fill = |file: &Arc<dyn Storage>| -> Result<Disk, CreateError> {
        blueprint.lay_down(&**file)?;
        let probe = Layer::open(Arc::clone(file), Some(path.to_owned()))?;
        Ok(Disk::assemble(probe, parents, Access::Writable, &OpenOptions::new())?)
    };
    let (_, disk) = storage::create_atomically(&volume, name, options.overwrite, options.durable, fill)?;
    Ok(disk.just_made(options))
}

/// The exclusive lock of a file that is going to be replaced; `None` when there is none.
fn lock_if_there(path: &Path) -> Result<Option<FileStorage>, StorageError> {
    match FileStorage::open_write(path) {
        Ok(old) => Ok(Some(old)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What the locator of a new child says: the way from its directory (a path without links), and the absolute path.
pub(crate) fn locator(child_dir: &Path, parent: &Path, identity: DataWriteGuid) -> Result<ParentLocator, CreateError> {
    if identity.get().is_zero() {
        return Err(CreateError::ParentWithoutIdentity);
    }
    locator_to(child_dir, &gate::canonical(parent)?, identity)
}

/// The same for a parent that may not be there yet. Both paths are absolute and without links.
pub(super) fn locator_to(child_dir: &Path, parent: &Path, identity: DataWriteGuid) -> Result<ParentLocator, CreateError> {
    let relative = relative_locator_path(child_dir, parent);
    let absolute = absolute_locator_path(parent);
    let mut paths = Vec::new();
    if let Some(relative) = &relative {
        paths.push(("relative_path", relative.as_str()));
    }
    if let Some(absolute) = &absolute {
        paths.push(("absolute_win32_path", absolute.as_str()));
    }
    if paths.is_empty() {
        return Err(CreateError::ParentPath("it has a component that is not Unicode or contains a backslash"));
    }
    Ok(ParentLocator::new(identity, &paths))
}

pub(super) fn blueprint(options: &CreateOptions, parent: Option<(&Disk, ParentLocator)>) -> Result<Blueprint, CreateError> {
    let is_child = options.kind == NewKind::Child;
    if is_child != parent.is_some() {
        let rule = "a child is created over a parent, and nothing else is";
        return Err(CreateError::Option { option: "kind", value: u64::from(is_child), rule });
    }
    let inherited = parent.as_ref().map(|(disk, _)| &disk.leaf.metadata);
    if let (Some(wanted), Some(parent)) = (options.logical_sector, inherited)
        && wanted != parent.logical_sector
    {
        let rule = "a child must have its parent's";
        return Err(CreateError::Option { option: "logical sector size", value: u64::from(wanted), rule });
    }
    let virtual_size = options.size.or(inherited.map(|m| m.virtual_size)).unwrap_or(0);
    let block_size = options.block_size.unwrap_or_else(|| default_block_size(virtual_size));
    let block_size = u32::try_from(block_size).map_err(|_| crate::geometry::GeometryError::BlockSize(block_size))?;
    let metadata = Metadata {
        block_size,
        leave_blocks_allocated: options.kind == NewKind::Fixed,
        has_parent: is_child,
        virtual_size,
        disk_id: options.disk_id.or(inherited.map(|m| m.disk_id)).unwrap_or_else(Guid::random),
        logical_sector: inherited.map(|m| m.logical_sector).or(options.logical_sector).unwrap_or(512),
        physical_sector: options.physical_sector.or(inherited.map(|m| m.physical_sector)).unwrap_or(4096),
        // MS-VHDX 2.6.1.2: items that belong to the virtual disk travel to its children.
        others: inherited.map_or_else(Vec::new, |m| m.others.iter().filter(|item| item.entry.is_virtual_disk).cloned().collect()),
        parent_locator: parent.map(|(_, locator)| locator),
    };
    Ok(Blueprint { creator: options.creator.clone(), log_size: options.log_size, metadata })
}

fn default_block_size(virtual_size: u64) -> u64 {
    let wanted = virtual_size.div_ceil(BLOCKS_BY_DEFAULT).next_power_of_two();
    wanted.clamp(u64::from(MIN_BLOCK_SIZE), u64::from(MAX_BLOCK_SIZE))
}

/// What a chain needs to know of a layer while the next one is looked for.
struct Step<'a> {
    locator: &'a ParentLocator,
    logical_sector: u32,
}

impl<'a> Step<'a> {
    fn of(layer: &'a Layer) -> Option<Self> {
        let locator = layer.metadata.parent_locator.as_ref()?;
        Some(Self { locator, logical_sector: layer.metadata.logical_sector })
    }

    /// Whether `parent` is the one this layer was made over.
    fn verify(&self, parent: &Layer, depth: usize) -> Result<bool, OpenError> {
        if !self.locator.accepts(parent.header.data_write) {
            return Ok(false);
        }
        if parent.metadata.logical_sector != self.logical_sector {
            let (child, parent) = (self.logical_sector, parent.metadata.logical_sector);
            return Err(ChainError::SectorSize { child, parent, layer: depth }.into());
        }
        Ok(true)
    }
}

/// Opens the parents of `leaf` through the gate, nearest first, without recursion.
/// `dir` is the leaf's directory, as a path without links.
fn open_line(gate: &Gate, leaf: &Layer, mut dir: PathBuf, mapped: bool) -> Result<Arc<Ancestor>, OpenError> {
    let mut seen: Vec<StorageId> = vec![leaf.file.id()];
    let mut layers: Vec<Layer> = Vec::new();
    while let Some(step) = Step::of(layers.last().unwrap_or(leaf)) {
        let depth = layers.len() + 1;
        if depth >= MAX_CHAIN_DEPTH {
            return Err(ChainError::TooDeep { limit: MAX_CHAIN_DEPTH }.into());
        }
        let (layer, found) = open_parent(gate, &step, &dir, depth, mapped, &seen)?;
        // The gate says where it found a file without links, so nothing has to be looked up.
        dir = found.parent().map(Path::to_path_buf).unwrap_or_default();
        seen.push(layer.file.id());
        layers.push(layer);
    }
    let mut line: Option<Arc<Ancestor>> = None;
    for layer in layers.into_iter().rev() {
        line = Some(ancestor::share(layer, mapped, line.as_ref()));
    }
    Ok(line.expect("the leaf has a parent"))
}

fn open_parent(
    gate: &Gate,
    step: &Step<'_>,
    child_dir: &Path,
    depth: usize,
    mapped: bool,
    seen: &[StorageId],
) -> Result<(Layer, PathBuf), OpenError> {
    let candidates = match gate.given(depth - 1) {
        Some(given) => vec![given],
        None => gate.candidates(child_dir, &step.locator.paths()),
    };
    if candidates.is_empty() {
        return Err(if gate.ignores_locators() {
            ChainError::ParentMissing { tried: Vec::new(), hint: format!("the list of parents ends before layer {depth}") }.into()
        } else {
            ChainError::NoLocatorPath.into()
        });
    }
    let (mut refusals, mut mismatches, mut broken): (Vec<GateError>, Vec<_>, Option<OpenError>) = (Vec::new(), Vec::new(), None);
    for candidate in &candidates {
        let (file, found) = match gate.open_in_chain(candidate, seen) {
            Ok(opened) => opened,
            Err(refusal) => {
                refusals.push(refusal);
                continue;
            }
        };
        let file = as_ancestor(file, mapped);
        match Layer::open(file, Some(found.clone())) {
            Ok(layer) if step.verify(&layer, depth)? => return Ok((layer, found)),
            Ok(layer) => mismatches.push((candidate.written.clone(), layer.header.data_write)),
            Err(e) => broken = broken.or(Some(e.into())),
        }
    }
    if !mismatches.is_empty() {
        return Err(mismatch(step, mismatches));
    }
    Err(broken.unwrap_or_else(|| ChainError::from_refusals(&refusals).into()))
}

/// How a parent's file is read.
pub(super) fn as_ancestor(file: FileStorage, mapped: bool) -> Arc<dyn Storage> {
    if !mapped {
        return Arc::new(file);
    }
    match MappedStorage::new(file) {
        Ok(mapped) => Arc::new(mapped),
        // Mapping is a matter of speed: without it the file is read.
        Err((file, _)) => Arc::new(file),
    }
}

fn mismatch(step: &Step<'_>, found: Vec<(String, DataWriteGuid)>) -> OpenError {
    let expected = step.locator.linkage().unwrap_or(Guid::ZERO);
    if expected.is_zero() || found.iter().all(|(_, guid)| guid.get().is_zero()) {
        return ChainError::ZeroLinkage.into();
    }
    ChainError::LinkageMismatch { expected, found }.into()
}

/// The parents of `leaf` on storages of the caller. Not shared: nothing locks such storages against changes.
fn open_given_line(leaf: &Layer, parents: Vec<Arc<dyn Storage>>) -> Result<Arc<Ancestor>, OpenError> {
    let mut seen: Vec<StorageId> = vec![leaf.file.id()];
    let mut layers: Vec<Layer> = Vec::new();
    let mut given = parents.into_iter();
    while let Some(step) = Step::of(layers.last().unwrap_or(leaf)) {
        let depth = layers.len() + 1;
        if depth >= MAX_CHAIN_DEPTH {
            return Err(ChainError::TooDeep { limit: MAX_CHAIN_DEPTH }.into());
        }
        let Some(file) = given.next() else {
            let hint = format!("the list of parents ends before layer {depth}");
            return Err(ChainError::ParentMissing { tried: Vec::new(), hint }.into());
        };
        if let Some(at) = seen.iter().position(|id| *id == file.id()) {
            return Err(ChainError::Cycle { at }.into());
        }
        let layer = Layer::open(file, None)?;
        if !step.verify(&layer, depth)? {
            return Err(mismatch(&step, vec![(format!("parent {depth}"), layer.header.data_write)]));
        }
        seen.push(layer.file.id());
        layers.push(layer);
    }
    let mut line: Option<Arc<Ancestor>> = None;
    for layer in layers.into_iter().rev() {
        line = Some(Arc::new(Ancestor::new(Arc::new(layer), line.as_ref())));
    }
    Ok(line.expect("the leaf has a parent"))
}
