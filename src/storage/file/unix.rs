//! What the platform is asked, one name for each question: systems of the Unix kind.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

pub(super) use seek::next_data;

#[inline]
pub(super) fn read_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    file.read_at(buf, at)
}

#[inline]
pub(super) fn write_at(file: &File, buf: &[u8], at: u64) -> io::Result<usize> {
    file.write_at(buf, at)
}

pub(super) fn allocated(metadata: &Metadata) -> u64 {
    // st_blocks counts units of 512 bytes, whatever st_blksize says.
    metadata.blocks() * 512
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn punch(_file: &File, _at: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether this is a file system that overwrites in place and is known to take `RWF_DSYNC` at its word.
#[cfg(target_os = "linux")]
pub(super) fn overwrites_in_place(file: &File) -> bool {
    const EXT: u64 = 0xEF53;
    const XFS: u64 = 0x5846_5342;
    const TMPFS: u64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|fs| [EXT, XFS, TMPFS].iter().any(|&magic| u64::try_from(fs.f_type) == Ok(magic)))
}

/// By the number of the file system; one that is not known is taken for a remote one. The layers of an overlay cannot be seen
/// from here and are nearly always local.
#[cfg(target_os = "linux")]
pub(super) fn is_local(file: &File) -> bool {
    const LOCAL: [u64; 9] = [
        0xEF53,      // ext2, ext3, ext4
        0x5846_5342, // XFS
        0x9123_683E, // btrfs
        0x0102_1994, // tmpfs
        0x8584_58F6, // ramfs
        0xF2F5_2010, // F2FS
        0x2FC1_2FC1, // ZFS
        0xCA45_1A4E, // bcachefs
        0x794C_7630, // overlayfs
    ];
    rustix::fs::fstatfs(file).is_ok_and(|fs| LOCAL.iter().any(|&magic| u64::try_from(fs.f_type) == Ok(magic)))
}

/// Nobody knows; the caller asked for it.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_local(_file: &File) -> bool {
    true
}

#[cfg(not(target_os = "linux"))]
pub(super) fn overwrites_in_place(_file: &File) -> bool {
    false
}

/// Writes and hardens a range; `false` when the system cannot do both at once and nothing was written.
#[cfg(target_os = "linux")]
pub(super) fn write_durable(file: &File, buf: &[u8], at: u64) -> io::Result<bool> {
    use rustix::io::{Errno, ReadWriteFlags, pwritev2};
    let mut done = 0;
    while done < buf.len() {
        match pwritev2(file, &[io::IoSlice::new(&buf[done..])], at + done as u64, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if done == 0 => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn write_durable(_file: &File, _buf: &[u8], _at: u64) -> io::Result<bool> {
    Ok(false)
}

pub(super) fn appends(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::APPEND))
}

pub(super) fn no_locks(e: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(e);
    errno.is_some_and(|e| e == Errno::NOTSUP || e == Errno::OPNOTSUPP || e == Errno::NOLCK || e == Errno::NOSYS)
}

pub(super) fn on_read_only_mount(file: &File) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// The answer to "where is the next data".
pub(super) enum NextData {
    Found(u64, u64),
    OnlyHoles,
    NoAnswer,
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "freebsd"))]
mod seek {
    use super::NextData;
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    use std::fs::File;
    use std::io;

    /// The file position moves, which harms nobody: every other call here names its offset.
    pub(in super::super) fn next_data(file: &File, at: u64) -> io::Result<NextData> {
        // More than one round only while another thread punches the very place that was just found.
        for _ in 0..16 {
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return Ok(NextData::OnlyHoles),
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => return Ok(NextData::NoAnswer),
                Err(e) => return Err(e.into()),
            };
            match seek(file, SeekFrom::Hole(start)) {
                Ok(end) if end > start => return Ok(NextData::Found(start, end)),
                Ok(_) | Err(Errno::NXIO) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(NextData::NoAnswer)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "freebsd")))]
mod seek {
    use super::NextData;
    use std::fs::File;
    use std::io;

    pub(in super::super) fn next_data(_file: &File, _at: u64) -> io::Result<NextData> {
        Ok(NextData::NoAnswer)
    }
}
