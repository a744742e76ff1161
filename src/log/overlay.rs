//! A dirty file, read as if its log had been replayed, without changing a byte of it.
//!
//! MS-VHDX 2.3.3 forbids reading the virtual disk before replay. A file that is opened read-only, or that is somebody's
//! parent, is replayed into memory: images of 4 KiB pages, zero ranges under them, and the length the replay would give the
//! file. Everything that reads the file, metadata and payload alike, reads through here.

use crate::format::{ActiveSequence, Replay};
use crate::storage::{Storage, StorageId, SyncSite};
use crate::units::{PAGE, PAGE_LEN};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

/// What a replay leaves: the last image of every page, over the ranges it zeroed.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) pages: BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
    /// Start to end; no two touch. A page that was written before a range was zeroed is gone; one that was written later lies above
    /// it.
    pub(crate) zeros: BTreeMap<u64, u64>,
    /// The length that the file needs at least.
    pub(crate) len: u64,
    /// Entries that were replayed.
    pub(crate) entries: u64,
}

impl Outcome {
    /// Takes every step of a sequence, in order.
    pub(crate) fn of(log: &[u8], sequence: &ActiveSequence) -> Self {
        let entries = sequence.entries.len() as u64;
        let mut outcome = Self { len: sequence.head().last_file_offset, entries, ..Self::default() };
        sequence.for_each(log, |step| outcome.take(step));
        outcome
    }

    fn take(&mut self, step: Replay) {
        match step {
            Replay::Page { home, image } => {
                self.len = self.len.max(home.get().saturating_add(PAGE));
                self.pages.insert(home.get(), image);
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
            return (Source::Page(&image[(at - home) as usize..]), home + PAGE);
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
    /// The image of a page, from that byte on.
    Page(&'a [u8]),
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
                Source::Page(bytes) => piece.copy_from_slice(&bytes[..part]),
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
        Ok(match (below, page) {
            (Some(a), Some(b)) if b.0 < a.0 => Some(b),
            (None, b) => b,
            (a, _) => a,
        })
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
    use crate::storage::MemoryStorage;
    use crate::units::FileOffset;

    fn overlay(below: &[u8], steps: Vec<Replay>) -> Overlay {
        let mut over = Outcome::default();
        for step in steps {
            over.take(step);
        }
        Overlay::new(Arc::new(MemoryStorage::from_bytes(below)), below.len() as u64, over)
    }

    // A log of 64 MiB holds two million zero descriptors; a read that looked at all of them for every piece took seconds.
    #[test]
    fn a_read_costs_what_it_reads_and_not_what_the_log_holds() {
        let steps = (0..200_000).map(|n| Replay::Zero { home: FileOffset::new(2 * n * PAGE), length: PAGE }).collect();
        let view = overlay(&[1; PAGE_LEN], steps);
        let mut all = vec![9; 64 << 20];
        let started = std::time::Instant::now();
        view.read_at(&mut all, 0).unwrap();
        assert!(started.elapsed().as_millis() < 500, "{:?}", started.elapsed());
        assert!(all.iter().all(|&b| b == 0));
    }

    #[test]
    fn later_steps_win_and_the_file_below_shows_through_the_rest() {
        let page = |at: u64, byte| Replay::Page { home: FileOffset::new(at), image: Box::new([byte; PAGE_LEN]) };
        let zero = |at: u64, length| Replay::Zero { home: FileOffset::new(at), length };
        let view = overlay(&[1; 5 * PAGE_LEN], vec![page(0, 2), zero(0, 2 * PAGE), zero(3 * PAGE, 0), page(PAGE, 3), page(6 * PAGE, 4)]);
        let mut all = vec![9; 8 * PAGE_LEN];
        assert_eq!(view.read_at(&mut all, 0).unwrap(), 7 * PAGE_LEN);
        let firsts: Vec<u8> = all.chunks(PAGE_LEN).take(7).map(|page| page[17]).collect();
        assert_eq!(firsts, [0, 3, 1, 1, 1, 0, 4]);
        let mut odd = [9; 10];
        assert_eq!(view.read_at(&mut odd, PAGE - 5).unwrap(), 10);
        assert_eq!(odd, [0, 0, 0, 0, 0, 3, 3, 3, 3, 3]);
    }
}
