//! A dirty file, read as if its log had been replayed, without changing a byte of it.
//!
//! MS-VHDX 2.3.3 forbids reading the virtual disk before replay. A file that is opened read-only, or that is somebody's
//! parent, is replayed into memory: where in the log the newest image of each page is, zero ranges under them, and the length the
//! replay would give the file. Everything that reads the file, metadata and payload alike, reads through here.
//!
//! The images themselves stay in the log: of a log of 64 MiB a MiB or two is held. Who reads a page looks again whether its sector
//! still carries the number of its entry, so a log that is overwritten meanwhile, by a program that asks for no locks, is an
//! error and not somebody else's bytes.

use crate::format::{ActiveSequence, Fault, FormatError, LogRing, LoggedPage, Replay};
use crate::kind::Structure;
use crate::storage::{self, Storage, StorageId, SyncSite};
use crate::units::{FileOffset, PAGE, PAGE_LEN};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Ranges of zeros, those that touch counted as one, that a log may leave. A writer clears regions and sector bitmap blocks, a MiB and
/// more at a time; the largest disk has 65536 of the latter. Each costs some 40 bytes of memory here.
const MAX_ZERO_RANGES: usize = 1 << 18;

/// An image of a page that stands in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageImage {
    /// Where in the file the data sector is that holds it.
    pub(crate) at: u64,
    page: LoggedPage,
}

impl PageImage {
    /// Reads the page.
    pub(crate) fn read(&self, file: &dyn Storage, into: &mut [u8; PAGE_LEN]) -> io::Result<()> {
        storage::read_exact(file, into, self.at).map_err(|e| match io::Error::kind(&e.source) {
            io::ErrorKind::Other => io::Error::other(e),
            kind => io::Error::new(kind, e),
        })?;
        let changed = || io::Error::new(io::ErrorKind::InvalidData, "the log was changed while it was in use");
        self.page.restore(into).ok_or_else(changed)
    }
}

/// What a replay leaves: the last image of every page, over the ranges it zeroed.
#[derive(Default)]
pub(crate) struct Outcome {
    /// By home.
    pub(crate) pages: BTreeMap<u64, PageImage>,
    /// Start to end; no two touch. A page that was written before a range was zeroed is gone; one that was written later lies above
    /// it.
    pub(crate) zeros: BTreeMap<u64, u64>,
    /// The length that the file needs at least.
    pub(crate) len: u64,
    /// Entries that were replayed.
    pub(crate) entries: u64,
}

impl Outcome {
    /// Takes every step of a sequence, in order, of the log at `log_at`.
    pub(crate) fn of<R: LogRing>(ring: &mut R, log_at: u64, sequence: &ActiveSequence) -> Result<Self, R::Error> {
        let entries = sequence.entries.len() as u64;
        let mut outcome = Self { len: sequence.head().last_file_offset, entries, ..Self::default() };
        sequence.for_each(ring, |step| {
            outcome.take(step, log_at);
            if outcome.zeros.len() > MAX_ZERO_RANGES {
                let (value, rule) = (outcome.zeros.len() as u64, "more ranges of zeros than any metadata has");
                let fault = Fault::Field { field: "DescriptorCount", value, rule };
                return Err(FormatError::new(Structure::Log, FileOffset::new(log_at), fault).into());
            }
            Ok(())
        })?;
        Ok(outcome)
    }

    fn take(&mut self, step: Replay, log_at: u64) {
        match step {
            Replay::Page { home, page } => {
                self.len = self.len.max(home.get().saturating_add(PAGE));
                self.pages.insert(home.get(), PageImage { at: log_at + (page.sector * PAGE_LEN) as u64, page });
            }
            Replay::Zero { home, length } => {
                let end = home.get().saturating_add(length);
                self.len = self.len.max(end);
                let gone: Vec<u64> = self.pages.range(home.get()..end).map(|(&at, _)| at).collect();
                for at in gone {
                    self.pages.remove(&at);
                }
                if length > 0 {
                    self.clear(home.get(), end);
                }
            }
        }
    }
}

impl Outcome {
    /// Adds a range of zeros, as one with those that it touches.
    fn clear(&mut self, mut start: u64, mut end: u64) {
        while let Some((&from, &to)) = self.zeros.range(..=end).next_back().filter(|&(_, &to)| to >= start) {
            (start, end) = (start.min(from), end.max(to));
            self.zeros.remove(&from);
        }
        self.zeros.insert(start, end);
    }
}

/// See the module. Read-only.
pub(crate) struct Overlay {
    below: Arc<dyn Storage>,
    below_len: u64,
    over: Outcome,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Overlay({} pages over {:?})", self.over.pages.len(), self.below)
    }
}

impl Overlay {
    /// Lays what a replay would leave over `below`, which is `below_len` bytes long.
    pub(crate) fn new(below: Arc<dyn Storage>, below_len: u64, mut over: Outcome) -> Self {
        over.len = over.len.max(below_len);
        Self { below, below_len, over }
    }

    /// What is laid over the file below.
    pub(crate) fn outcome(&self) -> &Outcome {
        &self.over
    }

    /// What answers for the byte at `at`, and up to where it does.
    fn source(&self, at: u64) -> (Source<'_>, u64) {
        if let Some((&home, image)) = self.over.pages.range(at.saturating_sub(PAGE - 1)..=at).next_back() {
            return (Source::Page(image, (at - home) as usize), home + PAGE);
        }
        let next_page = self.over.pages.range(at..).next().map_or(u64::MAX, |(&home, _)| home);
        if let Some((_, &to)) = self.over.zeros.range(..=at).next_back().filter(|&(_, &to)| at < to) {
            return (Source::Zeros, to.min(next_page));
        }
        let next_zeros = self.over.zeros.range(at..).next().map_or(u64::MAX, |(&from, _)| from);
        (Source::Below, next_page.min(next_zeros))
    }

    /// Reads from the file below; what lies past its end is zeros.
    fn read_below(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() && at + (done as u64) < self.below_len {
            match self.below.read_at(&mut buf[done..], at + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(part) => done += part,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        buf[done..].fill(0);
        Ok(())
    }
}

/// Who answers for a byte of the view.
enum Source<'a> {
    /// The image of a page, from this byte of it on.
    Page(&'a PageImage, usize),
    Zeros,
    Below,
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a replayed view is read-only")
}

impl Storage for Overlay {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let n = self.over.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let mut done = 0;
        // Piece by piece: what the log covers is never read below, where a torn write may have left it unreadable.
        while done < n {
            let here = at + done as u64;
            let (source, until) = self.source(here);
            let part = (until - here).min((n - done) as u64) as usize;
            let piece = &mut buf[done..done + part];
            match source {
                Source::Page(image, from) => {
                    let mut page = [0; PAGE_LEN];
                    image.read(&*self.below, &mut page)?;
                    piece.copy_from_slice(&page[from..from + part]);
                }
                Source::Zeros => piece.fill(0),
                Source::Below => self.read_below(piece, here)?,
            }
            done += part;
        }
        Ok(n)
    }

    fn write_at(&self, _buf: &[u8], _at: u64) -> io::Result<usize> {
        Err(read_only())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.over.len)
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn sync(&self, _site: SyncSite) -> io::Result<()> {
        Err(read_only())
    }

    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let below = self.below.next_data(at)?;
        let page = self.over.pages.range(at.saturating_sub(PAGE - 1)..).next().map(|(&home, _)| (home.max(at), home + PAGE));
        Ok(storage::earlier(below, page))
    }

    fn allocated(&self) -> io::Result<u64> {
        self.below.allocated()
    }

    fn id(&self) -> StorageId {
        self.below.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{EntryFields, encode_entry, scan};
    use crate::guid::LogGuid;
    use crate::storage::MemoryStorage;

    /// Where the log of these tests stands, beyond everything else.
    const LOG_AT: u64 = 1 << 40;

    fn fields(sequence: u64, tail: u32, log_guid: LogGuid) -> EntryFields {
        EntryFields { tail, sequence, log_guid, flushed_file_offset: 0, last_file_offset: 1 << 40 }
    }

    type Page = (FileOffset, [u8; PAGE_LEN]);

    /// The pages and the zeros of an entry.
    type Changes<'a> = (&'a [Page], &'a [(FileOffset, u64)]);

    fn page(at: u64, byte: u8) -> Page {
        (FileOffset::new(at), [byte; PAGE_LEN])
    }

    fn zeros(at: u64, length: u64) -> (FileOffset, u64) {
        (FileOffset::new(at), length)
    }

    /// A file of ones with a log of these entries, replayed in memory. Everything is moved up by a MiB: no log writes to headers.
    fn overlay(ones: usize, entries: &[Changes<'_>]) -> Overlay {
        let file = MemoryStorage::new();
        file.write_at(&vec![1; ones], BASE).unwrap();
        let guid = LogGuid::random();
        let mut log = Vec::new();
        for (n, (pages, zeros)) in entries.iter().enumerate() {
            let pages: Vec<_> = pages.iter().map(|(home, image)| (up(*home), image)).collect();
            let zeros: Vec<_> = zeros.iter().map(|&(home, length)| (up(home), length)).collect();
            log.extend(encode_entry(&fields(n as u64 + 1, 0, guid), &pages, &zeros));
        }
        file.write_at(&log, LOG_AT).unwrap();
        let sequence = scan(&mut &log[..], FileOffset::new(LOG_AT), guid, 1 << 40).unwrap();
        let outcome = Outcome::of(&mut &log[..], LOG_AT, &sequence).unwrap();
        Overlay::new(Arc::new(file), BASE + ones as u64, outcome)
    }

    const BASE: u64 = 1 << 20;

    fn up(home: FileOffset) -> FileOffset {
        FileOffset::new(home.get() + BASE)
    }

    // A log of 64 MiB holds two million zero descriptors; a read that looked at all of them for every piece took seconds.
    #[test]
    fn a_read_costs_what_it_reads_and_not_what_the_log_holds() {
        let many: Vec<_> = (0..200_000).map(|n| zeros(2 * n * PAGE, PAGE)).collect();
        let view = overlay(PAGE_LEN, &[(&[], &many)]);
        let mut all = vec![9; 64 << 20];
        let started = std::time::Instant::now();
        view.read_at(&mut all, BASE).unwrap();
        assert!(started.elapsed().as_millis() < 500, "{:?}", started.elapsed());
        assert!(all.iter().all(|&b| b == 0));
    }

    #[test]
    fn later_steps_win_and_the_file_below_shows_through_the_rest() {
        let view = overlay(
            5 * PAGE_LEN,
            &[(&[page(0, 2)], &[]), (&[], &[zeros(0, 2 * PAGE), zeros(3 * PAGE, 0)]), (&[page(PAGE, 3), page(6 * PAGE, 4)], &[])],
        );
        let mut all = vec![9; 7 * PAGE_LEN];
        assert_eq!(view.read_at(&mut all, BASE).unwrap(), 7 * PAGE_LEN);
        let firsts: Vec<u8> = all.chunks(PAGE_LEN).map(|page| page[17]).collect();
        assert_eq!(firsts, [0, 3, 1, 1, 1, 0, 4]);
        let mut odd = [9; 10];
        assert_eq!(view.read_at(&mut odd, BASE + PAGE - 5).unwrap(), 10);
        assert_eq!(odd, [0, 0, 0, 0, 0, 3, 3, 3, 3, 3]);
        view.read_at(&mut odd, BASE + 2 * PAGE - 5).unwrap();
        assert_eq!(odd, [3, 3, 3, 3, 3, 1, 1, 1, 1, 1], "the last bytes of a page travel in its descriptor");
    }

    #[test]
    fn a_log_that_is_overwritten_under_a_reader_is_an_error() {
        let view = overlay(PAGE_LEN, &[(&[page(0, 2)], &[])]);
        let mut one = [0];
        view.read_at(&mut one, BASE).unwrap();
        assert_eq!(one, [2]);
        let later = encode_entry(&fields(9, 0, LogGuid::random()), &[(FileOffset::new(BASE), &[7; PAGE_LEN])], &[]);
        view.below.write_at(&later, LOG_AT).unwrap();
        assert_eq!(view.read_at(&mut one, BASE).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(one, [2]);
    }

    #[test]
    fn more_ranges_of_zeros_than_any_metadata_has_are_refused() {
        let guid = LogGuid::random();
        let many: Vec<_> = (0..MAX_ZERO_RANGES as u64 + 1).map(|n| zeros(BASE + 2 * n * PAGE, PAGE)).collect();
        for (count, is_fine) in [(MAX_ZERO_RANGES, true), (MAX_ZERO_RANGES + 1, false)] {
            let log = encode_entry(&fields(1, 0, guid), &[], &many[..count]);
            let sequence = scan(&mut &log[..], FileOffset::new(LOG_AT), guid, 1 << 40).unwrap();
            let outcome = Outcome::of(&mut &log[..], LOG_AT, &sequence);
            assert_eq!(outcome.is_ok(), is_fine, "{count}");
        }
    }
}
