//! Where the bytes of a disk are: for exporters, for block status, and for hosts with an I/O engine of their own.
//!
//! A host that wants to read by itself asks for [`Disk::extents`] and reads the files at the offsets given, while it holds the
//! iterator: as long as it lives, no block it named is handed to another. A host that wants to write by itself asks for a
//! [`WriteToken`], writes, and completes the token; only completing makes the bytes visible.

use super::disk::{Disk, Spot};
use crate::disk::error::DiskError;
use crate::disk::host_io::HostWrite;
use crate::mapping::quarantine::Ticket;
use crate::units::VirtualOffset;

/// A stretch of the virtual disk with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the virtual disk.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Where they are.
    pub kind: ExtentKind,
}

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// In a file of the chain.
    Data {
        /// Which: 0 is the leaf, 1 its parent, and so on.
        layer: usize,
        /// The byte of that file at which the extent starts.
        file_offset: u64,
    },
    /// They are zeros.
    Zero {
        /// The layer that says so; `None` when no layer holds anything there.
        layer: Option<usize>,
    },
}

impl ExtentKind {
    /// Whether `next`, `len` bytes further on, continues this extent.
    fn continues(self, len: u64, next: Self) -> bool {
        match (self, next) {
            (Self::Data { layer: a, file_offset }, Self::Data { layer: b, file_offset: next }) => a == b && file_offset + len == next,
            (Self::Zero { layer: a }, Self::Zero { layer: b }) => a == b,
            (Self::Data { .. }, Self::Zero { .. }) | (Self::Zero { .. }, Self::Data { .. }) => false,
        }
    }
}

/// The extents of a range, in order, covering it; see [`Disk::extents`].
#[must_use]
pub struct Extents<'a> {
    disk: &'a Disk,
    _ticket: Option<Ticket<'a>>,
    at: u64,
    end: u64,
    ahead: Option<Extent>,
}

impl Extents<'_> {
    fn step(&mut self) -> Result<Extent, DiskError> {
        let (spot, len) = self.disk.locate(VirtualOffset::new(self.at), self.end - self.at)?;
        let kind = match spot {
            Spot::Data { layer, at } => ExtentKind::Data { layer, file_offset: at.get() },
            Spot::Zero { layer } => ExtentKind::Zero { layer },
        };
        let extent = Extent { offset: self.at, len, kind };
        self.at += len;
        Ok(extent)
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, DiskError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut extent = match self.ahead.take() {
            Some(extent) => extent,
            None if self.at == self.end => return None,
            None => match self.step() {
                Ok(extent) => extent,
                Err(e) => {
                    self.at = self.end;
                    return Some(Err(e));
                }
            },
        };
        while self.at < self.end {
            match self.step() {
                Ok(next) if extent.kind.continues(extent.len, next.kind) => extent.len += next.len,
                Ok(next) => {
                    self.ahead = Some(next);
                    break;
                }
                // What is known goes out first; the error comes with the next call, from the same place.
                Err(_) => break,
            }
        }
        Some(Ok(extent))
    }
}

/// One piece of a host's own write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostExtent {
    /// First byte of the virtual disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The byte of the leaf's file at which to write them.
    pub file_offset: u64,
}

/// Permission to write into the leaf's file at given places; see [`Disk::begin_write`].
///
/// Dropping a token without completing it gives unused space back; bytes that were written to new places never become visible.
#[must_use]
pub struct WriteToken<'a> {
    inner: HostWrite<'a>,
    disk: &'a Disk,
    _ticket: Ticket<'a>,
}

impl WriteToken<'_> {
    /// Where to write, in order, covering the range.
    pub fn extents(&self) -> Vec<HostExtent> {
        self.inner.extents().map(|(offset, len, file_offset)| HostExtent { offset, len, file_offset }).collect()
    }

    /// The host's bytes are in the file: publishes them. They are durable after the next [`Disk::flush`].
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn complete(self) -> Result<(), DiskError> {
        self.inner.complete(&self.disk.parents)
    }
}

impl Disk {
    /// Where the bytes of a range are, through the whole chain, in order. While the iterator lives, no block of the leaf that
    /// it named is handed to another block.
    ///
    /// ```
    /// use diffdisk::{CreateOptions, Disk, ExtentKind};
    /// # let dir = tempfile::tempdir()?;
    /// let disk = Disk::create(dir.path().join("a.vhdx"), &CreateOptions::dynamic(8 << 20))?;
    /// disk.write_at(&[1; 4096], 1 << 20)?;
    /// let kinds: Vec<_> = disk.extents(0, 8 << 20)?.map(|e| e.map(|e| (e.len, matches!(e.kind, ExtentKind::Data { .. })))).collect::<Result<_, _>>()?;
    /// assert_eq!(kinds, [(1 << 20, false), (1 << 20, true), (6 << 20, false)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `OutOfRange`; the iterator yields `Format` or `Storage` errors where a file of the chain lies or fails.
    pub fn extents(&self, offset: u64, len: u64) -> Result<Extents<'_>, DiskError> {
        let _ = self.range(offset, len)?;
        let ticket = self.writer.as_ref().map(|writer| writer.quarantine.enter());
        Ok(Extents { disk: self, _ticket: ticket, at: offset, end: offset + len, ahead: None })
    }

    /// Finds or makes a place in the leaf's file for each byte of a range of whole sectors, for a host that writes by itself.
    /// Until the token is completed nobody sees the bytes, and nobody else may write to the same sectors.
    ///
    /// # Errors
    /// `Misaligned` unless offset and length are multiples of the logical sector size; otherwise as [`Disk::write_at`].
    pub fn begin_write(&self, offset: u64, len: u64) -> Result<WriteToken<'_>, DiskError> {
        let writer = self.writer()?;
        let sector = self.logical_sector_size();
        if !offset.is_multiple_of(u64::from(sector)) || !len.is_multiple_of(u64::from(sector)) {
            return Err(DiskError::Misaligned { offset, len, sector });
        }
        let at = self.range(offset, len)?.unwrap_or(VirtualOffset::new(offset));
        let ticket = writer.quarantine.enter();
        Ok(WriteToken { inner: HostWrite::begin(writer, at, len)?, disk: self, _ticket: ticket })
    }
}
