//! Zeroing and trimming (our format reference §9.4).
//!
//! Only whole blocks change state; the last block counts as whole when the range reaches the end of the disk. A child's
//! block never goes back to "ask the parent": what was trimmed or zeroed reads as zeros. Space that a block gives up is
//! released, not freed (`mapping/space.rs`), and a block of a fixed disk keeps its space and is zeroed in place.

use super::backing::Backing;
use super::error::DiskError;
use super::writer::Writer;
use crate::format::PayloadState;
use crate::geometry::BlockSpan;
use crate::storage;
use crate::units::{BlockHome, BlockIndex, VirtualOffset};

/// Why a whole block is to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clear {
    /// The guest wrote zeros: ZERO, which every reader must honour.
    Zeroes,
    /// The guest does not need the content any more: UNMAPPED.
    Trim,
    /// Zeros whatever the parent shows, also one that is still to come: ZERO even where the parent shows zeros now.
    Pin,
}

/// From this length on, zeroing present sectors punches a hole.
const PUNCH_FROM: u64 = 64 << 10;

impl Writer {
    /// Makes the range read as zeros; it lies inside the disk and is not empty.
    pub(crate) fn write_zeroes(&self, backing: &dyn Backing, at: VirtualOffset, len: u64) -> Result<(), DiskError> {
        self.zero_spans(backing, at, len, Clear::Zeroes)
    }

    /// The same, and they stay zeros under any parent.
    pub(crate) fn pin_zeroes(&self, backing: &dyn Backing, at: VirtualOffset, len: u64) -> Result<(), DiskError> {
        self.zero_spans(backing, at, len, Clear::Pin)
    }

    fn zero_spans(&self, backing: &dyn Backing, at: VirtualOffset, len: u64, how: Clear) -> Result<(), DiskError> {
        self.check_latch()?;
        self.begin()?;
        for span in self.layer.geometry.spans(at, len) {
            if self.is_whole(span) {
                self.clear_block(backing, span.block, how)?;
            } else {
                self.zero_part(backing, span)?;
            }
        }
        Ok(())
    }

    /// Makes the whole blocks in the range read as zeros and leaves the rest alone.
    pub(crate) fn trim(&self, backing: &dyn Backing, at: VirtualOffset, len: u64) -> Result<(), DiskError> {
        self.check_latch()?;
        for span in self.layer.geometry.spans(at, len).filter(|&span| self.is_whole(span)) {
            self.begin()?;
            self.clear_block(backing, span.block, Clear::Trim)?;
        }
        Ok(())
    }

    fn is_whole(&self, span: BlockSpan) -> bool {
        span.within.get() == 0 && span.len >= self.layer.geometry.visible_len(span.block)
    }

    fn clear_block(&self, backing: &dyn Backing, block: BlockIndex, how: Clear) -> Result<(), DiskError> {
        let g = &self.layer.geometry;
        let _stripe = self.stripe(block);
        let index = g.bat_index(block);
        let gives_up = match (self.hold_still(block)?, how) {
            (PayloadState::FullyPresent(home) | PayloadState::PartiallyPresent(home), _) if self.layer.is_fixed() => {
                return self.zero_in_place(home, 0, g.block_size());
            }
            (PayloadState::FullyPresent(home) | PayloadState::PartiallyPresent(home), _) => Some(home),
            (PayloadState::NotPresent, _) => {
                let start = g.block_start(block).get();
                if !self.layer.shows_parent() || how != Clear::Pin && backing.is_zero(start, u64::from(g.visible_len(block)))? {
                    return Ok(()); // reads as zeros already
                }
                None
            }
            // Reads as zeros already, and must: nothing stronger to say.
            (PayloadState::Zero, _) | (PayloadState::Unmapped | PayloadState::Undefined, Clear::Trim) => return Ok(()),
            // Reads as zeros here, but MS-VHDX lets others show former content.
            (PayloadState::Unmapped | PayloadState::Undefined, Clear::Zeroes | Clear::Pin) => None,
        };
        let state = match how {
            Clear::Zeroes | Clear::Pin => PayloadState::Zero,
            Clear::Trim => PayloadState::Unmapped,
        };
        let _gate = self.gate.read();
        self.publish(index, state.encode());
        if let Some(home) = gives_up {
            self.space.lock().release(home, g.block_mib());
        }
        Ok(())
    }

    /// Zeroes a part of a block: in place where the block is fully present, not at all where it reads as zeros, otherwise by
    /// writing zeros like any data, so that the parent does not show through.
    fn zero_part(&self, backing: &dyn Backing, span: BlockSpan) -> Result<(), DiskError> {
        let at = self.layer.geometry.block_start(span.block).get() + u64::from(span.within.get());
        {
            let _stripe = self.stripe(span.block);
            match self.hold_still(span.block)? {
                PayloadState::FullyPresent(home) => return self.zero_in_place(home, u64::from(span.within.get()), u64::from(span.len)),
                PayloadState::Zero | PayloadState::Unmapped | PayloadState::Undefined => return Ok(()),
                PayloadState::NotPresent if !self.layer.shows_parent() => return Ok(()),
                PayloadState::NotPresent | PayloadState::PartiallyPresent(_) => {}
            }
        }
        storage::pieces_of_zeros(at, u64::from(span.len)).try_for_each(|(at, zeros)| self.write(backing, zeros, VirtualOffset::new(at)))
    }

    fn zero_in_place(&self, home: BlockHome, within: u64, len: u64) -> Result<(), DiskError> {
        let at = home.start().get() + within;
        let file = &*self.layer.file;
        if self.riders.as_ref().is_some_and(|riders| riders.may_hold(at, len as usize)) {
            return storage::pieces_of_zeros(at, len).try_for_each(|(at, zeros)| self.land(zeros, at));
        }
        let result = if len >= PUNCH_FROM { storage::punch_or_zero(file, at, len) } else { storage::write_zeros(file, at, len) };
        self.mark_payload();
        Ok(result?)
    }
}
