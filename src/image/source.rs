//! Where an image's content comes from. Always declared, never guessed: a raw image whose first sector looks like something else
//! is still a raw image.

use super::clock::Timestamp;
use super::clone::CloneDisk;
use super::error::StoreError;
use super::load::{self, Workspace};
use super::manifest::SourceInfo;
use crate::chain::{Disk, ExtentKind, OpenOptions, ParentPolicy};
use crate::kind::ErrorKind;
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::{self, FileStorage, Storage, StorageError};
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What to make an image of.
pub struct Source(pub(super) Kind);

pub(super) enum Kind {
    Raw(PathBuf),
    BlockDevice(PathBuf),
    Vhdx(PathBuf, ParentPolicy),
    Directory(PathBuf, Option<u64>),
    Stream(Box<dyn Read + Send>),
}

impl Source {
    /// A file whose bytes are the disk's bytes. Holes are skipped.
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self(Kind::Raw(path.into()))
    }

    /// A block device. Nobody may be writing to it meanwhile: detach it, or take a snapshot.
    pub fn block_device(path: impl Into<PathBuf>) -> Self {
        Self(Kind::BlockDevice(path.into()))
    }

    /// A VHDX with the chain it stands on, flattened. Parents are looked for in its own directory.
    pub fn vhdx(path: impl Into<PathBuf>) -> Self {
        Self::vhdx_with_parents(path, ParentPolicy::default())
    }

    /// The same, with parents wherever the policy allows.
    pub fn vhdx_with_parents(path: impl Into<PathBuf>, parents: ParentPolicy) -> Self {
        Self(Kind::Vhdx(path.into(), parents))
    }

    /// A clone as it is now, which nobody may have open: what was tried out in a clone becomes an image, or the next generation of its own.
    ///
    /// # Errors
    /// As [`CloneDisk::parents`].
    pub fn clone_of(clone: &CloneDisk) -> Result<Self, StoreError> {
        Ok(Self::vhdx_with_parents(clone.path(), ParentPolicy::Paths(clone.parents()?)))
    }

    /// A directory, which becomes an ext4 file system (made by `mke2fs -d`), as large as it must be.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self(Kind::Directory(path.into(), None))
    }

    /// The same, in a file system of `size` bytes.
    pub fn directory_sized(path: impl Into<PathBuf>, size: u64) -> Self {
        Self(Kind::Directory(path.into(), Some(size)))
    }

    /// The bytes of a stream, to its end.
    pub fn reader(reader: impl Read + Send + 'static) -> Self {
        Self(Kind::Stream(Box::new(reader)))
    }

    /// Standard input.
    pub fn stdin() -> Self {
        Self::reader(io::stdin())
    }

    /// The source that a manifest names, for a refresh from where the last generation came from.
    pub(super) fn again(info: &SourceInfo) -> Option<Self> {
        let path = info.path.clone()?;
        match info.kind.as_str() {
            "raw" => Some(Self::raw(path)),
            "block_device" => Some(Self::block_device(path)),
            "vhdx" => Some(Self::vhdx(path)),
            "directory" => Some(Self::directory(path)),
            _ => None,
        }
    }

    /// Opens the source; what has to become a file first becomes one in the workspace.
    pub(super) fn open(self, workspace: &Workspace, progress: &dyn Progress, cancel: &Cancel) -> Result<Opened, StoreError> {
        match self.0 {
            Kind::Raw(path) => open_raw(path, "raw"),
            Kind::BlockDevice(path) => open_raw(path, "block_device"),
            Kind::Vhdx(path, parents) => open_vhdx(path, parents),
            Kind::Directory(path, size) => {
                progress.phase(Phase::Gather, None);
                let made = workspace.scratch("ext4")?;
                make_file_system(&path, size, made.path())?;
                let file = FileStorage::open_read(made.path()).map_err(StoreError::storage("open", made.path()))?;
                let size = storage::len(&file).map_err(StoreError::storage("measure", made.path()))?;
                let path = std::fs::canonicalize(&path).unwrap_or(path);
                let info = SourceInfo { kind: "directory".into(), path: Some(path), size, modified: None };
                Ok(Opened { content: Content::Raw(file), info, scratch: Some(made) })
            }
            Kind::Stream(reader) => {
                let made = workspace.scratch("stream")?;
                let (file, size) = load::spool(reader, made.path(), progress, cancel)?;
                let info = SourceInfo { kind: "stream".into(), path: None, size, modified: None };
                Ok(Opened { content: Content::Raw(file), info, scratch: Some(made) })
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Raw(path) => write!(f, "raw({})", path.display()),
            Kind::BlockDevice(path) => write!(f, "block_device({})", path.display()),
            Kind::Vhdx(path, _) => write!(f, "vhdx({})", path.display()),
            Kind::Directory(path, _) => write!(f, "directory({})", path.display()),
            Kind::Stream(_) => f.write_str("stream"),
        }
    }
}

/// How much of a VHDX is searched for data at a time.
const WINDOW: u64 = 1 << 30;

/// A source that is open and does not change.
pub(super) struct Opened {
    content: Content,
    pub(super) info: SourceInfo,
    /// Removed when the source is done with.
    #[expect(dead_code, reason = "it is held for its drop")]
    scratch: Option<load::Scratch>,
}

enum Content {
    Raw(FileStorage),
    Vhdx(PathBuf, Box<Disk>),
}

impl Opened {
    /// The size of a disk that holds it.
    pub(super) fn disk_size(&self, sector: u64) -> u64 {
        self.info.size.next_multiple_of(sector).max(sector)
    }

    /// The sector size that the disk must have.
    pub(super) fn sector(&self) -> Option<u32> {
        match &self.content {
            Content::Raw(_) => None,
            Content::Vhdx(_, disk) => Some(disk.logical_sector_size()),
        }
    }

    /// The next stretch at or after `at` that may hold anything but zeros.
    pub(super) fn next_data(&self, at: u64) -> Result<Option<(u64, u64)>, StoreError> {
        if at >= self.info.size {
            return Ok(None);
        }
        match &self.content {
            Content::Raw(file) => {
                let found = file.next_data(at).map_err(StoreError::io("read", self.name()))?;
                Ok(found.filter(|&(start, _)| start < self.info.size).map(|(start, end)| (start, end.min(self.info.size))))
            }
            Content::Vhdx(path, disk) => {
                // Neighbouring extents are joined before the first is returned, so a whole disk at a time would be walked over
                // and over.
                let mut start = at;
                while start < self.info.size {
                    let len = WINDOW.min(self.info.size - start);
                    for extent in disk.extents(start, len).map_err(StoreError::disk(path))? {
                        let extent = extent.map_err(StoreError::disk(path))?;
                        if matches!(extent.kind, ExtentKind::Data { .. }) {
                            return Ok(Some((extent.offset, extent.offset + extent.len)));
                        }
                    }
                    start += len;
                }
                Ok(None)
            }
        }
    }

    /// Fills the buffer from `at` on; past the end it reads zeros.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<(), StoreError> {
        match &self.content {
            Content::Raw(file) => storage::read_zero_extended(file, buf, at).map_err(StoreError::storage("read", self.name())),
            Content::Vhdx(path, disk) => disk.read_at(buf, at).map_err(StoreError::disk(path)),
        }
    }

    fn name(&self) -> PathBuf {
        self.info.path.clone().unwrap_or_else(|| PathBuf::from("the stream"))
    }
}

fn refused(path: &Path, why: impl Into<String>) -> StoreError {
    StoreError::Source { source_name: path.display().to_string(), why: why.into() }
}

fn open_raw(path: PathBuf, kind: &'static str) -> Result<Opened, StoreError> {
    let file = FileStorage::open_read(&path).map_err(|e: StorageError| match e.kind() {
        ErrorKind::InUse => StoreError::in_use(&path),
        ErrorKind::InvalidInput => {
            refused(&path, "it is neither a regular file nor a block device; a directory is declared with `--from directory`")
        }
        _ => StoreError::storage("open the source", &path)(e),
    })?;
    match (kind, file.is_regular()) {
        ("raw", false) => return Err(refused(&path, "it is a block device; declare it as one, once nobody writes to it")),
        ("block_device", true) => return Err(refused(&path, "it is a regular file; declare it as raw")),
        _ => {}
    }
    let size = storage::len(&file).map_err(StoreError::storage("measure", &path))?;
    if size == 0 {
        return Err(refused(&path, "it is empty"));
    }
    let modified = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok().map(Timestamp::from);
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    let info = SourceInfo { kind: kind.into(), path: Some(path), size, modified: modified.filter(|_| file.is_regular()) };
    Ok(Opened { content: Content::Raw(file), info, scratch: None })
}

fn open_vhdx(path: PathBuf, parents: ParentPolicy) -> Result<Opened, StoreError> {
    let disk = Disk::open(&path, &OpenOptions::new().parents(parents)).map_err(StoreError::open(&path))?;
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    let modified = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok().map(Timestamp::from);
    let info = SourceInfo { kind: "vhdx".into(), path: Some(path.clone()), size: disk.size(), modified };
    Ok(Opened { content: Content::Vhdx(path, Box::new(disk)), info, scratch: None })
}

/// Room that ext4 needs beside the content: its journal and tables, and inodes for many small files.
const SPARE: u64 = 48 << 20;
/// Bytes that a file costs at least: one block, and its inode with some of a directory.
const PER_FILE: u64 = 4096 + 512;

fn make_file_system(dir: &Path, size: Option<u64>, file: &Path) -> Result<(), StoreError> {
    let metadata = std::fs::metadata(dir).map_err(StoreError::io("open the source", dir))?;
    if !metadata.is_dir() {
        return Err(refused(dir, "it is not a directory; declare it as raw, block device or VHDX"));
    }
    let content = tree_size(dir)?;
    let mut wanted = size.unwrap_or((content + content / 8 + SPARE).next_multiple_of(1 << 20));
    // An estimate that was too small is doubled; a size that the caller chose is not argued with.
    for _ in 0..if size.is_some() { 1 } else { 4 } {
        match run_mke2fs(dir, wanted, file)? {
            None => return Ok(()),
            Some(_) if size.is_none() => wanted *= 2,
            Some(said) => return Err(failed_mke2fs(said)),
        }
    }
    match run_mke2fs(dir, wanted, file)? {
        None => Ok(()),
        Some(said) => Err(failed_mke2fs(said)),
    }
}

fn failed_mke2fs(said: String) -> StoreError {
    let next = "give the image a larger size, or make the file system yourself and declare it as raw";
    StoreError::Tool { tool: "mke2fs", outcome: format!("failed: {said}"), next }
}

/// Runs it; `Some` is what it said when it failed.
fn run_mke2fs(dir: &Path, size: u64, file: &Path) -> Result<Option<String>, StoreError> {
    let missing = |e: io::Error| {
        let next = "install e2fsprogs, or make the file system yourself and declare it as raw";
        StoreError::Tool { tool: "mke2fs", outcome: format!("cannot be run ({e}), and an image of a directory needs it"), next }
    };
    // Administrators' programs are often not on the path of ordinary users.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    super::files::remove(file)?;
    let output = Command::new("mke2fs")
        .env("PATH", path)
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(dir)
        .arg(file)
        .arg(format!("{}k", size / 1024))
        .stdin(Stdio::null())
        .output()
        .map_err(missing)?;
    let said = String::from_utf8_lossy(&output.stderr);
    Ok((!output.status.success()).then(|| said.lines().last().unwrap_or("it said nothing").trim().to_owned()))
}

/// What the files in a tree take, about. Links are not followed.
fn tree_size(dir: &Path) -> Result<u64, StoreError> {
    let mut total = 0;
    let mut left = vec![dir.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let entry = entry.map_err(StoreError::io("list", &dir))?;
            let metadata = entry.metadata().map_err(StoreError::io("look at", entry.path()))?;
            total += metadata.len().next_multiple_of(4096) + PER_FILE;
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(total)
}
