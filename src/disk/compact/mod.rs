//! Giving space back, in place, while the disk is in use.
//!
//! ```text
//!   survey      every present block is looked at: what reads as zeros becomes ZERO, what reads as the parent does becomes NOT_PRESENT
//!               again, pages of zeros inside the others become holes; unmapped blocks let go of the place they keep
//!   bitmaps     a sector bitmap block that no partially present block needs is given up
//!   relocate    blocks at the end move into free space further down
//!   cut         the file ends where the last thing in it does
//! ```
//!
//! No byte that a user can read changes, so the data write GUID stays and children of the file remain linked ([`Writer::begin_layout`],
//! our format reference §1.7). Stopping anywhere leaves a valid disk; running again goes on from there.
//!
//! # A block that changes its place under readers and writers
//!
//! Reads and rewrites of present sectors take no lock, so nobody can be asked to wait. A change of a block goes in these steps:
//!
//! ```text
//!   1 mark      under the stripe: a reserved bit in the entry's word, in memory (`mapping/bat.rs`)
//!   2 wait      until every ticket drawn before the mark is gone; no lock is held meanwhile
//!   3 look      read the block, write the copy: nobody writes into the block now
//!   4 publish   under the stripe: if the mark is still there, the new entry, without mark; the old place is released
//! ```
//!
//! *Writers.* A hot writer draws its ticket before it looks an entry up. One that did not see the mark drew its ticket before step 1 (or in an
//! epoch that step 2 waited for), so it is done when step 2 is. One that sees the mark goes the cold way and takes the stripe, and whoever
//! holds the stripe and is about to change the block or its bits removes the mark (`Writer::hold_still`): the move is off, the writer goes on in
//! the old place at once, and step 4 finds no mark and gives the new place back. So a writer never waits for a move, only for the
//! stripe, and between 2 and 4 either nobody wrote or nothing is published. Only the compactor sets marks, and there is one compactor,
//! so a mark that is there in step 4 has been there all the time. Hosts that were told a place (`extents`, `begin_write`) hold a
//! ticket for as long as they may use it; being told one removes the mark as well. If tickets do not go away, the move is given up (*busy*).
//!
//! *Readers* hold no ticket. They may read the old place until step 4 and after it: the old place is neither punched, cut off nor
//! handed on before [`Quarantine::count_reuse`](crate::mapping::quarantine::Quarantine::count_reuse) has counted, which makes them look again. It counts at step 4 as well, because a block that
//! becomes partially present anew gives its bits a new meaning, and a reader may still hold the old entry.
//!
//! # After a crash
//!
//!   1, 2, 3   nothing but memory and bytes in free space changed: the old file
//!   4         as any change of an entry: old or new entry, by the log; the copy was written before the commit's first sync (`flush.rs`),
//!             and the old place is reused, punched or cut off only after the commit is durable (`mapping/space.rs`)
//!
//! Holes inside blocks need no log: the bytes were zeros. They are punched under the stripe with the mark set, so that no writer comes
//! between the look and the punch.
//!
//! Sector bitmap blocks and the end of the file have their own arguments: [`bitmaps`], [`cut`].

mod bitmaps;
mod cut;
mod examine;
mod relocate;
mod report;
mod survey;

pub use report::{CompactOptions, CompactReport};

use super::backing::Backing;
use super::error::DiskError;
use super::writer::Writer;
use crate::format::PayloadState;
use crate::mapping::space::Allotment;
use crate::progress::{Cancel, Phase, Progress};
use crate::storage;
use crate::units::{BlockHome, BlockIndex, MIB};
use std::time::Duration;

/// Bytes looked at or copied at a time.
const PIECE: u32 = 256 << 10;
/// The unit of holes.
const PAGE: usize = 4096;
/// How often tickets are waited for by giving way, and then by sleeping a millisecond.
const PATIENCE: (u32, u32) = (200, 50);

/// Compaction ended early.
#[derive(Clone, Debug)]
pub(crate) enum CompactFault {
    /// Somebody asked for it. What was done is done.
    Cancelled,
    /// The file failed.
    Disk(DiskError),
}

impl<E: Into<DiskError>> From<E> for CompactFault {
    fn from(e: E) -> Self {
        Self::Disk(e.into())
    }
}

type Outcome<T> = Result<T, CompactFault>;

/// One compaction.
pub(crate) struct Compactor<'a> {
    writer: &'a Writer,
    /// The parents; `None` when there are none or they were not opened, so that there is nothing to compare with.
    backing: Option<&'a dyn Backing>,
    options: &'a CompactOptions,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    report: CompactReport,
}

/// Blocks that carry a mark. Whatever happens, they lose it.
struct Marked<'a> {
    writer: &'a Writer,
    blocks: Vec<BlockIndex>,
}

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        for &block in &self.blocks {
            let _stripe = self.writer.stripe(block);
            self.writer.layer.bat.unmark(block);
        }
    }
}

impl Writer {
    /// Waits until every ticket that is out now is gone. The caller holds no lock. `false` when somebody keeps one.
    fn outwait_tickets(&self) -> bool {
        let since = self.quarantine.epoch();
        for attempt in 0..PATIENCE.0 + PATIENCE.1 {
            let free_below = {
                let _space = self.space.lock(); // one caller of `advance` at a time
                self.quarantine.advance()
            };
            if free_below > since {
                return true;
            }
            if attempt < PATIENCE.0 { std::thread::yield_now() } else { std::thread::sleep(Duration::from_millis(1)) }
        }
        false
    }
}

impl<'a> Compactor<'a> {
    pub(crate) fn new(
        writer: &'a Writer,
        backing: Option<&'a dyn Backing>,
        options: &'a CompactOptions,
        progress: &'a dyn Progress,
        cancel: &'a Cancel,
    ) -> Self {
        Self { writer, backing, options, progress, cancel, report: CompactReport::default() }
    }

    /// See the module.
    pub(crate) fn run(mut self) -> Outcome<CompactReport> {
        let writer = self.writer;
        let _only = writer.overhaul.lock();
        // Where the link was cut, a block that is not present reads as zeros. Nobody cuts it while we are at work.
        self.backing = self.backing.filter(|_| writer.layer.shows_parent());
        writer.check_latch()?;
        writer.stop_riding()?;
        let file = &*writer.layer.file;
        self.report.file_before = storage::len(file)?;
        self.report.allocated_before = self.allocated();
        writer.begin_layout()?;
        writer.flush()?;
        self.report.is_opaque = writer.space.lock().is_opaque();
        self.report.is_fixed = writer.layer.is_fixed();
        self.progress.phase(Phase::Compact, Some(writer.layer.geometry.size()));
        if !self.report.is_fixed {
            self.survey()?;
            self.free_bitmaps()?;
            self.relocate()?;
        }
        self.cut()?;
        if self.options.punches() && !self.report.is_fixed {
            self.punch_free_space();
        }
        self.report.file_after = storage::len(file)?;
        self.report.allocated_after = self.allocated();
        Ok(self.report)
    }

    fn allocated(&self) -> u64 {
        self.writer.layer.file.allocated().unwrap_or(0)
    }

    fn pause(&self) -> Outcome<()> {
        if self.cancel.is_cancelled() { Err(CompactFault::Cancelled) } else { Ok(()) }
    }

    /// Steps 1 and 2 of the module for those of `blocks` that are present. Returns them with their states; nothing when they are in use.
    fn mark(&mut self, blocks: impl Iterator<Item = BlockIndex>) -> Outcome<(Marked<'a>, Vec<(BlockIndex, PayloadState)>)> {
        let writer = self.writer;
        let mut marked = Marked { writer, blocks: Vec::new() };
        let mut states = Vec::new();
        for block in blocks {
            let _stripe = writer.stripe(block);
            let state = writer.layer.payload(block)?;
            let is_present = matches!(state, PayloadState::FullyPresent(_) | PayloadState::PartiallyPresent(_));
            if is_present && writer.layer.bat.mark(block, &*writer.layer.file)? {
                marked.blocks.push(block);
                states.push((block, state));
            }
        }
        if !states.is_empty() && !writer.outwait_tickets() {
            self.report.busy_blocks += states.len() as u64;
            states.clear();
        }
        Ok((marked, states))
    }

    /// Step 4: the block's new state, if nobody came in between.
    fn publish(&mut self, block: BlockIndex, state: PayloadState, old: BlockHome) -> bool {
        let writer = self.writer;
        let g = &writer.layer.geometry;
        let _stripe = writer.stripe(block);
        if !writer.layer.bat.is_marked(block) {
            self.report.busy_blocks += 1;
            return false;
        }
        {
            let _gate = writer.gate.read();
            writer.publish(g.bat_index(block), state.encode());
            writer.space.lock().release(old, g.block_mib());
        }
        // Before the stripe is free: the next first touch may give the block's bits a new meaning.
        writer.quarantine.count_reuse();
        true
    }

    /// Space that was allocated below a block and found no use.
    fn give_back(&self, space: Allotment) {
        self.writer.space.lock().give_back(space);
    }

    /// Whether zeros are worth looking for.
    fn wants_holes(&self) -> bool {
        self.options.punches() && self.report.has_holes != Some(false)
    }

    /// Turns free space that still holds old bytes into holes.
    fn punch_free_space(&mut self) {
        let stale = self.writer.space.lock().take_stale();
        for extent in stale {
            let is_hole = self.report.has_holes != Some(false) && self.punch(extent.start * MIB, extent.mib * MIB);
            self.writer.space.lock().add_free(extent, is_hole);
        }
    }

    /// Punches a hole over bytes that nobody misses. `false` when the storage has none, or would not.
    fn punch(&mut self, at: u64, len: u64) -> bool {
        match self.writer.layer.file.punch(at, len) {
            Ok(()) => {
                self.report.has_holes = Some(true);
                true
            }
            Err(e) => {
                if e.kind() == std::io::ErrorKind::Unsupported {
                    self.report.has_holes = Some(false);
                }
                false
            }
        }
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|&byte| byte == 0)
}
