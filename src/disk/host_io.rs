//! Writes whose bytes somebody else puts into the file.
//!
//! `begin` finds a place for each span: the block's home, or new space that nothing points at yet. The host writes there.
//! `complete` publishes what `begin` prepared, under the same locks and in the same order as an ordinary write. If somebody
//! else touched a block first in the meantime, the bytes are copied from the prepared space to where the block is now: rare,
//! and right.

use super::backing::Backing;
use super::error::DiskError;
use super::writer::Writer;
use crate::format::PayloadState;
use crate::geometry::BlockSpan;
use crate::mapping::space::Allotment;
use crate::storage;
use crate::units::{BlockHome, VirtualOffset};

/// Bytes copied at a time when a block was taken meanwhile.
const COPY: usize = 256 << 10;

/// What a span needs when its bytes are there.
enum Due {
    /// Every sector was present already.
    Nothing,
    /// Sectors of a partially present block.
    Bits(BlockHome),
    /// New space for a block that had none.
    Space(Allotment),
}

struct Piece {
    span: BlockSpan,
    home: BlockHome,
    due: Due,
}

/// See the module.
pub(crate) struct HostWrite<'a> {
    writer: &'a Writer,
    pieces: Vec<Piece>,
}

impl<'a> HostWrite<'a> {
    /// Prepares places for whole sectors. The caller holds a ticket until the write is completed or dropped.
    pub(crate) fn begin(writer: &'a Writer, at: VirtualOffset, len: u64) -> Result<Self, DiskError> {
        writer.check_latch()?;
        writer.begin()?;
        writer.stop_riding()?;
        let mut prepared = Self { writer, pieces: Vec::new() };
        for span in writer.layer.geometry.spans(at, len) {
            let piece = prepared.prepare(span)?;
            prepared.pieces.push(piece);
        }
        Ok(prepared)
    }

    fn prepare(&self, span: BlockSpan) -> Result<Piece, DiskError> {
        let writer = self.writer;
        let g = &writer.layer.geometry;
        // Under the stripe: a block that is being completed from its parent is not entered in the middle of it.
        let _stripe = writer.stripe(span.block);
        let (home, due) = match writer.hold_still(span.block)? {
            PayloadState::FullyPresent(home) => (home, Due::Nothing),
            PayloadState::PartiallyPresent(home) => {
                writer.enter_hosted(span.block);
                (home, Due::Bits(home))
            }
            PayloadState::NotPresent | PayloadState::Zero | PayloadState::Undefined | PayloadState::Unmapped => {
                // Zeros in any case: whether the block becomes partially or fully present is decided when it is published.
                let space = writer.allocate(g.block_mib(), u64::from(span.len) != g.block_size())?;
                (space.home, Due::Space(space))
            }
        };
        Ok(Piece { span, home, due })
    }

    /// Virtual offset, length and file offset of each piece.
    pub(crate) fn extents(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let g = self.writer.layer.geometry;
        self.pieces.iter().map(move |piece| {
            let offset = g.block_start(piece.span.block).get() + u64::from(piece.span.within.get());
            (offset, u64::from(piece.span.len), piece.home.at(piece.span.within).get())
        })
    }

    /// Publishes.
    pub(crate) fn complete(mut self, backing: &dyn Backing) -> Result<(), DiskError> {
        self.writer.check_latch()?;
        self.writer.mark_payload();
        // From the back, so that an error leaves the rest for `drop` to give back.
        while let Some(piece) = self.pieces.pop() {
            match piece.due {
                Due::Nothing => {}
                Due::Bits(home) => {
                    let published = self.writer.publish_sectors(piece.span, home);
                    self.writer.leave_hosted(piece.span.block);
                    published?;
                }
                Due::Space(space) => {
                    if !self.writer.publish_space(piece.span, space)? {
                        let copied = self.copy(backing, piece.span, space);
                        self.writer.space.lock().give_back(space);
                        copied?;
                    }
                }
            }
        }
        Ok(())
    }

    fn copy(&self, backing: &dyn Backing, span: BlockSpan, from: Allotment) -> Result<(), DiskError> {
        let start = self.writer.layer.geometry.block_start(span.block).get() + u64::from(span.within.get());
        let mut buffer = vec![0; COPY.min(span.len as usize)];
        let mut done = 0;
        while done < span.len as usize {
            let part = buffer.len().min(span.len as usize - done);
            storage::read_exact(&*self.writer.layer.file, &mut buffer[..part], from.home.at(span.within).get() + done as u64)?;
            self.writer.write(backing, &buffer[..part], VirtualOffset::new(start + done as u64))?;
            done += part;
        }
        Ok(())
    }
}

impl Drop for HostWrite<'_> {
    fn drop(&mut self) {
        for piece in &self.pieces {
            match piece.due {
                Due::Nothing => {}
                Due::Bits(_) => self.writer.leave_hosted(piece.span.block),
                Due::Space(unused) => self.writer.space.lock().give_back(unused),
            }
        }
    }
}
