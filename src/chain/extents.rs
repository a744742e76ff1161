//! Where the bytes of a disk are: for exporters, for block status, and for hosts with an I/O engine of their own.
//!
//! A host that wants to read by itself asks for [`Disk::extents`] and reads the files at the offsets given, while it holds the
//! iterator: as long as it lives, no block it named is handed to another. A host that wants to write by itself asks for a
//! [`WriteToken`], writes, and completes the token; only completing makes the bytes visible.

use super::disk::{Disk, Parents, Spot};
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
    /// From where on it is worth asking for a blank stretch again.
    probe_at: u64,
}

/// Blocks that one page of a BAT maps, about: the least that a blank stretch is worth asking for.
const BLANK_BLOCKS: u64 = 512;

impl Extents<'_> {
    fn step(&mut self) -> Result<Extent, DiskError> {
        if let Some(len) = self.blank()? {
            let extent = Extent { offset: self.at, len, kind: ExtentKind::Zero { layer: None } };
            self.at += len;
            return Ok(extent);
        }
        let at = VirtualOffset::new(self.at);
        if let Some(writer) = &self.disk.writer {
            // Whoever holds the iterator may read or write there by himself, so the block must not move to another place.
            let _ = writer.settle(self.disk.leaf.geometry.block_of(at))?;
        }
        let (spot, len) = self.disk.locate(at, self.end - self.at)?;
        let kind = match spot {
            Spot::Data { layer, at } => ExtentKind::Data { layer, file_offset: at.get() },
            Spot::Zero { layer } => ExtentKind::Zero { layer },
        };
        let extent = Extent { offset: self.at, len, kind };
        self.at += len;
        Ok(extent)
    }

    /// A stretch from here on of which no BAT of the chain says anything. Without this a walk over 64 TiB of nothing would load
    /// every page of every BAT: up to 512 MiB for each layer.
    fn blank(&mut self) -> Result<Option<u64>, DiskError> {
        let left = self.end - self.at;
        let reach = BLANK_BLOCKS << self.disk.layers().map(|layer| layer.geometry.block_shift()).min().unwrap_or(0);
        if self.at < self.probe_at || left <= reach || matches!(self.disk.parents, Parents::NotOpened) {
            return Ok(None);
        }
        let mut len = left;
        for layer in self.disk.layers() {
            len = len.min(layer.blank(VirtualOffset::new(self.at))?);
            if len == 0 {
                self.probe_at = self.at.saturating_add(reach);
                return Ok(None);
            }
        }
        Ok(Some(len))
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
        Ok(Extents { disk: self, _ticket: ticket, at: offset, end: offset + len, ahead: None, probe_at: 0 })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;
    use crate::sync::Arc;
    use crate::{CreateOptions, OpenOptions};

    /// The naive twin: asked one block at a time, where nothing is skipped, and put together afterwards.
    fn block_by_block(disk: &Disk) -> Vec<Extent> {
        let mut all: Vec<Extent> = Vec::new();
        for offset in (0..disk.size()).step_by(1 << 20) {
            let len = (disk.size() - offset).min(1 << 20);
            for extent in disk.extents(offset, len).expect("inside").map(|extent| extent.expect("a sound disk")) {
                match all.last_mut() {
                    Some(last) if last.kind.continues(last.len, extent.kind) => last.len += extent.len,
                    _ => all.push(extent),
                }
            }
        }
        all
    }

    fn whole(disk: &Disk) -> Vec<Extent> {
        disk.extents(0, disk.size()).expect("inside").map(|extent| extent.expect("a sound disk")).collect()
    }

    #[test]
    fn skipping_what_is_blank_changes_no_answer() {
        // 200 GiB in blocks of 1 MiB: 400 BAT pages in 25 of the pieces in which memory knows holes, a piece for about 8 GiB (16 in the
        // child). Writes stand at the edges of chunks (4 GiB), BAT pages (about 512 MiB) and pieces. The child is larger and has
        // larger blocks.
        let (base, child): (Arc<MemoryStorage>, Arc<MemoryStorage>) = Default::default();
        let disk = Disk::create_on(base.clone(), &CreateOptions::dynamic(200 << 30).block_size(1 << 20)).expect("a base");
        for mib in [0_u64, 1, 511, 512, 513, 4095, 4096, 8187, 8188, 12 << 10, 65_000, (200 << 10) - 1] {
            disk.write_at(&[1; 4096], mib << 20).expect("a write");
        }
        disk.close().expect("a close");
        let options = CreateOptions::child().size(300 << 30).block_size(2 << 20);
        let disk = Disk::create_child_on(child.clone(), vec![base.clone()], &options).expect("a child");
        for at in [2_u64 << 30, (8 << 30) - 512, (16 << 30) + 8192, 150 << 30, 290 << 30] {
            disk.write_at(&[2; 512], at).expect("a write");
        }
        disk.trim(12 << 30, 8 << 20).expect("a trim");
        // Some pages in memory and changed, the rest not looked at yet.
        assert_eq!(whole(&disk), block_by_block(&disk), "while writing");
        disk.close().expect("a close");
        let open = || Disk::open_on(child.clone(), vec![base.clone()], &OpenOptions::new()).expect("the chain");
        let disk = open();
        let cold = whole(&disk);
        assert_eq!(cold.iter().map(|extent| extent.len).sum::<u64>(), 300 << 30);
        assert_eq!(cold, block_by_block(&open()));
        assert_eq!(cold, whole(&disk), "once warm");
        let data = cold.iter().filter(|extent| matches!(extent.kind, ExtentKind::Data { .. })).count();
        // Of the base six groups of neighbouring blocks (the trimmed one is gone), of the child five writes.
        assert_eq!(data, 6 + 5, "{cold:?}");
        assert!(cold.iter().any(|extent| extent.kind == ExtentKind::Zero { layer: Some(0) }), "{cold:?}");
        let blank = open().leaf.blank(VirtualOffset::new(40 << 30)).expect("a sound disk");
        assert!(blank > 8 << 30 && blank < u64::MAX, "there is something to skip: {blank}");
    }
}
