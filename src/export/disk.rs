//! A [`Disk`], leaf and chain, as others see it.

use super::device::{BlockDevice, DEPTH_NONE, DeviceExtent, ExtentClass};
use crate::storage;
use crate::{Disk, DiskError, ErrorKind, Extent, ExtentKind, LiveDisk};
use std::io;
use std::ops::ControlFlow;

/// From this many blocks on, zeroing is fast whatever has to be written at both ends.
const MANY_BLOCKS: u64 = 4;

/// The coarse kind survives: protocols tell "no space" and "not allowed" from "broken".
fn plain(error: DiskError) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::NoSpace => io::ErrorKind::StorageFull,
        ErrorKind::Denied => io::ErrorKind::PermissionDenied,
        ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

fn depth_of(layer: usize) -> u32 {
    u32::try_from(layer).expect("chains have at most 256 layers")
}

fn shown(extent: Extent) -> DeviceExtent {
    let (class, depth) = match extent.kind {
        ExtentKind::Data { layer, .. } => (ExtentClass::Data, depth_of(layer)),
        ExtentKind::Zero { layer } => (ExtentClass::Hole, layer.map_or(DEPTH_NONE, depth_of)),
    };
    DeviceExtent { offset: extent.offset, len: extent.len, class, depth }
}

fn write_zeros_as_data(offset: u64, len: u64, mut write: impl FnMut(&[u8], u64) -> Result<(), DiskError>) -> io::Result<()> {
    storage::pieces_of_zeros(offset, len).try_for_each(|(at, zeros)| write(zeros, at)).map_err(plain)
}

/// Whether only whole blocks are zeroed, or so many that the ends do not count.
fn zeroes_fast(disk: &Disk, offset: u64, len: u64) -> bool {
    let block = disk.leaf.geometry.block_size();
    let is_whole = offset.is_multiple_of(block) && (len.is_multiple_of(block) || offset + len == disk.size());
    // A fixed disk is zeroed in place, and how fast that is depends on the file system.
    !disk.leaf.is_fixed() && (is_whole || len >= MANY_BLOCKS * block)
}

fn visit_all(
    extents: impl Iterator<Item = Result<Extent, DiskError>>,
    visit: &mut dyn FnMut(DeviceExtent) -> ControlFlow<()>,
) -> io::Result<()> {
    for extent in extents {
        if visit(shown(extent.map_err(plain)?)).is_break() {
            break;
        }
    }
    Ok(())
}

/// Zeros are never stored, unless as data: every zero extent is a hole. Only whole blocks can be zeroed without writing.
impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        Disk::size(self)
    }

    fn is_read_only(&self) -> bool {
        !self.is_writable()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        Disk::read_at(self, buf, offset).map_err(plain)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        Disk::write_at(self, buf, offset).map_err(plain)
    }

    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> io::Result<()> {
        if keep_space {
            return write_zeros_as_data(offset, len, |zeros, at| Disk::write_at(self, zeros, at));
        }
        Disk::write_zeroes(self, offset, len).map_err(plain)
    }

    fn can_zero_fast(&self, offset: u64, len: u64, keep_space: bool) -> bool {
        !keep_space && zeroes_fast(self, offset, len)
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        Disk::trim(self, offset, len).map_err(plain)
    }

    fn flush(&self) -> io::Result<()> {
        Disk::flush(self).map_err(plain)
    }

    fn extents(&self, offset: u64, len: u64, visit: &mut dyn FnMut(DeviceExtent) -> ControlFlow<()>) -> io::Result<()> {
        visit_all(Disk::extents(self, offset, len).map_err(plain)?, visit)
    }
}

/// As a [`Disk`] does, whichever leaf the disk has at that moment.
impl BlockDevice for LiveDisk {
    fn size(&self) -> u64 {
        LiveDisk::size(self)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        LiveDisk::read_at(self, buf, offset).map_err(plain)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        LiveDisk::write_at(self, buf, offset).map_err(plain)
    }

    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> io::Result<()> {
        if keep_space {
            return write_zeros_as_data(offset, len, |zeros, at| LiveDisk::write_at(self, zeros, at));
        }
        LiveDisk::write_zeroes(self, offset, len).map_err(plain)
    }

    fn can_zero_fast(&self, offset: u64, len: u64, keep_space: bool) -> bool {
        !keep_space && self.with(|disk| zeroes_fast(disk, offset, len))
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        LiveDisk::trim(self, offset, len).map_err(plain)
    }

    fn flush(&self) -> io::Result<()> {
        LiveDisk::flush(self).map_err(plain)
    }

    fn extents(&self, offset: u64, len: u64, visit: &mut dyn FnMut(DeviceExtent) -> ControlFlow<()>) -> io::Result<()> {
        visit_all(LiveDisk::extents(self, offset, len).map_err(plain)?, visit)
    }
}
