//! New files that appear whole or not at all: where they go, what they may replace, and how they are filled.

use super::content::Content;
use super::error::{About, ToolError};
use crate::kind::ErrorKind;
use crate::storage::{DirVolume, FileStorage, Storage, StorageError, StorageId, SyncSite, Volume, create_atomically};
use crate::sync::Arc;
use std::io;
use std::path::{Path, PathBuf};

/// Where a new file goes.
#[derive(Clone, Copy)]
pub(crate) struct Spot<'a> {
    pub(crate) volume: &'a dyn Volume,
    /// Its name there.
    pub(crate) name: &'a str,
    /// The whole, for errors.
    pub(crate) path: &'a Path,
    pub(crate) overwrite: bool,
    /// Whether it survives a power cut once it is made.
    pub(crate) durable: bool,
}

/// The directory of a path, opened, and the name in it.
pub(crate) fn place(path: &Path) -> Result<(DirVolume, String), ToolError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| ToolError::refused(path, "it has no file name, or one that is not Unicode"))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    Ok((DirVolume::open(dir).about(dir)?, name.to_owned()))
}

/// Fills a new file before it has its name. A crash, an error, a panic or a cancel in `fill` leaves what was there before.
pub(crate) fn make_whole<T>(
    spot: Spot<'_>,
    fill: impl FnOnce(&Arc<dyn Storage>) -> Result<T, ToolError>,
) -> Result<(Arc<dyn Storage>, T), ToolError> {
    create_atomically(spot.volume, spot.name, spot.overwrite, spot.durable, |file| fill(file).map_err(Either::Tool)).map_err(|e| match e {
        Either::Tool(e) => e,
        Either::Storage(cause) => ToolError::Storage { path: spot.path.to_owned(), cause },
    })
}

enum Either {
    Tool(ToolError),
    Storage(StorageError),
}

impl From<StorageError> for Either {
    fn from(e: StorageError) -> Self {
        Self::Storage(e)
    }
}

/// Whether the existing file may be replaced: a regular file that nobody uses and that is no part of what is read. Returns the lock
/// on it, to be held until the new file has the name; `None` when there is no such file.
pub(crate) fn may_replace(path: &Path, read: &[&Content<'_>]) -> Result<Option<FileStorage>, ToolError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StorageError::new(crate::storage::Operation::Open, 0, e)).about(path),
    };
    if !metadata.is_file() {
        return Err(ToolError::refused(path, "it is not a regular file, so it is not replaced"));
    }
    match FileStorage::open_write(path) {
        Ok(lock) => Ok(Some(lock)),
        // Who reads holds a shared lock on each of its files.
        Err(e) if e.kind() == ErrorKind::InUse && is_part(path, read) => {
            Err(ToolError::refused(path, "it is part of the source, so it is not replaced"))
        }
        Err(e) => Err(e).about(path),
    }
}

fn is_part(path: &Path, read: &[&Content<'_>]) -> bool {
    let same = |other: &Path| matches!((path.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b);
    read.iter().any(|content| {
        let layers = content.disk().into_iter().flat_map(|disk| disk.layers());
        let mut paths: Vec<PathBuf> = layers.filter_map(|layer| layer.path.clone()).collect();
        paths.push(content.path().to_owned());
        paths.iter().any(|path| same(path))
    })
}

/// A file under its temporary name. Its syncs are nobody's business: until it has its final name nobody can find it, and before it gets
/// that name everything in it is synced at once. So a disk inside commits in memory only, in the order it always does.
#[derive(Debug)]
pub(crate) struct Draft(pub(crate) Arc<dyn Storage>);

impl Storage for Draft {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.0.write_at(buf, at)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self, _site: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.0.punch(at, len)
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        self.0.next_data(at)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.0.allocated()
    }

    fn id(&self) -> StorageId {
        self.0.id()
    }
}
