//! A [`Disk`], leaf and chain, as others see it.

use super::device::{BlockDevice, DEPTH_NONE, DeviceExtent, ExtentClass};
use crate::{Disk, DiskError, ErrorKind, ExtentKind};
use std::io;
use std::ops::ControlFlow;

/// From this many blocks on, zeroing is fast whatever has to be written at both ends.
const MANY_BLOCKS: u64 = 4;
/// Bytes of zeros written at a time where zeros must take space.
const ZEROS: usize = 1 << 20;

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
        if !keep_space {
            return Disk::write_zeroes(self, offset, len).map_err(plain);
        }
        let zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(zeros.len() as u64);
            Disk::write_at(self, &zeros[..part as usize], offset + done).map_err(plain)?;
            done += part;
        }
        Ok(())
    }

    fn can_zero_fast(&self, offset: u64, len: u64, keep_space: bool) -> bool {
        let block = self.leaf.geometry.block_size();
        let is_whole = offset.is_multiple_of(block) && (len.is_multiple_of(block) || offset + len == Disk::size(self));
        // A fixed disk is zeroed in place, and how fast that is depends on the file system.
        !keep_space && !self.leaf.is_fixed() && (is_whole || len >= MANY_BLOCKS * block)
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        Disk::trim(self, offset, len).map_err(plain)
    }

    fn flush(&self) -> io::Result<()> {
        Disk::flush(self).map_err(plain)
    }

    fn extents(&self, offset: u64, len: u64, visit: &mut dyn FnMut(DeviceExtent) -> ControlFlow<()>) -> io::Result<()> {
        for extent in Disk::extents(self, offset, len).map_err(plain)? {
            let extent = extent.map_err(plain)?;
            let (class, depth) = match extent.kind {
                ExtentKind::Data { layer, .. } => (ExtentClass::Data, depth_of(layer)),
                ExtentKind::Zero { layer } => (ExtentClass::Hole, layer.map_or(DEPTH_NONE, depth_of)),
            };
            if visit(DeviceExtent { offset: extent.offset, len: extent.len, class, depth }).is_break() {
                break;
            }
        }
        Ok(())
    }
}
