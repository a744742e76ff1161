//! Moving blocks from the end of the file into free space below.
//!
//! Only blocks that would lie past the end of a perfectly packed file are touched. They move from the last one down, each into the
//! stretch that it fits best. After a batch the commit makes the move durable, and the old places become free for the cut.

use super::examine::{home_of, zeros_in};
use super::{Compactor, Outcome, PIECE};
use crate::format::PayloadState;
use crate::geometry::BatRole;
use crate::mapping::space::Allotment;
use crate::storage;
use crate::units::{BatIndex, BlockHome, BlockIndex, ChunkIndex, MIB};

/// Blocks that move in one pass; the file is looked over again for the rest.
const MOST: usize = 64 << 10;
/// Blocks that are marked at a time.
const BATCH: usize = 16;
/// Rounds after which a file that other writers keep changing is left as it is.
const ROUNDS: usize = 64;

/// Something that may move.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    /// MiB at which it starts.
    home: u64,
    mib: u64,
    index: BatIndex,
}

impl Compactor<'_> {
    /// See the module.
    pub(super) fn relocate(&mut self) -> Outcome<()> {
        if !self.options.relocates() {
            return Ok(());
        }
        for _ in 0..ROUNDS {
            // What was given up must be free before anything can move into it.
            self.settle_space()?;
            let before = self.report.moved_blocks;
            self.relocate_once()?;
            if self.report.moved_blocks == before {
                break;
            }
        }
        Ok(())
    }

    /// Commits, and gives what was released back once nobody can be inside.
    pub(super) fn settle_space(&mut self) -> Outcome<()> {
        self.writer.flush()?;
        if self.writer.space.lock().has_limbo() && self.writer.outwait_tickets() {
            self.writer.reclaim();
        }
        Ok(())
    }

    fn relocate_once(&mut self) -> Outcome<()> {
        let layer = &self.writer.layer;
        let (mut blocks, mut bitmaps) = (Vec::new(), Vec::new());
        for piece in self.misplaced()? {
            match layer.geometry.bat_role(piece.index) {
                Some(BatRole::Payload(block)) => blocks.push((block, piece.home)),
                Some(BatRole::Bitmap(chunk)) if layer.has_parent() => bitmaps.push((chunk, piece.home)),
                Some(BatRole::Bitmap(_)) | None => {}
            }
        }
        let mut left = blocks.into_iter();
        loop {
            self.pause()?;
            // Space first: what finds none does not need to be marked.
            let mut moves: Vec<(BlockIndex, Allotment)> = Vec::new();
            for (block, home) in left.by_ref().take(BATCH) {
                let space = self.writer.space.lock().allocate_below(layer.geometry.block_mib(), home);
                match space {
                    Some(space) => moves.push((block, space)),
                    None => break,
                }
            }
            if moves.is_empty() {
                break;
            }
            self.move_blocks(moves)?;
            self.writer.flush()?;
        }
        self.move_bitmaps(&bitmaps)
    }

    /// Everything that would not be where it is in a perfectly packed file, last first.
    fn misplaced(&self) -> Outcome<Vec<Piece>> {
        let layer = &self.writer.layer;
        let mut used: u64 = layer.bat.taken().iter().map(|(start, end, _)| (end - start).div_ceil(MIB)).sum();
        let mut each = |piece: Piece| used += piece.mib;
        self.walk_placed(&mut each)?;
        let mut late: Vec<Piece> = Vec::new();
        self.walk_placed(&mut |piece| {
            if piece.home + piece.mib > used {
                late.push(piece);
                if late.len() == 2 * MOST {
                    late.sort_unstable_by(|a, b| b.cmp(a));
                    late.truncate(MOST);
                }
            }
        })?;
        late.sort_unstable_by(|a, b| b.cmp(a));
        late.truncate(MOST);
        Ok(late)
    }

    fn walk_placed(&self, each: &mut dyn FnMut(Piece)) -> Outcome<()> {
        let layer = &self.writer.layer;
        layer.bat.walk(&*layer.file, u64::MAX, |index, word| -> Result<(), crate::DiskError> {
            if layer.bat.fault(index, word).is_none()
                && let Some(placed) = layer.placed(index, word).filter(|placed| !placed.is_anchor)
            {
                each(Piece { home: placed.home.mib(), mib: placed.mib, index });
            }
            Ok(())
        })?;
        Ok(())
    }

    fn move_blocks(&mut self, moves: Vec<(BlockIndex, Allotment)>) -> Outcome<()> {
        // Before anything is written there: a reader may still be looking at what the space held before.
        self.writer.quarantine.count_reuse();
        let (_marked, states) = match self.mark(moves.iter().map(|&(block, _)| block)) {
            Ok(marked) => marked,
            Err(e) => {
                moves.into_iter().for_each(|(_, space)| self.give_back(space));
                return Err(e);
            }
        };
        let mut failed = None;
        for (block, space) in moves {
            let state = states.iter().find(|(marked, _)| *marked == block).map(|&(_, state)| state);
            // It may have moved or gone since it was listed; moving it up would be no use.
            let Some(state) = state.filter(|&state| home_of(state).is_some_and(|home| home > space.home) && failed.is_none()) else {
                self.give_back(space);
                continue;
            };
            if let Err(e) = self.move_block(block, state, space) {
                failed = Some(e);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn move_block(&mut self, block: BlockIndex, state: PayloadState, space: Allotment) -> Outcome<()> {
        let space = self.writer.zeroed(space)?;
        if let Err(e) = self.copy(block, state, space.home) {
            self.give_back(space);
            return Err(e);
        }
        let moved = match state {
            PayloadState::PartiallyPresent(_) => PayloadState::PartiallyPresent(space.home),
            _ => PayloadState::FullyPresent(space.home),
        };
        if self.publish(block, moved, home_of(state).expect("a present block")) {
            self.report.moved_blocks += 1;
        } else {
            self.give_back(space);
        }
        Ok(())
    }

    /// Copies what this file holds of a block to a place that reads as zeros.
    fn copy(&self, block: BlockIndex, state: PayloadState, to: BlockHome) -> Outcome<()> {
        let visible = self.writer.layer.geometry.visible_len(block);
        let mut own = Vec::new();
        for at in (0..visible).step_by(PIECE as usize) {
            own.resize(PIECE.min(visible - at) as usize, 0);
            if !self.read_own(block, state, at, &mut own)?.0 {
                continue;
            }
            let mut done = 0;
            for (start, len) in zeros_in(&own).into_iter().chain([(own.len() as u32, 0)]) {
                if start > done {
                    let result = storage::write_all(
                        &*self.writer.layer.file,
                        &own[done as usize..start as usize],
                        to.start().get() + u64::from(at + done),
                    );
                    self.writer.mark_payload();
                    result?;
                }
                done = start + len;
            }
        }
        Ok(())
    }

    /// Moves sector bitmap blocks for which there is room below.
    fn move_bitmaps(&mut self, bitmaps: &[(ChunkIndex, u64)]) -> Outcome<()> {
        for batch in bitmaps.chunks(BATCH) {
            self.pause()?;
            let mut moves = Vec::new();
            for &(chunk, home) in batch {
                if let Some(space) = self.writer.space.lock().allocate_below(1, home) {
                    moves.push((chunk, space));
                }
            }
            if moves.is_empty() {
                break;
            }
            self.rehome_bitmaps(moves)?;
        }
        Ok(())
    }
}
