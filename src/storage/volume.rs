//! One directory, in which a file appears whole or not at all.
//!
//! A VHDX that is half made is worse than none: it has the right name and the wrong content. So nothing in this crate writes
//! under a final name. [`create_atomically`] makes the file under a temporary one and renames it:
//!
//! ```text
//!   step                          a crash after it leaves                          cost with durable = false
//!   1 refuse if NAME is taken     nothing                                          a look (not when replacing)
//!   2 create .NAME.HEX.tmp        an empty leftover, swept by its pattern          one create
//!   3 fill                        a partial leftover                               what filling costs
//!   4 sync the file               a whole leftover                                 -
//!   5 rename to NAME              either name, the file whole under both           one rename
//!   6 sync the directory          NAME, whole                                      -
//! ```
//!
//! The order of 4 and 5 is the point: a rename that reaches the disk before the content it names would publish a file of holes.
//! Step 1 saves the work; step 5 refuses again, atomically, because somebody may have come in between. Without `durable` the same
//! steps protect against a crash of the process, but after a power cut the file may be missing, empty or incomplete.
//!
//! [`Volume`] is the directory as a trait so that the crash simulator can stand in for it.

use super::{FileStorage, Operation, Storage, StorageError, SyncSite};
use crate::sync::Arc;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One directory of files. Names are single components, never paths.
pub trait Volume: Send + Sync + fmt::Debug {
    /// Creates an empty file, open for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken, whatever the volume reports otherwise.
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn Storage>>;

    /// Gives a file another name, atomically. What had the new name is replaced if `replace`.
    ///
    /// # Errors
    /// `AlreadyExists` if the new name is taken and `replace` is false, whatever the volume reports otherwise.
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()>;

    /// Gives a file a second name. Never replaces anything.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken, `Unsupported` where a file has one name only, whatever the volume reports otherwise.
    fn link(&self, name: &str, second: &str) -> io::Result<()> {
        let _ = (name, second);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a name.
    ///
    /// # Errors
    /// Whatever the volume reports.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns when all creations, renames and removals before the call survive a power cut.
    ///
    /// # Errors
    /// Whatever the volume reports.
    fn sync_dir(&self) -> io::Result<()>;

    /// The names of everything in the directory, in no order. Names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// Whatever the volume reports.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Whether a name is taken, by whatever kind of thing.
    ///
    /// # Errors
    /// Whatever the volume reports.
    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.list()?.iter().any(|taken| taken == name))
    }
}

/// The longest name that common file systems take, in bytes.
const NAME_MAX: usize = 255;

/// Random bytes in a temporary name.
const RANDOM_LEN: usize = 8;

/// The name under which a file is made: `.NAME.0123456789abcdef.tmp`, with `NAME` cut where the whole would be too long.
fn temporary_name(name: &str) -> io::Result<String> {
    let mut random = [0; RANDOM_LEN];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let room = NAME_MAX - (".".len() + ".".len() + 2 * RANDOM_LEN + ".tmp".len());
    let end = (0..=room.min(name.len())).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    let stem = &name[..end];
    Ok(format!(".{stem}.{:016x}.tmp", u64::from_be_bytes(random)))
}

/// Removes the temporary file unless it has become the final one, also when `fill` panics.
struct Unfinished<'a> {
    volume: &'a dyn Volume,
    name: Option<&'a str>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name {
            // Whatever made the creation fail is reported; a leftover can be swept.
            let _ = self.volume.remove(name);
        }
    }
}

/// Creates a file that has all its content before it has its name. Returns it still open, with what `fill` returned.
///
/// With `durable` the file survives a power cut once this returns. With `replace` an existing file of that name loses it in the
/// same instant; who has it open keeps the old content.
///
/// ```
/// use diffdisk::storage::{DirVolume, Storage, StorageError, create_atomically, write_all};
/// let dir = tempfile::tempdir()?;
/// let volume = DirVolume::open(dir.path())?;
/// let made = create_atomically(&volume, "whole", false, true, |file| write_all(file.as_ref(), b"content", 0));
/// assert_eq!(made?.0.len()?, 7);
/// let failed: Result<_, StorageError> = create_atomically(&volume, "none", false, true, |file| {
///     write_all(file.as_ref(), b"half", 0)?;
///     Err::<(), _>(StorageError::new(diffdisk::storage::Operation::Write, 4, std::io::Error::other("stopped")))
/// });
/// assert!(failed.is_err());
/// assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `AlreadyExists` if the name is taken and `replace` is false, before `fill` is called or, if somebody was quicker, at the rename;
/// what `fill` returned; what the volume reports. After an error there is neither a temporary file nor, unless an old file had been
/// replaced when syncing the directory failed, a new one under the final name.
pub fn create_atomically<T, E: From<StorageError>>(
    volume: &dyn Volume,
    name: &str,
    replace: bool,
    durable: bool,
    fill: impl FnOnce(&Arc<dyn Storage>) -> Result<T, E>,
) -> Result<(Arc<dyn Storage>, T), E> {
    let failed = |operation, e| StorageError::new(operation, 0, e);
    if !replace && volume.exists(name).map_err(|e| failed(Operation::Open, e))? {
        return Err(failed(Operation::Open, io::ErrorKind::AlreadyExists.into()).into());
    }
    let temporary = temporary_name(name).map_err(|e| failed(Operation::Open, e))?;
    let storage = volume.create_new(&temporary).map_err(|e| failed(Operation::Open, e))?;
    let mut unfinished = Unfinished { volume, name: Some(&temporary) };
    let value = fill(&storage)?;
    if durable {
        super::sync(storage.as_ref(), SyncSite::Create)?;
    }
    volume.rename(&temporary, name, replace).map_err(|e| failed(Operation::Rename, e))?;
    // From here on the file is whole under its final name. If its name cannot be made durable it is taken back, except where that
    // would leave neither the old file nor the new one.
    unfinished.name = (!replace).then_some(name);
    if durable {
        volume.sync_dir().map_err(|e| failed(Operation::Sync, e))?;
    }
    unfinished.name = None;
    Ok((storage, value))
}

/// Creates a file that is going to have the name `name` and stays hidden until its maker has synced and renamed it: steps 2 and 3 of the
/// module. Returns it with its temporary name, and what `fill` returned.
///
/// # Errors
/// What `fill` returned; what the volume reports. After an error there is no such file.
pub fn create_hidden<T, E: From<StorageError>>(
    volume: &dyn Volume,
    name: &str,
    fill: impl FnOnce(&Arc<dyn Storage>) -> Result<T, E>,
) -> Result<(Arc<dyn Storage>, String, T), E> {
    let failed = |e| StorageError::new(Operation::Open, 0, e);
    let temporary = temporary_name(name).map_err(failed)?;
    let storage = volume.create_new(&temporary).map_err(failed)?;
    let mut unfinished = Unfinished { volume, name: Some(&temporary) };
    let value = fill(&storage)?;
    unfinished.name = None;
    drop(unfinished);
    Ok((storage, temporary, value))
}

/// A directory of the file system.
///
/// On unix everything happens relative to one open handle, so the directory stays the same one even if it is renamed or its path
/// is redirected. Elsewhere paths are used.
#[derive(Debug)]
pub struct DirVolume {
    path: PathBuf,
    #[cfg(unix)]
    handle: std::fs::File,
}

impl DirVolume {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// What the system reports; `NotADirectory` where the path is something else.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = |e| StorageError::new(Operation::Open, 0, e);
        // "" is what `Path::parent` says of a bare file name.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        #[cfg(unix)]
        {
            use rustix::fs::OFlags;
            use std::os::unix::fs::OpenOptionsExt;
            let flags = (OFlags::DIRECTORY | OFlags::CLOEXEC).bits().cast_signed();
            let handle = std::fs::File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
            Ok(Self { path: path.to_path_buf(), handle })
        }
        #[cfg(not(unix))]
        {
            if !std::fs::metadata(path).map_err(failed)?.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            Ok(Self { path: path.to_path_buf() })
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A name is one component: a volume never reaches outside its directory.
fn component(name: &str) -> io::Result<&str> {
    let separators: &[char] = if cfg!(windows) { &['/', '\\', ':', '\0'] } else { &['/', '\0'] };
    if name.is_empty() || name == "." || name == ".." || name.contains(separators) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a file name")));
    }
    Ok(name)
}

#[cfg(unix)]
impl Volume for DirVolume {
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let name = component(name)?;
        let file = openat(&self.handle, name, flags, Mode::from_raw_mode(0o666))?;
        match FileStorage::from_file(file.into(), super::Access::Write) {
            Ok(storage) => Ok(Arc::new(storage)),
            Err(e) => {
                // The lock's refusal is the error worth reporting; a leftover empty file is not.
                let _ = unlinkat(&self.handle, name, AtFlags::empty());
                Err(io::Error::new(e.source.kind(), e))
            }
        }
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        let (from, to) = (component(from)?, component(to)?);
        if replace {
            return Ok(rustix::fs::renameat(&self.handle, from, &self.handle, to)?);
        }
        match rename_without_replacing(&self.handle, from, to) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => link_then_unlink(&self.handle, from, to),
            result => result,
        }
    }

    fn link(&self, name: &str, second: &str) -> io::Result<()> {
        use rustix::io::Errno;
        match rustix::fs::linkat(&self.handle, component(name)?, &self.handle, component(second)?, rustix::fs::AtFlags::empty()) {
            // What file systems say that have no second names.
            Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            result => Ok(result?),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.handle, component(name)?, rustix::fs::AtFlags::empty())?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        match self.handle.sync_all() {
            // Some network file systems have no sync for directories; their servers commit names before they answer.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
            result => result,
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.handle)? {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        use rustix::io::Errno;
        match rustix::fs::statat(&self.handle, component(name)?, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

/// `renameat2(RENAME_NOREPLACE)`, or its macOS sister. `Unsupported` where the kernel or the file system does not have it.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "macos"))]
fn rename_without_replacing(dir: &std::fs::File, from: &str, to: &str) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(dir, from, dir, to, rustix::fs::RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // EINVAL is what file systems say that know rename but not its flags.
        Err(e) if [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP].contains(&e) => Err(io::ErrorKind::Unsupported.into()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(all(unix, not(any(target_os = "linux", target_os = "android", target_os = "macos"))))]
fn rename_without_replacing(_dir: &std::fs::File, _from: &str, _to: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A link never replaces anything. For an instant, and after a crash in it for ever, the file has both names; it is whole under each.
#[cfg(unix)]
fn link_then_unlink(dir: &std::fs::File, from: &str, to: &str) -> io::Result<()> {
    use rustix::fs::{AtFlags, linkat, unlinkat};
    linkat(dir, from, dir, to, AtFlags::empty())?;
    // The new name stands. A second one left behind is a leftover, not a failure.
    let _ = unlinkat(dir, from, AtFlags::empty());
    Ok(())
}

/// On other systems: paths, a hard link for the rename that must not replace, and no sync of the directory (Windows has none: NTFS
/// journals names, and a `durable` create is as durable as that journal).
#[cfg(not(unix))]
impl Volume for DirVolume {
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        match FileStorage::create_new(&self.path.join(component(name)?)) {
            Ok(storage) => Ok(Arc::new(storage)),
            Err(e) => Err(io::Error::new(e.source.kind(), e)),
        }
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        let (from, to) = (self.path.join(component(from)?), self.path.join(component(to)?));
        if replace {
            return std::fs::rename(from, to);
        }
        std::fs::hard_link(&from, to)?;
        let _ = std::fs::remove_file(from);
        Ok(())
    }

    fn link(&self, name: &str, second: &str) -> io::Result<()> {
        std::fs::hard_link(self.path.join(component(name)?), self.path.join(component(second)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(component(name)?))
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(io::Result::transpose).collect()
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        match std::fs::symlink_metadata(self.path.join(component(name)?)) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(all(test, unix))]
mod tests;
