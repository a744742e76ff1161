//! Looking at every present block, and doing what the look suggests.

use super::examine::{home_of, zeros_in};
use super::{Compactor, Outcome, PIECE};
use crate::format::PayloadState;
use crate::geometry::BatRole;
use crate::units::{BatIndex, BlockIndex};

/// Pages of the BAT whose blocks are listed at a time.
const WINDOW: u64 = 64;
/// Blocks that are marked at a time.
const BATCH: usize = 64;
/// Bytes of stored zeros in a block from which on punching them is worth a mark.
const WORTH_PUNCHING: u64 = 16 << 10;

impl Compactor<'_> {
    /// See the module above.
    pub(super) fn survey(&mut self) -> Outcome<()> {
        self.drop_anchors()?;
        let writer = self.writer;
        let mut buffers = [Vec::new(), Vec::new()];
        let pages = writer.layer.bat.pages();
        for page in (0..pages).step_by(WINDOW as usize) {
            let mut batch = Vec::new();
            for (block, state) in self.present_blocks(page..(page + WINDOW).min(pages))? {
                let look = self.look(block, state, &mut buffers)?;
                if look.zero || look.equal || look.idle >= WORTH_PUNCHING {
                    batch.push(block);
                }
                if batch.len() == BATCH {
                    self.act(&mut batch, &mut buffers)?;
                }
                self.progress.advance(writer.layer.geometry.block_start(block).get());
            }
            self.act(&mut batch, &mut buffers)?;
        }
        writer.flush()?;
        self.progress.advance(writer.layer.geometry.size());
        Ok(())
    }

    /// The present blocks in some pages of the BAT, as a hint: what counts is looked up again under the stripe.
    fn present_blocks(&self, pages: std::ops::Range<u64>) -> Outcome<Vec<(BlockIndex, PayloadState)>> {
        let layer = &self.writer.layer;
        let mut present = Vec::new();
        layer.bat.walk_pages(&*layer.file, pages, u64::MAX, |index: BatIndex, word| -> Result<(), crate::DiskError> {
            if let Some(BatRole::Payload(block)) = layer.geometry.bat_role(index)
                && layer.bat.fault(index, word).is_none()
                && let Ok(state) = PayloadState::decode(word)
                && home_of(state).is_some()
            {
                present.push((block, state));
            }
            Ok(())
        })?;
        Ok(present)
    }

    /// Marks the blocks, looks again, and does what is still right.
    fn act(&mut self, batch: &mut Vec<BlockIndex>, buffers: &mut [Vec<u8>; 2]) -> Outcome<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (marked, states) = self.mark(batch.drain(..))?;
        for (block, state) in states {
            let look = self.look(block, state, buffers)?;
            let home = home_of(state).expect("marked blocks are present");
            if look.equal {
                self.report.equal_blocks += u64::from(self.publish(block, PayloadState::NotPresent, home));
            } else if look.zero {
                self.report.zero_blocks += u64::from(self.publish(block, PayloadState::Zero, home));
            } else if look.idle >= WORTH_PUNCHING {
                self.thin(block, state, buffers)?;
            }
        }
        drop(marked);
        self.writer.flush()?;
        Ok(())
    }

    /// Turns pages of zeros inside a marked block into holes, piece by piece, so that a writer waits for one piece at most.
    fn thin(&mut self, block: BlockIndex, state: PayloadState, buffers: &mut [Vec<u8>; 2]) -> Outcome<()> {
        let writer = self.writer;
        let visible = writer.layer.geometry.visible_len(block);
        let home = home_of(state).expect("marked blocks are present");
        let own = &mut buffers[0];
        for at in (0..visible).step_by(PIECE as usize) {
            self.pause()?;
            let _stripe = writer.stripe(block);
            if !writer.layer.bat.is_marked(block) {
                self.report.busy_blocks += 1;
                return Ok(());
            }
            own.resize(PIECE.min(visible - at) as usize, 0);
            if !self.read_own(block, state, at, own)?.0 {
                continue;
            }
            let zeros = zeros_in(own);
            if !zeros.is_empty() {
                // Sectors that are not held here may have been when a reader looked them up, see `count_reuse`.
                writer.quarantine.count_reuse();
            }
            for (start, len) in zeros {
                if !self.punch(home.start().get() + u64::from(at + start), u64::from(len)) {
                    return Ok(());
                }
                self.report.punched_bytes += u64::from(len);
                writer.mark_payload();
            }
        }
        Ok(())
    }

    /// Unmapped and undefined blocks may keep the place they had. Nobody reads it, and it is space.
    fn drop_anchors(&mut self) -> Outcome<()> {
        let writer = self.writer;
        let g = &writer.layer.geometry;
        let anchors = std::mem::take(&mut *writer.anchors.lock());
        for (block, home) in anchors {
            let _stripe = writer.stripe(block);
            let index = g.bat_index(block);
            let word = writer.layer.bat.load(index, &*writer.layer.file)?;
            let _gate = writer.gate.read();
            if PayloadState::anchor(word).is_some() {
                writer.publish(index, word & 0b111);
            }
            // Also when the block was written in between: it got another place, and this one belongs to nobody.
            writer.space.lock().release(home, g.block_mib());
            self.report.anchors += 1;
        }
        Ok(())
    }
}
