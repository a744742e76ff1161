//! The demo's directory: one image, its clones beside it (where the default parent policy finds the image), and the few verbs it needs
//! of the engine.

use super::DemoError;
use diffdisk::sqlite::{self, Volume};
use diffdisk::{CreateOptions, Disk, OpenOptions};
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Says that the image and the clones in a directory were made here and may be made again.
const MARK: &str = "made-by-diffdisk-demo";

pub struct Lab {
    pub dir: PathBuf,
}

impl Lab {
    /// Makes the directory. Of an earlier demo it removes what that demo made, and leaves what its user added.
    pub fn new(dir: &Path) -> Result<Self, DemoError> {
        let lab = Self { dir: dir.to_owned() };
        if dir.join(MARK).is_file() {
            for entry in fs::read_dir(dir).map_err(DemoError::file(dir))? {
                let path = entry.map_err(DemoError::file(dir))?.path();
                if lab.is_ours(&path) {
                    fs::remove_file(&path).map_err(DemoError::file(&path))?;
                }
            }
            return Ok(lab);
        }
        match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(DemoError::NotEmpty { dir: dir.to_owned() }),
            Ok(false) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(DemoError::file(dir)(e)),
        }
        fs::create_dir_all(dir).map_err(DemoError::file(dir))?;
        fs::write(dir.join(MARK), "diffdisk demo replaces stack.vhdx and dev-*.vhdx here when it runs again.\n")
            .map_err(DemoError::file(dir))?;
        Ok(lab)
    }

    fn is_ours(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let clone = name.strip_prefix("dev-").and_then(|rest| rest.split_once(".vhdx"));
        path == self.image() || path == self.copy() || clone.is_some_and(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()))
    }

    fn copy(&self) -> PathBuf {
        self.dir.join("copy.vhdx")
    }

    pub fn image(&self) -> PathBuf {
        self.dir.join("stack.vhdx")
    }

    pub fn clone_path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("dev-{number:02}.vhdx"))
    }

    /// Makes the image and fills the database in it.
    pub fn make_image<T>(&self, virtual_size: u64, fill: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, DemoError> {
        let path = self.image();
        let disk = Disk::create(&path, &CreateOptions::dynamic(virtual_size))?;
        let filled = with_connection(disk, &path, |mut connection| {
            let filled = fill(&mut connection);
            connection.close().map_err(|(_, e)| e)?;
            filled
        })?;
        let mut permissions = fs::metadata(&path).map_err(DemoError::file(&path))?.permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).map_err(DemoError::file(&path))?;
        Ok(filled)
    }

    /// Makes a clone of the image, durably.
    pub fn make_clone(&self, number: u32) -> Result<(), DemoError> {
        Ok(Disk::create_child(self.clone_path(number), self.image(), &CreateOptions::child())?.close()?)
    }

    /// Throws a clone's changes away: a new clone in its place, and no journal of the old one.
    pub fn reset_clone(&self, number: u32) -> Result<(), DemoError> {
        let path = self.clone_path(number);
        for left in [sqlite::journal_path(&path), sqlite::wal_path(&path)] {
            match fs::remove_file(&left) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(DemoError::file(&left)(e)),
                _ => {}
            }
        }
        Ok(Disk::create_child(&path, self.image(), &CreateOptions::child().overwrite(true))?.close()?)
    }

    /// Runs `work` on the database in a clone, through an ordinary SQLite connection.
    pub fn on_clone<T>(&self, number: u32, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, DemoError> {
        let path = self.clone_path(number);
        let disk = Disk::open(&path, &OpenOptions::new().writable(true))?;
        with_connection(disk, &path, |connection| {
            let result = work(&connection);
            connection.close().map_err(|(_, e)| e)?;
            result
        })
    }

    /// Bytes that the file system gave to a file, and its length.
    pub fn sizes(path: &Path) -> Result<(u64, u64), DemoError> {
        let sizes = Disk::open(path, &OpenOptions::new())?.info()?.sizes;
        Ok((sizes.allocated, sizes.apparent))
    }

    /// The SHA-256 of the image's file.
    pub fn image_digest(&self) -> Result<[u8; 32], DemoError> {
        let path = self.image();
        let mut digest = Sha256::new();
        read_all(&path, |bytes| {
            digest.update(bytes);
            Ok(())
        })
        .map_err(DemoError::file(&path))?;
        Ok(digest.finalize().into())
    }

    /// What a clone replaces: copies the image, byte by byte and durably, and removes the copy.
    pub fn copy_image(&self) -> Result<(), DemoError> {
        let path = self.copy();
        let copy = || {
            let mut copy = File::create(&path)?;
            read_all(&self.image(), |bytes| copy.write_all(bytes))?;
            copy.sync_all()
        };
        let copied = copy();
        let removed = fs::remove_file(&path);
        copied.and(removed).map_err(DemoError::file(&path))
    }
}

fn with_connection<T>(disk: Disk, path: &Path, work: impl FnOnce(Connection) -> rusqlite::Result<T>) -> Result<T, DemoError> {
    let disk = Arc::new(disk);
    let volume = Volume::new(disk.clone(), path)?;
    let result = work(volume.connect()?);
    drop(volume);
    match Arc::into_inner(disk) {
        Some(disk) => disk.close()?,
        // A connection that would not close keeps the disk; its error says why.
        None => debug_assert!(result.is_err()),
    }
    Ok(result?)
}

fn read_all(path: &Path, mut each: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    let (mut file, mut buf) = (File::open(path)?, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buf)? {
            0 => return Ok(()),
            n => each(&buf[..n])?,
        }
    }
}
