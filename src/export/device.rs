//! The trait every exported disk implements.

use crate::storage;
use std::io;
use std::ops::ControlFlow;

/// A disk as its users see it: bytes in a fixed range, a flush, and news about where nothing is.
///
/// All calls take `&self` and come from many threads at once. Servers check ranges before they call, so an implementation may
/// answer a range outside of the disk with any error. Failures are `io::Error`s because that is what wire protocols can
/// express: their kind picks the error code the client sees (`StorageFull` and its kin, `PermissionDenied`, `InvalidInput`,
/// anything else).
pub trait BlockDevice: Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// The sizes requests should or must be multiples of.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    /// Whether every change is refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// Whatever kept the bytes from being read; `buf` then holds anything.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Stores `buf` at `offset`. Durable after the next [`BlockDevice::flush`].
    ///
    /// # Errors
    /// Whatever kept the bytes from being written; the range then holds old and new bytes.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes a range read as zeros. With `keep_space`, later writes there need no new space (the device writes literal zeros if
    /// it has no better way).
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`].
    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> io::Result<()> {
        let _ = keep_space;
        storage::pieces_of_zeros(offset, len).try_for_each(|(at, zeros)| self.write_at(zeros, at))
    }

    /// Whether [`BlockDevice::write_zeroes`] of this range is sure to be much faster than writing it.
    fn can_zero_fast(&self, offset: u64, len: u64, keep_space: bool) -> bool {
        let _ = (offset, len, keep_space);
        false
    }

    /// Tells that nobody needs the content of a range any more. The device may drop it, in part or not at all; what it drops
    /// reads as zeros, never as older content.
    ///
    /// # Errors
    /// As [`BlockDevice::write_at`].
    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Returns when every write that was done before the call survives a power cut, whoever wrote it.
    ///
    /// # Errors
    /// Whatever kept the data from becoming durable. Nothing may be assumed of it then.
    fn flush(&self) -> io::Result<()>;

    /// Tells what a range is made of: extents in order, without gaps, covering the range or as much of it as `visit` wants (it
    /// says `Break` when it has seen enough).
    ///
    /// # Errors
    /// Whatever kept the mapping from being read.
    fn extents(&self, offset: u64, len: u64, visit: &mut dyn FnMut(DeviceExtent) -> ControlFlow<()>) -> io::Result<()> {
        let _ = visit(DeviceExtent { offset, len, class: ExtentClass::Data, depth: 0 });
        Ok(())
    }
}

/// Sizes in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of it; 1 where anything goes.
    pub minimum: u32,
    /// Multiples of it are served best; at least 512.
    pub preferred: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096 }
    }
}

/// [`DeviceExtent::depth`] of a range that no layer has anything about: it reads as zeros because nobody ever wrote it.
pub const DEPTH_NONE: u32 = u32::MAX;

/// One stretch of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceExtent {
    /// Where it starts.
    pub offset: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// What it reads as.
    pub class: ExtentClass,
    /// Which layer of the chain says so: 0 for the disk itself, 1 for its parent, and so on; [`DEPTH_NONE`] for nobody.
    pub depth: u32,
}

/// What an extent reads as, and whether it takes space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentClass {
    /// Bytes somebody wrote. They may be zeros.
    Data,
    /// Zeros that take space.
    Zero,
    /// Zeros that take none.
    Hole,
}
