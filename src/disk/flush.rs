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
            let _ = commit.log.sync(&*self.layer.file, &mut commit.headers, SyncSite::Rewrite).map_err(|e| self.latch(e.into()))?;
            commit.inherits = false;
        }
        Ok(())
    }

    pub(super) fn flush_as_leader(&self, commit: &mut Commit) -> Result<(), DiskError> {
        let frozen = self.freeze().map_err(|e| self.latch(e))?;
        let file = &*self.layer.file;
        if frozen.is_empty() {
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
                    let page_at = Page { home: self.bitmap_page_home(number)?, image: page.image() };
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

    fn bitmap_page_home(&self, page: u64) -> Result<FileOffset, DiskError> {
        let (chunk, _) = BitmapTable::place_of(page);
        let home = match self.layer.bat.bitmap(chunk, &*self.layer.file)? {
            BitmapState::Present(home) => home,
            BitmapState::NotPresent => self.fresh_bitmap(chunk).expect("a dirty bitmap page has a home"),
        };
        Ok(BitmapTable::page_home(page, home))
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
        let applied = commit.log.apply_if_crowded(file)?;
        let frozen = commit.log.freeze(pages);
        let (file_end, end) = self.lengths();
        let lengths = Lengths { flushed: commit.durable_len, last: end };
        let has_payload = self.take_payload() || !direct.is_empty();
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
            let barrier = commit.log.sync(file, &mut commit.headers, SyncSite::Payload)?;
            commit.durable_len = file_end;
            commit.log.name(file, &mut commit.headers, guid, entry.settle(&barrier))?;
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
    pub(super) fn reclaim(&self) {
        let free = {
            let mut space = self.space.lock();
            if !space.has_limbo() {
                return;
            }
            space.leave_limbo(self.quarantine.advance())
        };
        for extent in free {
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
        let mut space = self.space.lock();
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
