//! Hydrating a clone: everything it can read is in its own file. Flattening: it then has no parent any more.
//!
//! Both work on an open disk while it is read and written through the same [`Disk`], block by block; what a block goes through, and why
//! the cut is safe, stands in `disk/hydrate.rs`. Here is which blocks are visited, and in which order:
//!
//! ```text
//!   hydrate   1. blocks that are partially present          (a walk over the leaf's table)
//!             2. blocks of which ancestors say something    (a walk over the extents, which skips what no table mentions)
//!             3. a flush
//!   flatten   1.-3. likewise
//!             4. the switch to whole blocks; then 1. again, for what was touched meanwhile
//!             5. the sector bitmap blocks are given up, the link is cut
//! ```
//!
//! Time and space follow what the ancestors hold, not the size of the disk. Whoever stops in between (an error, a crash, a cancel) leaves
//! a valid child that inherits less than before; going on later finds the rest.

use super::error::{About, ToolError};
use crate::chain::{Disk, ExtentKind, LiveDisk, Parents};
use crate::disk::error::DiskError;
use crate::disk::hydrate::Visited;
use crate::disk::items::ItemFault;
use crate::disk::layer::Link;
use crate::disk::writer::Writer;
use crate::progress::{Cancel, Phase, Progress};
use crate::units::{BlockIndex, VirtualOffset};
use std::path::PathBuf;
use std::time::Duration;

/// Blocks found at a time.
const FOUND_AT_ONCE: usize = 256;
/// Bytes copied between two flushes, so that an interrupted run does not begin again.
const FLUSH_EVERY: u64 = 256 << 20;
/// How long to wait for a host that is writing into a block by itself.
const HOST_PAUSE: Duration = Duration::from_millis(1);

/// What hydrating or flattening did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hydrated {
    /// Blocks that inherited something and were visited.
    pub blocks: u64,
    /// Bytes that were copied from ancestors.
    pub copied: u64,
    /// Whether the file has no parent any more.
    pub is_cut: bool,
}

/// One run over a disk.
struct Run<'a> {
    disk: &'a Disk,
    writer: &'a Writer,
    path: PathBuf,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    done: Hydrated,
    since_flush: u64,
}

impl Disk {
    /// Copies everything this differencing disk can read from its ancestors into its own file, and flushes. The link stays, and so does the
    /// data write GUID: nothing that a user sees has changed. The disk may be read and written meanwhile. Does nothing on a disk
    /// without a parent.
    ///
    /// ```
    /// use diffdisk::{Cancel, CreateOptions, Disk, NoProgress};
    /// # let dir = tempfile::tempdir()?;
    /// # let path = |name: &str| dir.path().join(name);
    /// let base = Disk::create(path("app.vhdx"), &CreateOptions::dynamic(1 << 30))?;
    /// base.write_at(b"golden", 4096)?;
    /// base.close()?;
    /// let clone = Disk::create_child(path("alice.vhdx"), path("app.vhdx"), &CreateOptions::child())?;
    /// let done = clone.hydrate(&NoProgress, &Cancel::new())?;
    /// assert_eq!((done.blocks, done.is_cut), (1, false));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Refused` when the parents are not open; `Disk` when reading or writing fails; `Cancelled`. The disk is valid after each of them, and
    /// calling again goes on.
    pub fn hydrate(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Hydrated, ToolError> {
        let Some(mut run) = Run::new(self, progress, cancel)? else { return Ok(Hydrated::default()) };
        let _alone = run.writer.overhaul.lock();
        run.writer.stop_riding().map_err(|cause| ToolError::Disk { path: run.path.clone(), cause })?;
        run.hydrate()?;
        Ok(run.done)
    }

    /// Hydrates the disk and takes the link to its parent away: it becomes a dynamic disk, while it is read and written. The data write
    /// GUID stays. The parents' files stay open until the disk is dropped, but nothing is read from them any more.
    ///
    /// ```
    /// use diffdisk::{Cancel, CreateOptions, Disk, NoProgress, OpenOptions};
    /// # let dir = tempfile::tempdir()?;
    /// # let path = |name: &str| dir.path().join(name);
    /// let base = Disk::create(path("app.vhdx"), &CreateOptions::dynamic(1 << 30))?;
    /// base.write_at(b"golden", 4096)?;
    /// base.close()?;
    /// let clone = Disk::create_child(path("alice.vhdx"), path("app.vhdx"), &CreateOptions::child())?;
    /// assert!(clone.flatten(&NoProgress, &Cancel::new())?.is_cut);
    /// clone.close()?;
    /// std::fs::remove_file(path("app.vhdx"))?;
    /// let mut word = [0; 6];
    /// Disk::open(path("alice.vhdx"), &OpenOptions::new())?.read_at(&mut word, 4096)?;
    /// assert_eq!(&word, b"golden");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Disk::hydrate`]. When the last step itself fails, the disk is latched: reopening finds it linked or cut, and both read the same.
    pub fn flatten(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Hydrated, ToolError> {
        let Some(mut run) = Run::new(self, progress, cancel)? else { return Ok(Hydrated::default()) };
        let _alone = run.writer.overhaul.lock();
        run.writer.stop_riding().map_err(|cause| ToolError::Disk { path: run.path.clone(), cause })?;
        run.hydrate()?;
        run.writer.switch(Link::Whole);
        if let Err(e) = run.cut() {
            if !run.writer.is_latched() {
                run.writer.switch(Link::Linked);
            }
            return Err(e);
        }
        Ok(run.done)
    }
}

impl LiveDisk {
    /// As [`Disk::hydrate`]. A save waits until it is done, or cancelled.
    ///
    /// # Errors
    /// As [`Disk::hydrate`].
    pub fn hydrate(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Hydrated, ToolError> {
        let done = self.without_switches(|disk| disk.hydrate(progress, cancel));
        done.map_err(|cause| ToolError::Disk { path: PathBuf::new(), cause })?
    }
}

impl<'a> Run<'a> {
    /// `None` when the disk has no parent.
    fn new(disk: &'a Disk, progress: &'a dyn Progress, cancel: &'a Cancel) -> Result<Option<Self>, ToolError> {
        let path = disk.leaf.path.clone().unwrap_or_else(|| PathBuf::from("the disk"));
        let writer = disk.writer().about(&path)?;
        if !disk.leaf.has_parent() {
            return Ok(None);
        }
        if matches!(disk.parents, Parents::NotOpened) {
            return Err(ToolError::refused(&path, "its parents are not open, and what it inherits is theirs"));
        }
        Ok(Some(Self { disk, writer, path, progress, cancel, done: Hydrated::default(), since_flush: 0 }))
    }

    fn about<T>(&self, result: Result<T, DiskError>) -> Result<T, ToolError> {
        result.about(&self.path)
    }

    fn hydrate(&mut self) -> Result<(), ToolError> {
        self.progress.phase(Phase::Hydrate, Some(self.disk.size()));
        self.stop()?;
        self.about(self.writer.begin_layout())?;
        self.complete_partial()?;
        let mut at = 0;
        while at < self.disk.size() {
            let (found, next) = self.about(self.inherited(at))?;
            for block in found {
                self.visit(block)?;
            }
            at = next;
            self.progress.advance(at);
        }
        self.about(self.writer.flush())
    }

    /// Blocks from `at` on that are not present here and of which an ancestor says something, a few; and where to go on.
    fn inherited(&self, at: u64) -> Result<(Vec<BlockIndex>, u64), DiskError> {
        let g = &self.disk.leaf.geometry;
        let size = self.disk.size();
        let mut found: Vec<BlockIndex> = Vec::new();
        for extent in self.disk.extents(at, size - at)? {
            let extent = extent?;
            let is_inherited = match extent.kind {
                ExtentKind::Data { layer, .. } | ExtentKind::Zero { layer: Some(layer) } => layer > 0,
                ExtentKind::Zero { layer: None } => false,
            };
            if !is_inherited {
                continue;
            }
            let first = g.block_of(VirtualOffset::new(extent.offset)).get();
            let last = g.block_of(VirtualOffset::new(extent.offset + extent.len - 1)).get();
            for block in first..=last {
                if found.len() == FOUND_AT_ONCE {
                    return Ok((found, g.block_start(BlockIndex::new(block)).get().max(at)));
                }
                if found.last().is_none_or(|last| last.get() < block) {
                    found.push(BlockIndex::new(block));
                }
            }
        }
        Ok((found, size))
    }

    fn complete_partial(&mut self) -> Result<(), ToolError> {
        for block in self.about(self.writer.partial_blocks())? {
            self.visit(block)?;
        }
        Ok(())
    }

    fn visit(&mut self, block: BlockIndex) -> Result<(), ToolError> {
        loop {
            self.stop()?;
            match self.about(self.writer.hydrate_block(&self.disk.parents, block))? {
                Visited::Hosted => std::thread::sleep(HOST_PAUSE),
                Visited::Own { copied } => {
                    self.done.blocks += 1;
                    self.done.copied += copied;
                    self.since_flush += copied;
                    break;
                }
            }
        }
        if self.since_flush >= FLUSH_EVERY {
            self.since_flush = 0;
            self.about(self.writer.flush())?;
        }
        Ok(())
    }

    /// Everything after the switch to whole blocks.
    fn cut(&mut self) -> Result<(), ToolError> {
        self.complete_partial()?;
        self.about(self.writer.give_up_bitmaps())?;
        self.stop()?;
        self.writer.cut().map_err(|fault| match fault {
            ItemFault::NoRoom { .. } => ToolError::refused(&self.path, "its log is too small for the entry that cuts the link"),
            ItemFault::Disk(cause) => ToolError::Disk { path: self.path.clone(), cause },
        })?;
        self.done.is_cut = true;
        Ok(())
    }

    fn stop(&self) -> Result<(), ToolError> {
        if self.cancel.is_cancelled() { Err(ToolError::Cancelled) } else { Ok(()) }
    }
}
