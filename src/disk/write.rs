//! Writing payload, from hot to cold.
//!
//! *Hot*: every sector of the request is present in this file. One look-up, one write, no lock, no metadata.
//! *Cold*: some sector is not. Under the block's stripe lock, and in this order:
//!   1. allocate    crash: at most a longer file; free space is learnt from the BAT at the next session
//!   2. write       crash: bytes that nothing points at
//!   3. publish     crash: as 2, because a mapping is memory only until the next commit
//!
//! Publishing goes bits first, then the sector bitmap block's entry, then the payload entry (Release), so that a reader
//! that sees an entry sees everything behind it. A child never copies its parent up: a first touch writes the caller's sectors
//! and nothing else. Only a sector that the caller writes in part is completed from the parent.

use super::backing::Backing;
use super::error::DiskError;
use super::riding::{LONGEST, Riders};
use super::writer::Writer;
use crate::format::{BitmapState, PayloadState};
use crate::geometry::BlockSpan;
use crate::mapping::bitmap::{BitmapTable, PAGES_PER_CHUNK, PageSource};
use crate::mapping::dirty::PageKey;
use crate::mapping::space::Allotment;
use crate::storage;
use crate::sync::{Ordering, RwLockReadGuard};
use crate::units::{BlockHome, BlockIndex, PAGE_LEN, VirtualOffset};

/// The bytes of a request that go to one stretch of the file, gathered over neighbouring blocks.
struct Run {
    at: u64,
    from: usize,
    len: usize,
}

/// A cold span: where it lies in its block, in bytes and sectors.
pub(super) struct Cold<'a> {
    block: BlockIndex,
    /// First byte in the block.
    within: u32,
    data: &'a [u8],
    /// Sectors touched, counted in the block: first and one past the last.
    sectors: (u32, u32),
}

impl Writer {
    /// Writes `data` at `at`; the range lies inside the disk and is not empty.
    pub(crate) fn write(&self, backing: &dyn Backing, data: &[u8], at: VirtualOffset) -> Result<(), DiskError> {
        self.check_latch()?;
        self.begin()?;
        // Drawn before any look-up and held until the bytes are in the file: no place found below moves to another block.
        let _ticket = self.quarantine.enter();
        let mut spans = self.layer.geometry.spans(at, data.len() as u64);
        if let (Some(span), None) = (spans.next(), spans.next())
            && let Some(home) = self.hot_home(span)?
        {
            // A rewrite inside one block, as small writes nearly always are.
            return self.put(home, span.within.get(), data);
        }
        self.write_spans(backing, data, at)
    }

    /// Writes block by block; neighbours in the file travel in one call. The caller holds a ticket.
    fn write_spans(&self, backing: &dyn Backing, data: &[u8], at: VirtualOffset) -> Result<(), DiskError> {
        let mut run: Option<Run> = None;
        let mut from = 0;
        for span in self.layer.geometry.spans(at, data.len() as u64) {
            let len = span.len as usize;
            match self.hot_home(span)? {
                Some(home) => {
                    let place = home.at(span.within).get();
                    match &mut run {
                        Some(open) if open.at + open.len as u64 == place => open.len += len,
                        _ => {
                            self.write_run(run.take(), data)?;
                            run = Some(Run { at: place, from, len });
                        }
                    }
                }
                None => {
                    self.write_run(run.take(), data)?;
                    self.write_cold(backing, span, &data[from..from + len])?;
                }
            }
            from += len;
        }
        self.write_run(run, data)
    }

    fn write_run(&self, run: Option<Run>, data: &[u8]) -> Result<(), DiskError> {
        if let Some(run) = run {
            self.land(&data[run.from..run.from + run.len], run.at)?;
        }
        Ok(())
    }

    /// The block's home, if every sector of the span is present.
    #[inline]
    pub(super) fn hot_home(&self, span: BlockSpan) -> Result<Option<BlockHome>, DiskError> {
        match self.layer.bat.settled(span.block, &*self.layer.file)? {
            Some(PayloadState::FullyPresent(home)) => Ok(Some(home)),
            Some(PayloadState::PartiallyPresent(home)) => {
                let (first, end) = self.sectors_of(span.within.get(), span.len);
                Ok(self.all_present(span.block, first, end)?.then_some(home))
            }
            Some(PayloadState::NotPresent | PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped) => Ok(None),
            // It is about to move: its stripe decides.
            None => Ok(None),
        }
    }

    fn sectors_of(&self, within: u32, len: u32) -> (u32, u32) {
        let shift = self.layer.geometry.sector_shift();
        (within >> shift, (within + len).div_ceil(1 << shift))
    }

    #[inline]
    fn all_present(&self, block: BlockIndex, first: u32, end: u32) -> Result<bool, DiskError> {
        let g = &self.layer.geometry;
        let home = || self.layer.bitmap_home(block);
        Ok(self.layer.bitmaps.all_set(g.chunk_of(block), g.first_bit(block) + first, end - first, &*self.layer.file, home)?)
    }

    /// The state of a block, which stays where it is: a move that is being prepared is called off. The caller holds the stripe.
    pub(crate) fn hold_still(&self, block: BlockIndex) -> Result<PayloadState, DiskError> {
        let state = self.layer.payload(block)?;
        self.layer.bat.unmark(block);
        Ok(state)
    }

    /// The same for somebody who holds a ticket and no lock: as long as the ticket lives, the block stays where it is.
    pub(crate) fn settle(&self, block: BlockIndex) -> Result<PayloadState, DiskError> {
        match self.layer.bat.settled(block, &*self.layer.file)? {
            Some(state) => Ok(state),
            None => {
                let _stripe = self.stripe(block);
                self.hold_still(block)
            }
        }
    }

    #[cold]
    pub(super) fn write_cold(&self, backing: &dyn Backing, span: BlockSpan, data: &[u8]) -> Result<(), DiskError> {
        let _stripe = self.stripe(span.block);
        let within = span.within.get();
        let cold = Cold { block: span.block, within, data, sectors: self.sectors_of(within, span.len) };
        match self.hold_still(span.block)? {
            // Somebody else was first.
            PayloadState::FullyPresent(home) => self.put(home, within, data),
            PayloadState::PartiallyPresent(home) => self.write_partial(backing, &cold, home),
            PayloadState::NotPresent if self.layer.shows_parent() => {
                if within == 0 && span.len >= self.layer.geometry.visible_len(span.block) {
                    self.first_touch_whole(&cold)
                } else {
                    self.first_touch_sectors(backing, &cold)
                }
            }
            PayloadState::NotPresent | PayloadState::Zero | PayloadState::Undefined | PayloadState::Unmapped => {
                self.first_touch_whole(&cold)
            }
        }
    }

    /// Writes bytes into a block of this file.
    #[inline]
    pub(super) fn put(&self, home: BlockHome, within: u32, data: &[u8]) -> Result<(), DiskError> {
        self.land(data, home.start().get() + u64::from(within))
    }

    /// Puts payload in its place in the file, and sees to it that the next flush makes it durable. Every write of payload goes
    /// through here, but those that board the log (`riding.rs`).
    #[inline]
    pub(super) fn land(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        if let Some(riders) = &self.riders
            && riders.may_hold(at, data.len())
        {
            return self.land_beside_riders(riders, data, at);
        }
        let result = storage::write_all(&*self.layer.file, data, at);
        // Also after a failure: a part may have landed.
        self.mark_payload();
        Ok(result?)
    }

    #[cold]
    fn land_beside_riders(&self, riders: &Riders, data: &[u8], at: u64) -> Result<(), DiskError> {
        let result = riders.rewrite(&*self.layer.file, at, data);
        if !matches!(result, Ok(true)) {
            self.mark_payload();
        }
        Ok(result.map(drop)?)
    }

    /// Whether the pages of a first write may board the log: whole pages, not too many, and none of their sectors present, so that
    /// nobody is writing to them.
    fn may_board(&self, cold: &Cold<'_>) -> Result<bool, DiskError> {
        let len = cold.data.len();
        let is_whole = (cold.within as usize).is_multiple_of(PAGE_LEN) && len.is_multiple_of(PAGE_LEN);
        if self.riders.is_none() || !is_whole || len > LONGEST {
            return Ok(false);
        }
        match self.layer.payload(cold.block)? {
            PayloadState::NotPresent => Ok(true),
            PayloadState::PartiallyPresent(_) => {
                let g = &self.layer.geometry;
                let (first, count) = (g.first_bit(cold.block) + cold.sectors.0, cold.sectors.1 - cold.sectors.0);
                let home = || self.layer.bitmap_home(cold.block);
                let run = self.layer.bitmaps.run(g.chunk_of(cold.block), first, count, &*self.layer.file, home)?;
                Ok(!run.present && run.len == count)
            }
            PayloadState::FullyPresent(_) | PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => Ok(false),
        }
    }

    /// Writes the pages of a first write that may board, without a mark: [`Writer::board`] follows under the gate.
    fn land_to_board(&self, cold: &Cold<'_>, home: BlockHome) -> Result<(), DiskError> {
        let at = home.start().get() + u64::from(cold.within);
        storage::write_all(&*self.layer.file, cold.data, at).inspect_err(|_| self.mark_payload())?;
        Ok(())
    }

    /// The pages that [`Writer::land_to_board`] wrote board the log, or wait for a sync where there is no room. The caller holds
    /// the gate and publishes their bits next: a commit that carries the bits carries the pages.
    fn board(&self, cold: Option<&Cold<'_>>, home: BlockHome) {
        if let (Some(cold), Some(riders)) = (cold, &self.riders)
            && !riders.board(home.start().get() + u64::from(cold.within), cold.data)
        {
            self.mark_payload();
        }
    }

    /// The block becomes fully present: its other bytes are zeros (no parent, a zeroed block), or there are no others.
    /// Space that the entry may have kept for an unmapped block is found free by the next session's scan.
    fn first_touch_whole(&self, cold: &Cold<'_>) -> Result<(), DiskError> {
        let g = &self.layer.geometry;
        let covers_all = cold.data.len() as u64 == g.block_size();
        let space = self.allocate(g.block_mib(), !covers_all)?;
        self.put(space.home, cold.within, cold.data).inspect_err(|_| self.space.lock().give_back(space))?;
        self.publish_whole(cold.block, space.home);
        Ok(())
    }

    /// Makes a block fully present at `home`. The caller holds the stripe.
    pub(super) fn publish_whole(&self, block: BlockIndex, home: BlockHome) {
        let _gate = self.gate.read();
        self.publish(self.layer.geometry.bat_index(block), PayloadState::FullyPresent(home).encode());
    }

    /// The block becomes partially present: only the caller's sectors are written, the rest still comes from the parent.
    fn first_touch_sectors(&self, backing: &dyn Backing, cold: &Cold<'_>) -> Result<(), DiskError> {
        let g = &self.layer.geometry;
        // The tail of a last block that the disk's end cuts must be zeros, should the disk ever grow; no bitmap bit hides it.
        let cut = u64::from(g.visible_len(cold.block)) < g.block_size();
        let space = self.allocate(g.block_mib(), cut)?;
        let boards = self.may_board(cold).inspect_err(|_| self.space.lock().give_back(space))?;
        let landed =
            if boards { self.land_to_board(cold, space.home) } else { self.put_completed(backing, cold, space.home, |_| Ok(false)) };
        landed
            .and_then(|()| self.publish_partial(cold.block, cold.sectors, space.home, boards.then_some(cold)))
            .inspect_err(|_| self.space.lock().give_back(space))
    }

    /// Makes a block partially present whose `sectors` are written at `home`. The caller holds the stripe.
    pub(super) fn publish_partial(
        &self,
        block: BlockIndex,
        sectors: (u32, u32),
        home: BlockHome,
        boarding: Option<&Cold<'_>>,
    ) -> Result<(), DiskError> {
        let g = &self.layer.geometry;
        let (_gate, new_bitmap) = self.enter_slice(block)?;
        self.board(boarding, home);
        // MS-VHDX 2.4: bits of a block that was not partially present are stale, so the whole slice is rewritten.
        self.fill_bits(block, 0, g.sectors_per_block(), false);
        self.fill_bits(block, sectors.0, sectors.1, true);
        self.consult(block);
        if let Some(bitmap) = new_bitmap {
            self.publish(g.bitmap_bat_index(g.chunk_of(block)), BitmapState::Present(bitmap).encode());
        }
        self.publish(g.bat_index(block), PayloadState::PartiallyPresent(home).encode());
        Ok(())
    }

    /// More sectors of a partially present block.
    fn write_partial(&self, backing: &dyn Backing, cold: &Cold<'_>, home: BlockHome) -> Result<(), DiskError> {
        if !self.has_slice(cold.block) {
            self.load_slice(cold.block)?;
        }
        let boards = self.may_board(cold)?;
        if boards {
            self.land_to_board(cold, home)?;
        } else {
            self.put_completed(backing, cold, home, |sector| self.all_present(cold.block, sector, sector + 1))?;
        }
        self.publish_more(cold.block, cold.sectors, home, boards.then_some(cold))
    }

    /// Adds sectors to a partially present block; when they complete it, it becomes fully present. The caller holds the stripe
    /// and has loaded the slice.
    fn publish_more(&self, block: BlockIndex, sectors: (u32, u32), home: BlockHome, boarding: Option<&Cold<'_>>) -> Result<(), DiskError> {
        let _gate = self.gate.read();
        self.board(boarding, home);
        self.fill_bits(block, sectors.0, sectors.1, true);
        if self.is_complete(block, sectors)? {
            self.publish(self.layer.geometry.bat_index(block), PayloadState::FullyPresent(home).encode());
        }
        Ok(())
    }

    /// Whether every sector of the block is present now. Looks behind the written sectors first, so that a sequential writer
    /// finds the next hole at once.
    fn is_complete(&self, block: BlockIndex, written: (u32, u32)) -> Result<bool, DiskError> {
        let g = &self.layer.geometry;
        let sectors = g.visible_len(block) >> g.sector_shift();
        Ok((written.1 >= sectors || self.all_present(block, written.1, sectors)?)
            && (written.0 == 0 || self.all_present(block, 0, written.0)?))
    }

    /// A host wrote whole sectors of a partially present block: publishes them, unless the block moved on meanwhile (it was
    /// trimmed, and the trim counts as the later one, or it became fully present).
    pub(crate) fn publish_sectors(&self, span: BlockSpan, home: BlockHome) -> Result<(), DiskError> {
        let _stripe = self.stripe(span.block);
        if self.hold_still(span.block)? == PayloadState::PartiallyPresent(home) {
            self.load_slice(span.block)?;
            self.publish_more(span.block, self.sectors_of(span.within.get(), span.len), home, None)?;
        }
        Ok(())
    }

    /// A host wrote whole sectors into new space: publishes the block there. `false` when the block has a place by now.
    pub(crate) fn publish_space(&self, span: BlockSpan, space: Allotment) -> Result<bool, DiskError> {
        let g = &self.layer.geometry;
        let _stripe = self.stripe(span.block);
        match self.hold_still(span.block)? {
            PayloadState::FullyPresent(_) | PayloadState::PartiallyPresent(_) => Ok(false),
            PayloadState::NotPresent if self.layer.shows_parent() && span.len < g.visible_len(span.block) => {
                self.publish_partial(span.block, self.sectors_of(span.within.get(), span.len), space.home, None)?;
                Ok(true)
            }
            PayloadState::NotPresent | PayloadState::Zero | PayloadState::Undefined | PayloadState::Unmapped => {
                self.publish_whole(span.block, space.home);
                Ok(true)
            }
        }
    }

    /// Writes the span's bytes, completing a first or last sector that the caller covers only in part and this file does not
    /// hold yet.
    fn put_completed(
        &self,
        backing: &dyn Backing,
        cold: &Cold<'_>,
        home: BlockHome,
        present: impl Fn(u32) -> Result<bool, DiskError>,
    ) -> Result<(), DiskError> {
        let sector = self.layer.geometry.logical_sector();
        let (start, end) = (cold.within, cold.within + cold.data.len() as u32);
        let head = start % sector != 0 && !present(cold.sectors.0)?;
        let tail = end % sector != 0 && !present(cold.sectors.1 - 1)?;
        if !head && !tail {
            return self.put(home, start, cold.data);
        }
        let from = if head { cold.sectors.0 * sector } else { start };
        let to = if tail { cold.sectors.1 * sector } else { end };
        let mut whole = vec![0; (to - from) as usize];
        let block_start = self.layer.geometry.block_start(cold.block).get();
        let mut complete = |at: u32| {
            let place = (at - from) as usize;
            backing.read(&mut whole[place..place + sector as usize], block_start + u64::from(at))
        };
        if head {
            complete(from)?;
        }
        if tail && !(head && cold.sectors.1 - cold.sectors.0 == 1) {
            complete(to - sector)?;
        }
        whole[(start - from) as usize..(end - from) as usize].copy_from_slice(cold.data);
        self.put(home, from, &whole)
    }

    /// Loads a block's slice and takes the gate, for a block that becomes partially present. Returns the home of the chunk's sector
    /// bitmap block when its entry is still to be published.
    ///
    /// A bitmap block that no block of its chunk uses may be given up at any moment until the gate is held (`disk/compact`), so it is
    /// looked for once more under the gate: it is there, or it is the one that this session has claimed.
    fn enter_slice(&self, block: BlockIndex) -> Result<(RwLockReadGuard<'_, ()>, Option<BlockHome>), DiskError> {
        let chunk = self.layer.geometry.chunk_of(block);
        loop {
            let claimed = self.load_slice(block)?;
            let gate = self.gate.read();
            match (self.layer.bat.bitmap(chunk, &*self.layer.file)?, claimed) {
                (BitmapState::Present(_), _) => return Ok((gate, None)),
                (BitmapState::NotPresent, Some(home)) if self.fresh_bitmap(chunk) == Some(home) => return Ok((gate, Some(home))),
                (BitmapState::NotPresent, _) => {}
            }
        }
    }

    /// Whether the bitmap pages of a partially present block are in memory, where they stay.
    #[inline]
    fn has_slice(&self, block: BlockIndex) -> bool {
        let g = &self.layer.geometry;
        let (chunk, first) = (g.chunk_of(block), g.first_bit(block));
        let (from, to) = (BitmapTable::page_of(chunk, first), BitmapTable::page_of(chunk, first + g.sectors_per_block() - 1));
        (from..=to).all(|page| self.layer.bitmaps.loaded_page(page).is_some())
    }

    /// Brings the bitmap pages of a block's slice into memory. Returns the home of the chunk's sector bitmap block when it
    /// had to be allocated; the caller publishes it.
    pub(super) fn load_slice(&self, block: BlockIndex) -> Result<Option<BlockHome>, DiskError> {
        let g = &self.layer.geometry;
        let chunk = g.chunk_of(block);
        let file = &*self.layer.file;
        let new = match self.layer.bat.bitmap(chunk, file)? {
            BitmapState::Present(_) => None,
            BitmapState::NotPresent => Some(self.claim_bitmap(chunk)?),
        };
        let source = || match self.layer.bat.bitmap(chunk, file)? {
            BitmapState::Present(home) if self.fresh_bitmap(chunk).is_none() => Ok(PageSource::File(home)),
            // A block of zeros, wherever no page is in memory.
            BitmapState::Present(_) | BitmapState::NotPresent => Ok(PageSource::Fresh),
        };
        let first = g.first_bit(block);
        let (from, to) = (BitmapTable::page_of(chunk, first), BitmapTable::page_of(chunk, first + g.sectors_per_block() - 1));
        for page in from..=to {
            self.layer.bitmaps.page(page, file, source)?;
        }
        Ok(new)
    }

    /// Sets or clears the bits of sectors `first..end` of a block, in memory. The caller holds the gate.
    pub(super) fn fill_bits(&self, block: BlockIndex, first: u32, end: u32, value: bool) {
        let g = &self.layer.geometry;
        self.layer.bitmaps.fill(g.chunk_of(block), g.first_bit(block) + first, end - first, value, |number, page| {
            self.dirty.mark(PageKey::Bitmap(number), &page.dirty);
        });
    }

    /// The block's slice is going to be consulted once the next commit is durable. Pages of it that are not part of that
    /// commit must not be written around the log later. The caller holds the gate.
    fn consult(&self, block: BlockIndex) {
        let g = &self.layer.geometry;
        let chunk = g.chunk_of(block);
        let first = g.first_bit(block);
        let (from, to) = (BitmapTable::page_of(chunk, first), BitmapTable::page_of(chunk, first + g.sectors_per_block() - 1));
        if from == to {
            return; // the one page is dirty, so the commit that publishes the block carries it
        }
        for number in from..=to {
            let page = self.layer.bitmaps.loaded_page(number).expect("the slice was loaded");
            if !page.dirty.is_set() {
                page.unconsulted.store(false, Ordering::Relaxed);
            }
        }
        debug_assert!(to - from < PAGES_PER_CHUNK, "a slice lies inside its chunk");
    }
}
