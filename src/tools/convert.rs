//! Copying a disk into another format: raw to VHDX and back, dynamic to fixed, a chain to one file, anything to a child of an image.
//!
//! Holes stay holes on both sides: what the source does not have is not read, and what turns out to be zeros is not written. The new
//! file is filled under a temporary name by several workers and gets its name when it is whole and durable:
//!
//! ```text
//!   step                                      a crash, an error or a cancel after it leaves
//!   1 lock what is going to be replaced       what was there
//!   2 a new file under a temporary name       what was there; a leftover that is no disk of anybody
//!   3 fill it, close the disk inside          the same
//!   4 sync it, rename it, sync the directory  the new file
//! ```

use super::apply::{self, Put};
use super::buffer::{Buffer, GRAIN, data_runs};
use super::content::Content;
use super::crew::Crew;
use super::error::{About, ToolError};
use super::make::{Draft, Spot, make_whole, may_replace, place};
use crate::chain::{CreateOptions, Disk, OpenOptions, ParentPolicy};
use crate::disk::writer::Writer;
use crate::guid::DataWriteGuid;
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::{Operation, Storage, StorageError, Volume, set_len, write_all};
use crate::sync::Arc;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// What [`convert`] makes.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    form: Form,
    block_size: Option<u64>,
    sector: Option<u32>,
    overwrite: bool,
    durable: bool,
    keeps_identity: bool,
    workers: usize,
}

#[derive(Clone, Debug)]
enum Form {
    Raw,
    Dynamic,
    Fixed,
    Child(PathBuf, ParentPolicy),
}

impl ConvertOptions {
    fn new(form: Form) -> Self {
        Self { form, block_size: None, sector: None, overwrite: false, durable: true, keeps_identity: false, workers: 0 }
    }

    /// The bytes of the disk, with holes where they are zeros.
    pub fn raw() -> Self {
        Self::new(Form::Raw)
    }

    /// A dynamic VHDX.
    pub fn dynamic() -> Self {
        Self::new(Form::Dynamic)
    }

    /// A fixed VHDX.
    pub fn fixed() -> Self {
        Self::new(Form::Fixed)
    }

    /// A differencing VHDX over `parent` that holds what differs from it and nothing else: a dump restored as a clone of an image, or
    /// the changes from one image to the next as a file to send. `parents` says where the parents of the parent may lie.
    pub fn child_of(parent: impl Into<PathBuf>, parents: ParentPolicy) -> Self {
        Self::new(Form::Child(parent.into(), parents))
    }

    /// Payload block size of a new VHDX in bytes. Default: as [`CreateOptions::block_size`].
    #[must_use]
    pub fn block_size(mut self, bytes: u64) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// Logical sector size of a new VHDX, 512 or 4096. Default: that of a VHDX source, 512 for a raw one. A child has its parent's.
    #[must_use]
    pub fn logical_sector(mut self, bytes: u32) -> Self {
        self.sector = Some(bytes);
        self
    }

    /// Whether an existing file of that name is replaced. Default: no.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Whether the new file survives a power cut when the call returns. Default: yes. Without it the file is still whole or not there when
    /// the process dies.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Whether a new VHDX takes the identity of its source's content (the data write GUID), so that disks made over the source open over the
    /// new one as well, and what is sent as a delta and merged with [`MergeOptions::keep_identity`](crate::MergeOptions::keep_identity) takes
    /// the next delta. Only for a source that is a VHDX. Default: no.
    #[must_use]
    pub fn keep_identity(mut self, keep: bool) -> Self {
        self.keeps_identity = keep;
        self
    }

    /// How many threads read and write; 0, the default, for as many as there are processors. The result does not depend on it.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// The identity that the new VHDX is to have, if that is not one of its own.
    fn identity(&self, source: &Content<'_>) -> Result<Option<DataWriteGuid>, ToolError> {
        match source.disk() {
            _ if !self.keeps_identity || matches!(self.form, Form::Raw) => Ok(None),
            None => Err(ToolError::refused(source.path(), "it has no identity that could be kept: it is not a VHDX")),
            Some(disk) => Ok(Some(disk.writer.as_ref().map_or(disk.leaf.header.data_write, Writer::data_write))),
        }
    }

    /// How the new VHDX is created. The size of a raw source is rounded up to whole sectors; the rest is zeros.
    fn create(&self, source: &Content<'_>, parent_sector: Option<u32>) -> CreateOptions {
        let metadata = source.disk().map(|disk| &disk.leaf.metadata);
        let sector = parent_sector.or(self.sector).or(metadata.map(|m| m.logical_sector)).unwrap_or(512);
        let size = source.size().checked_next_multiple_of(u64::from(sector.max(1))).unwrap_or(source.size());
        let mut options = match &self.form {
            Form::Fixed => CreateOptions::fixed(size),
            Form::Raw | Form::Dynamic => CreateOptions::dynamic(size),
            Form::Child(_, parents) => CreateOptions::child().size(size).parent_policy(parents.clone()),
        };
        options = options.durable(false);
        if !matches!(self.form, Form::Child(..)) {
            options = options.logical_sector(sector);
            if let Some(m) = metadata {
                options = options.physical_sector(m.physical_sector);
            }
        } else if let Some(sector) = self.sector {
            // Refused below unless it is the parent's.
            options = options.logical_sector(sector);
        }
        match self.block_size {
            Some(bytes) => options.block_size(bytes),
            None => options,
        }
    }
}

/// What [`convert`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of the new disk; more than the source's where that is no whole number of sectors.
    pub virtual_size: u64,
    /// Bytes that were written because they are not zeros, or not what the parent shows.
    pub written: u64,
    /// Bytes of a child that are zeros where its parent has something else.
    pub zeroed: u64,
    /// Bytes that the file system gave to the new file.
    pub allocated: u64,
}

/// Copies a disk into a new file. The file appears whole or not at all; `cancel`, an error or a crash leave what was there before.
///
/// ```
/// use diffdisk::{Cancel, Content, ConvertOptions, NoProgress, ParentPolicy, convert};
/// # let dir = tempfile::tempdir()?;
/// # let path = |name: &str| dir.path().join(name);
/// std::fs::write(path("db.img"), [1; 1 << 20])?;
/// let go = |from: &str, to: &str, options: &ConvertOptions| {
///     convert(&Content::raw(path(from))?, path(to), options, &NoProgress, &Cancel::new())
/// };
/// assert_eq!(go("db.img", "app.vhdx", &ConvertOptions::dynamic())?.written, 1 << 20);
///
/// // A later dump as a clone of the image: it holds what changed.
/// std::fs::write(path("later.img"), [&[1; 1 << 19][..], &[2; 1 << 19]].concat())?;
/// let clone = ConvertOptions::child_of(path("app.vhdx"), ParentPolicy::default());
/// assert_eq!(go("later.img", "later.vhdx", &clone)?.written, 1 << 19);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `Refused` when the name is none or what has it may not be replaced; `Create` for sizes that a VHDX cannot have, or a parent that
/// cannot be opened; `Storage` with kind `AlreadyExists` when the name is taken; `Storage` or `Disk` when reading or writing fails;
/// `Cancelled`.
pub fn convert(
    source: &Content<'_>,
    destination: impl AsRef<Path>,
    options: &ConvertOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Converted, ToolError> {
    let path = destination.as_ref();
    let crew = Crew { workers: options.workers, progress, cancel };
    let identity = options.identity(source)?;
    let opened = match &options.form {
        Form::Child(parent, parents) => Some(Disk::open(parent, &OpenOptions::new().parents(parents.clone())).about(parent)?),
        Form::Raw | Form::Dynamic | Form::Fixed => None,
    };
    let _replaced = match (&options.form, &opened) {
        _ if !options.overwrite => None,
        (Form::Child(parent, _), Some(disk)) => may_replace(path, &[source, &Content::of(disk, parent)])?,
        _ => may_replace(path, &[source])?,
    };
    let (volume, name) = place(path)?;
    let spot = Spot { volume: &volume, name: &name, path, overwrite: options.overwrite, durable: options.durable };
    let create = options.create(source, opened.as_ref().map(Disk::logical_sector_size));
    match (&options.form, opened) {
        (Form::Child(parent, _), Some(opened)) => {
            let lay = |file| Disk::lay_child(file, path, opened, parent, &create).about(path);
            make_disk(spot, identity, lay, |disk| apply::show(disk, source, path, crew))
        }
        (Form::Raw, _) => make_raw(source, spot, crew),
        _ => make_disk(spot, identity, |file| Disk::create_on(file, &create).about(path), |disk| fill(disk, source, spot, crew)),
    }
}

/// The same for an embedder who brings a directory of his own: `name` is made in `volume`. A [child](ConvertOptions::child_of) is made over
/// `parents`, given nearest first, whatever path the options name; its parent locator has a path of the right form that leads nowhere.
/// What may be replaced is the caller's business.
///
/// # Errors
/// As [`convert`].
pub fn convert_on(
    source: &Content<'_>,
    volume: &dyn Volume,
    name: &str,
    parents: &[Arc<dyn Storage>],
    options: &ConvertOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Converted, ToolError> {
    let path = Path::new(name);
    let identity = options.identity(source)?;
    let crew = Crew { workers: options.workers, progress, cancel };
    let spot = Spot { volume, name, path, overwrite: options.overwrite, durable: options.durable };
    if matches!(options.form, Form::Raw) {
        return make_raw(source, spot, crew);
    }
    if !matches!(options.form, Form::Child(..)) {
        let create = options.create(source, None);
        return make_disk(spot, identity, |file| Disk::create_on(file, &create).about(path), |disk| fill(disk, source, spot, crew));
    }
    let mut below = parents.iter().cloned();
    let nearest = below.next().ok_or_else(|| ToolError::refused(path, "a child is made over a parent, and none was given"))?;
    let sector = Disk::open_on(nearest, below.collect(), &OpenOptions::new()).about(path)?.logical_sector_size();
    let create = options.create(source, Some(sector));
    let lay = |file| Disk::create_child_on(file, parents.to_vec(), &create).about(path);
    make_disk(spot, identity, lay, |disk| apply::show(disk, source, path, crew))
}

/// A raw file with the content of `source`.
fn make_raw(source: &Content<'_>, spot: Spot<'_>, crew: Crew<'_>) -> Result<Converted, ToolError> {
    make(spot, |file| {
        set_len(&**file, source.size()).about(spot.path)?;
        let written = copy(source, crew, |content, at| write_all(&**file, content, at).about(spot.path))?;
        Ok((source.size(), Put { written, zeroed: 0 }))
    })
}

/// A new disk, laid down by `create` and filled by `fill`.
fn make_disk(
    spot: Spot<'_>,
    identity: Option<DataWriteGuid>,
    create: impl FnOnce(Arc<dyn Storage>) -> Result<Disk, ToolError>,
    fill: impl FnOnce(&Disk) -> Result<Put, ToolError>,
) -> Result<Converted, ToolError> {
    make(spot, |file| {
        let disk = create(Arc::new(Draft(Arc::clone(file))))?;
        if let Some(identity) = identity {
            disk.writer().and_then(|writer| writer.begin_as(identity)).about(spot.path)?;
        }
        let put = fill(&disk)?;
        let size = disk.size();
        disk.close().about(spot.path)?;
        Ok((size, put))
    })
}

fn make(spot: Spot<'_>, fill: impl FnOnce(&Arc<dyn Storage>) -> Result<(u64, Put), ToolError>) -> Result<Converted, ToolError> {
    let allocated = |file: &dyn Storage| file.allocated().map_err(|e| StorageError::new(Operation::Len, 0, e)).about(spot.path);
    let (file, mut made) = make_whole(spot, |file| {
        let (virtual_size, put) = fill(file)?;
        Ok(Converted { virtual_size, written: put.written, zeroed: put.zeroed, allocated: allocated(&**file)? })
    })?;
    // Once it is synced the file system knows better; if it will not say, what it said before is as good as anything, and the file is made.
    made.allocated = allocated(&*file).unwrap_or(made.allocated);
    Ok(made)
}

/// Copies what is not zeros into a disk that is all zeros.
fn fill(disk: &Disk, source: &Content<'_>, spot: Spot<'_>, crew: Crew<'_>) -> Result<Put, ToolError> {
    let written = copy(source, crew, |content, at| disk.write_at(content, at).about(spot.path))?;
    Ok(Put { written, zeroed: 0 })
}

/// Reads what is there and hands on what is not zeros; returns how many bytes that were.
fn copy(source: &Content<'_>, crew: Crew<'_>, put: impl Fn(&[u8], u64) -> Result<(), ToolError> + Sync) -> Result<u64, ToolError> {
    let state = || (Buffer::new(), 0_u64);
    let each = |(buffer, written): &mut (Buffer, u64), offset: u64, len: usize| {
        let content = buffer.first(len);
        source.read_at(content, offset)?;
        for run in data_runs(content) {
            *written += run.len() as u64;
            put(&content[run.clone()], offset + run.start as u64)?;
        }
        Ok(ControlFlow::<()>::Continue(()))
    };
    let (states, _) = crew.work(Phase::Convert, source.size(), source.chunks(GRAIN as u64)?, state, each)?;
    Ok(states.iter().map(|(_, written)| written).sum())
}
