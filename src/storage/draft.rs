//! A file as it would be: everything can be written, and nothing reaches the file below.
//!
//! Whoever is going to change a file and wants to see the result first writes to a [`Draft`] of it, with the very code that will write to
//! the file. A draft keeps 4 KiB pages that were written, ranges that were zeroed, and its length; the rest is read below. It costs memory
//! by what is written to it.
//!
//! The file below must not change meanwhile. Bytes that it cannot give are zeros under a page that is written in part: the real file would
//! keep them unreadable, or take the write and forget them, and who writes them knows that they are gone.

use super::{Storage, StorageId, SyncSite, read_zero_extended};
use crate::sync::RwLock;
use crate::units::{PAGE, PAGE_LEN};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

/// See the module.
pub(crate) struct Draft {
    below: Arc<dyn Storage>,
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    len: u64,
    /// The file below shows through up to here; it only ever shrinks.
    shown: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
    /// Start to end of what was zeroed, under the pages; no two touch.
    zeros: BTreeMap<u64, u64>,
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draft({} pages over {:?})", self.inner.read().pages.len(), self.below)
    }
}

impl Draft {
    /// A draft of `below` that is like it so far.
    pub(crate) fn new(below: Arc<dyn Storage>) -> io::Result<Self> {
        let len = below.len()?;
        Ok(Self { below, inner: RwLock::new(Inner { len, shown: len, ..Inner::default() }) })
    }

    /// What differs from the file below, as start and end: pages that were written and ranges that were zeroed, up to the shorter of the
    /// two lengths.
    pub(crate) fn changes(&self) -> Vec<(u64, u64)> {
        let inner = self.inner.read();
        let pages = inner.pages.keys().map(|&at| (at, at + PAGE));
        pages.chain(inner.zeros.iter().map(|(&start, &end)| (start, end))).filter(|&(start, _)| start < inner.shown).collect()
    }
}

impl Inner {
    /// Reads, without the file below: fills what is known, and calls `below` for what is not.
    fn read(&self, buf: &mut [u8], at: u64, below: &dyn Storage) -> io::Result<usize> {
        let n = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < n {
            let here = at + done as u64;
            let home = here / PAGE * PAGE;
            let until = |end: u64| (end - here).min((n - done) as u64) as usize;
            if let Some(image) = self.pages.get(&home) {
                let part = until(home + PAGE);
                let within = (here - home) as usize;
                buf[done..done + part].copy_from_slice(&image[within..within + part]);
                done += part;
                continue;
            }
            let next_page = self.pages.range(home + PAGE..).next().map_or(u64::MAX, |(&at, _)| at);
            let zeros = self.zeros.range(..=here).next_back().filter(|&(_, &end)| here < end);
            if let Some((_, &end)) = zeros.filter(|_| here < self.shown) {
                let part = until(end.min(next_page));
                buf[done..done + part].fill(0);
                done += part;
            } else if here >= self.shown {
                let part = until(next_page);
                buf[done..done + part].fill(0);
                done += part;
            } else {
                let next_zeros = self.zeros.range(here..).next().map_or(u64::MAX, |(&at, _)| at);
                let part = until(next_page.min(next_zeros).min(self.shown));
                read_zero_extended(below, &mut buf[done..done + part], here).map_err(|e| io::Error::new(e.source.kind(), e))?;
                done += part;
            }
        }
        Ok(n)
    }

    fn write(&mut self, buf: &[u8], at: u64, below: &dyn Storage) {
        let mut done = 0;
        while done < buf.len() {
            let here = at + done as u64;
            let home = here / PAGE * PAGE;
            let within = (here - home) as usize;
            let part = (PAGE_LEN - within).min(buf.len() - done);
            if part == PAGE_LEN {
                let image = Box::new(buf[done..done + part].try_into().expect("a whole page"));
                self.pages.insert(home, image);
            } else {
                self.page(home, below)[within..within + part].copy_from_slice(&buf[done..done + part]);
            }
            done += part;
        }
        self.len = self.len.max(at + buf.len() as u64);
    }

    /// The page at `home`, to be changed in part.
    fn page(&mut self, home: u64, below: &dyn Storage) -> &mut [u8; PAGE_LEN] {
        if !self.pages.contains_key(&home) {
            let mut image = Box::new([0; PAGE_LEN]);
            if self.read(&mut image[..], home, below).is_err() {
                image.fill(0);
            }
            self.pages.insert(home, image);
        }
        self.pages.get_mut(&home).expect("it was put there")
    }

    fn zero(&mut self, at: u64, end: u64, below: &dyn Storage) {
        let (first, last) = (at.next_multiple_of(PAGE), end / PAGE * PAGE);
        if first >= last {
            // Inside of one page, or around one border of pages.
            let border = first.min(end);
            self.zero_part(at, border, below);
            self.zero_part(border.max(at), end, below);
            return;
        }
        self.zero_part(at, first, below);
        self.zero_part(last, end, below);
        let gone: Vec<u64> = self.pages.range(first..last).map(|(&at, _)| at).collect();
        for home in gone {
            self.pages.remove(&home);
        }
        let (mut start, mut stop) = (first, last);
        while let Some((&from, &to)) = self.zeros.range(..=stop).next_back().filter(|&(_, &to)| to >= start) {
            (start, stop) = (start.min(from), stop.max(to));
            self.zeros.remove(&from);
        }
        self.zeros.insert(start, stop);
    }

    fn zero_part(&mut self, at: u64, end: u64, below: &dyn Storage) {
        if at < end {
            let home = at / PAGE * PAGE;
            self.page(home, below)[(at - home) as usize..(end - home) as usize].fill(0);
        }
    }
}

impl Storage for Draft {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.inner.read().read(buf, at, &*self.below)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        if at.checked_add(buf.len() as u64).is_none() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.inner.write().write(buf, at, &*self.below);
        Ok(buf.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.read().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.inner.write();
        if len < inner.len {
            // What is cut off does not come back when the file grows again.
            let tail = len.next_multiple_of(PAGE);
            let old = inner.len;
            inner.zero(len, tail.min(old), &*self.below);
            inner.pages.retain(|&home, _| home < tail);
            inner.shown = inner.shown.min(len);
        }
        inner.len = len;
        Ok(())
    }

    fn sync(&self, _site: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let mut inner = self.inner.write();
        let end = at.saturating_add(len).min(inner.len);
        if at < end {
            inner.zero(at, end, &*self.below);
        }
        Ok(())
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let inner = self.inner.read();
        // What was zeroed is reported as data where the file below has some: "possible data" is allowed to be zeros.
        let below = if at < inner.shown { self.below.next_data(at)?.filter(|&(start, _)| start < inner.shown) } else { None };
        let below = below.map(|(start, end)| (start, end.min(inner.shown)));
        let page = inner.pages.range(at / PAGE * PAGE..).next().map(|(&home, _)| (home.max(at), (home + PAGE).min(inner.len)));
        Ok(super::earlier(below, page.filter(|&(start, end)| start < end)))
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
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, u16, u8),
        Punch(u64, u64),
        SetLen(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0_u64..40_000, 1_u16..9_000, 1_u8..255).prop_map(|(at, len, byte)| Op::Write(at, len, byte)),
            (0_u64..50_000, 0_u64..20_000).prop_map(|(at, len)| Op::Punch(at, len)),
            (0_u64..50_000).prop_map(Op::SetLen),
        ]
    }

    proptest! {
        #[test]
        fn a_draft_is_what_the_file_would_be(ops in prop::collection::vec(op(), 1..25), base in 0_usize..30_000) {
            let bytes: Vec<u8> = (0..base).map(|i| (i % 251) as u8 | 1).collect();
            let (file, twin) = (Arc::new(MemoryStorage::from_bytes(&bytes)), MemoryStorage::from_bytes(&bytes));
            let draft = Draft::new(Arc::clone(&file) as Arc<dyn Storage>).unwrap();
            for op in ops {
                for storage in [&draft as &dyn Storage, &twin] {
                    match op {
                        Op::Write(at, len, byte) => drop(storage.write_at(&vec![byte; len.into()], at).unwrap()),
                        Op::Punch(at, len) => storage.punch(at, len).unwrap(),
                        Op::SetLen(len) => storage.set_len(len).unwrap(),
                    }
                }
                let want = twin.to_bytes();
                let mut got = vec![0xEE; want.len() + 7];
                prop_assert_eq!(draft.read_at(&mut got, 0).unwrap(), want.len());
                prop_assert!(got[..want.len()] == want[..]);
                // What is said to be a hole reads as zeros.
                let mut at = 0;
                while let Some((start, end)) = draft.next_data(at).unwrap() {
                    prop_assert!(at <= start && start < end && want[at as usize..start as usize].iter().all(|&b| b == 0));
                    at = end;
                }
                prop_assert!(want[(at as usize).min(want.len())..].iter().all(|&b| b == 0));
                // What is not said to have changed is as it was.
                let changes = draft.changes();
                for (i, (&now, &old)) in want.iter().zip(&bytes).enumerate() {
                    let is_changed = changes.iter().any(|&(from, to)| (from..to).contains(&(i as u64)));
                    prop_assert!(now == old || is_changed || i as u64 >= draft.inner.read().shown);
                }
            }
            prop_assert_eq!(file.to_bytes(), bytes);
        }
    }
}
