//! Bringing into this file what it inherits, block by block, while it is being used; and cutting the link when nothing is inherited.
//!
//! **One block** is completed under its stripe lock, where first touches happen: what is missing is read from the parents and written,
//! then the block becomes fully present (or ZERO, when the parents show nothing but zeros). Rewrites of sectors that are present go on
//! without a lock; they and the copy touch different sectors. The steps are those of any first touch, and so is the crash argument:
//!
//! ```text
//!   1. allocate, or the block's own place   crash: at most a longer file
//!   2. write the missing sectors            crash: bytes that no bit and no entry points at
//!   3. publish                              crash: as 2, until the next commit; then the block shows from here what it showed before
//! ```
//!
//! A host that writes by itself (`host_io.rs`) puts its bytes into sectors of a partially present block before any bit says so. Such a
//! block is *hosted*; it is left alone until the host is done.
//!
//! **The cut.** What stays NOT_PRESENT after all blocks were visited is what the parents say nothing about: it reads as zeros with them and
//! without. Three switches, each taken with all stripes held, so that no first touch is under way:
//!
//! ```text
//!   Linked   a first touch of a part makes a block partially present
//!   Whole    it makes the block fully present, the rest zeros: right, because whatever is NOT_PRESENT now reads as zeros. From here on
//!            no partially present block appears; the last ones are completed, then the sector bitmap blocks are given up
//!   Cut      the file has no parent: one entry of the log took HasParent and the locator away (`items.rs`)
//! ```
//!
//! A crash before that entry is durable leaves a differencing disk, after it a dynamic one, and both read the same.

use super::backing::Backing;
use super::error::DiskError;
use super::items::{ItemChange, ItemFault, Together};
use super::layer::Link;
use super::writer::Writer;
use crate::format::{BitmapState, Metadata, PayloadState};
use crate::geometry::BatRole;
use crate::storage;
use crate::units::{BatIndex, BlockHome, BlockIndex, ChunkIndex};
use std::ops::Range;

/// Bytes copied at a time.
const COPY: u64 = 1 << 20;
/// From this length on, zeros are a hole.
const HOLE_FROM: u64 = 64 << 10;
/// Entries changed between two commits when sector bitmap blocks are given up.
const GIVEN_UP_AT_ONCE: usize = 4096;

/// What became of a block that was visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visited {
    /// It inherits nothing any more; so many bytes were copied.
    Own { copied: u64 },
    /// A host is writing into it. To be visited again.
    Hosted,
}

impl Writer {
    /// Brings into this file what a block still inherits. The session has begun.
    pub(crate) fn hydrate_block(&self, backing: &dyn Backing, block: BlockIndex) -> Result<Visited, DiskError> {
        self.check_latch()?;
        let _ticket = self.quarantine.enter();
        let _stripe = self.stripe(block);
        let copied = match self.layer.payload(block)? {
            PayloadState::FullyPresent(_) | PayloadState::Zero | PayloadState::Unmapped | PayloadState::Undefined => 0,
            PayloadState::NotPresent => self.hydrate_whole(backing, block)?,
            PayloadState::PartiallyPresent(_) if self.is_hosted(block) => return Ok(Visited::Hosted),
            PayloadState::PartiallyPresent(home) => self.hydrate_rest(backing, block, home)?,
        };
        Ok(Visited::Own { copied })
    }

    /// A block of which nothing is here. Space is taken when the first byte that is not zero turns up.
    fn hydrate_whole(&self, backing: &dyn Backing, block: BlockIndex) -> Result<u64, DiskError> {
        let g = &self.layer.geometry;
        let (start, visible) = (g.block_start(block).get(), u64::from(g.visible_len(block)));
        let mut space = None;
        let mut copied = 0;
        if !backing.is_zero(start, visible)? {
            let mut buffer = vec![0; COPY.min(visible) as usize];
            let mut done = 0;
            while done < visible {
                let part = &mut buffer[..COPY.min(visible - done) as usize];
                let put = backing.read(part, start + done).and_then(|()| {
                    if is_zero(part) {
                        return Ok(0);
                    }
                    let home = match space {
                        Some(space) => space,
                        None => *space.insert(self.allocate(g.block_mib(), true)?),
                    };
                    self.put(home.home, done as u32, part)?;
                    Ok(part.len() as u64)
                });
                let part = part.len() as u64;
                match put {
                    Ok(bytes) => copied += bytes,
                    Err(e) => {
                        if let Some(space) = space {
                            self.space.lock().give_back(space);
                        }
                        return Err(e);
                    }
                }
                done += part;
            }
        }
        let state = space.map_or(PayloadState::Zero, |space| PayloadState::FullyPresent(space.home));
        let _gate = self.gate.read();
        self.publish(g.bat_index(block), state.encode());
        Ok(copied)
    }

    /// The sectors that a partially present block lacks.
    fn hydrate_rest(&self, backing: &dyn Backing, block: BlockIndex, home: BlockHome) -> Result<u64, DiskError> {
        let g = &self.layer.geometry;
        let start = g.block_start(block).get();
        let mut buffer = Vec::new();
        let mut copied = 0;
        for missing in self.missing(block)? {
            let (mut at, end) = (u64::from(missing.start) << g.sector_shift(), u64::from(missing.end) << g.sector_shift());
            if end - at >= HOLE_FROM && backing.is_zero(start + at, end - at)? {
                self.blank(home, at, end - at)?;
                continue;
            }
            while at < end {
                buffer.resize(COPY.min(end - at) as usize, 0);
                backing.read(&mut buffer, start + at)?;
                let len = buffer.len() as u64;
                if len >= HOLE_FROM && is_zero(&buffer) {
                    self.blank(home, at, len)?;
                } else {
                    // Zeros are written like anything else: the place may hold what an earlier owner left.
                    self.put(home, at as u32, &buffer)?;
                    copied += len;
                }
                at += len;
            }
        }
        self.publish_whole(block, home);
        Ok(copied)
    }

    /// Zeros in a place that may hold what an earlier owner left.
    fn blank(&self, home: BlockHome, within: u64, len: u64) -> Result<(), DiskError> {
        let done = storage::punch_or_zero(&*self.layer.file, home.start().get() + within, len);
        self.mark_payload();
        Ok(done?)
    }

    fn missing(&self, block: BlockIndex) -> Result<Vec<Range<u32>>, DiskError> {
        let g = &self.layer.geometry;
        let sectors = g.visible_len(block) >> g.sector_shift();
        let (mut at, mut runs) = (0, Vec::new());
        while at < sectors {
            let (first, left) = (g.first_bit(block) + at, sectors - at);
            let run = self.layer.bitmaps.run(g.chunk_of(block), first, left, &*self.layer.file, || self.layer.bitmap_home(block))?;
            if !run.present {
                runs.push(at..at + run.len);
            }
            at += run.len;
        }
        Ok(runs)
    }

    /// The blocks that are partially present at the moment.
    pub(crate) fn partial_blocks(&self) -> Result<Vec<BlockIndex>, DiskError> {
        let layer = &*self.layer;
        let mut blocks = Vec::new();
        layer.bat.walk(&*layer.file, u64::MAX, |index, word| -> Result<(), DiskError> {
            if let (Some(BatRole::Payload(block)), Ok(PayloadState::PartiallyPresent(_))) =
                (layer.geometry.bat_role(index), PayloadState::decode(word))
            {
                blocks.push(block);
            }
            Ok(())
        })?;
        Ok(blocks)
    }

    /// From here on first touches make whole blocks, or not any more. Everything that is not present must read as zeros.
    pub(crate) fn switch(&self, link: Link) {
        let _commit = self.commit.lock();
        let _stripes = self.all_stripes();
        self.layer.switch(link);
    }

    /// Gives up the sector bitmap blocks. No block is partially present, and none becomes so.
    pub(crate) fn give_up_bitmaps(&self) -> Result<(), DiskError> {
        let layer = &*self.layer;
        // Bits that wait for a commit need their block's place.
        self.flush()?;
        let mut blocks: Vec<(BatIndex, ChunkIndex, BlockHome)> = Vec::new();
        layer.bat.walk(&*layer.file, u64::MAX, |index, word| -> Result<(), DiskError> {
            if let (Some(BatRole::Bitmap(chunk)), Ok(BitmapState::Present(home))) =
                (layer.geometry.bat_role(index), BitmapState::decode(word))
            {
                blocks.push((index, chunk, home));
            }
            Ok(())
        })?;
        for some in blocks.chunks(GIVEN_UP_AT_ONCE) {
            for &(index, chunk, home) in some {
                layer.bat.load(index, &*layer.file)?;
                let _gate = self.gate.read();
                self.publish(index, BitmapState::NotPresent.encode());
                self.give_up_bitmap(chunk, home);
            }
            self.flush()?;
        }
        Ok(())
    }

    /// Takes HasParent and the locator away. Everything that is not present reads as zeros, and the switch stands at `Whole`.
    pub(crate) fn cut(&self) -> Result<(), ItemFault> {
        let metadata = Metadata { has_parent: false, leave_blocks_allocated: false, parent_locator: None, ..self.layer.metadata.clone() };
        let edit: super::items::Edit<'_> = Box::new(|writer| writer.layer.switch(Link::Cut));
        let together = Together { edit: Some(edit), edit_pages: 0, pages: Vec::new() };
        self.change_together(&[ItemChange::file_parameters(&metadata), ItemChange::no_locator()], together)
    }
}

/// Whether nothing but zeros is there.
fn is_zero(bytes: &[u8]) -> bool {
    let (wide, rest) = bytes.as_chunks::<64>();
    wide.iter().all(|chunk| chunk == &[0; 64]) && rest.iter().all(|&byte| byte == 0)
}
