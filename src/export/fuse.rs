//! A disk as a file, through Linux' FUSE: what loop devices, `cp`, hex editors and programs that know files and no protocol can use.
//!
//! Mounted on a directory, it shows one file in it; mounted on a regular file, that file is the disk. The kernel keeps what was read
//! in its page cache, which is right because the disk is locked and nobody else changes it, and passes every write on at once, so that
//! what a program has written is the device's business and `fsync` is its flush. Holes punched into the file zero the range and give
//! its space back, so discards of a loop device reach the clone; `SEEK_HOLE` answers from the disk's extents, so copies stay sparse.
//! The size is fixed: cutting or growing the file is refused.
//!
//! The protocol is `fuser`'s, which speaks to the kernel without libfuse; mounting without root needs `fusermount3` (package `fuse3`).

use super::device::{BlockDevice, ExtentClass};
use crate::kind::ErrorKind;
use crate::storage::{PageBuffer, io_kind};
use crate::sync::{Arc, Mutex};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// Threads that answer the kernel: requests that wait for a disk do not hold up those that are served from memory.
const THREADS: usize = 4;
/// Bytes of the largest read or write that is asked of the kernel.
const LARGEST: u32 = 1 << 20;
/// Nothing about the file changes by itself, but its space.
const TTL: Duration = Duration::from_secs(1);
/// How old the count of data may be.
const COUNT_AGAIN: Duration = Duration::from_secs(5);
const MOST_EXTENTS: usize = 4096;
const DISK_IN_DIRECTORY: INodeNo = INodeNo(2);

/// A disk cannot be mounted, or its mount did not end well.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {source}{}", path.display(), hint(source))]
pub struct FuseError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            "; it must be a directory or a file that exists, and /dev/fuse (module `fuse`) and `fusermount3` must be there"
        }
        io::ErrorKind::PermissionDenied => "; without root this needs `fusermount3` (package fuse3) and access to /dev/fuse",
        io::ErrorKind::ResourceBusy => "; a program or loop device still uses it",
        _ => "",
    }
}

impl FuseError {
    fn new(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { doing, path, source }
    }

    /// What sort of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        io_kind(&self.source)
    }
}

/// How a disk is mounted.
///
/// ```no_run
/// use diffdisk::export::fuse::FuseMount;
/// use diffdisk::{Disk, OpenOptions};
/// use std::sync::Arc;
///
/// let disk = Arc::new(Disk::open("alice.vhdx", &OpenOptions::new().writable(true))?);
/// let mounted = FuseMount::new(disk.clone()).name("alice.img").mount("/mnt/alice".as_ref())?;
/// println!("the disk is {}", mounted.file().display());
/// mounted.serve()?; // until `umount /mnt/alice`
/// disk.flush()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FuseMount {
    device: Arc<dyn BlockDevice>,
    name: OsString,
    allow_other: bool,
}

impl FuseMount {
    /// A mount of this device, as a file called `disk.img` where it is mounted on a directory.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self { device, name: "disk.img".into(), allow_other: false }
    }

    /// What the file in the mounted directory is called.
    #[must_use]
    pub fn name(mut self, name: impl Into<OsString>) -> Self {
        self.name = name.into();
        self
    }

    /// Whether other users than the one who mounts may look at it, as far as its mode 0600 lets them: root, in the first place. Without root
    /// this needs `user_allow_other` in `/etc/fuse.conf`.
    #[must_use]
    pub fn allow_other(mut self, allow_other: bool) -> Self {
        self.allow_other = allow_other;
        self
    }

    /// Mounts it on a directory or a regular file that exists. Requests are answered once [`Mounted::serve`] runs.
    ///
    /// # Errors
    /// The kernel or `fusermount3` refuses, or the path is not there.
    pub fn mount(self, path: &Path) -> Result<Mounted, FuseError> {
        let path = std::fs::canonicalize(path).map_err(FuseError::new("mount on", path))?;
        let is_file = std::fs::metadata(&path).map_err(FuseError::new("mount on", &path))?.is_file();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("diffdisk".to_owned()), MountOption::Subtype("diffdisk".to_owned())];
        config.mount_options.push(if self.device.is_read_only() { MountOption::RO } else { MountOption::RW });
        config.mount_options.push(MountOption::DefaultPermissions);
        config.acl = if self.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(THREADS);
        let file = if is_file { path.clone() } else { path.join(&self.name) };
        let shown = Shown {
            device: self.device,
            root: if is_file { Root::Disk } else { Root::Directory(self.name) },
            since: SystemTime::now(),
            counted: Mutex::new(None),
        };
        let session = Session::new(shown, &path, &config).map_err(FuseError::new("mount on", &path))?;
        Ok(Mounted { session, stopper: FuseStopper { path: Arc::new(path), over: Arc::new(Mutex::new(false)) }, file })
    }
}

/// A mounted disk.
pub struct Mounted {
    session: Session<Shown>,
    stopper: FuseStopper,
    file: PathBuf,
}

impl Mounted {
    /// The file that is the disk.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What ends [`Mounted::serve`] from another thread.
    pub fn stopper(&self) -> FuseStopper {
        self.stopper.clone()
    }

    /// Answers the kernel until somebody unmounts, here or with `umount` or `fusermount3 -u`. Flushing the device afterwards is the
    /// caller's business.
    ///
    /// # Errors
    /// The connection to the kernel failed.
    pub fn serve(self) -> Result<(), FuseError> {
        let result = self.session.run();
        *self.stopper.over.lock() = true;
        result.map_err(FuseError::new("serve", &self.stopper.path))
    }
}

/// Unmounts from any thread, a signal's included.
#[derive(Clone)]
pub struct FuseStopper {
    path: Arc<PathBuf>,
    over: Arc<Mutex<bool>>,
}

impl FuseStopper {
    /// Unmounts, which ends [`Mounted::serve`].
    ///
    /// # Errors
    /// `InUse` as long as a program has the file open; everything goes on, and it can be tried again.
    pub fn unmount(&self) -> Result<(), FuseError> {
        // Held until it is done: a mount of somebody else at this path must not be taken for ours.
        let over = self.over.lock();
        if *over {
            return Ok(());
        }
        let failed = FuseError::new("unmount", &self.path);
        match rustix::mount::unmount(self.path.as_path(), rustix::mount::UnmountFlags::empty()) {
            Ok(()) => Ok(()),
            // Without root it is for the helper to do.
            Err(rustix::io::Errno::PERM) => {
                let helper = Command::new("fusermount3").arg("-u").arg("--").arg(self.path.as_path()).stdin(Stdio::null()).output();
                match helper {
                    Ok(output) if output.status.success() => Ok(()),
                    Ok(output) => {
                        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                        let kind = if said.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
                        Err(failed(io::Error::new(kind, said)))
                    }
                    Err(e) => Err(failed(e)),
                }
            }
            Err(e) => Err(failed(e.into())),
        }
    }
}

enum Root {
    /// The mount point is a regular file.
    Disk,
    /// The mount point is a directory with this in it.
    Directory(OsString),
}

/// What the kernel sees.
struct Shown {
    device: Arc<dyn BlockDevice>,
    root: Root,
    since: SystemTime,
    /// When, and how much.
    counted: Mutex<Option<(Instant, u64)>>,
}

thread_local! {
    /// What a read is made in; page-aligned, because the kernel copies from it.
    static BUFFER: RefCell<PageBuffer> = RefCell::new(PageBuffer::new(LARGEST as usize));
}

/// The device says what sort of failure it was, and seldom a number.
fn errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull => Errno::ENOSPC,
        io::ErrorKind::QuotaExceeded => Errno::EDQUOT,
        io::ErrorKind::PermissionDenied => Errno::EACCES,
        io::ErrorKind::InvalidInput => Errno::EINVAL,
        _ => Errno::EIO,
    }
}

fn answer(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

impl Shown {
    fn is_disk(&self, ino: INodeNo) -> bool {
        ino == if matches!(self.root, Root::Disk) { INodeNo::ROOT } else { DISK_IN_DIRECTORY }
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        let disk = self.is_disk(ino);
        if !disk && ino != INodeNo::ROOT {
            return None;
        }
        let (size, write) = if disk { (self.device.size(), !self.device.is_read_only()) } else { (0, false) };
        Some(FileAttr {
            ino,
            size,
            blocks: if disk { self.data().div_ceil(512) } else { 0 },
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: if disk { FileType::RegularFile } else { FileType::Directory },
            perm: match (disk, write) {
                (true, true) => 0o600,
                (true, false) => 0o400,
                (false, _) => 0o500,
            },
            nlink: if disk { 1 } else { 2 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: self.device.block_sizes().preferred,
            flags: 0,
        })
    }

    /// Bytes that are no hole, in the whole chain: copies look for holes only in files that take less space than they are long. Counted
    /// again when it is old, and no further than to the `MOST_EXTENTS`th stretch; all behind that counts.
    fn data(&self) -> u64 {
        let mut counted = self.counted.lock();
        if let Some((when, data)) = *counted
            && when.elapsed() < COUNT_AGAIN
        {
            return data;
        }
        let size = self.device.size();
        let (mut holes, mut seen) = (0, 0);
        // What cannot be read counts as data.
        let _ = self.device.extents(0, size, &mut |extent| {
            holes += if extent.class == ExtentClass::Hole { extent.len } else { 0 };
            seen += 1;
            if seen < MOST_EXTENTS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        *counted = Some((Instant::now(), size - holes));
        size - holes
    }

    /// The part of a range that lies inside the disk.
    fn clip(&self, offset: u64, len: u64) -> u64 {
        self.device.size().saturating_sub(offset).min(len)
    }

    fn zero(&self, offset: u64, len: u64, keep_space: bool) -> io::Result<()> {
        match self.clip(offset, len) {
            0 => Ok(()),
            len => self.device.write_zeroes(offset, len, keep_space),
        }
    }

    /// The first place from `offset` on that is data, or that is a hole; the end of the disk is one.
    fn seek(&self, offset: u64, data: bool) -> io::Result<Option<u64>> {
        let size = self.device.size();
        if offset >= size {
            return Ok(None);
        }
        let mut found = if data { None } else { Some(size) };
        self.device.extents(offset, size - offset, &mut |extent| {
            if (extent.class == ExtentClass::Data) == data {
                found = Some(extent.offset.max(offset));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }
}

impl Filesystem for Shown {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Where the kernel has less to give, less it is.
        let _ = config.set_max_write(LARGEST);
        let _ = config.set_max_readahead(LARGEST);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let is_ours = parent == INodeNo::ROOT && matches!(&self.root, Root::Directory(ours) if ours == name);
        match self.attributes(DISK_IN_DIRECTORY) {
            Some(attributes) if is_ours => reply.entry(&TTL, &attributes, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.attributes(ino) {
            None => reply.error(Errno::ENOENT),
            // A disk has one size. Times are not kept, and asking for them does no harm.
            Some(attributes) if size.is_some_and(|size| size != attributes.size) || mode.or(uid).or(gid).is_some() => {
                reply.error(Errno::EPERM);
            }
            Some(attributes) => reply.attr(&TTL, &attributes),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.is_disk(ino) { reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE) } else { reply.error(Errno::EISDIR) }
    }

    fn read(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags, _: Option<LockOwner>, reply: ReplyData) {
        let len = self.clip(offset, size.min(LARGEST).into()) as usize;
        BUFFER.with_borrow_mut(|buffer| match self.device.read_at(&mut buffer[..len], offset) {
            Ok(()) => reply.data(&buffer[..len]),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = self.clip(offset, data.len() as u64) as usize;
        if len == 0 && !data.is_empty() {
            return reply.error(Errno::ENOSPC);
        }
        match self.device.write_at(&data[..len], offset) {
            Ok(()) => reply.written(len as u32),
            Err(e) => reply.error(errno(&e)),
        }
    }

    /// Somebody closes the file, which promises nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, if self.device.is_read_only() { Ok(()) } else { self.device.flush() });
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        use rustix::fs::FallocateFlags;
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let ends_inside = offset.checked_add(length).is_some_and(|end| end <= self.device.size());
        let result = match mode - FallocateFlags::KEEP_SIZE {
            FallocateFlags::PUNCH_HOLE => self.zero(offset, length, false),
            FallocateFlags::ZERO_RANGE if ends_inside => self.zero(offset, length, true),
            // Space set aside would have to be written: a clone is made to take none before that.
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        answer(reply, result);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::EINVAL) };
        match self.seek(offset, data) {
            Ok(Some(at)) => reply.offset(at.cast_signed()),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Root::Directory(name) = &self.root else { return reply.error(Errno::ENOTDIR) };
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, OsStr::new(".")),
            (INodeNo::ROOT, FileType::Directory, OsStr::new("..")),
            (DISK_IN_DIRECTORY, FileType::RegularFile, name),
        ];
        for (at, (ino, kind, name)) in (1..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(ino, at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(self.device.size().div_ceil(4096), 0, 0, 1, 0, 4096, 255, 4096);
    }
}
