//! Another virtual size; see `disk/resize` for how.

use super::error::{About, ToolError};
use super::merge::known;
use crate::chain::{Disk, ExtentKind, OpenOptions, Parents};
use crate::disk::backing::Backing;
use crate::disk::error::DiskError;
use crate::disk::items::ItemFault;
use crate::geometry::Geometry;
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::Storage;
use crate::sync::Arc;
use std::path::{Path, PathBuf};

/// Bytes looked at in one go.
const STEP: u64 = 1 << 20;

/// How to resize; see [`Disk::resize`].
#[derive(Clone, Debug, Default)]
pub struct ResizeOptions {
    open: OpenOptions,
    shrinks: bool,
    children: Vec<PathBuf>,
}

impl ResizeOptions {
    /// Growing only; parents beneath the disk's own directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// How the chain is opened: which files may be parents, above all.
    pub fn open(mut self, open: OpenOptions) -> Self {
        self.open = open;
        self
    }

    /// Whether the disk may become smaller. The end of its partitions must be below the new size, and what is cut off must read as
    /// zeros.
    pub fn shrink(mut self, shrinks: bool) -> Self {
        self.shrinks = shrinks;
        self
    }

    /// Files that stand on the disk, as far as the caller knows (a store does). Those beside the disk are found without being named.
    pub fn known_children(mut self, children: Vec<PathBuf>) -> Self {
        self.children = children;
        self
    }
}

/// What resizing did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resized {
    /// Bytes of the disk before.
    pub from: u64,
    /// Bytes of the disk now.
    pub to: u64,
}

impl Disk {
    /// Gives a disk that nobody has open another virtual size, all or nothing. New space reads as zeros, also where a longer parent
    /// holds something; of a fixed disk it is allocated. The block allocation table moves if it must grow.
    ///
    /// Refused when the disk would become smaller and content would be lost (any byte behind the new end that is not zero), and when files
    /// stand on the disk: they could not be opened any more, because its identity changes. Children elsewhere cannot be found: whoever
    /// knows of some names them ([`ResizeOptions::known_children`]).
    ///
    /// ```
    /// use diffdisk::{Cancel, CreateOptions, Disk, NoProgress, OpenOptions, ResizeOptions};
    /// # let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("a.vhdx");
    /// Disk::create(&path, &CreateOptions::dynamic(1 << 30))?.close()?;
    /// Disk::resize(&path, 4 << 40, &ResizeOptions::new(), &NoProgress, &Cancel::new())?;
    /// assert_eq!(Disk::open(&path, &OpenOptions::new())?.size(), 4 << 40);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Refused` for a size that no disk can have, or that loses content; `Children`; `Open` when the chain cannot be opened or the disk is in
    /// use; `Disk` when a file fails: the disk has its old size or the new one; `Cancelled`.
    pub fn resize(
        path: impl AsRef<Path>,
        size: u64,
        options: &ResizeOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Resized, ToolError> {
        let path = path.as_ref();
        let disk = Self::open(path, &options.open.clone().writable(true)).about(path)?;
        let known = known::look(&disk, std::slice::from_ref(&path.to_owned()), &options.children);
        let children: Vec<PathBuf> = known.grandchildren.into_iter().chain(known.siblings).collect();
        if !children.is_empty() {
            return Err(ToolError::Children { path: path.to_owned(), children });
        }
        change(disk, path, size, options, progress, cancel)
    }

    /// The same for a file and parents of the caller's own, parent first. Nothing is known about children.
    ///
    /// # Errors
    /// As [`Disk::resize`].
    pub fn resize_on(
        file: Arc<dyn Storage>,
        parents: Vec<Arc<dyn Storage>>,
        size: u64,
        options: &ResizeOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Resized, ToolError> {
        let path = Path::new("the disk");
        let disk = Self::open_on(file, parents, &options.open.clone().writable(true)).about(path)?;
        change(disk, path, size, options, progress, cancel)
    }
}

fn change(
    disk: Disk,
    path: &Path,
    size: u64,
    options: &ResizeOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Resized, ToolError> {
    let old = disk.leaf.geometry;
    let resized = Resized { from: old.size(), to: size };
    let Ok(new) = Geometry::new(size, old.block_size(), old.logical_sector()) else {
        return Err(ToolError::refused(path, "a disk has a whole number of sectors and at most 64 TiB"));
    };
    progress.phase(Phase::Resize, Some(old.size().saturating_sub(size)));
    if size < old.size() {
        if !options.shrinks {
            return Err(ToolError::refused(path, "the disk would become smaller, and nobody said that it may"));
        }
        let is_lost = holds_something(&disk, size, progress, cancel).map_err(|fault| fault.about(path))?;
        if is_lost {
            return Err(ToolError::refused(path, "content behind the new end would be lost"));
        }
    }
    if cancel.is_cancelled() {
        return Err(ToolError::Cancelled);
    }
    if size != old.size() {
        let inherited = match &disk.parents {
            Parents::Line(line) => line.layer.geometry.size(),
            Parents::None => 0,
            Parents::NotOpened => return Err(ToolError::refused(path, "its parents are not open")),
        };
        let writer = disk.writer().about(path)?;
        writer.resize(&disk.parents as &dyn Backing, inherited, new).map_err(|fault| match fault {
            ItemFault::NoRoom { .. } => ToolError::refused(path, "the log is too small for the change"),
            ItemFault::Disk(cause) => ToolError::Disk { path: path.to_owned(), cause },
        })?;
    }
    disk.close().about(path)?;
    Ok(resized)
}

/// Looking at what would be cut off ended early.
enum LookFault {
    Cancelled,
    Disk(DiskError),
}

impl From<DiskError> for LookFault {
    fn from(e: DiskError) -> Self {
        Self::Disk(e)
    }
}

impl LookFault {
    fn about(self, path: &Path) -> ToolError {
        match self {
            Self::Cancelled => ToolError::Cancelled,
            Self::Disk(cause) => ToolError::Disk { path: path.to_owned(), cause },
        }
    }
}

/// Whether any byte from `from` on is not zero.
fn holds_something(disk: &Disk, from: u64, progress: &dyn Progress, cancel: &Cancel) -> Result<bool, LookFault> {
    let mut buffer = vec![0; STEP as usize];
    for extent in disk.extents(from, disk.size() - from)? {
        let extent = extent?;
        if let ExtentKind::Zero { .. } = extent.kind {
            continue;
        }
        for at in (extent.offset..extent.offset + extent.len).step_by(STEP as usize) {
            if cancel.is_cancelled() {
                return Err(LookFault::Cancelled);
            }
            let part = &mut buffer[..STEP.min(extent.offset + extent.len - at) as usize];
            disk.read_at(part, at)?;
            if !super::is_zero(part) {
                return Ok(true);
            }
            progress.advance(at - from);
        }
    }
    Ok(false)
}
