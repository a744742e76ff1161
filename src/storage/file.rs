//! Storage in a file: positional calls on one descriptor that is locked for as long as it is open.
//!
//! All code that differs between operating systems and has to do with the *content* of a file is here; names and directories
//! are in [`volume`](super::DirVolume).
//!
//! # One writer or many readers
//!
//! Every [`FileStorage`] holds a whole-file lock from the moment it exists: shared when it reads, exclusive when it writes. So
//! a second writer is refused, and so is a writer on a file that somebody reads, be it as a disk or as the parent of one. Three
//! properties are relied on:
//!
//! - The lock belongs to *the descriptor that is used*, never to a second descriptor or a lock file. There is no moment in which
//!   the checked file and the used file are different ones.
//! - It is a lock on the inode (`flock`), so every path to it, symbolic link, hard link or bind mount, meets the same lock, and
//!   two descriptors of one process exclude each other as two processes do.
//! - It dies with its holder, however the holder dies. Descriptors are close-on-exec, so a program started by the holder does not
//!   inherit it; and because there is a moment between fork and exec in which a child has a copy, dropping a [`FileStorage`]
//!   unlocks first and closes then. Otherwise a clone could be "in use" for an instant after its last user has closed it.
//!
//! Taking the lock never waits: a refusal is `WouldBlock`, which is [`ErrorKind::InUse`](crate::ErrorKind::InUse).
//!
//! A file system that has no locks (`ENOTSUP`, `ENOLCK`, `ENOSYS`) is refused, because two writers on one VHDX destroy it and
//! a parent that is written under its children destroys all of them. The one exception is reading from a file system that is
//! mounted read-only: nobody can write through this mount, so there is nothing to exclude. (The other side of a network share
//! still could; such images have to be sealed where they are made.)
//!
//! # What a sync is
//!
//! [`Storage::sync`] is `File::sync_data`: `fdatasync` on Linux, which includes the length and block pointers needed to read the
//! data back, and `fcntl(F_FULLFSYNC)` on macOS, where a plain `fsync` stops at the drive's volatile cache.
//!
//! # What a durable write is
//!
//! [`Storage::write_durable`] is `pwritev2` with `RWF_DSYNC` on Linux: the kernel writes the range back, with what is needed to find it,
//! and flushes the device's cache. Where the range was written before (and the file system overwrites in place) nothing is needed to
//! find it, so no journal commit is waited for, which is most of what a small `fdatasync` of a growing file costs. It is offered
//! on ext4, XFS and tmpfs, where that is so; elsewhere a durable write is a write and a sync.
//!
//! # Windows
//!
//! The lock is `LockFileEx` over the whole file. There are no holes and no stable object number without calls that std does not
//! offer, so `punch` is `Unsupported` and every open file has an [`StorageId`] of its own: cycles are then found by GUID and depth.

use super::{Operation, Storage, StorageError, StorageId, SyncSite};
use crate::sync::{AtomicBool, Ordering};
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// What a storage may be used for, and with it which lock it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reading, with a shared lock.
    Read,
    /// Reading and writing, with an exclusive lock.
    Write,
}

/// A regular file or block device, locked while this value lives.
///
/// ```
/// use diffdisk::storage::{FileStorage, Storage};
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("bytes");
/// let writer = FileStorage::create_new(&path)?;
/// writer.write_at(b"abc", 0)?;
/// assert!(FileStorage::open_read(&path).is_err(), "one writer or many readers");
/// drop(writer);
/// let (a, b) = (FileStorage::open_read(&path)?, FileStorage::open_read(&path)?);
/// assert_eq!((a.len()?, a.id()), (3, b.id()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    access: Access,
    /// Set once writing has ended: the lock is a shared one then.
    ended: AtomicBool,
    block_device: bool,
    id: StorageId,
}

/// How often an open is tried again when the file lost its name between the open and the lock.
const REPLACED_TRIES: usize = 8;

impl FileStorage {
    /// Opens a file for reading and takes the shared lock.
    ///
    /// # Errors
    /// `InvalidInput` for anything but a regular file or a block device (a FIFO does not block), `WouldBlock` while a writer holds
    /// the file, and whatever the system reports.
    pub fn open_read(path: &Path) -> Result<Self, StorageError> {
        let mut options = OpenOptions::new();
        options.read(true);
        Self::adopt(open(&mut options, path)?, Access::Read)
    }

    /// Opens a file for reading and writing and takes the exclusive lock.
    ///
    /// The file is looked at once more after it is locked: if another process gave its name to a new file in between (as an
    /// overwriting create does), the open starts over, so that nothing is written to a file that no longer has a name.
    ///
    /// # Errors
    /// `InvalidInput` for anything but a regular file or a block device, `WouldBlock` while anybody else holds the file, and
    /// whatever the system reports.
    pub fn open_write(path: &Path) -> Result<Self, StorageError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        for _ in 0..REPLACED_TRIES {
            let storage = Self::adopt(open(&mut options, path)?, Access::Write)?;
            if has_a_name(&storage.metadata()?) {
                return Ok(storage);
            }
        }
        Err(open_error(io::Error::new(io::ErrorKind::WouldBlock, "the file is being replaced again and again")))
    }

    /// Creates a file that must not exist (mode 0666 without the umask) and takes the exclusive lock.
    ///
    /// # Errors
    /// `AlreadyExists` if there is anything under that name, a dangling symbolic link included; whatever the system reports. If
    /// the new file cannot be locked it is removed again.
    pub fn create_new(path: &Path) -> Result<Self, StorageError> {
        let file = open(OpenOptions::new().read(true).write(true).create_new(true), path)?;
        Self::adopt(file, Access::Write).inspect_err(|_| {
            // The lock's refusal is the error worth reporting; a leftover empty file is not.
            let _ = std::fs::remove_file(path);
        })
    }

    /// Takes over an open file: checks what it is and takes the lock that `access` asks for on this very descriptor.
    ///
    /// # Errors
    /// As [`FileStorage::open_read`] and [`FileStorage::open_write`], except that a file without a name is accepted; `InvalidInput`
    /// for a file opened to append, because the system then ignores where a write is meant to go.
    pub fn from_file(file: File, access: Access) -> Result<Self, StorageError> {
        let metadata = file.metadata().map_err(open_error)?;
        let block_device = check_type(&metadata).map_err(open_error)?;
        if access == Access::Write && sys::appends(&file) {
            return Err(open_error(io::Error::new(io::ErrorKind::InvalidInput, "it is open for appending, which overrides every offset")));
        }
        lock(&file, access).map_err(|e| StorageError::new(Operation::Lock, 0, e))?;
        let id = object_id(&file, &metadata).map_err(open_error)?;
        Ok(Self { file, access, ended: AtomicBool::new(false), block_device, id })
    }

    /// Opens a file to look at it, without a lock: nobody is kept from using it, and it may change while it is looked at. What comes of that
    /// is good for a listing and for nothing else.
    ///
    /// # Errors
    /// As [`FileStorage::open_read`], except that nobody can be in the way.
    #[cfg(feature = "store")]
    pub(crate) fn peek(path: &Path) -> Result<Self, StorageError> {
        let file = open(OpenOptions::new().read(true), path)?;
        let metadata = file.metadata().map_err(open_error)?;
        let block_device = check_type(&metadata).map_err(open_error)?;
        settle_flags(&file, Access::Read);
        let id = object_id(&file, &metadata).map_err(open_error)?;
        Ok(Self { file, access: Access::Read, ended: AtomicBool::new(false), block_device, id })
    }

    /// Takes over a file that this crate opened itself with `O_NONBLOCK`: also puts the flags right.
    pub(crate) fn adopt(file: File, access: Access) -> Result<Self, StorageError> {
        let storage = Self::from_file(file, access)?;
        settle_flags(&storage.file, access);
        Ok(storage)
    }

    /// The id that a storage on this file has.
    pub(crate) fn id_of(file: &File, metadata: &Metadata) -> io::Result<StorageId> {
        object_id(file, metadata)
    }

    /// The id that a storage on the file of this name has. The file is not locked, and nobody is kept from it.
    #[cfg(feature = "store")]
    pub(crate) fn id_at(path: &Path) -> io::Result<StorageId> {
        #[cfg(unix)]
        {
            std::fs::metadata(path).map(|metadata| identity(&metadata))
        }
        #[cfg(not(unix))]
        {
            let file = File::open(path)?;
            object_id(&file, &file.metadata()?)
        }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What it was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether this is a regular file, as opposed to a block device.
    pub fn is_regular(&self) -> bool {
        !self.block_device
    }

    /// Whether the file is known to lie on a file system of this machine, so that no server, and no other program in the way, decides
    /// whether it can be read.
    pub fn is_local(&self) -> bool {
        sys::is_local(&self.file)
    }

    fn metadata(&self) -> Result<Metadata, StorageError> {
        self.file.metadata().map_err(open_error)
    }

    fn writable(&self) -> io::Result<()> {
        match self.access {
            // Relaxed: whoever ends writing sees to it that no write is under way; this only catches mistakes.
            Access::Write if !self.ended.load(Ordering::Relaxed) => Ok(()),
            Access::Write | Access::Read => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file was opened for reading only")),
        }
    }
}

impl Drop for FileStorage {
    fn drop(&mut self) {
        // Closing alone unlocks only when no copy of the descriptor is left, and a fork may be holding one.
        let _ = self.file.unlock();
    }
}

impl Storage for FileStorage {
    #[inline]
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        sys::read_at(&self.file, buf, at)
    }

    #[inline]
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.writable()?;
        sys::write_at(&self.file, buf, at)
    }

    #[cfg(unix)]
    fn read_vectored_at(&self, bufs: &mut [io::IoSliceMut<'_>], at: u64) -> io::Result<usize> {
        Ok(rustix::io::preadv(&self.file, bufs, at)?)
    }

    #[cfg(unix)]
    fn write_vectored_at(&self, bufs: &[io::IoSlice<'_>], at: u64) -> io::Result<usize> {
        self.writable()?;
        Ok(rustix::io::pwritev(&self.file, bufs, at)?)
    }

    fn len(&self) -> io::Result<u64> {
        if self.block_device {
            // The metadata of a device node says 0. Nothing here uses the file position, so moving it disturbs nobody.
            return io::Seek::seek(&mut &self.file, io::SeekFrom::End(0));
        }
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        self.file.set_len(len)
    }

    fn sync(&self, _site: SyncSite) -> io::Result<()> {
        self.file.sync_data()
    }

    fn writes_durably(&self) -> bool {
        self.access == Access::Write && !self.block_device && sys::overwrites_in_place(&self.file)
    }

    fn write_durable(&self, buf: &[u8], at: u64, site: SyncSite) -> io::Result<()> {
        self.writable()?;
        if sys::write_durable(&self.file, buf, at)? {
            return Ok(());
        }
        super::write_all(self, buf, at).map_err(io::Error::other)?;
        self.sync(site)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.writable()?;
        if len == 0 {
            return Ok(());
        }
        sys::punch(&self.file, at, len)
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        match sys::next_data(&self.file, at)? {
            sys::NextData::Found(start, end) => Ok(Some((start, end))),
            sys::NextData::OnlyHoles => Ok(None),
            sys::NextData::NoAnswer => {
                let len = self.len()?;
                Ok((at < len).then_some((at, len)))
            }
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        if self.block_device {
            return self.len();
        }
        Ok(sys::allocated(&self.file.metadata()?))
    }

    fn id(&self) -> StorageId {
        self.id
    }

    /// The lock is converted where it is. The system may let go of it for an instant meanwhile, in which somebody who asks for it gets it;
    /// then this fails.
    fn end_writing(&self) -> io::Result<()> {
        self.writable()?;
        self.ended.store(true, Ordering::Relaxed);
        #[cfg(not(unix))]
        self.file.unlock()?;
        lock(&self.file, Access::Read)
    }
}

fn open_error(source: io::Error) -> StorageError {
    StorageError::new(Operation::Open, 0, source)
}

/// Opens without waiting: a FIFO without a peer would block for ever before its type can be looked at.
fn open(options: &mut OpenOptions, path: &Path) -> Result<File, StorageError> {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC).bits().cast_signed());
    }
    options.open(path).map_err(open_error)
}

/// Regular files and block devices pass; returns whether it is a block device.
fn check_type(metadata: &Metadata) -> io::Result<bool> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(false);
    }
    let what = if kind.is_dir() {
        "a directory"
    } else {
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt;
            if kind.is_block_device() {
                return Ok(true);
            }
            match () {
                () if kind.is_fifo() => "a FIFO",
                () if kind.is_char_device() => "a character device",
                () if kind.is_socket() => "a socket",
                () => "something else",
            }
        }
        #[cfg(not(unix))]
        "something else"
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file or block device")))
}

/// Takes the lock or says why not, at once.
fn lock(file: &File, access: Access) -> io::Result<()> {
    let taken = match access {
        Access::Read => file.try_lock_shared(),
        Access::Write => file.try_lock(),
    };
    match taken {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            match access {
                Access::Read => "the file is open for writing elsewhere",
                Access::Write => "the file is in use elsewhere (as a disk, or as the parent of one)",
            },
        )),
        Err(TryLockError::Error(e)) if !sys::no_locks(&e) => Err(e),
        Err(TryLockError::Error(_)) if access == Access::Read && sys::on_read_only_mount(file) => Ok(()),
        Err(TryLockError::Error(e)) => {
            Err(io::Error::new(e.kind(), format!("the file system has no file locks, and nothing else keeps a second writer out ({e})")))
        }
    }
}

/// After the checks `O_NONBLOCK` has done its duty. Reading also leaves the access time alone where the system lets us (the owner
/// or root only), because a parent is not written, its times included.
fn settle_flags(file: &File, access: Access) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::fs::{OFlags, fcntl_setfl};
        let quiet = if access == Access::Read { OFlags::NOATIME } else { OFlags::empty() };
        // Refused to all but the owner. O_NONBLOCK then stays, and means nothing on files and block devices.
        let _ = fcntl_setfl(file, quiet);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file, access);
}

#[cfg(unix)]
fn has_a_name(metadata: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(metadata) > 0
}

#[cfg(not(unix))]
fn has_a_name(_metadata: &Metadata) -> bool {
    true
}

#[cfg(unix)]
fn identity(metadata: &Metadata) -> StorageId {
    use std::os::unix::fs::MetadataExt;
    StorageId { device: metadata.dev(), object: metadata.ino() }
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "other systems ask the file and may fail")]
fn object_id(_file: &File, metadata: &Metadata) -> io::Result<StorageId> {
    Ok(identity(metadata))
}

/// Volume and file number, as NTFS and ReFS have them.
#[cfg(windows)]
fn object_id(file: &File, _metadata: &Metadata) -> io::Result<StorageId> {
    let told = winapi_util::file::information(file)?;
    Ok(StorageId { device: told.volume_serial_number(), object: told.file_index() })
}

/// A number of its own for every open file: std has no way to ask for the real one.
#[cfg(not(any(unix, windows)))]
#[expect(clippy::unnecessary_wraps, reason = "other systems ask the file and may fail")]
fn object_id(_file: &File, _metadata: &Metadata) -> io::Result<StorageId> {
    use crate::sync::Ordering;
    use crate::sync::process::AtomicU64;
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Ok(StorageId { device: u64::MAX - 1, object: NEXT.fetch_add(1, Ordering::Relaxed) })
}

/// What the platform is asked, one name for each question.
#[cfg(unix)]
#[path = "file/unix.rs"]
mod sys;

#[cfg(windows)]
#[path = "file/windows.rs"]
mod sys;

#[cfg(all(test, unix))]
mod tests;
