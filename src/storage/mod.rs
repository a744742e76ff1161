//! Bytes at offsets: the one door between the engine and the outside.
//!
//! [`Storage`] is what a VHDX file is to this crate: positional reads and writes, a length, a sync. The engine never names
//! `std::fs::File` above this floor, so the same code runs on files, in memory, on mapped ancestors, and on the crash
//! simulator. Calls may be short, as system calls may; the free functions here ([`read_exact`], [`write_all`], ...) loop, and
//! turn failures into [`StorageError`]s that say which operation failed where.
//!
//! A [`Storage`] does no locking between calls: any number of threads may call it at once.

mod buffer;
mod draft;
mod error;
mod file;
#[cfg(target_os = "linux")]
mod guard;
mod map;
mod memory;
#[cfg(feature = "sim")]
pub mod sim;
mod volume;

pub use buffer::PageBuffer;
pub(crate) use draft::Draft;
#[cfg(feature = "store")]
pub(crate) use error::io_kind;
pub use error::{Operation, StorageError};
pub use file::{Access, FileStorage};
#[cfg(target_os = "linux")]
pub use guard::guard_mappings;
pub use map::MappedStorage;
pub use memory::MemoryStorage;
pub use volume::{DirVolume, Volume, create_atomically, create_hidden};

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};

/// Which barrier of the engine asks for a sync. Storages may ignore it; the simulator and the tests name syncs by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SyncSite {
    /// A new file is whole, before it gets its final name.
    Create,
    /// A new disk on a storage of the caller's is whole, before it is handed back.
    CreateOn,
    /// An image is read-only and whole, before it is published.
    Seal,
    /// The wiped remains of a torn header, before another one is written over them.
    HeaderWipe,
    /// What an earlier handle may have left in the air, before the first header of this one goes over a spare that says something else.
    HeaderInherited,
    /// The header with this session's new identity, before any other byte of the file changes.
    Identity,
    /// A flush that only hardens rewrites of sectors that were present.
    Rewrite,
    /// The first flush of a session that changed nothing: what an earlier handle left in the air.
    Inheritance,
    /// A flush of a raw disk that is exported.
    ExportFlush,
    /// Barrier 1 of a commit: payload that the batch will expose.
    Payload,
    /// Barrier 1 of a session's first commit: payload, and the first entry of a log that no header names yet.
    FirstEntry,
    /// The header that names this session's log, after the log's first entry.
    LogStart,
    /// Barrier 2 of a commit: the log entry.
    Log,
    /// Pages at their home offsets, before the log space that holds them is given up.
    Home,
    /// The empty log entry that moves the durable tail.
    LogTail,
    /// Everything at home, before the log is declared empty at close.
    CloseHome,
    /// The first header that declares the log empty at close.
    CloseFirst,
    /// The second header that declares the log empty at close.
    CloseSecond,
    /// The second header, at the close of a session that began no log.
    CloseMirror,
    /// The new file write GUID before metadata items change outside of a session.
    ItemsIdentity,
    /// The entry that changes metadata items outside of a session, before a header names its log.
    ItemsEntry,
    /// The new file write GUID before a repair changes the file.
    RepairIdentity,
    /// The second header, at the end of a repair that changed nothing else.
    RepairMirror,
    /// The first entry of a repair, before a header names its log.
    RepairEntry,
    /// The new file write GUID before a replay changes the file.
    ReplayIdentity,
    /// The replayed pages, before the log is declared empty.
    ReplayHome,
    /// The first header that declares the log empty after a replay.
    ReplayFirst,
    /// The second header that declares the log empty after a replay.
    ReplaySecond,
    /// The shortened length of a file.
    Truncate,
}

/// Names one stored object, so that a chain cannot lead back into itself under another path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StorageId {
    /// The device or name space.
    pub device: u64,
    /// The object in it.
    pub object: u64,
}

/// A file, or something that behaves like one.
///
/// Implementations must be safe to call from many threads at once; overlapping calls may land in any order.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Reads at most `buf.len()` bytes starting at `at`; 0 at or past the end.
    ///
    /// # Errors
    /// Whatever the storage reports. `Interrupted` is retried by the callers in this crate.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes at most `buf.len()` bytes starting at `at`, extending the file with zeros up to `at` if it is shorter.
    ///
    /// # Errors
    /// Whatever the storage reports. `Interrupted` is retried by the callers in this crate.
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize>;

    /// Reads into several buffers, one after the other, as if they were one.
    ///
    /// # Errors
    /// As [`Storage::read_at`].
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], at: u64) -> io::Result<usize> {
        let mut done = 0;
        for buf in bufs {
            match self.read_at(buf, at + done as u64) {
                Ok(n) => {
                    done += n;
                    if n < buf.len() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes several buffers, one after the other, as if they were one.
    ///
    /// # Errors
    /// As [`Storage::write_at`].
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut done = 0;
        for buf in bufs {
            match self.write_at(buf, at + done as u64) {
                Ok(n) => {
                    done += n;
                    if n < buf.len() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// The length in bytes.
    ///
    /// # Errors
    /// Whatever the storage reports.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is zero.
    ///
    /// # Errors
    /// As [`Storage::len`].
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Makes the length `len`: cuts the end off, or adds bytes that read as zeros.
    ///
    /// # Errors
    /// Whatever the storage reports.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when everything written before the call survives a power cut.
    ///
    /// # Errors
    /// Whatever the storage reports. The engine never retries a failed sync (the dirty data may be gone).
    fn sync(&self, site: SyncSite) -> io::Result<()>;

    /// Whether [`Storage::write_durable`] is cheaper than a write and a sync. The engine then lays its log down in advance and
    /// writes entries that way. The answer may not change while the storage is open.
    fn writes_durably(&self) -> bool {
        false
    }

    /// Writes all of `buf` at `at` and returns when *these bytes* survive a power cut. It says nothing about any other write,
    /// finished or not: a sync covers everything before it, this covers its own range.
    ///
    /// # Errors
    /// Whatever the storage reports. The engine takes every failure as that of a sync and never tries again.
    fn write_durable(&self, buf: &[u8], at: u64, site: SyncSite) -> io::Result<()> {
        write_all(self, buf, at).map_err(io::Error::other)?;
        self.sync(site)
    }

    /// Makes `len` bytes at `at` read as zeros and gives their space back. The length stays.
    ///
    /// # Errors
    /// `Unsupported` where there are no holes: the engine writes zeros instead.
    fn punch(&self, at: u64, len: u64) -> io::Result<()>;

    /// The first stretch of possible data at or after `at`, as (start, end); `None` when only holes follow.
    ///
    /// # Errors
    /// Whatever the storage reports.
    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let len = self.len()?;
        Ok((at < len).then_some((at, len)))
    }

    /// Bytes that the storage under the file has given to it.
    ///
    /// # Errors
    /// Whatever the storage reports.
    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }

    /// Which object this is.
    fn id(&self) -> StorageId;

    /// Ends writing through this handle: later writes may be refused, and where writing excludes readers, they are let in from now on.
    ///
    /// # Errors
    /// Whatever the storage reports; somebody may then have come in between, and nothing may be assumed of the lock.
    fn end_writing(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The one of two stretches of data that begins first: what lies over a file and what the file has.
pub(crate) fn earlier(a: Option<(u64, u64)>, b: Option<(u64, u64)>) -> Option<(u64, u64)> {
    match (a, b) {
        (Some(a), Some(b)) if b.0 < a.0 => Some(b),
        (None, b) => b,
        (a, _) => a,
    }
}

/// Reads until `buf` is full or the file ends; returns the bytes read.
///
/// # Errors
/// The first failure, with the place it happened at.
#[inline]
pub fn read_up_to<S: Storage + ?Sized>(storage: &S, buf: &mut [u8], at: u64) -> Result<usize, StorageError> {
    match storage.read_at(buf, at) {
        Ok(n) if n == buf.len() => Ok(n),
        first => read_rest(storage, buf, at, first),
    }
}

#[cold]
fn read_rest<S: Storage + ?Sized>(storage: &S, buf: &mut [u8], at: u64, first: io::Result<usize>) -> Result<usize, StorageError> {
    let mut done = 0;
    let mut result = first;
    loop {
        match result {
            Ok(0) => return Ok(done),
            Ok(n) if n > buf.len() - done => {
                return Err(StorageError::new(Operation::Read, at, io::Error::other("storage claims more bytes than asked for")));
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(StorageError::new(Operation::Read, at + done as u64, e)),
        }
        if done == buf.len() {
            return Ok(done);
        }
        result = storage.read_at(&mut buf[done..], at + done as u64);
    }
}

/// Fills `buf`; what lies past the end of the file reads as zeros.
///
/// # Errors
/// The first failure, with the place it happened at; `UnexpectedEof` where a read finds no bytes and the file does not end.
#[inline]
pub fn read_zero_extended<S: Storage + ?Sized>(storage: &S, buf: &mut [u8], at: u64) -> Result<(), StorageError> {
    let n = read_up_to(storage, buf, at)?;
    if n == buf.len() { Ok(()) } else { zero_extend(storage, &mut buf[n..], at + n as u64) }
}

/// A read stopped short at `at`. Where the file ends there, the rest is zeros; where it does not, "no bytes" was no answer, and
/// zeros would be made up. A file that grew just now is read once more.
#[cold]
fn zero_extend<S: Storage + ?Sized>(storage: &S, rest: &mut [u8], at: u64) -> Result<(), StorageError> {
    let mut done = 0;
    for _ in 0..2 {
        let here = at + done as u64;
        if len(storage)? <= here {
            rest[done..].fill(0);
            return Ok(());
        }
        done += read_up_to(storage, &mut rest[done..], here)?;
        if done == rest.len() {
            return Ok(());
        }
    }
    Err(StorageError::new(Operation::Read, at + done as u64, io::ErrorKind::UnexpectedEof.into()))
}

/// Fills `buf`, or fails with `UnexpectedEof` where the file ends first.
///
/// # Errors
/// The first failure, with the place it happened at.
pub fn read_exact<S: Storage + ?Sized>(storage: &S, buf: &mut [u8], at: u64) -> Result<(), StorageError> {
    let n = read_up_to(storage, buf, at)?;
    if n < buf.len() {
        return Err(StorageError::new(Operation::Read, at + n as u64, io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}

/// Writes all of `buf`.
///
/// # Errors
/// The first failure, with the place it happened at; what came before it may have landed.
#[inline]
pub fn write_all<S: Storage + ?Sized>(storage: &S, buf: &[u8], at: u64) -> Result<(), StorageError> {
    match storage.write_at(buf, at) {
        Ok(n) if n == buf.len() => Ok(()),
        first => write_rest(storage, buf, at, first),
    }
}

#[cold]
fn write_rest<S: Storage + ?Sized>(storage: &S, buf: &[u8], at: u64, first: io::Result<usize>) -> Result<(), StorageError> {
    let mut done = 0;
    let mut result = first;
    loop {
        match result {
            Ok(0) if done < buf.len() => {
                return Err(StorageError::new(Operation::Write, at + done as u64, io::ErrorKind::WriteZero.into()));
            }
            Ok(n) if n > buf.len() - done => {
                return Err(StorageError::new(Operation::Write, at, io::Error::other("storage claims more bytes than asked for")));
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(StorageError::new(Operation::Write, at + done as u64, e)),
        }
        if done == buf.len() {
            return Ok(());
        }
        result = storage.write_at(&buf[done..], at + done as u64);
    }
}

/// Buffers that one vectored call may have: `IOV_MAX` of Linux and others.
const MAX_SLICES: usize = 1024;

/// Fills several buffers with neighbouring bytes, in one call where that gets them all; what lies past the end of the file reads
/// as zeros.
///
/// # Errors
/// As [`read_zero_extended`].
pub fn read_vectored_zero_extended<S: Storage + ?Sized>(storage: &S, bufs: &mut [IoSliceMut<'_>], at: u64) -> Result<(), StorageError> {
    let mut at = at;
    for bufs in bufs.chunks_mut(MAX_SLICES) {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        match storage.read_vectored_at(bufs, at) {
            Ok(n) if n == total => at += total as u64,
            Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(StorageError::new(Operation::Read, at, e)),
            // Cut short: one by one, each with what it takes to read it whole.
            _ => {
                for buf in bufs {
                    read_zero_extended(storage, buf, at)?;
                    at += buf.len() as u64;
                }
            }
        }
    }
    Ok(())
}

/// Writes all of several buffers to neighbouring places, in one call where that takes them all.
///
/// # Errors
/// As [`write_all`].
pub fn write_vectored_all<S: Storage + ?Sized>(storage: &S, bufs: &[IoSlice<'_>], at: u64) -> Result<(), StorageError> {
    let mut at = at;
    for bufs in bufs.chunks(MAX_SLICES) {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut landed = match storage.write_vectored_at(bufs, at) {
            Ok(n) if n > total => {
                return Err(StorageError::new(Operation::Write, at, io::Error::other("storage claims more bytes than asked for")));
            }
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(StorageError::new(Operation::Write, at, e)),
        };
        if landed < total {
            let mut place = at;
            for buf in bufs {
                let skip = landed.min(buf.len());
                write_all(storage, &buf[skip..], place + skip as u64)?;
                landed -= skip;
                place += buf.len() as u64;
            }
        }
        at += total as u64;
    }
    Ok(())
}

/// The most zeros of one write.
const ZEROS_AT_ONCE: usize = 64 << 10;
static ZEROS: [u8; ZEROS_AT_ONCE] = [0; ZEROS_AT_ONCE];

/// Zeros for a range, as pieces to be written one by one, each with its place.
///
/// They end at multiples of their size, wherever the range begins: a power cut between two writes must not leave a sector half zeroed,
/// which a single write of the range would not have done.
pub(crate) fn pieces_of_zeros(mut at: u64, len: u64) -> impl Iterator<Item = (u64, &'static [u8])> {
    let end = at.saturating_add(len);
    std::iter::from_fn(move || {
        let to_border = ZEROS_AT_ONCE as u64 - at % ZEROS_AT_ONCE as u64;
        let part = to_border.min(end - at);
        let piece = (at, &ZEROS[..part as usize]);
        at += part;
        (part > 0).then_some(piece)
    })
}

/// Makes a range read as zeros by writing zeros.
///
/// # Errors
/// The first failure.
pub fn write_zeros<S: Storage + ?Sized>(storage: &S, at: u64, len: u64) -> Result<(), StorageError> {
    pieces_of_zeros(at, len).try_for_each(|(at, zeros)| write_all(storage, zeros, at))
}

/// Makes a range read as zeros: by a hole where the storage has them, by writing otherwise.
///
/// # Errors
/// The first failure of the write that a missing hole fell back to, or of the punch itself.
pub fn punch_or_zero<S: Storage + ?Sized>(storage: &S, at: u64, len: u64) -> Result<(), StorageError> {
    match storage.punch(at, len) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => write_zeros(storage, at, len),
        Err(e) => Err(StorageError::new(Operation::Punch, at, e)),
    }
}

/// The length, as a [`StorageError`] on failure.
///
/// # Errors
/// As [`Storage::len`].
pub fn len<S: Storage + ?Sized>(storage: &S) -> Result<u64, StorageError> {
    storage.len().map_err(|e| StorageError::new(Operation::Len, 0, e))
}

/// Sets the length, as a [`StorageError`] on failure.
///
/// # Errors
/// As [`Storage::set_len`].
pub fn set_len<S: Storage + ?Sized>(storage: &S, len: u64) -> Result<(), StorageError> {
    storage.set_len(len).map_err(|e| StorageError::new(Operation::SetLen, len, e))
}

/// Writes all of `buf` and makes it durable, as a [`StorageError`] of a sync on failure. Never tried twice.
///
/// # Errors
/// As [`Storage::write_durable`].
pub fn write_durable<S: Storage + ?Sized>(storage: &S, buf: &[u8], at: u64, site: SyncSite) -> Result<(), StorageError> {
    storage.write_durable(buf, at, site).map_err(|e| StorageError::new(Operation::Sync, at, e))
}

/// Syncs, as a [`StorageError`] on failure. `Interrupted` is a failure here: a sync is never tried twice.
///
/// # Errors
/// As [`Storage::sync`].
pub fn sync<S: Storage + ?Sized>(storage: &S, site: SyncSite) -> Result<(), StorageError> {
    storage.sync(site).map_err(|e| StorageError::new(Operation::Sync, 0, e))
}
