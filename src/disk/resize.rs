//! Another virtual size for a disk that nobody else is using (our format reference §9.1).
//!
//! The size stands in a metadata item, what the new blocks are in the BAT, and where the BAT is in the region tables. All of it changes in
//! one entry of the log (`items.rs`), so a crash leaves the old disk or the new one:
//!
//! ```text
//!   1. session with new identities, synced           crash: the old disk (children would not recognise it: the caller saw to that)
//!   2. the last block's tail, new blocks of a fixed disk, pages of the table that no old block uses, synced     crash: the old
//!      disk; what was written is behind its end
//!   3. one entry: size, pages of the table with old blocks, region tables if the table moved                     crash: old or new
//!   4. a disk that became shorter: the unused rest of the table is cleared      crash: remains behind the last entry, which nobody reads
//! ```
//!
//! **What grows reads as zeros**, whatever a longer parent holds there: users of a disk that grows expect fresh space, and bytes that were
//! cut off once, or never belonged to this disk, must not turn up in it. New blocks of a child over such bytes become ZERO; in the
//! last old block the sectors behind the old end are written as zeros and owned from then on.
//!
//! **The table.** An entry's index never changes, only the number of entries does; in a differencing file it grows by whole chunks, padding
//! included. Old padding is not trusted. If the region is too small, the table moves to free space in one piece; the old
//! region is free as soon as the region tables say so, and the next session finds it.

use super::backing::Backing;
use super::error::DiskError;
use super::items::{Edit, ItemChange, ItemFault, Together};
use super::writer::{Commit, Writer};
use crate::format::{BAT_REGION, PayloadState, REGION_TABLES, RegionTable, TABLE_LEN};
use crate::geometry::{BatRole, Geometry};
use crate::log::writer::{Lengths, Page};
use crate::mapping::space::Allotment;
use crate::storage::{self, Operation, StorageError};
use crate::units::{BatIndex, BlockHome, BlockIndex, FileOffset, MIB, PAGE, PAGE_LEN};

/// Words in a page.
const WORDS: u64 = PAGE / 8;

/// The new table, as it differs from the old one.
struct Plan<'a> {
    writer: &'a Writer,
    old: Geometry,
    new: Geometry,
    /// Homes of the new blocks of a fixed disk.
    added: Vec<Allotment>,
    /// New blocks of a child that must not show what stands below.
    hidden: Vec<BlockIndex>,
}

/// Entries that a disk of this shape needs.
fn entries(geometry: &Geometry, has_parent: bool) -> u64 {
    if has_parent { geometry.bat_entries_differencing() } else { geometry.bat_entries() }
}

impl Writer {
    /// Gives the disk another size. Nobody else uses it, what would be cut off is known to read as zeros, and it is closed next.
    /// `inherited` is how much of the disk the parents reach.
    pub(crate) fn resize(&self, backing: &dyn Backing, inherited: u64, new: Geometry) -> Result<(), ItemFault> {
        let _alone = self.overhaul.lock();
        let old = self.layer.geometry;
        self.begin()?;
        if new.size() > old.size() {
            self.own_tail(backing, inherited)?;
        }
        let mut plan = Plan { writer: self, old, new, added: Vec::new(), hidden: Vec::new() };
        plan.hide(backing, inherited)?;
        let result = plan.carry_out();
        if result.is_err() {
            let mut space = self.space.lock();
            plan.added.iter().for_each(|&unused| space.give_back(unused));
        }
        result
    }

    /// The bytes of the last block behind the end of the disk become zeros that this file owns.
    fn own_tail(&self, backing: &dyn Backing, inherited: u64) -> Result<(), DiskError> {
        let layer = &*self.layer;
        let g = &layer.geometry;
        let last = BlockIndex::new(g.blocks() - 1);
        let visible = g.visible_len(last);
        let rest = g.block_size() - u64::from(visible);
        if rest == 0 {
            return Ok(());
        }
        let sectors = (visible >> g.sector_shift(), g.sectors_per_block());
        let _stripe = self.stripe(last);
        match self.hold_still(last)? {
            PayloadState::FullyPresent(home) => self.zero_tail(home, visible, rest),
            PayloadState::PartiallyPresent(home) => {
                self.zero_tail(home, visible, rest)?;
                self.load_slice(last)?;
                let _gate = self.gate.read();
                self.fill_bits(last, sectors.0, sectors.1, true);
                Ok(())
            }
            PayloadState::NotPresent if layer.shows_parent() => {
                let reach = inherited.saturating_sub(g.size()).min(rest);
                if reach == 0 || backing.is_zero(g.size(), reach)? {
                    return Ok(());
                }
                let space = self.allocate(g.block_mib(), true)?;
                self.publish_partial(last, sectors, space.home, None).inspect_err(|_| self.space.lock().give_back(space))
            }
            PayloadState::NotPresent | PayloadState::Zero | PayloadState::Undefined | PayloadState::Unmapped => Ok(()),
        }
    }

    fn zero_tail(&self, home: BlockHome, from: u32, len: u64) -> Result<(), DiskError> {
        let done = storage::punch_or_zero(&*self.layer.file, home.start().get() + u64::from(from), len);
        self.mark_payload();
        Ok(done?)
    }
}

impl Plan<'_> {
    /// Finds the new blocks over which the parents hold something.
    fn hide(&mut self, backing: &dyn Backing, inherited: u64) -> Result<(), DiskError> {
        if !self.writer.layer.shows_parent() {
            return Ok(());
        }
        for block in (self.old.blocks()..self.new.blocks()).map(BlockIndex::new) {
            let start = self.new.block_start(block).get();
            if start >= inherited {
                break;
            }
            if !backing.is_zero(start, u64::from(self.new.visible_len(block)).min(inherited - start))? {
                self.hidden.push(block);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self) -> Result<(), ItemFault> {
        let writer = self.writer;
        let layer = &*writer.layer;
        if layer.is_fixed() {
            for _ in self.old.blocks()..self.new.blocks() {
                self.added.push(writer.allocate(self.new.block_mib(), true)?);
            }
        }
        // Everything home, so that the table can be read from the file.
        self.rewind()?;
        let (region_at, region_len) = writer.bat_region();
        let needed = entries(&self.new, layer.has_parent()) * 8;
        let mut pages = Vec::new();
        let mut later = Vec::new();
        let mut moved = None;
        if needed <= region_len {
            self.in_place(region_at, region_len, &mut pages, &mut later)?;
        } else {
            let space = writer.allocate(needed.div_ceil(MIB), true)?;
            let filled = self.fill_region(region_at, space.home.start().get(), needed);
            let tables = filled.and_then(|()| region_pages(writer, space));
            pages = tables.inspect_err(|_| writer.space.lock().give_back(space))?;
            moved = Some(space);
        }
        let gone = self.gone()?;
        let edit: Option<Edit<'_>> = (!gone.is_empty()).then(|| {
            let release = move |writer: &Writer| {
                let mut space = writer.space.lock();
                gone.iter().for_each(|&(home, mib)| space.release(home, mib));
            };
            Box::new(release) as Edit<'_>
        });
        let together = Together { edit, edit_pages: 0, pages };
        writer.change_together(&[ItemChange::virtual_size(self.new.size())], together).inspect_err(|_| {
            if let Some(space) = moved
                && !writer.is_latched()
            {
                writer.space.lock().give_back(space);
            }
        })?;
        self.added.clear(); // they are blocks now
        for page in later {
            storage::write_all(&*layer.file, &page.image[..], page.home.get()).map_err(DiskError::from)?;
            writer.mark_payload();
        }
        Ok(())
    }

    fn rewind(&self) -> Result<(), DiskError> {
        let writer = self.writer;
        let mut commit = writer.commit.lock();
        writer.flush_as_leader(&mut commit)?;
        let lengths = Lengths { flushed: commit.durable_len, last: writer.space.lock().end() * MIB };
        let Commit { headers, log, .. } = &mut *commit;
        log.rewind(&*writer.layer.file, headers, lengths).map_err(|e| if e.is_harmless() { e.into() } else { writer.latch(e.into()) })
    }

    /// What an entry is in the new table; the flag says whether it means something in the old one as well and stays.
    fn word(&self, index: u64, old: u64) -> (u64, bool) {
        let has_parent = self.writer.layer.has_parent();
        let role = u32::try_from(index).ok().and_then(|index| self.new.bat_role(BatIndex::new(index)));
        match role {
            Some(BatRole::Payload(block)) if block.get() < self.old.blocks() => (old, true),
            Some(BatRole::Payload(block)) => (self.new_block(block).encode(), false),
            Some(BatRole::Bitmap(chunk)) if has_parent && chunk.get() < self.old.chunks() => (old, true),
            // Files without a parent should have none; what others left there stays.
            Some(BatRole::Bitmap(_)) if !has_parent && index < entries(&self.old, false) => (old, true),
            Some(BatRole::Bitmap(_)) | None => (0, false),
        }
    }

    fn new_block(&self, block: BlockIndex) -> PayloadState {
        match self.added.get((block.get() - self.old.blocks()) as usize) {
            Some(space) => PayloadState::FullyPresent(space.home),
            None if self.hidden.binary_search(&block).is_ok() => PayloadState::Zero,
            None => PayloadState::NotPresent,
        }
    }

    /// Pages of a table that stays where it is. Those with entries that count in both tables go into the entry of the log; the others are
    /// written at once when the disk grows (nobody reads them yet) and afterwards when it shrinks (nobody does any more).
    fn in_place(&self, at: u64, region_len: u64, logged: &mut Vec<Page>, later: &mut Vec<Page>) -> Result<(), DiskError> {
        let file = &*self.writer.layer.file;
        let has_parent = self.writer.layer.has_parent();
        let first = self.old.bat_index(BlockIndex::new(self.old.blocks().min(self.new.blocks()) - 1));
        let end = entries(&self.old, has_parent).max(entries(&self.new, has_parent)).div_ceil(WORDS).min(region_len / PAGE);
        for page in u64::from(first.get()) / WORDS..end {
            let home = at + page * PAGE;
            let mut image = Box::new([0; PAGE_LEN]);
            storage::read_zero_extended(file, &mut image[..], home)?;
            let (is_changed, is_kept) = self.rewrite(page, &mut image[..]);
            if !is_changed {
                continue;
            }
            let page = Page { home: FileOffset::new(home), image };
            if is_kept {
                logged.push(page);
            } else if self.new.size() < self.old.size() {
                later.push(page);
            } else {
                storage::write_all(file, &page.image[..], home)?;
                self.writer.mark_payload();
            }
        }
        Ok(())
    }

    /// Makes a page of the old table one of the new. Says whether that changed anything, and whether some entries stay.
    fn rewrite(&self, page: u64, image: &mut [u8]) -> (bool, bool) {
        let (mut is_changed, mut is_kept) = (false, false);
        for (index, bytes) in (page * WORDS..).zip(image.chunks_exact_mut(8)) {
            let old = u64::from_le_bytes((&*bytes).try_into().expect("eight bytes"));
            let (new, stays) = self.word(index, old);
            is_changed |= new != old;
            is_kept |= stays;
            bytes.copy_from_slice(&new.to_le_bytes());
        }
        (is_changed, is_kept)
    }

    /// Writes the whole new table to its new place, which reads as zeros.
    fn fill_region(&self, from: u64, to: u64, needed: u64) -> Result<(), DiskError> {
        let file = &*self.writer.layer.file;
        let old_len = (entries(&self.old, self.writer.layer.has_parent()) * 8).next_multiple_of(PAGE);
        let is_plain = self.added.is_empty() && self.hidden.is_empty();
        let mut page = 0;
        while page * PAGE < needed {
            let mut image = Box::new([0; PAGE_LEN]);
            if page * PAGE < old_len {
                // Holes of the old table are holes of the new one.
                let at = from + page * PAGE;
                let data = file.next_data(at).map_err(|e| StorageError::new(Operation::Seek, at, e))?;
                let next = data.map_or(old_len, |(start, _)| start.saturating_sub(from)) / PAGE;
                if is_plain && next > page {
                    page = next;
                    continue;
                }
                storage::read_zero_extended(file, &mut image[..], at)?;
            } else if is_plain {
                return Ok(());
            }
            self.rewrite(page, &mut image[..]);
            if image.iter().any(|&byte| byte != 0) {
                let result = storage::write_all(file, &image[..], to + page * PAGE);
                self.writer.mark_payload();
                result?;
            }
            page += 1;
        }
        Ok(())
    }

    /// The places of blocks and sector bitmap blocks that the shorter disk does not have.
    fn gone(&self) -> Result<Vec<(BlockHome, u64)>, DiskError> {
        let layer = &*self.writer.layer;
        let mut gone = Vec::new();
        if self.new.size() >= self.old.size() {
            return Ok(gone);
        }
        layer.bat.walk(&*layer.file, u64::MAX, |index, word| -> Result<(), DiskError> {
            if !self.word(index.get().into(), word).1
                && let Some(placed) = layer.placed(index, word).filter(|placed| !placed.is_anchor)
            {
                gone.push((placed.home, placed.mib));
            }
            Ok(())
        })?;
        Ok(gone)
    }
}

impl Writer {
    /// Where the BAT region starts, and its length.
    fn bat_region(&self) -> (u64, u64) {
        let taken = self.layer.bat.taken().iter().find(|(_, _, what)| *what == crate::kind::Structure::Bat);
        let &(start, end, _) = taken.expect("an open layer has a BAT region");
        (start, end - start)
    }
}

/// The pages of both region tables that change when the BAT is at another place.
fn region_pages(writer: &Writer, space: Allotment) -> Result<Vec<Page>, DiskError> {
    let file = &*writer.layer.file;
    let mut copies = Vec::new();
    for at in REGION_TABLES {
        let mut bytes = vec![0; TABLE_LEN];
        storage::read_exact(file, &mut bytes, at.get())?;
        copies.push((at, bytes));
    }
    let parsed = copies.iter().map(|(at, bytes)| RegionTable::parse(*at, bytes)).collect::<Vec<_>>();
    // The first whole copy is the one that opening went by; the other one follows it.
    let mut table = match parsed.iter().find_map(|table| table.as_ref().ok()) {
        Some(table) => table.clone(),
        None => return Err(parsed.into_iter().find_map(Result::err).expect("no copy is whole").into()),
    };
    for region in table.entries.iter_mut().filter(|region| region.guid == BAT_REGION) {
        region.offset = FileOffset::new(space.home.start().get());
        region.length = u32::try_from(space.mib * MIB).expect("the largest table has 513 MiB");
    }
    let new = table.encode();
    let mut pages = Vec::new();
    for (at, old) in &copies {
        for (home, (old, new)) in (at.get()..).step_by(PAGE_LEN).zip(old.chunks(PAGE_LEN).zip(new.chunks(PAGE_LEN))) {
            if old != new {
                let image: Box<[u8; PAGE_LEN]> = Box::from(<[u8; PAGE_LEN]>::try_from(new).expect("a page"));
                pages.push(Page { home: FileOffset::new(home), image });
            }
        }
    }
    Ok(pages)
}
