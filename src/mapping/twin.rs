//! The books of the file's space once more, without cleverness.
//!
//! `space.rs` keeps free space in merged, sorted maps, one for each sort. A mistake there gives one MiB to two blocks, and shows weeks
//! later. With debug assertions on, this twin keeps every stretch as it came, in one list in no order, and stops at the first MiB that
//! is not where whoever moves it says it is. Without debug assertions it is empty and idle.

/// Where a stretch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Used by a block, or in the hands of whoever called. Not in the list.
    InUse,
    Stale,
    Zeroed,
    Released,
    Limbo,
}

/// See the module: (start, end, place), in MiB.
#[derive(Debug, Default)]
pub(super) struct Twin(Vec<(u64, u64, Place)>);

impl Twin {
    /// All of a stretch goes from one place to another, and was there.
    pub(super) fn moved(&mut self, start: u64, mib: u64, from: Place, to: Place) {
        if !cfg!(debug_assertions) {
            return;
        }
        let end = start + mib;
        let mut found = 0;
        let mut books = Vec::with_capacity(self.0.len() + 2);
        for &(low, high, place) in &self.0 {
            let (first, last) = (low.max(start), high.min(end));
            if first >= last {
                books.push((low, high, place));
                continue;
            }
            assert_eq!(place, from, "MiB {first} to {last} of the file cannot go to {to:?}");
            found += last - first;
            books.extend([(low, first, place), (last, high, place)].into_iter().filter(|&(low, high, _)| low < high));
        }
        assert!(from == Place::InUse || found == mib, "{found} of {mib} MiB at MiB {start} are {from:?}, the rest is in use");
        if to != Place::InUse {
            books.push((start, end, to));
        }
        self.0 = books;
    }

    /// Nothing in the list lies past the end.
    pub(super) fn ends(&self, end: u64) {
        debug_assert!(self.0.iter().all(|&(_, high, _)| high <= end), "something is free past the end at MiB {end}: {:?}", self.0);
    }
}
