//! What the VFS needs of the disk under a database.

use crate::kind::ErrorKind;
use crate::sync::Arc;
use crate::{Disk, DiskError};
use std::fmt;

/// A failure of the device, in the words of whoever failed.
#[derive(Clone, Debug)]
pub(super) struct DeviceError {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A block device with flush: a disk, or what a test puts in its place.
pub(super) trait Device: Send + Sync {
    fn size(&self) -> u64;
    fn sector_size(&self) -> u32;
    fn is_writable(&self) -> bool;
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError>;
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DeviceError>;
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DeviceError>;
    /// Gives space back where that is easy; what is read there afterwards does not matter.
    fn trim(&self, offset: u64, len: u64) -> Result<(), DeviceError>;
    fn flush(&self) -> Result<(), DeviceError>;
}

impl From<DiskError> for DeviceError {
    fn from(e: DiskError) -> Self {
        Self { kind: e.kind(), message: e.to_string() }
    }
}

impl Device for Arc<Disk> {
    fn size(&self) -> u64 {
        Disk::size(self)
    }
    fn sector_size(&self) -> u32 {
        self.logical_sector_size()
    }
    fn is_writable(&self) -> bool {
        Disk::is_writable(self)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        Ok(Disk::read_at(self, buf, offset)?)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DeviceError> {
        Ok(Disk::write_at(self, buf, offset)?)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        Ok(Disk::write_zeroes(self, offset, len)?)
    }
    fn trim(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        Ok(Disk::trim(self, offset, len)?)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        Ok(Disk::flush(self)?)
    }
}
