//! Making everything durable: group commit (our format reference §3.8, `design.md` §3).
//!
//! The leader holds the commit lock; callers that arrive meanwhile wait for it, find their work done, and return. One flush:
//!
//! ```text
//!   freeze      copy dirty pages under the exclusive gate
//!   direct      bitmap pages that nothing durable consults go straight to their homes
//!   barrier 1   sync: payload, direct pages, homes of earlier commits, the mirrored header
//!   append      one log entry with the other pages
//!   barrier 2   the entry is durable: a durable write of it alone where the log is laid down (`log/writer.rs`), a sync
//!               otherwise. flush() may return Ok
//! ```
//!
//! Syncs: none when nothing changed (but one in the first flush of a session that has not changed anything yet, for what an earlier
//! session may have left in the air), one when only present sectors were rewritten, two otherwise, however many blocks are new,
//! as long as their BAT pages fit one log entry.
//!
//! **Direct pages.** The bits of a block matter only while its entry is PARTIALLY_PRESENT (MS-VHDX 2.5.1.1). A page of a
//! sector bitmap block that was allocated in this session, and over which no block was ever committed as partially present,
//! is not metadata yet: a crash that tears it tears bits nobody reads. It is written like payload, before barrier 1. Ten
//! thousand scattered first writes dirty thousands of such pages and a hundred pages of BAT, and still cost two syncs.
//!
//! **More pages than one entry takes** travel in several entries, each atomic for itself. Bitmap pages go first, then BAT pages
//! from the last to the first. A crash between two entries leaves bits of blocks that are not partially present yet (ignored)
//! or entries of sector bitmap blocks without their payload entries (allowed); never the other way round, because the entry
//! of a chunk's bitmap block stands behind those of its payload blocks in the BAT.

use super::error::DiskError;
use super::riding::Riders;
use super::writer::{Commit, Writer};
use crate::format::BitmapState;
use crate::guid::DataWriteGuid;
use crate::log::writer::{Lengths, LogError, Page, write_pages};
use crate::mapping::bitmap::BitmapTable;
use crate::mapping::dirty::{DirtyList, PageKey};
use crate::mapping::space::Extent;
use crate::storage::{self, SyncSite};
use crate::sync::Ordering;
use crate::units::{FileOffset, MIB};

/// What one freeze took.
pub(super) struct Frozen {
    /// Pages that go straight home.
    pub(super) direct: Vec<Page>,
    /// Pages that go through the log, in the order that the module describes, with their names.
    pub(super) logged: Vec<(PageKey, Page)>,
    direct_keys: Vec<PageKey>,
    pub(super) released: Vec<Extent>,
}

impl Frozen {
    fn is_empty(&self) -> bool {
        self.direct.is_empty() && self.logged.is_empty()
    }
}

impl Writer {
    /// See the module.
    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        self.check_latch()?;
        let mut commit = self.commit.lock();
        self.check_latch()?;
        if !self.has_begun() {
            return self.harden_inheritance(&mut commit);
        }
        self.flush_as_leader(&mut commit)?;
        self.reclaim();
        Ok(())
    }

    /// Nothing was changed through this handle, but an earlier one may have been dropped (or its process killed) between a write
    /// and a flush. What it wrote is read here, so a flush here must make it last. The first sync of a session that changes
    /// something does so too.
    fn harden_inheritance(&self, commit: &mut Commit) -> Result<(), DiskError> {
        if commit.inherits {
            let _ = commit.log.sync(&*self.layer.file, &mut commit.headers, SyncSite::Inheritance).map_err(|e| self.latch(e.into()))?;
            commit.inherits = false;
        }
        Ok(())
    }

    pub(crate) fn flush_as_leader(&self, commit: &mut Commit) -> Result<(), DiskError> {
        let frozen = self.freeze().map_err(|e| self.latch(e))?;
        let file = &*self.layer.file;
        if self.may_ride(commit, &frozen) {
            return match self.commit_riding(commit, &frozen) {
                Ok(()) => Ok(()),
                Err(e) if e.is_harmless() => {
                    self.restore_frozen(frozen);
                    Err(e.into())
                }
                Err(e) => Err(self.latch(e.into())),
            };
        }
        if frozen.is_empty() && !self.riders.as_ref().is_some_and(Riders::is_waiting) {
            // Every entry is durable as it stands, so what was given up is given up for good.
            let epoch = self.quarantine.epoch();
            self.space.lock().enter_limbo(epoch, frozen.released);
            if self.take_payload() {
                let len = self.space.lock().file_end() * MIB;
                let _ = commit.log.sync(file, &mut commit.headers, SyncSite::Rewrite).map_err(|e| self.latch(e.into()))?;
                commit.durable_len = len;
            }
            return Ok(());
        }
        let mut logged = frozen.logged;
        let outcome = self.commit_pages(commit, &frozen.direct, &mut logged);
        match outcome {
            Ok(()) => {
                let mut space = self.space.lock();
                let epoch = self.quarantine.epoch();
                space.enter_limbo(epoch, frozen.released);
                Ok(())
            }
            Err(e) if e.is_harmless() => {
                // Nothing was published: what is left goes back on the list, and a flush with more room commits it.
                let left = logged.into_iter().map(|(key, _)| key).chain(frozen.direct_keys);
                self.restore(left, frozen.released);
                Err(e.into())
            }
            Err(e) => Err(self.latch(e.into())),
        }
    }

    /// Copies every dirty page. No entry or bit changes meanwhile, so a commit never holds half of a pair of entries.
    fn freeze(&self) -> Result<Frozen, DiskError> {
        let _gate = self.gate.write();
        self.freeze_gated()
    }

    /// The same for a caller that holds the gate exclusively.
    pub(super) fn freeze_gated(&self) -> Result<Frozen, DiskError> {
        let layer = &*self.layer;
        let mut keys = self.dirty.take();
        keys.sort_unstable_by(|a, b| match (a, b) {
            (PageKey::Bat(a), PageKey::Bat(b)) => b.cmp(a),
            _ => a.cmp(b),
        });
        let mut frozen =
            Frozen { direct: Vec::new(), logged: Vec::with_capacity(keys.len()), direct_keys: Vec::new(), released: Vec::new() };
        for key in keys {
            match key {
                PageKey::Bat(number) => {
                    let page = layer.bat.loaded_page(number).expect("a dirty page is loaded");
                    DirtyList::unmark(&page.dirty);
                    frozen.logged.push((key, Page { home: layer.bat.page_home(number), image: page.image() }));
                }
                PageKey::Bitmap(number) => {
                    let page = layer.bitmaps.loaded_page(number).expect("a dirty page is loaded");
                    DirtyList::unmark(&page.dirty);
                    // Its block was given up since (`disk/compact/bitmaps.rs`): no block of the chunk asks for these bits, and who makes one
                    // partially present again rewrites its slice.
                    let Some(home) = self.bitmap_page_home(number)? else { continue };
                    let page_at = Page { home, image: page.image() };
                    if page.unconsulted.swap(false, Ordering::Relaxed) {
                        frozen.direct.push(page_at);
                        frozen.direct_keys.push(key);
                    } else {
                        frozen.logged.push((key, page_at));
                    }
                }
            }
        }
        frozen.released = self.space.lock().take_released();
        Ok(frozen)
    }

    fn bitmap_page_home(&self, page: u64) -> Result<Option<FileOffset>, DiskError> {
        let (chunk, _) = BitmapTable::place_of(page);
        let home = match self.layer.bat.bitmap(chunk, &*self.layer.file)? {
            BitmapState::Present(home) => Some(home),
            BitmapState::NotPresent => self.fresh_bitmap(chunk),
        };
        Ok(home.map(|home| BitmapTable::page_home(page, home)))
    }

    /// Commits the pages; `logged` keeps what did not become durable.
    fn commit_pages(&self, commit: &mut Commit, direct: &[Page], logged: &mut Vec<(PageKey, Page)>) -> Result<(), LogError> {
        let file = &*self.layer.file;
        let batch = commit.log.batch_pages();
        let take = |logged: &[(PageKey, Page)]| logged.iter().take(batch).map(|(_, page)| page.clone()).collect::<Vec<Page>>();
        let done = |logged: &mut Vec<(PageKey, Page)>| drop(logged.drain(..batch.min(logged.len())));
        self.commit_entry(commit, direct, take(logged))?;
        done(logged);
        while !logged.is_empty() {
            let settled = commit.log.freeze(take(logged)).settle_without_payload();
            let (_, end) = self.lengths();
            let lengths = Lengths { flushed: commit.durable_len, last: end };
            let durable = commit.log.append(file, &mut commit.headers, settled, lengths)?;
            commit.log.accept(durable);
            done(logged);
        }
        Ok(())
    }

    /// Commits pages that fit one entry, and the payload before them.
    pub(super) fn commit_entry(&self, commit: &mut Commit, direct: &[Page], pages: Vec<Page>) -> Result<(), LogError> {
        let file = &*self.layer.file;
        let mut direct: Vec<&Page> = direct.iter().collect();
        direct.sort_unstable_by_key(|page| page.home);
        write_pages(file, direct.iter().map(|page| (page.home.get(), &*page.image)))?;
        // Entries with payload must be dead before payload is written around them: see `riding.rs`.
        let kills = self.riders.as_ref().is_some_and(Riders::is_live);
        let applied = commit.log.apply_if_crowded(file, kills)?;
        let frozen = commit.log.freeze(pages);
        self.grow_for_riders();
        let (file_end, end) = self.lengths();
        let lengths = Lengths { flushed: commit.durable_len, last: end };
        let mut has_payload = self.take_payload() || !direct.is_empty();
        if let Some(riders) = &self.riders {
            has_payload |= riders.is_waiting();
            riders.get_off();
        }
        if commit.log.is_started() {
            let settled = if has_payload || applied {
                commit.log.lay_down(file, frozen.pages()).inspect_err(|_| self.mark_payload())?;
                let barrier = commit.log.sync(file, &mut commit.headers, SyncSite::Payload)?;
                commit.durable_len = file_end;
                frozen.settle(&barrier)
            } else {
                // Only states changed that expose no payload (trims): there is nothing for a barrier to harden.
                frozen.settle_without_payload()
            };
            let durable = commit.log.append(file, &mut commit.headers, settled, lengths).inspect_err(|_| self.mark_payload())?;
            commit.log.accept(durable);
        } else {
            let (guid, entry) = commit.log.write_unnamed(file, frozen, lengths).inspect_err(|_| self.mark_payload())?;
            let barrier = commit.log.sync(file, &mut commit.headers, SyncSite::FirstEntry)?;
            commit.durable_len = file_end;
            commit.log.name(file, &mut commit.headers, guid, entry.settle(&barrier))?;
        }
        if let (true, Some(riders)) = (kills, &self.riders) {
            riders.forget_live();
        }
        Ok(())
    }

    /// Makes the file longer than it has to be, before a sync that hardens its length along with the rest, so that the flushes that follow
    /// need not be syncs because the file grew. Space that is never used is a hole, and `close` cuts it off.
    ///   1. a longer file    crash: the old length or the new one; what lies past the last block is free either way
    fn grow_for_riders(&self) {
        if !self.layer.file.writes_durably() || !self.riders.as_ref().is_some_and(Riders::is_open) {
            return;
        }
        // Under the space lock, as in `allocate`.
        let mut space = self.space.lock();
        if let Some(mib) = space.growth_ahead()
            // A file system that takes no file of that length is none of this flush's business: the file grows by need, as before.
            && storage::set_len(&*self.layer.file, mib * MIB).is_ok()
        {
            space.grown(mib);
            self.layer.bat.set_file_len(mib * MIB);
        }
    }

    /// Whether a flush can do with one entry that carries the payload: there is nothing that only a sync would harden, and the
    /// ring has room where it is laid down.
    fn may_ride(&self, commit: &Commit, frozen: &Frozen) -> bool {
        let Some(riders) = &self.riders else { return false };
        let pages = frozen.logged.len() + frozen.direct.len() + riders.waiting();
        riders.may_depart()
            && !self.has_payload()
            && frozen.released.is_empty()
            && commit.durable_len == self.lengths().0
            && commit.log.takes(&*self.layer.file, pages)
    }

    /// One entry with mappings and payload. In this order:
    ///   1. an entry, made durable    crash: nothing of it counts, or all of it; what is in place counts for nothing without its bits
    ///   2. pages go home later       crash: replayed
    ///
    /// Bitmap pages that nobody consulted so far travel along as well: writing them home first would need the sync that is saved.
    fn commit_riding(&self, commit: &mut Commit, frozen: &Frozen) -> Result<(), LogError> {
        let riders = self.riders.as_ref().expect("somebody rides");
        let file = &*self.layer.file;
        let mut pages: Vec<Page> = frozen.logged.iter().map(|(_, page)| page.clone()).chain(frozen.direct.iter().cloned()).collect();
        let metadata = pages.len();
        pages.extend(riders.depart());
        let (_, end) = self.lengths();
        let lengths = Lengths { flushed: commit.durable_len, last: end };
        if !commit.log.takes(file, pages.len()) {
            // More of them changed in this very moment. They are in place, and this entry is written after a sync like any other.
            self.mark_payload();
            return self.commit_entry(commit, &[], pages.into_iter().take(metadata).collect());
        }
        let settled = commit.log.freeze(pages).settle_with_payload(metadata);
        let durable = commit.log.append(file, &mut commit.headers, settled, lengths).inspect_err(|_| self.mark_payload())?;
        commit.log.accept(durable);
        Ok(())
    }

    /// No payload rides from here on, and no entry holds any: somebody is going to write around this module.
    pub(crate) fn stop_riding(&self) -> Result<(), DiskError> {
        let Some(riders) = &self.riders else { return Ok(()) };
        if riders.close() {
            let mut commit = self.commit.lock();
            self.flush_as_leader(&mut commit)?;
            if riders.is_live() {
                self.commit_entry(&mut commit, &[], Vec::new()).map_err(|e| self.latch(e.into()))?;
            }
        }
        Ok(())
    }

    /// Bytes that the file has, and bytes into which everything allocated fits.
    fn lengths(&self) -> (u64, u64) {
        let space = self.space.lock();
        (space.file_end() * MIB, space.end() * MIB)
    }

    /// What was frozen did not become durable and may be tried again.
    pub(super) fn restore_frozen(&self, frozen: Frozen) {
        self.restore(frozen.logged.into_iter().map(|(key, _)| key).chain(frozen.direct_keys), frozen.released);
    }

    fn restore(&self, keys: impl Iterator<Item = PageKey>, released: Vec<Extent>) {
        let _gate = self.gate.read();
        for key in keys {
            match key {
                PageKey::Bat(number) => {
                    let page = self.layer.bat.loaded_page(number).expect("a frozen page is loaded");
                    self.dirty.mark(key, &page.dirty);
                }
                PageKey::Bitmap(number) => {
                    let page = self.layer.bitmaps.loaded_page(number).expect("a frozen page is loaded");
                    self.dirty.mark(key, &page.dirty);
                }
            }
        }
        self.mark_payload();
        self.space.lock().restore_released(released);
    }

    /// Gives space whose release is durable back to the host, once nobody can be writing into it.
    pub(crate) fn reclaim(&self) {
        let free = {
            let mut space = self.space.lock();
            if !space.has_limbo() {
                return;
            }
            space.leave_limbo(self.quarantine.advance())
        };
        for extent in free {
            // A reader that looked up the old place and is still on its way must notice: what it reads from here on are zeros, and for
            // a block that moved (`disk/compact`) that is not what the disk shows.
            self.quarantine.count_reuse();
            // The hole gives the space back and leaves zeros; whoever gets it next syncs before exposing it. Where there are
            // no holes the bytes stay, and who needs zeros writes them.
            let zeroed = self.layer.file.punch(extent.start * MIB, extent.mib * MIB).is_ok();
            self.space.lock().add_free(extent, zeroed);
        }
    }

    /// Flushes, brings everything home, declares the log empty, and cuts off the unused tail of the file.
    pub(crate) fn close(&self) -> Result<(), DiskError> {
        self.close_with(None)
    }

    /// The same; the header that declares the log empty gives the file this data write GUID. Everything written before is durable by
    /// then, so whoever finds the identity finds the content.
    pub(crate) fn close_as(&self, data_write: DataWriteGuid) -> Result<(), DiskError> {
        self.begin()?;
        self.close_with(Some(data_write))
    }

    fn close_with(&self, data_write: Option<DataWriteGuid>) -> Result<(), DiskError> {
        self.check_latch()?;
        if !self.has_begun() {
            return Ok(());
        }
        let mut commit = self.commit.lock();
        self.flush_as_leader(&mut commit)?;
        let file = &*self.layer.file;
        let Commit { headers, log, .. } = &mut *commit;
        log.stop(file, headers, data_write).map_err(|e| if e.is_harmless() { e.into() } else { self.latch(e.into()) })?;
        // The log is empty in both durable headers, so nothing vouches for the old length any more.
        let given_up = std::mem::take(&mut *self.given_up.lock());
        let mut space = self.space.lock();
        for home in given_up {
            space.add_free(Extent { start: home.mib(), mib: 1 }, false);
        }
        let end = space.trimmed_end();
        if end < space.file_end() {
            storage::set_len(file, end * MIB)?;
            space.grown(end);
        }
        Ok(())
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
