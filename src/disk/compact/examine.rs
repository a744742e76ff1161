//! Looking at a block: does it read as zeros, or as the parent does, and which pages of it are zeros that take up space.

use super::{CompactFault, Compactor, Outcome, PAGE, PIECE, is_zero};
use crate::format::PayloadState;
use crate::storage::{self, Operation, StorageError};
use crate::units::{BlockHome, BlockIndex};

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// The block reads as zeros.
    pub(super) zero: bool,
    /// The block reads as the parent does. Only known in a child whose parents are open.
    pub(super) equal: bool,
    /// Bytes in pages of zeros that the file system stores.
    pub(super) idle: u64,
}

/// Pages of zeros behind one another, as (start in the block, length).
pub(super) type Zeros = Vec<(u32, u32)>;

/// The home of a present block.
pub(super) fn home_of(state: PayloadState) -> Option<BlockHome> {
    match state {
        PayloadState::FullyPresent(home) | PayloadState::PartiallyPresent(home) => Some(home),
        PayloadState::NotPresent | PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => None,
    }
}

impl Compactor<'_> {
    /// Looks at all of a present block. Ends early when nothing is to be gained.
    pub(super) fn look(&self, block: BlockIndex, state: PayloadState, buffers: &mut [Vec<u8>; 2]) -> Outcome<Look> {
        let g = &self.writer.layer.geometry;
        let start = g.block_start(block).get();
        let visible = g.visible_len(block);
        let [own, parents] = buffers;
        let mut look = Look { zero: true, equal: self.backing.is_some() && self.options.drops_copies(), idle: 0 };
        let wants_holes = self.wants_holes();
        let mut at = 0;
        while at < visible && (look.zero || look.equal || wants_holes) {
            self.pause()?;
            let len = PIECE.min(visible - at);
            own.resize(len as usize, 0);
            let (is_stored, has_absent) = self.read_own(block, state, at, own)?;
            let own_zero = !is_stored || is_zero(own);
            if is_stored && wants_holes {
                look.idle += zeros_in(own).iter().map(|&(_, len)| u64::from(len)).sum::<u64>();
            }
            look.zero &= own_zero;
            if let Some(backing) = self.backing
                && (look.equal || (look.zero && has_absent))
            {
                let at = start + u64::from(at);
                let parent_zero = backing.is_zero(at, u64::from(len))?;
                if parent_zero {
                    look.equal &= own_zero;
                } else {
                    parents.resize(len as usize, 0);
                    backing.read(parents, at)?;
                    look.zero &= !has_absent || is_zero(parents);
                    if look.equal {
                        look.equal = self.same(block, state, (at - start) as u32, own, parents)?;
                    }
                }
            } else if has_absent {
                look.zero = false; // what shows there is not known
            }
            at += len;
        }
        Ok(look)
    }

    /// Whether the sectors that this file holds are those of the parents.
    fn same(&self, block: BlockIndex, state: PayloadState, at: u32, own: &[u8], parents: &[u8]) -> Outcome<bool> {
        let mut same = true;
        self.present_runs(block, state, at, own.len() as u32, |from, len, present| {
            let range = (from - at) as usize..(from - at + len) as usize;
            same &= !present || own[range.clone()] == parents[range];
            Ok(())
        })?;
        Ok(same)
    }

    /// Reads what this file holds of a block from `at` on; sectors that it does not hold are zeros. Says whether the file system stores
    /// anything there, and whether some sectors are not held.
    pub(super) fn read_own(&self, block: BlockIndex, state: PayloadState, at: u32, own: &mut [u8]) -> Outcome<(bool, bool)> {
        let home = home_of(state).expect("only present blocks are looked at");
        let from = home.start().get() + u64::from(at);
        let file = &*self.writer.layer.file;
        let data = file.next_data(from).map_err(|e| StorageError::new(Operation::Seek, from, e))?;
        let is_stored = data.is_some_and(|(start, _)| start < from + own.len() as u64);
        if is_stored {
            storage::read_zero_extended(file, own, from)?;
        } else {
            own.fill(0);
        }
        let mut has_absent = false;
        self.present_runs(block, state, at, own.len() as u32, |from, len, present| {
            if !present {
                has_absent = true;
                own[(from - at) as usize..(from - at + len) as usize].fill(0);
            }
            Ok(())
        })?;
        Ok((is_stored, has_absent))
    }

    /// Calls `each` with start in the block, length and presence of every run of sectors from `at` on. `at` and `len` are whole sectors.
    fn present_runs(
        &self,
        block: BlockIndex,
        state: PayloadState,
        at: u32,
        len: u32,
        mut each: impl FnMut(u32, u32, bool) -> Result<(), CompactFault>,
    ) -> Outcome<()> {
        let PayloadState::PartiallyPresent(_) = state else { return each(at, len, true) };
        let layer = &self.writer.layer;
        let g = &layer.geometry;
        let (mut from, end) = (at, at + len);
        while from < end {
            let bit = g.first_bit(block) + (from >> g.sector_shift());
            let most = (end - from) >> g.sector_shift();
            let run = layer.bitmaps.run(g.chunk_of(block), bit, most, &*layer.file, || layer.bitmap_home(block))?;
            let len = run.len << g.sector_shift();
            each(from, len, run.present)?;
            from += len;
        }
        Ok(())
    }
}

/// Whole pages of zeros.
pub(super) fn zeros_in(bytes: &[u8]) -> Zeros {
    let mut zeros: Zeros = Vec::new();
    for (number, page) in bytes.chunks_exact(PAGE).enumerate() {
        if is_zero(page) {
            let at = (number * PAGE) as u32;
            match zeros.last_mut() {
                Some((start, len)) if *start + *len == at => *len += PAGE as u32,
                _ => zeros.push((at, PAGE as u32)),
            }
        }
    }
    zeros
}
