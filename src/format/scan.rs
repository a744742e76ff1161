//! Finding what to replay: the active sequence of a log (MS-VHDX 2.3.2, 2.3.3).
//!
//! The ring holds entries of this session and the remains of others, whole, torn and overwritten. What counts is a run of
//! entries that follow each other in place and in sequence number, whose newest member, the head, names a member of the run as
//! its tail. Of several such runs the one with the highest head wins, and only its entries from tail to head are replayed.
//!
//! # The cost, whatever the ring holds
//!
//! Each offset is judged once, cheap checks first. An entry that passes them has "desc", "zero" or "data" where every further
//! sector of it begins, so none of them begins another entry ("loge"): entries that reach the checksum never share a sector,
//! and all checksums together cover the ring at most once. The walks over descriptors stop at the next "loge" for the same
//! reason. Entries that share no sector have at most one predecessor, so runs are disjoint and finding them is linear too.

use super::checksum::{crc32c, crc32c_append, crc32c_with_field_zeroed};
use super::log::{CHECKSUM_AT, DATA_SECTOR, Descriptor, ENTRY_SIGNATURE, EntryHeader};
use super::log::{WireDataSector, WireDescriptor, WireHeader, descriptor_sectors, page_image};
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

/// The entries of a log that must be replayed, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveSequence {
    /// Where in the log each entry starts, and its header: from the head's tail to the head, never empty.
    pub entries: Vec<(u32, EntryHeader)>,
    file_len: u64,
}

/// One step of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Write this page.
    Page {
        /// Where it belongs.
        home: FileOffset,
        /// Its bytes.
        image: Box<[u8; PAGE_LEN]>,
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

    /// Whether sectors of the log that could not be read (and stand as zeros in `log`) may hide an entry behind the newest one: the
    /// sector where it would begin is one of them, or it does begin there and one of them is in it.
    pub fn may_go_on(&self, log: &[u8], unread: &BTreeSet<usize>) -> bool {
        let (ring, _) = log.as_chunks::<PAGE_LEN>();
        let Some((offset, head)) = self.entries.last() else { return false };
        let after = sector_of(*offset).and_then(|first| first.checked_add(sector_of(head.length)?)?.checked_rem(ring.len()));
        let Some(after) = after else { return false };
        let next = ring.get(after).and_then(|page| WireHeader::ref_from_prefix(page).ok()).map(|(wire, _)| wire);
        let is_next = |wire: &&WireHeader| {
            wire.signature == ENTRY_SIGNATURE
                && wire.log_guid == head.log_guid.get().to_bytes()
                && head.sequence.checked_add(1) == Some(wire.sequence.get())
        };
        let sectors = next.filter(is_next).and_then(|wire| sector_of(wire.entry_length.get())).unwrap_or(1).max(1);
        unread.iter().any(|&sector| {
            let ahead = sector.checked_sub(after).or_else(|| sector.checked_add(ring.len())?.checked_sub(after));
            ahead.is_some_and(|ahead| ahead < sectors)
        })
    }

    /// The length that the file must have after the replay: no less than now, than the head's LastFileOffset, and than the end
    /// of the last target (MS-VHDX 2.3.3).
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The steps of the replay, in order. `log` is the ring that was scanned.
    ///
    /// # Panics
    /// When `log` is not the ring that was scanned.
    pub fn replays<'a>(&'a self, log: &'a [u8]) -> impl Iterator<Item = Replay> + 'a {
        let (ring, _) = log.as_chunks::<PAGE_LEN>();
        self.entries.iter().flat_map(move |&(offset, header)| {
            let sectors = sector_of(offset).and_then(|first| Sectors::of(ring, first, header.length));
            let sectors = sectors.expect("the ring is the one that was scanned");
            let first_data = descriptors_end(&header).expect("the entry was checked");
            let mut data = (first_data..sectors.count).map(move |n| data_sector(sectors.get(n)));
            descriptors(sectors, header).map(move |descriptor| match descriptor.expect("the entry was checked") {
                Descriptor::Zero { home, length } => Replay::Zero { home, length },
                Descriptor::Data { home, leading, trailing } => {
                    let sector = data.next().flatten().expect("every data descriptor has its sector");
                    Replay::Page { home, image: page_image(leading, sector, trailing) }
                }
            })
        })
    }

    /// Calls `step` with each step of the replay, in order; see [`ActiveSequence::replays`].
    ///
    /// # Panics
    /// When `log` is not the ring that was scanned.
    pub fn for_each(&self, log: &[u8], step: impl FnMut(Replay)) {
        self.replays(log).for_each(step);
    }
}

/// Finds the active sequence in the ring `log`, which stands at `log_at` in a file of `file_len` bytes whose header names
/// `guid`.
///
/// # Errors
/// `NoActiveSequence`; `FileTruncated` when the file is shorter than the head knows it to have been; `Field` when the replay
/// would grow the file beyond [`MAX_FILE_LEN`] or clear more than any metadata has.
pub fn scan(log: &[u8], log_at: FileOffset, guid: LogGuid, file_len: u64) -> Result<ActiveSequence, FormatError> {
    let err = |fault| FormatError::new(Structure::Log, log_at, fault);
    let (ring, _) = log.as_chunks::<PAGE_LEN>();
    let candidates = Candidates::find(ring, log_at, guid);
    debug_assert!(candidates.checksummed <= log.len(), "no byte is checksummed twice");
    let entries = candidates.active().ok_or_else(|| err(Fault::NoActiveSequence))?;
    let mut sequence = ActiveSequence { entries, file_len };
    let head = *sequence.head();
    if file_len < head.flushed_file_offset {
        return Err(err(Fault::FileTruncated { flushed: head.flushed_file_offset, len: file_len }));
    }
    sequence.file_len = bounded_len(ring, &sequence, log_at)?;
    Ok(sequence)
}

/// The length after the replay, when that and the work are within bounds.
fn bounded_len(ring: &[Page], sequence: &ActiveSequence, log_at: FileOffset) -> Result<u64, FormatError> {
    let most = MAX_FILE_LEN.max(sequence.file_len);
    let mut len = sequence.file_len.max(sequence.head().last_file_offset);
    if len > most {
        let fault = Fault::Field { field: "LastFileOffset", value: len, rule: "beyond the largest file" };
        return Err(FormatError::new(Structure::LogEntry, log_at, fault));
    }
    // What a log changes lies inside the file, or inside what one of its entries says the file has grown to. Some writers fall
    // behind with LastFileOffset, hence the slack.
    let vouched = sequence.entries.iter().map(|(_, header)| header.last_file_offset).fold(len, u64::max);
    let reach = vouched.saturating_add(REACH_SLACK).min(most);
    let mut zeroed = 0_u64;
    for &(offset, header) in &sequence.entries {
        let at = FileOffset::new(log_at.get().saturating_add(offset.into()));
        let err = |field, value, rule| FormatError::new(Structure::LogEntry, at, Fault::Field { field, value, rule });
        let sectors = sector_of(offset).and_then(|first| Sectors::of(ring, first, header.length));
        for descriptor in sectors.into_iter().flat_map(|sectors| descriptors(sectors, header)).flatten() {
            let (home, bytes) = match descriptor {
                Descriptor::Data { home, .. } => (home, PAGE),
                Descriptor::Zero { home, length } => {
                    zeroed = zeroed.saturating_add(length);
                    (home, length)
                }
            };
            if zeroed > MAX_ZEROED {
                return Err(err("ZeroLength", bytes, "more than all metadata of the largest disk"));
            }
            len = len.max(home.get().saturating_add(bytes));
            if len > reach {
                return Err(err("FileOffset", home.get(), "far beyond the file and what its log says it has grown to"));
            }
        }
    }
    Ok(len)
}

/// The valid entries of a ring, by the sector they start at.
struct Candidates {
    at: Vec<Option<EntryHeader>>,
    /// Bytes that went through the checksum.
    checksummed: usize,
}

impl Candidates {
    fn find(ring: &[Page], log_at: FileOffset, guid: LogGuid) -> Self {
        let mut checksummed = 0_usize;
        let at = (0..ring.len()).map(|first| {
            let (wire, sectors, header) = plausible(ring, first, log_at, guid)?;
            checksummed = checksummed.saturating_add(sectors.count.saturating_mul(PAGE_LEN));
            (sectors.checksum() == wire.checksum.get()).then_some(header)
        });
        let at = at.collect();
        Self { at, checksummed }
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

/// All of §2.3.1 but the checksum.
fn plausible<'a>(ring: &'a [Page], first: usize, log_at: FileOffset, guid: LogGuid) -> Option<(&'a WireHeader, Sectors<'a>, EntryHeader)> {
    let (wire, _) = WireHeader::ref_from_prefix(ring.get(first)?).ok()?;
    if wire.signature != ENTRY_SIGNATURE || wire.reserved.get() != 0 {
        return None;
    }
    let header = EntryHeader::from_wire(wire);
    let tail_is_sound = sector_of(header.tail).is_some_and(|tail| tail < ring.len());
    if header.log_guid != guid || header.sequence == 0 || !tail_is_sound {
        return None;
    }
    let sectors = Sectors::of(ring, first, header.length)?;
    let first_data = descriptors_end(&header).filter(|&end| end <= sectors.count)?;
    let log_end = log_at.get().checked_add(len64(ring.len()).checked_mul(PAGE)?)?;
    let mut pages = 0_usize;
    for descriptor in descriptors(sectors, header) {
        let (home, length) = match descriptor? {
            Descriptor::Data { home, .. } => {
                pages = pages.checked_add(1)?;
                (home.get(), PAGE)
            }
            Descriptor::Zero { home, length } => (home.get(), length),
        };
        let end = home.checked_add(length)?;
        let [tables, _] = REGION_TABLES;
        let in_log = home < log_end && log_at.get() < end;
        if !home.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) || home < tables.get() || in_log {
            return None;
        }
    }
    let [low, high] = halves(header.sequence);
    let mut data = (first_data..sectors.count).map(|n| data_sector(sectors.get(n)));
    let data_is_sound = data.all(|sector| sector.is_some_and(|s| s.sequence_high == high && s.sequence_low == low));
    (first_data.checked_add(pages) == Some(sectors.count) && data_is_sound).then_some((wire, sectors, header))
}

/// Low and high half of a sequence number as they stand in a data sector.
fn halves(sequence: u64) -> [[u8; 4]; 2] {
    let [a, b, c, d, e, f, g, h] = sequence.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]]
}

fn data_sector(page: Option<&Page>) -> Option<&WireDataSector> {
    let page: &WireDataSector = zerocopy::transmute_ref!(page?);
    (page.signature == DATA_SECTOR).then_some(page)
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
struct Sectors<'a> {
    ring: &'a [Page],
    first: usize,
    count: usize,
}

impl<'a> Sectors<'a> {
    /// `None` for lengths that are no entry's: 0, unaligned, above the ring.
    fn of(ring: &'a [Page], first: usize, length: u32) -> Option<Self> {
        let count = sector_of(length).filter(|&count| (1..=ring.len()).contains(&count))?;
        Some(Self { ring, first, count })
    }

    fn get(self, n: usize) -> Option<&'a Page> {
        let at = self.first.checked_add(n).filter(|_| n < self.count)?;
        self.ring.get(at.checked_sub(self.ring.len()).unwrap_or(at))
    }

    fn iter(self) -> impl Iterator<Item = &'a Page> {
        (0..self.count).map_while(move |n| self.get(n))
    }

    fn checksum(self) -> u32 {
        let mut pages = self.iter();
        let first = pages.next().map_or_else(|| crc32c(&[]), |page| crc32c_with_field_zeroed(page, CHECKSUM_AT));
        pages.fold(first, |crc, page| crc32c_append(crc, page))
    }
}

/// The descriptors of an entry; an element is `None` where a descriptor is not one of this entry, or missing.
fn descriptors(sectors: Sectors<'_>, header: EntryHeader) -> impl Iterator<Item = Option<Descriptor>> {
    // The header has the size of two descriptors, so descriptors fill slots of 32 bytes and never straddle sectors.
    let slots = sectors.iter().flat_map(|page| page.as_chunks::<32>().0).skip(2);
    let count = usize::try_from(header.descriptor_count).unwrap_or(usize::MAX);
    slots.take(count).map(move |slot| {
        let wire: &WireDescriptor = zerocopy::transmute_ref!(slot);
        Descriptor::from_wire(wire, header.sequence)
    })
}

#[path = "diagnose.rs"]
mod diagnose;

pub use diagnose::{LogDiagnosis, diagnose};

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
