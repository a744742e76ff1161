//! Finding what to replay: the active sequence of a log (MS-VHDX 2.3.2, 2.3.3).
//!
//! The ring holds entries of this session and the remains of others, whole, torn and overwritten. What counts is a run of
//! entries that follow each other in place and in sequence number, whose newest member, the head, names a member of the run as
//! its tail. Of several such runs the one with the highest head wins, and only its entries from tail to head are replayed.
//!
//! # The cost, whatever the ring holds
//!
//! The ring is asked for sector by sector ([`LogRing`]) and never held as a whole. It is passed once: where an entry may begin its
//! sectors are walked, each one checked and summed on the way. A sound entry has "desc", "zero" or "data" where every further
//! sector of it begins, so none of them begins another entry ("loge"). A walk therefore stops at the next "loge" at the latest,
//! and the pass goes on where the walk stopped: only what lies behind the end of the ring, for an entry that wraps, is read twice.
//! Entries share no sector, so they have at most one predecessor: runs are disjoint and finding them is linear too.
//!
//! What a replay changes is handed out as *references*: a [`Replay::Page`] says which sector of the log holds the page, and not the
//! page. A log of 64 MiB costs a reader one or two MiB for that.

use super::checksum::{crc32c_append, crc32c_with_field_zeroed};
use super::log::{CHECKSUM_AT, Descriptor, ENTRY_SIGNATURE, EntryHeader, LoggedPage};
use super::log::{WireDescriptor, WireHeader, descriptor_sectors, is_data_sector_of};
use super::wire::len64;
use super::{Fault, FormatError, REGION_TABLES};
use crate::geometry::MAX_VIRTUAL_SIZE;
use crate::guid::LogGuid;
use crate::kind::Structure;
use crate::units::{FileOffset, PAGE, PAGE_LEN};
use std::collections::BTreeSet;
use zerocopy::FromBytes;

/// The length up to which a log may grow a file: the largest disk and 1 TiB for everything that describes it (a BAT of 513 MiB
/// and 16 GiB of sector bitmaps, several times over). Files that are already longer may stay so.
pub const MAX_FILE_LEN: u64 = MAX_VIRTUAL_SIZE + (1 << 40);
/// How far past the end of everything a log may still write.
const REACH_SLACK: u64 = 1 << 30;
/// Bytes that the zero descriptors of a sequence may clear together. They clear metadata: at the very most all sector bitmap
/// blocks of the largest disk (16 GiB) and a few regions (below 4 GiB each).
const MAX_ZEROED: u64 = 64 << 30;

type Page = [u8; PAGE_LEN];

/// The sectors of a log, asked for one at a time.
pub trait LogRing {
    /// What reading can come to, and what a scan then fails with.
    type Error: From<FormatError>;

    /// How many sectors of 4 KiB the log has.
    fn sectors(&self) -> usize;

    /// A sector, below [`LogRing::sectors`]. They are mostly asked for in order.
    ///
    /// # Errors
    /// When it cannot be read.
    fn sector(&mut self, number: usize) -> Result<&[u8; PAGE_LEN], Self::Error>;
}

/// A log in memory; what is left over behind the last whole sector is not part of it.
impl LogRing for &[u8] {
    type Error = FormatError;

    fn sectors(&self) -> usize {
        self.as_chunks::<PAGE_LEN>().0.len()
    }

    fn sector(&mut self, number: usize) -> Result<&[u8; PAGE_LEN], FormatError> {
        Ok(self.as_chunks::<PAGE_LEN>().0.get(number).expect("the scan stays inside of the ring"))
    }
}

/// The entries of a log that must be replayed, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveSequence {
    /// Where in the log each entry starts, and its header: from the head's tail to the head, never empty.
    pub entries: Vec<(u32, EntryHeader)>,
    log_at: FileOffset,
    file_len: u64,
}

/// One step of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Write this page.
    Page {
        /// Where it belongs.
        home: FileOffset,
        /// Where in the log it is.
        page: LoggedPage,
    },
    /// Fill this range with zeros.
    Zero {
        /// Where it starts.
        home: FileOffset,
        /// Bytes.
        length: u64,
    },
}

impl ActiveSequence {
    /// The newest entry.
    pub fn head(&self) -> &EntryHeader {
        let (_, head) = self.entries.last().expect("a sequence has a head");
        head
    }

    /// Whether sectors of the log that could not be read (and stand as zeros in `ring`) may hide an entry behind the newest one: the
    /// sector where it would begin is one of them, or it does begin there and one of them is in it.
    ///
    /// # Errors
    /// When the sector behind the newest entry cannot be read.
    pub fn may_go_on<R: LogRing>(&self, ring: &mut R, unread: &BTreeSet<usize>) -> Result<bool, R::Error> {
        let count = ring.sectors();
        let Some((offset, head)) = self.entries.last() else { return Ok(false) };
        let after = sector_of(*offset).and_then(|first| first.checked_add(sector_of(head.length)?)?.checked_rem(count));
        let Some(after) = after else { return Ok(false) };
        let next = WireHeader::ref_from_prefix(ring.sector(after)?).ok().map(|(wire, _)| wire);
        let is_next = |wire: &&WireHeader| {
            wire.signature == ENTRY_SIGNATURE
                && wire.log_guid == head.log_guid.get().to_bytes()
                && head.sequence.checked_add(1) == Some(wire.sequence.get())
        };
        let sectors = next.filter(is_next).and_then(|wire| sector_of(wire.entry_length.get())).unwrap_or(1).max(1);
        Ok(unread.iter().any(|&sector| {
            let ahead = sector.checked_sub(after).or_else(|| sector.checked_add(count)?.checked_sub(after));
            ahead.is_some_and(|ahead| ahead < sectors)
        }))
    }

    /// The length that the file must have after the replay: no less than now, than the head's LastFileOffset, and than the end
    /// of the last target (MS-VHDX 2.3.3).
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Calls `step` with each step of the replay, in order. `ring` is the one that was scanned; only its descriptors are read.
    ///
    /// # Errors
    /// What `step` returns; when a sector cannot be read; `NoActiveSequence` when the ring is not what it was when it was scanned.
    pub fn for_each<R: LogRing>(&self, ring: &mut R, mut step: impl FnMut(Replay) -> Result<(), R::Error>) -> Result<(), R::Error> {
        for &(offset, header) in &self.entries {
            let at = FileOffset::new(self.log_at.get().saturating_add(offset.into()));
            let changed = || FormatError::new(Structure::LogEntry, at, Fault::NoActiveSequence);
            let entry = Extent::of(ring.sectors(), offset, header.length).ok_or_else(changed)?;
            let first_data = descriptors_end(&header).ok_or_else(changed)?;
            let (mut left, mut data) = (header.descriptor_count, first_data);
            for n in 0..first_data {
                let place = entry.place(n).ok_or_else(changed)?;
                for descriptor in descriptors(ring.sector(place)?, n == 0, &mut left, header.sequence) {
                    step(match descriptor.ok_or_else(changed)? {
                        Descriptor::Zero { home, length } => Replay::Zero { home, length },
                        Descriptor::Data { home, leading, trailing } => {
                            let sector = entry.place(data).ok_or_else(changed)?;
                            data = data.saturating_add(1);
                            Replay::Page { home, page: LoggedPage { sector, sequence: header.sequence, leading, trailing } }
                        }
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// Finds the active sequence in `ring`, the log that stands at `log_at` in a file of `file_len` bytes whose header names `guid`.
///
/// # Errors
/// `NoActiveSequence`; `FileTruncated` when the file is shorter than the head knows it to have been; `Field` when the replay
/// would grow the file beyond [`MAX_FILE_LEN`] or clear more than any metadata has; what reading the ring comes to.
pub fn scan<R: LogRing>(ring: &mut R, log_at: FileOffset, guid: LogGuid, file_len: u64) -> Result<ActiveSequence, R::Error> {
    let err = |fault| FormatError::new(Structure::Log, log_at, fault);
    let entries = Candidates::find(ring, log_at, guid)?.active().ok_or_else(|| err(Fault::NoActiveSequence))?;
    let mut sequence = ActiveSequence { entries, log_at, file_len };
    let head = *sequence.head();
    if file_len < head.flushed_file_offset {
        return Err(err(Fault::FileTruncated { flushed: head.flushed_file_offset, len: file_len }).into());
    }
    sequence.file_len = bounded_len(ring, &sequence)?;
    Ok(sequence)
}

/// The length after the replay, when that and the work are within bounds.
fn bounded_len<R: LogRing>(ring: &mut R, sequence: &ActiveSequence) -> Result<u64, R::Error> {
    let most = MAX_FILE_LEN.max(sequence.file_len);
    let mut len = sequence.file_len.max(sequence.head().last_file_offset);
    let err = |field, value, rule| FormatError::new(Structure::LogEntry, sequence.log_at, Fault::Field { field, value, rule });
    if len > most {
        return Err(err("LastFileOffset", len, "beyond the largest file").into());
    }
    // What a log changes lies inside the file, or inside what one of its entries says the file has grown to. Some writers fall
    // behind with LastFileOffset, hence the slack.
    let vouched = sequence.entries.iter().map(|(_, header)| header.last_file_offset).fold(len, u64::max);
    let reach = vouched.saturating_add(REACH_SLACK).min(most);
    let mut zeroed = 0_u64;
    sequence.for_each(ring, |step| {
        let (home, bytes) = match step {
            Replay::Page { home, .. } => (home, PAGE),
            Replay::Zero { home, length } => {
                zeroed = zeroed.saturating_add(length);
                (home, length)
            }
        };
        if zeroed > MAX_ZEROED {
            return Err(err("ZeroLength", bytes, "more than all metadata of the largest disk").into());
        }
        len = len.max(home.get().saturating_add(bytes));
        if len > reach {
            return Err(err("FileOffset", home.get(), "far beyond the file and what its log says it has grown to").into());
        }
        Ok(())
    })?;
    Ok(len)
}

/// The valid entries of a ring, by the sector they start at.
struct Candidates {
    at: Vec<Option<EntryHeader>>,
}

impl Candidates {
    fn find<R: LogRing>(ring: &mut R, log_at: FileOffset, guid: LogGuid) -> Result<Self, R::Error> {
        let mut at = vec![None; ring.sectors()];
        let mut first = 0_usize;
        while let Some(slot) = at.get_mut(first) {
            let walk = walk(ring, first, log_at, guid)?;
            *slot = walk.entry;
            first = first.saturating_add(walk.passed.max(1));
        }
        Ok(Self { at })
    }

    /// The sector behind an entry, in the ring.
    fn next_of(&self, first: usize, header: &EntryHeader) -> Option<usize> {
        let end = first.checked_add(sector_of(header.length)?)?;
        Some(end.checked_sub(self.at.len()).unwrap_or(end))
    }

    /// The entry that continues the sequence behind this one.
    fn successor(&self, first: usize, header: &EntryHeader) -> Option<usize> {
        let next = self.next_of(first, header)?;
        let follower = self.header(next)?;
        (header.sequence.checked_add(1) == Some(follower.sequence)).then_some(next)
    }

    fn header(&self, first: usize) -> Option<&EntryHeader> {
        self.at.get(first)?.as_ref()
    }

    /// Entries from tail to head of the complete run with the highest head. Of two with the same head number, which no writer
    /// leaves behind, that whose head stands first in the ring.
    fn active(&self) -> Option<Vec<(u32, EntryHeader)>> {
        let mut starts_run: Vec<bool> = self.at.iter().map(Option::is_some).collect();
        for (first, header) in self.valid() {
            if let Some(flag) = self.successor(first, header).and_then(|next| starts_run.get_mut(next)) {
                *flag = false;
            }
        }
        let mut best: Option<(usize, Vec<(u32, EntryHeader)>)> = None;
        for (first, _) in self.valid().filter(|&(first, _)| starts_run.get(first) == Some(&true)) {
            let Some((head_at, run)) = self.complete_run(first) else { continue };
            let rank = |at: usize, run: &[(u32, EntryHeader)]| (run.last().map(|e| e.1.sequence), std::cmp::Reverse(at));
            if best.as_ref().is_none_or(|(at, old)| rank(head_at, &run) > rank(*at, old)) {
                best = Some((head_at, run));
            }
        }
        best.map(|(_, run)| run)
    }

    fn valid(&self) -> impl Iterator<Item = (usize, &EntryHeader)> {
        self.at.iter().enumerate().filter_map(|(first, header)| Some((first, header.as_ref()?)))
    }

    /// Follows a run to its head and cuts off what is before the tail; `None` when the tail is not in the run.
    fn complete_run(&self, start: usize) -> Option<(usize, Vec<(u32, EntryHeader)>)> {
        let mut run = Vec::new();
        let mut at = start;
        loop {
            let header = self.header(at)?;
            run.push((u32::try_from(at.checked_mul(PAGE_LEN)?).ok()?, *header));
            match self.successor(at, header) {
                Some(next) => at = next,
                None => break,
            }
        }
        let (_, head) = run.last()?;
        let tail = run.iter().position(|&(offset, _)| offset == head.tail)?;
        Some((at, run.split_off(tail)))
    }
}

/// What came of looking for an entry at a sector.
struct Walk {
    entry: Option<EntryHeader>,
    /// Sectors from there on that begin no other entry.
    passed: usize,
}

/// All of §2.3.1, the checksum included.
fn walk<R: LogRing>(ring: &mut R, first: usize, log_at: FileOffset, guid: LogGuid) -> Result<Walk, R::Error> {
    let count = ring.sectors();
    let none = |passed| Ok(Walk { entry: None, passed });
    let page = ring.sector(first)?;
    let Some((header, stored, entry, first_data)) = head(page, first, count, guid) else { return none(1) };
    let Some(log_end) = len64(count).checked_mul(PAGE).and_then(|len| log_at.get().checked_add(len)) else { return none(1) };
    let mut crc = crc32c_with_field_zeroed(page, CHECKSUM_AT);
    let (mut left, mut pages) = (header.descriptor_count, 0_usize);
    for n in 0..entry.count {
        let Some(place) = entry.place(n) else { return none(n.max(1)) };
        let page = ring.sector(place)?;
        if n > 0 {
            crc = crc32c_append(crc, page);
        }
        let sound = if n < first_data {
            let inside = descriptors(page, n == 0, &mut left, header.sequence).try_fold(pages, |pages, descriptor| {
                let descriptor = descriptor.filter(|descriptor| is_allowed(descriptor, log_at.get(), log_end))?;
                pages.checked_add(usize::from(matches!(descriptor, Descriptor::Data { .. })))
            });
            inside.map(|found| pages = found).is_some()
        } else {
            is_data_sector_of(page, header.sequence)
        };
        if !sound {
            return none(n.max(1));
        }
    }
    let whole = first_data.checked_add(pages) == Some(entry.count) && crc == stored;
    Ok(Walk { entry: whole.then_some(header), passed: entry.count })
}

/// What the header of an entry says: itself, its checksum, the sectors of the entry, and the number of the first data sector.
fn head(page: &Page, first: usize, count: usize, guid: LogGuid) -> Option<(EntryHeader, u32, Extent, usize)> {
    let (wire, _) = WireHeader::ref_from_prefix(page).ok()?;
    if wire.signature != ENTRY_SIGNATURE || wire.reserved.get() != 0 {
        return None;
    }
    let header = EntryHeader::from_wire(wire);
    let tail_is_sound = sector_of(header.tail).is_some_and(|tail| tail < count);
    if header.log_guid != guid || header.sequence == 0 || !tail_is_sound {
        return None;
    }
    let entry = Extent::at(count, first, header.length)?;
    let first_data = descriptors_end(&header).filter(|&end| end <= entry.count)?;
    Some((header, wire.checksum.get(), entry, first_data))
}

/// Whether a descriptor changes whole pages that a log may change: not the headers, not the log.
fn is_allowed(descriptor: &Descriptor, log_at: u64, log_end: u64) -> bool {
    let (home, length) = match *descriptor {
        Descriptor::Data { home, .. } => (home.get(), PAGE),
        Descriptor::Zero { home, length } => (home.get(), length),
    };
    let [tables, _] = REGION_TABLES;
    let Some(end) = home.checked_add(length) else { return false };
    let in_log = home < log_end && log_at < end;
    home.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) && home >= tables.get() && !in_log
}

/// The number of the sector at a byte offset or length; `None` when it is not at the start of one.
fn sector_of(bytes: u32) -> Option<usize> {
    let bytes = usize::try_from(bytes).ok()?;
    bytes.is_multiple_of(PAGE_LEN).then_some(bytes / PAGE_LEN)
}

/// The number of an entry's first data sector.
fn descriptors_end(header: &EntryHeader) -> Option<usize> {
    descriptor_sectors(usize::try_from(header.descriptor_count).ok()?)
}

/// The sectors of an entry, around the end of the ring.
#[derive(Clone, Copy)]
struct Extent {
    ring: usize,
    first: usize,
    count: usize,
}

impl Extent {
    /// `None` for lengths that are no entry's: 0, unaligned, above the ring.
    fn at(ring: usize, first: usize, length: u32) -> Option<Self> {
        let count = sector_of(length).filter(|count| (1..=ring).contains(count))?;
        Some(Self { ring, first, count })
    }

    /// The same for an entry at a byte of the ring.
    fn of(ring: usize, offset: u32, length: u32) -> Option<Self> {
        Self::at(ring, sector_of(offset).filter(|&first| first < ring)?, length)
    }

    /// Where in the ring the `n`-th sector is.
    fn place(self, n: usize) -> Option<usize> {
        let at = self.first.checked_add(n).filter(|_| n < self.count)?;
        Some(at.checked_sub(self.ring).unwrap_or(at))
    }
}

/// The descriptors in one sector of an entry, `left` of which are still to come; an element is `None` where a descriptor is not one of
/// this entry.
fn descriptors<'a>(page: &'a Page, has_header: bool, left: &'a mut u32, sequence: u64) -> impl Iterator<Item = Option<Descriptor>> + 'a {
    // The header has the size of two descriptors, so descriptors fill slots of 32 bytes and never straddle sectors.
    let slots = page.as_chunks::<32>().0.iter().skip(if has_header { 2 } else { 0 });
    slots.map_while(move |slot| {
        *left = left.checked_sub(1)?;
        let wire: &WireDescriptor = zerocopy::transmute_ref!(slot);
        Some(Descriptor::from_wire(wire, sequence))
    })
}

#[path = "diagnose.rs"]
mod diagnose;

pub use diagnose::{LogDiagnosis, diagnose};

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
