//! Giving space back to the file system; see `disk/compact` for how.

use super::error::ToolError;
use crate::chain::{Disk, LiveDisk, Parents};
use crate::disk::backing::Backing;
use crate::disk::compact::{CompactFault, CompactOptions, CompactReport, Compactor};
use crate::disk::error::DiskError;
use crate::progress::{Cancel, Progress};

impl Disk {
    /// Makes the file smaller without changing what the disk shows, while it is in use: other threads read, write, trim and flush
    /// through the same disk meanwhile, and nobody waits for it.
    ///
    /// Blocks of zeros, blocks of a child that hold what the parent shows, places that trimmed blocks kept and space that nobody owns
    /// are given up; blocks at the end of the file move into the gaps; the file is cut behind the last one. Zeros inside blocks
    /// become holes where the file system has them. A fixed disk keeps all of its blocks.
    ///
    /// The data write GUID stays unless somebody writes (MS-VHDX 2.2.2), so children of this file remain linked. Every step leaves a valid
    /// disk, also for a crash; when the call ends early, calling again goes on from there. What was moved is durable when the
    /// call returns.
    ///
    /// Free space of a file system *inside* the disk is known to that file system alone: let it discard first (`fstrim`), then compact.
    ///
    /// ```
    /// use diffdisk::{Cancel, CompactOptions, CreateOptions, Disk, NoProgress};
    /// # let dir = tempfile::tempdir()?;
    /// let disk = Disk::create(dir.path().join("a.vhdx"), &CreateOptions::dynamic(64 << 20).block_size(1 << 20))?;
    /// disk.write_at(&vec![1; 8 << 20], 0)?;
    /// disk.trim(0, 7 << 20)?;
    /// let report = disk.compact(&CompactOptions::default(), &NoProgress, &Cancel::new())?;
    /// assert_eq!(report.moved_blocks, 1); // the last block went where the first one was
    /// assert_eq!(report.file_after, 5 << 20); // four MiB of headers, log and tables, and one block
    /// disk.close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Disk` when a file of the chain fails or contradicts MS-VHDX (see [`Disk::check`]), or the disk is read-only or latched; `Cancelled`.
    pub fn compact(&self, options: &CompactOptions, progress: &dyn Progress, cancel: &Cancel) -> Result<CompactReport, ToolError> {
        let backing = match &self.parents {
            Parents::Line(_) => Some(&self.parents as &dyn Backing),
            Parents::None | Parents::NotOpened => None,
        };
        let about = |cause: DiskError| ToolError::Disk { path: self.leaf.path.clone().unwrap_or_default(), cause };
        let writer = self.writer().map_err(about)?;
        Compactor::new(writer, backing, options, progress, cancel).run().map_err(|fault| match fault {
            CompactFault::Cancelled => ToolError::Cancelled,
            CompactFault::Disk(cause) => about(cause),
        })
    }
}

impl LiveDisk {
    /// As [`Disk::compact`]. A save waits until it is done, or cancelled.
    ///
    /// # Errors
    /// As [`Disk::compact`].
    pub fn compact(&self, options: &CompactOptions, progress: &dyn Progress, cancel: &Cancel) -> Result<CompactReport, ToolError> {
        let done = self.without_switches(|disk| disk.compact(options, progress, cancel));
        done.map_err(|cause| ToolError::Disk { path: Default::default(), cause })?
    }
}
