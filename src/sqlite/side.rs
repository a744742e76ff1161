//! Ordinary files: the journal beside a clone, and SQLite's unnamed temporary files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How to open a file beside a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Open {
    Read,
    Write,
    Create,
    CreateNew,
}

/// An open ordinary file.
#[derive(Debug)]
pub(super) struct SideFile {
    file: File,
    /// `None`: temporary, nobody cares after a crash.
    path: Option<PathBuf>,
    /// Where the next call continues if it asks for nothing else; `None` after a failure.
    position: Option<u64>,
    /// The name may not be durable yet.
    is_new: bool,
}

impl SideFile {
    pub(super) fn open(path: &Path, how: Open) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::Read);
        options.create(how == Open::Create).create_new(how == Open::CreateNew);
        let file = options.open(path)?;
        Ok(Self { file, path: Some(path.to_owned()), position: Some(0), is_new: how >= Open::Create })
    }

    /// A file without a name, gone when it is closed.
    pub(super) fn temporary() -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, path: None, position: Some(0), is_new: false })
    }

    /// Fills `buf` as far as the file goes; returns the bytes read.
    pub(super) fn read(&mut self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.seek(offset)?;
        let mut done = 0;
        while done < buf.len() {
            match self.file.read(&mut buf[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.position = Some(offset + done as u64);
        Ok(done)
    }

    pub(super) fn write(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.seek(offset)?;
        self.file.write_all(buf)?;
        self.position = Some(offset + buf.len() as u64);
        Ok(())
    }

    /// Moves to `offset`, unless the last call ended there: a journal is written in many small pieces, one after the other.
    fn seek(&mut self, offset: u64) -> io::Result<()> {
        if self.position.take() != Some(offset) {
            self.file.seek(SeekFrom::Start(offset))?;
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|m| m.len())
    }

    /// Makes content and length durable; the first time, the name too: a journal that vanishes with its directory entry protects nothing.
    pub(super) fn sync(&mut self, data_only: bool) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if data_only {
            self.file.sync_data()?
        } else {
            self.file.sync_all()?
        }
        if self.is_new {
            sync_directory_of(path)?;
            self.is_new = false;
        }
        Ok(())
    }
}

/// Makes the names in the directory of `path` durable. Windows has no such call: NTFS journals names itself.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Removes a file; false if there was none.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
