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

/// See the module. Read-only.
pub(crate) struct Overlay {
    below: Arc<dyn Storage>,
    pages: BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
    zeros: Vec<(u64, u64)>,
    len: u64,
    below_len: u64,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Overlay({} pages over {:?})", self.pages.len(), self.below)
    }
}

impl Overlay {
    /// Replays `sequence` over `below`, which is `below_len` bytes long.
    pub(crate) fn new(below: Arc<dyn Storage>, below_len: u64, log: &[u8], sequence: &ActiveSequence) -> Self {
        let mut overlay =
            Self { below, pages: BTreeMap::new(), zeros: Vec::new(), len: below_len.max(sequence.head().last_file_offset), below_len };
        sequence.for_each(log, |step| overlay.take(step));
        overlay
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
                // Pages that came earlier are zeroed by this; pages that come later lie above it.
                let gone: Vec<u64> = self.pages.range(home.get()..end).map(|(&at, _)| at).collect();
                for at in gone {
                    self.pages.remove(&at);
                }
                self.zeros.push((home.get(), end));
            }
        }
    }

    /// Whether `page` is zeroed, and where the answer changes at the latest.
    fn lay_over(&self, buf: &mut [u8], at: u64) {
        let end = at + buf.len() as u64;
        for &(from, to) in &self.zeros {
            let (from, to) = (from.max(at), to.min(end));
            if from < to {
                buf[(from - at) as usize..(to - at) as usize].fill(0);
            }
        }
        for (&home, image) in self.pages.range(at.saturating_sub(PAGE - 1)..end) {
            let (from, to) = (home.max(at), (home + PAGE).min(end));
            if from < to {
                buf[(from - at) as usize..(to - at) as usize].copy_from_slice(&image[(from - home) as usize..(to - home) as usize]);
            }
        }
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a replayed view is read-only")
}

impl Storage for Overlay {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let n = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let buf = &mut buf[..n];
        let mut done = 0;
        while done < n && at + (done as u64) < self.below_len {
            match self.below.read_at(&mut buf[done..], at + done as u64) {
                Ok(0) => break,
                Ok(part) => done += part,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        buf[done..].fill(0);
        self.lay_over(buf, at);
        Ok(n)
    }

    fn write_at(&self, _buf: &[u8], _at: u64) -> io::Result<usize> {
        Err(read_only())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
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
        let page = self.pages.range(at.saturating_sub(PAGE - 1)..).next().map(|(&home, _)| (home.max(at), home + PAGE));
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
        let file = Arc::new(MemoryStorage::from_bytes(below));
        let mut overlay =
            Overlay { below: file, pages: BTreeMap::new(), zeros: Vec::new(), len: below.len() as u64, below_len: below.len() as u64 };
        for step in steps {
            overlay.take(step);
        }
        overlay
    }

    #[test]
    fn later_steps_win_and_the_file_below_shows_through_the_rest() {
        let page = |at: u64, byte| Replay::Page { home: FileOffset::new(at), image: Box::new([byte; PAGE_LEN]) };
        let zero = |at: u64, length| Replay::Zero { home: FileOffset::new(at), length };
        let view = overlay(&[1; 5 * PAGE_LEN], vec![page(0, 2), zero(0, 2 * PAGE), page(PAGE, 3), page(6 * PAGE, 4)]);
        let mut all = vec![9; 8 * PAGE_LEN];
        assert_eq!(view.read_at(&mut all, 0).unwrap(), 7 * PAGE_LEN);
        let firsts: Vec<u8> = all.chunks(PAGE_LEN).take(7).map(|page| page[17]).collect();
        assert_eq!(firsts, [0, 3, 1, 1, 1, 0, 4]);
        let mut odd = [9; 10];
        assert_eq!(view.read_at(&mut odd, PAGE - 5).unwrap(), 10);
        assert_eq!(odd, [0, 0, 0, 0, 0, 3, 3, 3, 3, 3]);
    }
}
