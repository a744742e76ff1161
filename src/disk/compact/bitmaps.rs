//! Sector bitmap blocks that move or go.
//!
//! Their pages are metadata: they live in memory once loaded, travel through the log to their homes, and are read from there the first time
//! somebody asks. So besides readers there are three who know a home: the log's pages on their way, older entries of the log that a
//! replay would write there again, and whoever is just loading a page. In this order, with the commit lock held from 1 to 5:
//!
//! ```text
//!   1 copy      the block as the file has it, to the new place              crash: bytes nobody points at
//!   2 publish   under the exclusive gate: the entry names the new place, and every page that is in memory is dirty, so that the next
//!               commit writes it there                                       crash: memory only
//!   3 commit    entry and pages, the copy before                             crash: old block or new one, each whole
//!   4 rewind    everything home, then one empty entry as the whole log      crash: as 3; a replay writes to the new place or nowhere
//!   5 release   the old place waits for tickets, then it is free
//! ```
//!
//! A page that is in no memory is in the file as it was last committed, so the copy of step 1 has it. A page that is being loaded from the
//! old place while 2 happens is the same bytes; the old place does not change before [`BitmapTable::count_move`](crate::mapping::bitmap::BitmapTable::count_move)
//! counted, and a loader that sees the count change loads again. Step 4 is what makes the old place safe to give away: nothing in the
//! log writes there any more.
//!
//! Giving a block up is the same without 1: under the exclusive gate no block of the chunk is partially present, and whoever makes one
//! so afterwards looks for the bitmap block under the gate (`Writer::enter_slice`) and claims a new one. Readers that still hold an
//! entry from when a block was partially present are made to look again.

use super::{Compactor, Outcome};
use crate::disk::error::DiskError;
use crate::disk::writer::Commit;
use crate::format::{BitmapState, PayloadState};
use crate::geometry::BatRole;
use crate::log::writer::Lengths;
use crate::mapping::bitmap::PAGES_PER_CHUNK;
use crate::mapping::dirty::PageKey;
use crate::mapping::space::{Allotment, Extent};
use crate::storage::{self, Operation, StorageError};
use crate::units::{BatIndex, BlockHome, BlockIndex, ChunkIndex, MIB};

/// Bytes of a bitmap block copied at a time.
const COPY: usize = 64 << 10;
/// Bitmap blocks that are given up with one commit.
const BATCH: usize = 64;

impl Compactor<'_> {
    /// Gives up the bitmap blocks that no partially present block uses.
    pub(super) fn free_bitmaps(&mut self) -> Outcome<()> {
        let writer = self.writer;
        let layer = &writer.layer;
        if !layer.shows_parent() {
            return Ok(());
        }
        let mut idle: Vec<ChunkIndex> = Vec::new();
        let mut is_used = None;
        // A chunk's entry stands behind those of its blocks.
        layer.bat.walk(&*layer.file, u64::MAX, |index: BatIndex, word| -> Result<(), DiskError> {
            match layer.geometry.bat_role(index) {
                Some(BatRole::Payload(block)) => {
                    if matches!(PayloadState::decode(word), Ok(PayloadState::PartiallyPresent(_)) | Err(_)) {
                        is_used = Some(layer.geometry.chunk_of(block));
                    }
                }
                Some(BatRole::Bitmap(chunk))
                    if is_used != Some(chunk) && matches!(BitmapState::decode(word), Ok(BitmapState::Present(_))) =>
                {
                    idle.push(chunk);
                }
                Some(BatRole::Bitmap(_)) | None => {}
            }
            Ok(())
        })?;
        for batch in idle.chunks(BATCH) {
            self.pause()?;
            // Who found a block partially present before is done after this, or looks again.
            if !writer.outwait_tickets() {
                self.report.busy_blocks += batch.len() as u64;
                return Ok(());
            }
            // Loads the pages, so that nothing is read under the gate.
            for &chunk in batch {
                let _ = self.is_unused(chunk)?;
            }
            let mut commit = writer.commit.lock();
            writer.check_latch()?;
            let mut old = Vec::new();
            for &chunk in batch {
                if let Some(home) = self.forget_bitmap(chunk)? {
                    old.push(home);
                }
            }
            if !old.is_empty() {
                self.report.freed_bitmaps += old.len() as u64;
                self.give_up(&mut commit, &old)?;
            }
        }
        writer.reclaim();
        Ok(())
    }

    /// Whether no block of a chunk is partially present.
    fn is_unused(&self, chunk: ChunkIndex) -> Result<bool, DiskError> {
        let layer = &self.writer.layer;
        let g = &layer.geometry;
        let first = chunk.get() * g.chunk_ratio();
        for block in first..(first + g.chunk_ratio()).min(g.blocks()) {
            if let PayloadState::PartiallyPresent(_) = layer.payload(BlockIndex::new(block))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Publishes that a chunk has no bitmap block; `None` when it needs it.
    fn forget_bitmap(&self, chunk: ChunkIndex) -> Result<Option<BlockHome>, DiskError> {
        let writer = self.writer;
        let _gate = writer.gate.write();
        let BitmapState::Present(home) = writer.layer.bat.bitmap(chunk, &*writer.layer.file)? else { return Ok(None) };
        if !self.is_unused(chunk)? {
            return Ok(None);
        }
        // Before the entry goes: a reader that finds it gone and thinks it should be there must notice.
        writer.quarantine.count_reuse();
        writer.publish(writer.layer.geometry.bitmap_bat_index(chunk), BitmapState::NotPresent.encode());
        writer.forget_fresh_bitmap(chunk, None);
        writer.layer.bitmaps.count_move();
        Ok(Some(home))
    }

    /// Moves bitmap blocks to the places given.
    pub(super) fn rehome_bitmaps(&mut self, moves: Vec<(ChunkIndex, Allotment)>) -> Outcome<()> {
        let writer = self.writer;
        let mut commit = writer.commit.lock();
        writer.check_latch()?;
        writer.quarantine.count_reuse();
        let mut old = Vec::new();
        for (chunk, space) in moves {
            let space = writer.zeroed(space)?;
            match self.rehome(chunk, space.home) {
                Ok(Some(home)) => old.push(home),
                Ok(None) => self.give_back(space),
                Err(e) => {
                    self.give_back(space);
                    return Err(e.into());
                }
            }
        }
        if !old.is_empty() {
            self.report.moved_blocks += old.len() as u64;
            self.give_up(&mut commit, &old)?;
        }
        drop(commit);
        writer.reclaim();
        Ok(())
    }

    /// Steps 1 and 2 for one block. Returns the old place; `None` when there is none, or the new one is no lower.
    fn rehome(&self, chunk: ChunkIndex, to: BlockHome) -> Result<Option<BlockHome>, DiskError> {
        let writer = self.writer;
        let layer = &writer.layer;
        let BitmapState::Present(from) = layer.bat.bitmap(chunk, &*layer.file)? else { return Ok(None) };
        if to >= from {
            return Ok(None);
        }
        self.copy_bitmap(from, to)?;
        let _gate = writer.gate.write();
        // Nobody else moves or frees one, so it is still there.
        writer.publish(layer.geometry.bitmap_bat_index(chunk), BitmapState::Present(to).encode());
        writer.forget_fresh_bitmap(chunk, Some(to));
        let first = u64::from(chunk.get()) * PAGES_PER_CHUNK;
        for number in first..first + PAGES_PER_CHUNK {
            if let Some(page) = layer.bitmaps.loaded_page(number) {
                writer.dirty.mark(PageKey::Bitmap(number), &page.dirty);
            }
        }
        layer.bitmaps.count_move();
        Ok(Some(from))
    }

    fn copy_bitmap(&self, from: BlockHome, to: BlockHome) -> Result<(), StorageError> {
        let file = &*self.writer.layer.file;
        let (start, end) = (from.start().get(), from.start().get() + MIB);
        let mut buffer = vec![0; COPY];
        let mut at = start;
        while at < end {
            let data = file.next_data(at).map_err(|e| StorageError::new(Operation::Seek, at, e))?;
            let Some((first, _)) = data.filter(|&(first, _)| first < end) else { break };
            at = start + (first.max(start) - start) / COPY as u64 * COPY as u64;
            storage::read_zero_extended(file, &mut buffer, at)?;
            let result = storage::write_all(file, &buffer, to.start().get() + (at - start));
            self.writer.mark_payload();
            result?;
            at += COPY as u64;
        }
        Ok(())
    }

    /// Steps 3 to 5.
    fn give_up(&self, commit: &mut Commit, old: &[BlockHome]) -> Outcome<()> {
        let writer = self.writer;
        writer.flush_as_leader(commit)?;
        let lengths = Lengths { flushed: commit.durable_len, last: writer.space.lock().end() * MIB };
        let Commit { headers, log, .. } = &mut *commit;
        log.rewind(&*writer.layer.file, headers, lengths).map_err(|e| if e.is_harmless() { e.into() } else { writer.latch(e.into()) })?;
        let epoch = writer.quarantine.epoch();
        let extents = old.iter().map(|home| Extent { start: home.mib(), mib: 1 }).collect();
        writer.space.lock().enter_limbo(epoch, extents);
        Ok(())
    }
}
