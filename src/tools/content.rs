//! Raw files and disks behind one face: bytes, and where they are not holes.
//!
//! Conversion, comparison, digests and differences all want the same: walk over what is there, in order, and skip what is not, because
//! a disk of 64 TiB is mostly not there. [`Content::stretches`] says where bytes may be and in which place of which file they are,
//! from the extents of a disk or the holes of a raw file. The place is what lets two clones of one image be compared in a time that
//! follows their changes: the same place of the same file need not be read to be known to be the same.

use super::chunks::Chunks;
use super::error::{About, ToolError};
use crate::chain::{Disk, ExtentKind, OpenOptions};
use crate::storage::{self, FileStorage, Operation, Storage, StorageError, StorageId};
use crate::sync::Arc;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Something with bytes: a raw file, or a disk with the chain it stands on.
///
/// What it holds must not change while it is worked on. Files are held with a shared lock, which keeps out everybody who asks for
/// locks: other users of this library, and of a raw file whoever else takes `flock`s.
///
/// ```
/// use diffdisk::{Content, CreateOptions, Disk, OpenOptions};
/// # let dir = tempfile::tempdir()?;
/// # let path = |name: &str| dir.path().join(name);
/// std::fs::write(path("a.img"), [1; 1000])?;
/// let raw = Content::raw(path("a.img"))?;
/// let mut bytes = [9; 4];
/// raw.read_at(&mut bytes, 998)?;
/// assert_eq!((raw.size(), bytes), (1000, [1, 1, 0, 0]));
///
/// let disk = Disk::create(path("a.vhdx"), &CreateOptions::dynamic(1 << 20))?;
/// assert_eq!(Content::of(&disk, "a.vhdx").size(), 1 << 20);
/// disk.close()?;
/// assert_eq!(Content::vhdx(path("a.vhdx"), &OpenOptions::new())?.size(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Content<'a> {
    path: PathBuf,
    size: u64,
    bytes: Bytes<'a>,
}

#[derive(Debug)]
enum Bytes<'a> {
    Raw(Arc<dyn Storage>),
    Disk(Box<Disk>),
    Borrowed(&'a Disk),
}

/// Where a stretch of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: StorageId,
    pub(crate) at: u64,
}

impl Place {
    /// The place `len` bytes further on.
    pub(crate) fn after(self, len: u64) -> Self {
        Self { at: self.at + len, ..self }
    }
}

/// Bytes that may be something other than zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) range: Range<u64>,
    pub(crate) place: Place,
}

/// Stretches in order, without overlap. What lies between them is zeros.
pub(crate) type Stretches<'a> = Box<dyn Iterator<Item = Result<Stretch, ToolError>> + Send + 'a>;

impl<'a> Content<'a> {
    /// A file whose bytes are the content: a raw image, or a block device that nobody writes to. Never guessed: what the file holds
    /// does not make it anything else.
    ///
    /// # Errors
    /// `Storage` when the file cannot be opened or somebody has it open for writing (kind `InUse`).
    pub fn raw(path: impl Into<PathBuf>) -> Result<Self, ToolError> {
        let path = path.into();
        let file = FileStorage::open_read(&path).about(&path)?;
        Self::raw_on(Arc::new(file), path)
    }

    /// The same on a storage of the caller; `name` stands in errors.
    ///
    /// # Errors
    /// `Storage` when the length cannot be learnt.
    pub fn raw_on(file: Arc<dyn Storage>, name: impl Into<PathBuf>) -> Result<Self, ToolError> {
        let path = name.into();
        let size = storage::len(&*file).about(&path)?;
        Ok(Self { path, size, bytes: Bytes::Raw(file) })
    }

    /// A VHDX with the chain it stands on, opened with `options`.
    ///
    /// # Errors
    /// `Open`, as [`Disk::open`].
    pub fn vhdx(path: impl Into<PathBuf>, options: &OpenOptions) -> Result<Self, ToolError> {
        let path = path.into();
        let disk = Disk::open(&path, options).about(&path)?;
        Ok(Self { path, size: disk.size(), bytes: Bytes::Disk(Box::new(disk)) })
    }

    /// A disk that is handed over; `name` stands in errors.
    pub fn own(disk: Disk, name: impl Into<PathBuf>) -> Self {
        Self { path: name.into(), size: disk.size(), bytes: Bytes::Disk(Box::new(disk)) }
    }

    /// A disk that the caller has open; `name` stands in errors. Nobody may write to it meanwhile, unless a verb says otherwise.
    pub fn of(disk: &'a Disk, name: impl Into<PathBuf>) -> Self {
        Self { path: name.into(), size: disk.size(), bytes: Bytes::Borrowed(disk) }
    }

    /// Where it was opened, or its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The disk, if it is one.
    pub fn disk(&self) -> Option<&Disk> {
        match &self.bytes {
            Bytes::Raw(_) => None,
            Bytes::Disk(disk) => Some(disk),
            Bytes::Borrowed(disk) => Some(disk),
        }
    }

    /// Fills `buf` with the bytes from `at` on. Past the end there are zeros.
    ///
    /// # Errors
    /// `Storage` or `Disk` when reading fails.
    pub fn read_at(&self, buf: &mut [u8], at: u64) -> Result<(), ToolError> {
        let inside = self.size.saturating_sub(at).min(buf.len() as u64) as usize;
        let (inside, outside) = buf.split_at_mut(inside);
        outside.fill(0);
        match &self.bytes {
            _ if inside.is_empty() => Ok(()),
            Bytes::Raw(file) => storage::read_zero_extended(&**file, inside, at).about(&self.path),
            Bytes::Disk(disk) => disk.read_at(inside, at).about(&self.path),
            Bytes::Borrowed(disk) => disk.read_at(inside, at).about(&self.path),
        }
    }

    /// Where bytes may be, in a range; what lies past the end is not listed.
    pub(crate) fn stretches(&self, range: Range<u64>) -> Result<Stretches<'_>, ToolError> {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        match (&self.bytes, self.disk()) {
            (Bytes::Raw(file), _) => Ok(Box::new(raw_stretches(&**file, &self.path, range))),
            (_, Some(disk)) => Ok(Box::new(disk_stretches(disk, &self.path, range)?)),
            (_, None) => unreachable!("what is not raw is a disk"),
        }
    }

    /// Everything that may hold data, cut into chunks whose edges are multiples of `align`.
    pub(crate) fn chunks(&self, align: u64) -> Result<Chunks<'_>, ToolError> {
        let ranges = self.stretches(0..self.size)?.map(|stretch| stretch.map(|stretch| stretch.range));
        Ok(Chunks::new(Box::new(ranges), self.size, align))
    }
}

fn raw_stretches<'a>(
    file: &'a dyn Storage,
    path: &'a Path,
    range: Range<u64>,
) -> impl Iterator<Item = Result<Stretch, ToolError>> + Send + 'a {
    let id = file.id();
    let mut at = Some(range.start);
    std::iter::from_fn(move || {
        let from = at.take()?;
        match file.next_data(from) {
            Ok(Some((start, _))) if start >= range.end => None,
            Ok(Some((start, end))) => {
                at = Some(end).filter(|&end| end < range.end);
                // A storage may answer with the whole stretch that `from` lies in.
                let (start, end) = (start.max(from), end.min(range.end));
                Some(Ok(Stretch { range: start..end, place: Place { file: id, at: start } }))
            }
            Ok(None) => None,
            Err(e) => Some(Err(StorageError::new(Operation::Seek, from, e)).about(path)),
        }
    })
}

fn disk_stretches<'a>(
    disk: &'a Disk,
    path: &'a Path,
    range: Range<u64>,
) -> Result<impl Iterator<Item = Result<Stretch, ToolError>> + Send + 'a, ToolError> {
    let ids: Vec<StorageId> = disk.layers().map(|layer| layer.original.id()).collect();
    let extents = disk.extents(range.start, range.end - range.start).about(path)?;
    Ok(extents.filter_map(move |extent| match extent {
        Ok(extent) => match extent.kind {
            ExtentKind::Data { layer, file_offset } => {
                let place = Place { file: ids[layer], at: file_offset };
                Some(Ok(Stretch { range: extent.offset..extent.offset + extent.len, place }))
            }
            ExtentKind::Zero { .. } => None,
        },
        Err(e) => Some(Err(e).about(path)),
    }))
}
