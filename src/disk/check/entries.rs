//! The entries of a BAT one after the other, whoever holds them, and what is known of the chunk that a walk is in.

use super::{CheckStop, Collector};
use crate::units::{BatIndex, ChunkIndex};

/// Where the entries come from.
pub(crate) trait Entries {
    /// Calls `each` for every entry that is not zero, in order. What cannot be read is told to `out` and passed over.
    fn each(&self, out: &mut Collector<'_>, each: &mut dyn FnMut(BatIndex, u64, &mut Collector<'_>)) -> Result<(), CheckStop>;

    /// One entry; `None` where it cannot be read.
    fn word(&self, index: BatIndex) -> Option<u64>;
}

/// What the walk knows of the chunk it is in.
#[derive(Clone, Copy)]
pub(super) struct ChunkState {
    pub(super) chunk: ChunkIndex,
    /// A block of it is partially present.
    pub(super) needs_bitmap: bool,
    /// Whether there is a bitmap entry that is not zero, once somebody asked.
    pub(super) has_bitmap: Option<bool>,
}

impl ChunkState {
    pub(super) fn at(chunk: ChunkIndex) -> Self {
        Self { chunk, needs_bitmap: false, has_bitmap: None }
    }

    /// Moves on to the chunk of the next entry.
    pub(super) fn enter(&mut self, chunk: ChunkIndex) {
        if self.chunk != chunk {
            *self = Self::at(chunk);
        }
    }
}
