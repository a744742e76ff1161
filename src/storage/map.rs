//! A file that is read by copying out of a memory mapping.
//!
//! Reading a page that is in the cache then costs a copy and no system call, which is what a deep chain over a hot image wants.
//! The price is why this is opt-in and `pread` is the default: a mapping has no error returns. When the file is cut short under
//! the mapping, when the disk fails, or when a share goes away, the kernel sends SIGBUS and the whole process is gone, unless the
//! program asked for a guard (`guard_mappings`, Linux): then it is an error. Only sealed, local ancestors should be mapped:
//!
//! - *sealed*, because nobody will cut them. The shared lock that the wrapped [`FileStorage`] goes on holding keeps every writer
//!   of this crate out; it cannot stop a program that does not ask for locks.
//! - *local*, because on a network file system a lost server is an I/O error. [`MappedStorage::new`] refuses file systems that it
//!   does not know to be local, and FUSE, where another program decides.
//!
//! There is never a `&[u8]` into the mapping: the bytes of a shared mapping can
//! change under such a reference, which Rust forbids, so reads copy through raw pointers into the caller's buffer.
//!
//! The mapping covers the length that the file had when it was mapped; what is added later is not seen.

#![expect(unsafe_code, reason = "the one place that copies out of a memory mapping; see the module's documentation")]

use super::{Access, FileStorage, Operation, Storage, StorageError, StorageId, SyncSite};
use memmap2::{MmapOptions, MmapRaw};
use std::io;
use std::ptr;

/// A read-only file, mapped into memory.
///
/// ```
/// use diffdisk::storage::{FileStorage, MappedStorage, Storage};
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("image");
/// std::fs::write(&path, b"sealed")?;
/// let mapped = MappedStorage::new(FileStorage::open_read(&path)?).map_err(|(_file, why)| why)?;
/// let mut buf = [0; 4];
/// assert_eq!(mapped.read_at(&mut buf, 2)?, 4);
/// assert_eq!(&buf, b"aled");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MappedStorage {
    /// First, because it has to be gone before the mapping is.
    #[cfg(target_os = "linux")]
    guard: Option<super::guard::Guard>,
    raw: MmapRaw,
    /// Bytes of the file, which for an empty file are fewer than the bytes mapped.
    len: usize,
    /// Keeps the descriptor and its lock; also answers what a mapping cannot (holes, space).
    file: FileStorage,
}

impl MappedStorage {
    /// Maps the whole of a file that was opened for reading.
    ///
    /// # Errors
    /// The file comes back untouched with the reason, so that the caller goes on with `pread`: it is open for writing, it is a
    /// block device, it is not known to lie on a local file system, it does not fit the address space, or the system refuses to map it.
    pub fn new(file: FileStorage) -> Result<Self, (FileStorage, StorageError)> {
        match map(&file) {
            #[cfg(target_os = "linux")]
            Ok((raw, len)) => match super::guard::Guard::new(raw.as_ptr(), len) {
                Ok(guard) => Ok(Self { guard, raw, len, file }),
                Err(e) => Err((file, StorageError::new(Operation::Map, 0, e))),
            },
            #[cfg(not(target_os = "linux"))]
            Ok((raw, len)) => Ok(Self { raw, len, file }),
            Err(e) => Err((file, StorageError::new(Operation::Map, 0, e))),
        }
    }

    /// Whether a part of the mapping could not be read, so that nothing copied out of it counts.
    #[inline]
    fn has_failed(&self) -> bool {
        #[cfg(target_os = "linux")]
        {
            self.guard.as_ref().is_some_and(super::guard::Guard::has_failed)
        }
        #[cfg(not(target_os = "linux"))]
        {
            false
        }
    }

    /// Reads without the mapping, which has failed. The file is asked for its length as well: what was cut off is missing, and
    /// zeros would be made up.
    #[cold]
    fn read_unmapped(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        match self.file.read_at(buf, at) {
            Ok(0) if !buf.is_empty() && at < self.len as u64 => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut short after it had been opened"))
            }
            result => result,
        }
    }

    /// The file under the mapping.
    pub fn file(&self) -> &FileStorage {
        &self.file
    }
}

fn map(file: &FileStorage) -> io::Result<(MmapRaw, usize)> {
    if file.access() != Access::Read {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only files opened for reading are mapped"));
    }
    if !file.is_regular() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "block devices are not mapped"));
    }
    if !file.is_local() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "files that may lie elsewhere are not mapped"));
    }
    let too_long = || io::Error::new(io::ErrorKind::Unsupported, "the file does not fit the address space");
    let len = usize::try_from(file.len()?).ok().filter(|&len| isize::try_from(len).is_ok()).ok_or_else(too_long)?;
    let raw = MmapOptions::new().len(len).map_raw_read_only(file.file())?;
    Ok((raw, len))
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a mapped file is read-only")
}

impl Storage for MappedStorage {
    #[inline]
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let Some(start) = usize::try_from(at).ok().filter(|&start| start < self.len) else { return Ok(0) };
        let n = buf.len().min(self.len - start);
        // SAFETY: `start < len` and `n <= len - start`, and `len` bytes are mapped for as long as `self` lives, so the source
        // is in bounds; `n <= buf.len()`. `buf` is borrowed exclusively and no reference to the mapping ever leaves this type,
        // so the two cannot overlap, and a file that changes meanwhile changes bytes that no Rust reference covers.
        unsafe { ptr::copy_nonoverlapping(self.raw.as_ptr().wrapping_add(start), buf.as_mut_ptr(), n) };
        if self.has_failed() { self.read_unmapped(buf, at) } else { Ok(n) }
    }

    fn write_at(&self, _buf: &[u8], _at: u64) -> io::Result<usize> {
        Err(read_only())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len as u64)
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    /// There is never anything to harden.
    fn sync(&self, _site: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let len = self.len as u64;
        Ok(self.file.next_data(at)?.map(|(start, end)| (start, end.min(len))).filter(|(start, end)| start < end))
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }

    fn id(&self) -> StorageId {
        self.file.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::ErrorKind;

    fn file_with(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn reads_are_those_of_the_file_up_to_and_past_its_end() {
        let content: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
        let (_dir, path) = file_with(&content);
        let mapped = MappedStorage::new(FileStorage::open_read(&path).unwrap()).unwrap();
        let plain = FileStorage::open_read(&path).unwrap();
        assert_eq!((mapped.len().unwrap(), mapped.id()), (10_000, plain.id()));
        for at in [0, 1, 4095, 4096, 9_990, 9_999, 10_000, 10_001, 12_288, u64::MAX] {
            let (mut a, mut b) = ([0xEE; 100], [0xEE; 100]);
            let n = mapped.read_at(&mut a, at).unwrap();
            let expected = if at > i64::MAX as u64 { 0 } else { plain.read_at(&mut b, at).unwrap() };
            assert_eq!((n, a), (expected, b), "at {at}");
        }
    }

    #[test]
    fn an_empty_file_reads_as_nothing() {
        let (_dir, path) = file_with(b"");
        let mapped = MappedStorage::new(FileStorage::open_read(&path).unwrap()).unwrap();
        assert_eq!(mapped.len().unwrap(), 0);
        assert_eq!(mapped.read_at(&mut [0; 10], 0).unwrap(), 0);
    }

    #[test]
    fn nothing_can_be_written_and_writers_stay_out() {
        let (_dir, path) = file_with(b"sealed");
        let mapped = MappedStorage::new(FileStorage::open_read(&path).unwrap()).unwrap();
        for result in [mapped.write_at(b"x", 0).map(|_| ()), mapped.set_len(0), mapped.punch(0, 1)] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(FileStorage::open_write(&path).unwrap_err().kind(), ErrorKind::InUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"sealed");
    }

    #[test]
    fn a_file_that_cannot_be_mapped_comes_back_usable() {
        let (_dir, path) = file_with(b"open for writing");
        let (file, why) = MappedStorage::new(FileStorage::open_write(&path).unwrap()).unwrap_err();
        assert_eq!((why.operation, why.kind()), (Operation::Map, ErrorKind::InvalidInput));
        file.write_at(b"still", 0).unwrap();
    }
}
