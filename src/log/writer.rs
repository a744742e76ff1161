//! Appending to the log and bringing pages home (MS-VHDX 2.3, 2.2.3).
//!
//! The order of a commit is a chain of types, each step taking the one before:
//!
//! ```text
//! Frozen --settle(barrier 1)--> Settled --append, barrier 2--> Durable --accept--> pages that may go home
//! Frozen --write_unnamed--> Logged --settle(barrier 1)--> Durable --name, barrier 2--> pages that may go home
//! ```
//!
//! A [`Barrier`] comes out of a sync and nowhere else, and knows when the sync began; `settle` refuses one that began before
//! the step it is meant to harden, because that is a bug that costs data.
//!
//! **A log laid down in advance.** Where the storage writes durably ([`Storage::writes_durably`]), the part of the ring that comes next
//! is filled with zeros before barrier 1, which hardens it on the way. Barrier 2 is then one durable write of the entry into space
//! the file system has already given: no journal commit, which is what a small sync mostly waits for. It hardens the entry *and nothing
//! else*: mirrored headers and pages brought home stay unsettled until the next sync of the file, so only [`LogWriter::sync`]
//! says otherwise. What is laid down is a matter of speed alone: zeros that a crash loses, or never writes, cost a commit later.
//!
//! The first entry of a session is special: no header names the log yet, so whatever stands in it counts for nothing. The
//! entry is written together with the payload, one sync hardens both, and the header that names the log is the second
//! barrier. A flush costs two syncs from the first one on.

use super::headers::{HeaderError, HeaderPair};
use super::ring::Ring;
use crate::format::{EntryFields, encode_entry, entry_len};
use crate::guid::{DataWriteGuid, LogGuid};
use crate::kind::ErrorKind;
use crate::storage::{self, Operation, Storage, StorageError, SyncSite};
use crate::units::{FileOffset, PAGE, PAGE_LEN};
use std::collections::BTreeMap;

/// Most bytes of one entry, so that a huge log does not mean a huge buffer.
const MAX_ENTRY: u64 = 4 << 20;
/// Bytes of the log read at a time before it is used.
const HEAL_READ: u64 = 256 << 10;
/// Most bytes of adjacent pages that travel home in one write.
const MAX_WRITE: usize = 256 << 10;
/// Bytes laid down ahead of the head, at least and at most. A clone that is flushed once keeps its log small.
const LAY_AHEAD: (u64, u64) = (32 << 10, 256 << 10);
/// The same where payload rides in the log: a flush whose entry is not laid down yet costs a sync.
const LAY_AHEAD_FOR_RIDERS: u64 = 1 << 20;

/// A page on its way to the file.
#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) home: FileOffset,
    pub(crate) image: Box<[u8; PAGE_LEN]>,
}

/// Something about the log or the headers failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl LogError {
    /// Whether nothing was published and trying again later is sound: there was no space.
    pub(crate) fn is_harmless(&self) -> bool {
        matches!(self, Self::Storage(e) if e.kind() == ErrorKind::NoSpace && e.operation != Operation::Sync)
    }
}

/// Proof that a sync succeeded.
#[must_use]
pub(crate) struct Barrier {
    began: u64,
}

/// Pages copied at one instant.
#[must_use]
pub(crate) struct Frozen {
    pages: Vec<Page>,
    copied: u64,
}

/// Pages whose payload is durable.
#[must_use]
pub(crate) struct Settled {
    pages: Vec<Page>,
    /// How many of them are metadata and go home from here; the others are payload that is in place.
    metadata: usize,
}

/// Pages that are in the log, not yet durable there.
#[must_use]
pub(crate) struct Logged {
    pages: Vec<Page>,
    bytes: u64,
    written: u64,
}

/// Pages that are durable in the log. They, and nothing earlier, may go home.
#[must_use]
pub(crate) struct Durable {
    pages: Vec<Page>,
    metadata: usize,
    bytes: u64,
}

impl Frozen {
    /// How many they are.
    pub(crate) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Barrier 1: the payload that these pages point at is durable.
    pub(crate) fn settle(self, barrier: &Barrier) -> Settled {
        assert!(barrier.began > self.copied, "the sync began before the pages were copied");
        self.settle_without_payload()
    }

    /// For pages that expose no payload, or whose payload an earlier barrier of the same flush hardened.
    pub(crate) fn settle_without_payload(self) -> Settled {
        Settled { metadata: self.pages.len(), pages: self.pages }
    }

    /// For pages whose payload is among them, behind the first `metadata` ones.
    pub(crate) fn settle_with_payload(self, metadata: usize) -> Settled {
        Settled { pages: self.pages, metadata }
    }
}

impl Logged {
    /// Barrier 2: the entry is durable and named by a durable header.
    pub(crate) fn settle(self, barrier: &Barrier) -> Durable {
        assert!(barrier.began > self.written, "the sync began before the entry was written");
        Durable { metadata: self.pages.len(), pages: self.pages, bytes: self.bytes }
    }
}

/// The extents of the file that an entry vouches for (MS-VHDX 2.3.1.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// Bytes that are durable: FlushedFileOffset.
    pub(crate) flushed: u64,
    /// Bytes into which everything fits: LastFileOffset.
    pub(crate) last: u64,
}

/// See the module.
pub(crate) struct LogWriter {
    at: u64,
    ring: Ring,
    /// `None` until the first entry of the session.
    guid: Option<LogGuid>,
    sequence: u64,
    /// The newest durable image of every page that is not home yet.
    pending: BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
    applied_unsynced: bool,
    /// Whether entries hold payload, which is in place and was not synced there since.
    payload_unsynced: bool,
    clock: u64,
    /// Bytes that went through the ring in this session; where the ring began is 0.
    walked: u64,
    /// Up to where, counted likewise, the file system has given space; never more than one lap.
    laid: u64,
    /// Where the ring began.
    origin: u64,
    /// Whether there was no room to lay more down.
    is_full: bool,
    /// Whether payload rides in entries.
    pub(crate) has_riders: bool,
}

impl LogWriter {
    /// A log of `len` bytes at `at` that no header names.
    pub(crate) fn new(at: u64, len: u64, first_sequence: u64) -> Self {
        let origin = first_head(len);
        Self {
            at,
            ring: Ring::new(len, origin),
            guid: None,
            sequence: first_sequence,
            pending: BTreeMap::new(),
            applied_unsynced: false,
            payload_unsynced: false,
            clock: 0,
            walked: 0,
            laid: 0,
            origin,
            is_full: false,
            has_riders: false,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether a header names the log.
    pub(crate) fn is_started(&self) -> bool {
        self.guid.is_some()
    }

    /// Whether pages wait to be brought home, or were and no sync followed.
    pub(crate) fn has_unsettled(&self) -> bool {
        !self.pending.is_empty() || self.applied_unsynced || self.payload_unsynced
    }

    /// Syncs the file; the only source of barriers.
    pub(crate) fn sync(&mut self, file: &dyn Storage, headers: &mut HeaderPair, site: SyncSite) -> Result<Barrier, StorageError> {
        let began = self.tick();
        storage::sync(file, site)?;
        headers.settled();
        if self.pending.is_empty() && (self.applied_unsynced || self.payload_unsynced) {
            (self.applied_unsynced, self.payload_unsynced) = (false, false);
            self.ring.all_applied();
        }
        Ok(Barrier { began })
    }

    /// Puts copied pages at the start of the chain.
    pub(crate) fn freeze(&mut self, pages: Vec<Page>) -> Frozen {
        Frozen { pages, copied: self.tick() }
    }

    /// How many pages fit one entry.
    pub(crate) fn batch_pages(&self) -> usize {
        let bytes = self.ring.largest_entry().min(MAX_ENTRY);
        let mut pages = (bytes / PAGE) as usize;
        while entry_len(pages, 0) as u64 > bytes {
            pages -= 1;
        }
        pages
    }

    /// Brings pending pages home when the ring is filling up, or `in_any_case`, so that the sync that follows makes room.
    pub(crate) fn apply_if_crowded(&mut self, file: &dyn Storage, in_any_case: bool) -> Result<bool, StorageError> {
        if in_any_case || (self.ring.is_half_full() && !self.pending.is_empty()) {
            self.apply(file)?;
        }
        Ok(self.applied_unsynced)
    }

    /// Whether an entry of so many pages may be written now, in one write that is worth it: with room, and where the log is laid
    /// down if that matters.
    pub(crate) fn takes(&self, file: &dyn Storage, pages: usize) -> bool {
        let bytes = entry_len(pages, 0) as u64;
        let is_laid = self.walked + bytes <= self.laid_for_good() || !file.writes_durably();
        // Room for another one like it, so that the entry that empties the ring needs no second one to make room for it.
        self.is_started() && pages <= self.batch_pages() && self.ring.fits(2 * bytes) && is_laid
    }

    /// Writes every pending page to its home. The log keeps them until a sync hardened the homes and a later entry said so.
    fn apply(&mut self, file: &dyn Storage) -> Result<(), StorageError> {
        write_pages(file, self.pending.iter().map(|(&home, image)| (home, &**image)))?;
        self.pending.clear();
        self.applied_unsynced = true;
        Ok(())
    }

    /// Wipes what cannot be read of a log that nobody names: a power cut may have torn an entry there. Left alone it would stand
    /// behind an entry of ours some day, and a replay would have to fear that it hides the next one (`replay.rs`).
    fn heal(&mut self, file: &dyn Storage) -> Result<(), StorageError> {
        let end = self.at + self.ring.len();
        let mut buffer = vec![0; HEAL_READ.min(self.ring.len()) as usize];
        let mut at = self.at;
        while at < end {
            let data = file.next_data(at).map_err(|e| StorageError::new(Operation::Seek, at, e))?;
            let Some((start, stop)) = data.filter(|&(start, _)| start < end) else { break };
            if start <= self.at + self.origin {
                // Space that earlier sessions used. What wraps around is not counted.
                self.laid = self.laid.max(stop.min(end).saturating_sub(self.at + self.origin) / PAGE * PAGE);
            }
            // Whole sectors, so that a wiped one is wiped whole.
            let start = start - (start - self.at) % PAGE;
            let part = &mut buffer[..(stop.min(end) - start).next_multiple_of(PAGE).min(HEAL_READ) as usize];
            if storage::read_exact(file, part, start).is_err() {
                for (sector, at) in part.chunks_mut(PAGE_LEN).zip((start..).step_by(PAGE_LEN)) {
                    if storage::read_exact(file, sector, at).is_err() {
                        storage::write_all(file, &[0; PAGE_LEN], at)?;
                    }
                }
            }
            at = start + part.len() as u64;
        }
        Ok(())
    }

    /// Lays the log down ahead of the next entry, which will have `pages` pages, if that buys anything. The caller syncs the file
    /// next.
    pub(crate) fn lay_down(&mut self, file: &dyn Storage, pages: usize) -> Result<(), StorageError> {
        let needed = self.walked + entry_len(pages, 0) as u64;
        if needed <= self.laid || self.laid >= self.ring.len() || self.is_full || !file.writes_durably() {
            return Ok(());
        }
        let (least, most) = LAY_AHEAD;
        let ahead = if self.has_riders { LAY_AHEAD_FOR_RIDERS } else { self.walked.clamp(least, most) };
        let from = self.laid.max(self.walked);
        let to = (needed + ahead).min(self.ring.len());
        // One lap at most and nothing behind `walked`: no entry stands there, whether named or not.
        for (start, len) in self.ring.stretch(self.origin + from, to.saturating_sub(from)) {
            match storage::write_zeros(file, self.at + start, len) {
                Ok(()) => {}
                // The entry itself may still find room, and then a sync hardens it.
                Err(e) if e.kind() == ErrorKind::NoSpace => {
                    self.is_full = true;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.laid = to.max(from);
        Ok(())
    }

    /// Writes the first entry of the session, which no header names yet. The caller syncs payload and entry in one barrier
    /// and then calls [`LogWriter::name`].
    pub(crate) fn write_unnamed(
        &mut self,
        file: &dyn Storage,
        frozen: Frozen,
        lengths: Lengths,
    ) -> Result<(LogGuid, Logged), StorageError> {
        debug_assert!(self.guid.is_none(), "the log has a name already");
        self.heal(file)?;
        let guid = LogGuid::random();
        let Frozen { pages, .. } = frozen;
        self.lay_down(file, pages.len())?;
        let logged = self.write_entry(file, guid, pages, lengths)?;
        Ok((guid, logged))
    }

    /// Names the log in the headers: its first entry counts from here on. `unnamed` was hardened by a barrier before.
    pub(crate) fn name(&mut self, file: &dyn Storage, headers: &mut HeaderPair, guid: LogGuid, unnamed: Durable) -> Result<(), LogError> {
        headers.change(file, SyncSite::LogStart, |header| header.log = guid)?;
        self.guid = Some(guid);
        self.accept(unnamed);
        headers.mirror(file)?;
        Ok(())
    }

    /// Appends a batch and makes it durable, making room first if need be.
    pub(crate) fn append(
        &mut self,
        file: &dyn Storage,
        headers: &mut HeaderPair,
        settled: Settled,
        lengths: Lengths,
    ) -> Result<Durable, LogError> {
        let guid = self.guid.expect("a log is named before it is appended to");
        let bytes = entry_len(settled.pages.len(), 0) as u64;
        if !self.ring.fits(bytes) {
            self.make_room(file, headers, guid, lengths)?;
        }
        let metadata = settled.metadata;
        let durable = self.harden_entry(file, headers, guid, settled.pages, lengths, SyncSite::Log)?;
        Ok(Durable { metadata, ..durable })
    }

    /// Writes an entry and makes it durable: in one durable write of it alone where the log is laid down, by a sync otherwise.
    fn harden_entry(
        &mut self,
        file: &dyn Storage,
        headers: &mut HeaderPair,
        guid: LogGuid,
        pages: Vec<Page>,
        lengths: Lengths,
        site: SyncSite,
    ) -> Result<Durable, LogError> {
        let bytes = entry_len(pages.len(), 0) as u64;
        let [(start, whole), (_, wrapped)] = self.ring.pieces(bytes);
        if wrapped == 0 && self.walked + bytes <= self.laid_for_good() && file.writes_durably() {
            let entry = self.encode(guid, &pages, lengths);
            debug_assert_eq!(whole, entry.len() as u64, "an entry has the length it says");
            storage::write_durable(file, &entry, self.at + start, site)?;
            return Ok(Durable { metadata: pages.len(), pages, bytes });
        }
        let entry = self.write_entry(file, guid, pages, lengths)?;
        let barrier = self.sync(file, headers, site)?;
        Ok(entry.settle(&barrier))
    }

    /// Up to where the ring has space of the file system's, counted as [`LogWriter::walked`] is: after one lap, everywhere.
    fn laid_for_good(&self) -> u64 {
        if self.laid >= self.ring.len() { u64::MAX } else { self.laid }
    }

    /// Empties the ring. In this order:
    ///   1. all pages home    crash: the log still holds them
    ///   2. sync              crash: as 1
    ///   3. an empty entry whose tail is itself, synced   crash: old tail or new, both complete
    fn make_room(&mut self, file: &dyn Storage, headers: &mut HeaderPair, guid: LogGuid, lengths: Lengths) -> Result<(), LogError> {
        if self.has_unsettled() {
            self.apply(file)?;
            let _ = self.sync(file, headers, SyncSite::Home)?;
        }
        debug_assert!(self.ring.fits_empty(), "the spare sector takes the entry that moves the tail");
        let empty = self.harden_entry(file, headers, guid, Vec::new(), lengths, SyncSite::LogTail)?;
        self.accept(empty);
        Ok(())
    }

    /// Makes one empty entry the whole log, so that a replay writes nothing and asks only for a file of these lengths: before places
    /// that older entries write to are given away, and before the file is cut (our format reference §9.5). Nothing to do while no
    /// header names the log.
    pub(crate) fn rewind(&mut self, file: &dyn Storage, headers: &mut HeaderPair, lengths: Lengths) -> Result<(), LogError> {
        match self.guid {
            Some(guid) => self.make_room(file, headers, guid, lengths),
            None => Ok(()),
        }
    }

    /// The bytes of the next entry.
    fn encode(&self, log_guid: LogGuid, pages: &[Page], lengths: Lengths) -> Vec<u8> {
        let tail = u32::try_from(self.ring.tail_to_record()).expect("logs are far below 4 GiB");
        let fields =
            EntryFields { tail, sequence: self.sequence, log_guid, flushed_file_offset: lengths.flushed, last_file_offset: lengths.last };
        let list: Vec<(FileOffset, &[u8; PAGE_LEN])> = pages.iter().map(|page| (page.home, &*page.image)).collect();
        encode_entry(&fields, &list, &[])
    }

    fn write_entry(&mut self, file: &dyn Storage, log_guid: LogGuid, pages: Vec<Page>, lengths: Lengths) -> Result<Logged, StorageError> {
        let entry = self.encode(log_guid, &pages, lengths);
        let bytes = entry.len() as u64;
        let mut done = 0;
        for (start, len) in self.ring.pieces(bytes) {
            if len > 0 {
                storage::write_all(file, &entry[done..done + len as usize], self.at + start)?;
                done += len as usize;
            }
        }
        Ok(Logged { pages, bytes, written: self.tick() })
    }

    /// Takes note that an entry is durable: the ring moves on and its pages wait to go home.
    pub(crate) fn accept(&mut self, durable: Durable) {
        self.ring.appended(durable.bytes, !durable.pages.is_empty());
        self.walked += durable.bytes;
        if self.walked >= self.ring.len() {
            self.laid = self.ring.len();
        }
        self.sequence += 1;
        self.payload_unsynced |= durable.metadata < durable.pages.len();
        for page in durable.pages.into_iter().take(durable.metadata) {
            self.pending.insert(page.home.get(), page.image);
        }
    }

    /// Ends the session: everything home, then the log is declared empty in both headers. See `replay.rs` for what a crash
    /// after each of the last steps leaves; they are the same. A `data_write` given becomes the file's in the same headers.
    pub(crate) fn stop(&mut self, file: &dyn Storage, headers: &mut HeaderPair, data_write: Option<DataWriteGuid>) -> Result<(), LogError> {
        if self.guid.is_none() && data_write.is_none() {
            if headers.mirror_in_flight() {
                let _ = self.sync(file, headers, SyncSite::CloseMirror)?;
            }
            return Ok(());
        }
        self.apply(file)?;
        let _ = self.sync(file, headers, SyncSite::CloseHome)?;
        headers.change(file, SyncSite::CloseFirst, |header| {
            header.log = LogGuid::default();
            header.data_write = data_write.unwrap_or(header.data_write);
        })?;
        self.guid = None;
        headers.mirror(file)?;
        let _ = self.sync(file, headers, SyncSite::CloseSecond)?;
        Ok(())
    }

    /// The newest durable image of a page that is not home yet.
    pub(crate) fn pending(&self, home: u64) -> Option<&[u8; PAGE_LEN]> {
        self.pending.get(&home).map(|image| &**image)
    }
}

/// Where the first entry of a log of `len` bytes goes: to the start.
#[cfg(not(feature = "sim"))]
fn first_head(_len: u64) -> u64 {
    0
}

/// Where the first entry of a log of `len` bytes goes. Any sector will do, and the crash simulator makes use of that.
#[cfg(feature = "sim")]
fn first_head(len: u64) -> u64 {
    (crate::storage::sim::log_start() * PAGE).checked_rem(len).unwrap_or(0)
}

/// Writes pages to their homes. The pages come sorted by home.
pub(crate) fn write_pages<'a>(file: &dyn Storage, pages: impl Iterator<Item = (u64, &'a [u8; PAGE_LEN])>) -> Result<(), StorageError> {
    let mut homes = HomeRun::default();
    for (home, image) in pages {
        homes.add(file, home, image)?;
    }
    homes.finish(file)
}

/// Pages on their way to their homes, sorted by home: adjacent ones travel in one call.
#[derive(Default)]
pub(crate) struct HomeRun {
    start: u64,
    bytes: Vec<u8>,
}

impl HomeRun {
    /// Takes the next page, and writes what it does not continue.
    pub(crate) fn add(&mut self, file: &dyn Storage, home: u64, image: &[u8; PAGE_LEN]) -> Result<(), StorageError> {
        if self.start + self.bytes.len() as u64 != home || self.bytes.len() >= MAX_WRITE {
            self.write(file)?;
            self.start = home;
        }
        self.bytes.extend_from_slice(image);
        Ok(())
    }

    /// Writes what is left.
    pub(crate) fn finish(mut self, file: &dyn Storage) -> Result<(), StorageError> {
        self.write(file)
    }

    fn write(&mut self, file: &dyn Storage) -> Result<(), StorageError> {
        if !self.bytes.is_empty() {
            storage::write_all(file, &self.bytes, self.start)?;
            self.bytes.clear();
        }
        Ok(())
    }
}
