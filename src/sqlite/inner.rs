//! One volume from the inside: a device, the length of the database on it, and the locks of its open files.

use super::SqliteError;
use super::device::{Device, DeviceError};
use super::length::{self, HEADER, Header, LARGEST_PAGE};
use super::locks::LockTable;
use super::side;
use crate::sync::{AtomicU64, Mutex, Ordering};
use std::io;
use std::path::Path;

/// What a volume and its open files share.
pub(super) struct Inner {
    pub(super) device: Box<dyn Device>,
    /// The clone's path, which is the name SQLite knows the database by.
    pub(super) name: String,
    /// The length of the database. Changed by the one holder of EXCLUSIVE; sequentially consistent because nothing here is hot.
    len: AtomicU64,
    pub(super) locks: Mutex<LockTable>,
    next_holder: AtomicU64,
}

/// A failure of the device, or the end of it.
pub(super) enum WriteError {
    /// The database would outgrow the disk.
    PastTheEnd,
    Device(DeviceError),
}

impl Inner {
    /// Finds out what the device holds.
    pub(super) fn attach(device: Box<dyn Device>, name: String) -> Result<Self, SqliteError> {
        let disk = |e: DeviceError| SqliteError::Disk { path: name.as_str().into(), kind: e.kind, message: e.message };
        let journal = read_journal_header(&format!("{name}-journal"))?;
        let before = length::journal_len(&journal);
        let len = match read_header(device.as_ref()).map_err(disk)? {
            Header::Valid { len, .. } => len.max(before.unwrap_or(0)).min(device.size()),
            Header::BadPageSize(page_size) => return Err(SqliteError::BadPageSize { path: name.into(), page_size }),
            Header::NoPageCount => return Err(SqliteError::NoPageCount { path: name.into() }),
            Header::Absent if before == Some(0) && starts_with_zeros(device.as_ref(), HEADER as u64).map_err(disk)? => {
                // The first transaction ever was cut short before page 1 arrived, though others may have.
                if device.is_writable() {
                    erase_start(device.as_ref(), LARGEST_PAGE).and_then(|()| device.flush()).map_err(disk)?;
                }
                0
            }
            Header::Absent if starts_with_zeros(device.as_ref(), LARGEST_PAGE).map_err(disk)? => 0,
            Header::Absent => return Err(SqliteError::NotADatabase { path: name.into() }),
        };
        Ok(Self { device, name, len: AtomicU64::new(len), locks: Mutex::default(), next_holder: AtomicU64::new(1) })
    }

    /// Whether the database, as it is now, wants a write-ahead log.
    pub(super) fn is_wal(&self) -> Result<bool, DeviceError> {
        Ok(self.len() > 0 && matches!(read_header(self.device.as_ref())?, Header::Valid { is_wal: true, .. }))
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::SeqCst)
    }

    pub(super) fn new_holder(&self) -> u64 {
        self.next_holder.fetch_add(1, Ordering::SeqCst)
    }

    /// Fills `buf` as far as the database goes; returns the bytes read.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<usize, DeviceError> {
        let n = self.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        if n > 0 {
            self.device.read_at(&mut buf[..n], offset)?;
        }
        Ok(n)
    }

    pub(super) fn write(&self, buf: &[u8], offset: u64) -> Result<(), WriteError> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.device.size()).ok_or(WriteError::PastTheEnd)?;
        let len = self.len();
        if offset > len {
            // What lies between is zeros in a file; here it may be what a longer database left.
            self.device.write_zeroes(len, offset - len).map_err(WriteError::Device)?;
        }
        self.device.write_at(buf, offset).map_err(WriteError::Device)?;
        self.len.fetch_max(end, Ordering::SeqCst);
        Ok(())
    }

    /// Makes the database `len` bytes long.
    pub(super) fn truncate(&self, len: u64) -> Result<(), WriteError> {
        let old = self.len();
        if len > self.device.size() {
            return Err(WriteError::PastTheEnd);
        }
        if len > old {
            self.device.write_zeroes(old, len - old).map_err(WriteError::Device)?;
        }
        if len == 0 && old > 0 {
            erase_start(self.device.as_ref(), LARGEST_PAGE).map_err(WriteError::Device)?;
        }
        self.len.store(len, Ordering::SeqCst);
        // In this order, because a journal that comes back after a power cut needs the pages that were cut off.
        if len < old && side::sync_directory_of(Path::new(&self.name)).is_ok() {
            self.device.trim(len, old - len).map_err(WriteError::Device)?;
        }
        Ok(())
    }
}

fn read_header(device: &dyn Device) -> Result<Header, DeviceError> {
    let mut bytes = [0; HEADER];
    if device.size() >= HEADER as u64 {
        device.read_at(&mut bytes, 0)?;
    }
    Ok(length::header(&bytes))
}

fn starts_with_zeros(device: &dyn Device, len: u64) -> Result<bool, DeviceError> {
    let mut bytes = vec![0; len.min(device.size()) as usize];
    device.read_at(&mut bytes, 0)?;
    Ok(bytes.iter().all(|&b| b == 0))
}

fn erase_start(device: &dyn Device, len: u64) -> Result<(), DeviceError> {
    device.write_zeroes(0, len.min(device.size()))
}

/// The start of a rollback journal; empty where there is none.
fn read_journal_header(path: &str) -> Result<Vec<u8>, SqliteError> {
    let beside = |source: io::Error| SqliteError::Beside { path: path.into(), source };
    let mut file = match side::SideFile::open(Path::new(path), side::Open::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(beside(e)),
    };
    let mut bytes = vec![0; 28];
    let n = file.read(&mut bytes, 0).map_err(beside)?;
    bytes.truncate(n);
    Ok(bytes)
}
