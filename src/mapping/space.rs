//! The space of the file, in MiB: what is used, what is free, what is on its way from one to the other.
//!
//! ```text
//!  used by a block --trim--> released --commit durable--> limbo --tickets gone--> free --allocate--> used by another
//! ```
//!
//! *Fresh* space lies past everything the file ever held in this session; extending the file guarantees that it reads as
//! zeros. *Free* space inside the file is known from a scan of the BAT before the first change of a session, or was released
//! in it; it is *stale* (holds somebody's old bytes) unless a hole was punched into it. Whoever needs zeros and gets stale
//! space zeroes it first.
//!
//! Released space is not reusable before the commit that released it is durable (a crash would bring the old mapping back,
//! with another block's bytes under it), and not before the last writer that looked up the old mapping is done
//! (`quarantine.rs`).
//!
//! With debug assertions on, `twin.rs` keeps the same books in the simplest way there is, and compares.

use super::twin::{Place, Twin};
use crate::units::BlockHome;
use bitvec::prelude::{BitVec, Lsb0};
use std::collections::BTreeMap;

/// Files reach at most this many MiB (128 TiB): 64 TiB of blocks, their bitmaps and tables, and as much again of free space.
pub(crate) const MAX_FILE_MIB: u64 = 1 << 27;
/// MiB by which the file grows at least.
const STRIDE_MIB: u64 = 32;
/// MiB of fresh space inside the file that a flush provides where growing later is dear.
const AHEAD_MIB: u64 = 256;

/// One bit per MiB of the file.
#[derive(Debug, Default)]
pub(crate) struct UsedMap {
    bits: BitVec<u8, Lsb0>,
}

/// A claim on space that somebody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Free,
    Taken,
    OutOfReach,
}

impl UsedMap {
    /// Marks `len` MiB at `start` as used and says whether any of them were used already.
    pub(crate) fn claim(&mut self, start: u64, len: u64) -> Claim {
        let end = start.saturating_add(len);
        if end > MAX_FILE_MIB {
            return Claim::OutOfReach;
        }
        let (start, end) = (start as usize, end as usize);
        if self.bits.len() < end {
            self.bits.resize(end, false);
        }
        let part = &mut self.bits[start..end];
        let taken = part.any();
        part.fill(true);
        if taken { Claim::Taken } else { Claim::Free }
    }

    /// Whether none of `len` MiB at `start` is used.
    pub(crate) fn is_free(&self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len).min(self.bits.len() as u64);
        start >= end || self.bits[start as usize..end as usize].not_any()
    }

    /// Unused MiB before the last used one, and where that one ends.
    pub(crate) fn leaks(&self) -> (u64, u64) {
        let end = self.end();
        (self.bits[..end as usize].count_zeros() as u64, end)
    }

    /// MiB up to the end of the last used one.
    pub(crate) fn end(&self) -> u64 {
        self.bits.last_one().map_or(0, |last| last as u64 + 1)
    }

    /// The unused stretches below `end`, as (start, length).
    pub(crate) fn gaps(&self, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = 0;
        while at < self.bits.len() {
            match self.bits[at..].first_zero() {
                None => break,
                Some(skip) => at += skip,
            }
            let len = self.bits[at..].first_one().unwrap_or(self.bits.len() - at);
            gaps.push((at as u64, len as u64));
            at += len;
        }
        let tail = self.bits.len() as u64;
        if tail < end {
            match gaps.last_mut() {
                Some((start, len)) if *start + *len == tail => *len = end - *start,
                _ => gaps.push((tail, end - tail)),
            }
        }
        gaps
    }
}

/// What allocation hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allotment {
    pub(crate) home: BlockHome,
    pub(crate) mib: u64,
    /// Whether the space reads as zeros already.
    pub(crate) zeroed: bool,
    /// Whether somebody had this space before in this session, so that readers must notice.
    pub(crate) reused: bool,
}

/// Space that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) mib: u64,
}

/// Free space at the end of the file that nobody can get at the moment: from `start` to `end`, and whatever the file is longer.
#[must_use]
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) start: u64,
    end: u64,
}

/// Free stretches by start, with length; neighbours are merged.
#[derive(Debug, Default)]
struct FreeMap(BTreeMap<u64, u64>);

impl FreeMap {
    fn insert(&mut self, mut start: u64, mut len: u64) {
        if let Some((&before, &before_len)) = self.0.range(..start).next_back() {
            debug_assert!(before + before_len <= start, "freed twice");
            if before + before_len == start {
                self.0.remove(&before);
                (start, len) = (before, before_len + len);
            }
        }
        if let Some(after_len) = self.0.remove(&(start + len)) {
            len += after_len;
        }
        self.0.insert(start, len);
    }

    /// The lowest stretch that is long enough.
    fn take(&mut self, mib: u64) -> Option<u64> {
        let (&start, &len) = self.0.iter().find(|(_, len)| **len >= mib)?;
        self.0.remove(&start);
        if len > mib {
            self.0.insert(start + mib, len - mib);
        }
        Some(start)
    }

    /// The stretch that wastes least: the shortest that is long enough and starts at or below `highest`; the lowest of equals.
    fn best_below(&self, mib: u64, highest: u64) -> Option<(u64, u64)> {
        self.0.range(..=highest).filter(|(_, len)| **len >= mib).map(|(&start, &len)| (start, len)).min_by_key(|&(start, len)| (len, start))
    }

    /// Takes the first `mib` of the stretch that starts at `start`.
    fn take_from(&mut self, start: u64, mib: u64) {
        let len = self.0.remove(&start).expect("a stretch that was just found");
        if len > mib {
            self.0.insert(start + mib, len - mib);
        }
    }

    /// Removes the stretch that ends at `end`, if there is one, and returns its start.
    fn take_ending_at(&mut self, end: u64) -> Option<u64> {
        let (&start, &len) = self.0.range(..end).next_back()?;
        (start + len == end).then(|| {
            self.0.remove(&start);
            start
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Space {
    /// MiB below which everything is used or in one of the lists; from here on space is fresh.
    end: u64,
    /// MiB that the file is long.
    file_end: u64,
    stale: FreeMap,
    zeroed: FreeMap,
    released: Vec<Extent>,
    limbo: Vec<(u64, Extent)>,
    twin: Twin,
    /// Whether all that was free when the session began is known.
    is_opaque: bool,
}

impl Space {
    /// A file of `file_end` MiB in which nothing is known to be free.
    pub(crate) fn opaque(file_end: u64) -> Self {
        Self {
            end: file_end,
            file_end,
            stale: FreeMap::default(),
            zeroed: FreeMap::default(),
            released: Vec::new(),
            limbo: Vec::new(),
            twin: Twin::default(),
            is_opaque: true,
        }
    }

    /// A file of `file_end` MiB of which all that is used is known.
    pub(crate) fn mapped(file_end: u64, used: &UsedMap) -> Self {
        let mut space = Self { is_opaque: false, ..Self::opaque(file_end.max(used.end())) };
        for (start, len) in used.gaps(file_end) {
            space.stale.insert(start, len);
            space.twin.moved(start, len, Place::InUse, Place::Stale);
        }
        space
    }

    /// Space for a block, from the lowest free stretch that fits, otherwise fresh. Fresh space may lie past the end of the
    /// file: see [`Space::growth`].
    pub(crate) fn allocate(&mut self, mib: u64, wants_zeros: bool) -> Option<Allotment> {
        let lists = if wants_zeros {
            [(true, &mut self.zeroed), (false, &mut self.stale)]
        } else {
            [(false, &mut self.stale), (true, &mut self.zeroed)]
        };
        for (zeroed, list) in lists {
            if let Some(start) = list.take(mib) {
                self.twin.moved(start, mib, place(zeroed), Place::InUse);
                let home = BlockHome::from_mib(start).expect("free stretches lie inside the file, behind the header section");
                return Some(Allotment { home, mib, zeroed, reused: true });
            }
        }
        let end = self.end.checked_add(mib).filter(|&end| end <= MAX_FILE_MIB)?;
        let home = BlockHome::from_mib(self.end)?;
        self.twin.ends(self.end);
        self.end = end;
        Some(Allotment { home, mib, zeroed: true, reused: false })
    }

    /// Space for a block that moves down: free space that begins below `home` and ends at or below it. The stretch that wastes least, so
    /// that sector bitmap blocks of 1 MiB do not split the stretches that payload blocks need.
    pub(crate) fn allocate_below(&mut self, mib: u64, home: u64) -> Option<Allotment> {
        let highest = home.checked_sub(mib)?;
        let best = [(true, &self.zeroed), (false, &self.stale)]
            .into_iter()
            .filter_map(|(zeroed, list)| list.best_below(mib, highest).map(|(start, len)| (len, start, zeroed)));
        let (_, start, zeroed) = best.min_by_key(|&(len, start, _)| (len, start))?;
        let list = if zeroed { &mut self.zeroed } else { &mut self.stale };
        list.take_from(start, mib);
        self.twin.moved(start, mib, place(zeroed), Place::InUse);
        let home = BlockHome::from_mib(start).expect("free stretches lie inside the file, behind the header section");
        Some(Allotment { home, mib, zeroed, reused: true })
    }

    /// Whether everything that was free when the session began is known. Where it is not, only what was released since is.
    pub(crate) fn is_opaque(&self) -> bool {
        self.is_opaque
    }

    /// Takes the free space at the end out of the lists, so that nobody gets it while the file is being cut. `None` when there is none
    /// and the file is no longer than it has to be.
    pub(crate) fn withhold_tail(&mut self) -> Option<Tail> {
        let end = self.end;
        let mut start = end;
        while let Some(before) = self.take_ending_at(start) {
            start = before;
        }
        (start < self.file_end).then_some(Tail { start, end })
    }

    /// Whether nothing was allocated behind a withheld tail.
    pub(crate) fn is_last(&self, tail: &Tail) -> bool {
        self.end == tail.end
    }

    /// The file ends where the tail began.
    pub(crate) fn cut(&mut self, tail: Tail) {
        debug_assert!(self.is_last(&tail), "somebody lives behind the tail");
        self.end = tail.start;
        self.file_end = tail.start;
    }

    /// The tail was not cut off after all.
    pub(crate) fn return_tail(&mut self, tail: Tail) {
        if tail.start < tail.end {
            self.add_free(Extent { start: tail.start, mib: tail.end - tail.start }, false);
        }
    }

    /// Takes out everything that is free and may hold old bytes. The caller gives it back with [`Space::add_free`].
    pub(crate) fn take_stale(&mut self) -> Vec<Extent> {
        let stale: Vec<Extent> = std::mem::take(&mut self.stale.0).into_iter().map(|(start, mib)| Extent { start, mib }).collect();
        for extent in &stale {
            self.twin.moved(extent.start, extent.mib, Place::Stale, Place::InUse);
        }
        stale
    }

    /// The length in MiB that the file should get so that all that was allocated fits; `None` when it fits already. The first
    /// of the two is a comfortable stride, the second the least that will do.
    pub(crate) fn growth(&self) -> Option<(u64, u64)> {
        (self.end > self.file_end).then(|| (self.end.max(self.file_end + STRIDE_MIB), self.end))
    }

    /// The length in MiB that gives the file plenty of fresh space, for a moment when growing costs nothing; `None` while it has enough.
    pub(crate) fn growth_ahead(&self) -> Option<u64> {
        let wanted = self.end + AHEAD_MIB;
        (self.file_end < self.end + AHEAD_MIB / 2 && wanted <= MAX_FILE_MIB).then_some(wanted)
    }

    /// The file is `mib` MiB long now.
    pub(crate) fn grown(&mut self, mib: u64) {
        self.file_end = mib;
    }

    /// Takes back what was just allocated, before anything was written into it.
    pub(crate) fn retract(&mut self, space: Allotment) {
        if space.home.mib() + space.mib == self.end && !space.reused {
            self.end = space.home.mib();
        } else {
            self.add_free(Extent { start: space.home.mib(), mib: space.mib }, space.zeroed);
        }
    }

    /// Takes back space that was allocated and never published.
    pub(crate) fn give_back(&mut self, space: Allotment) {
        // Something may have been written into it.
        self.add_free(Extent { start: space.home.mib(), mib: space.mib }, false);
    }

    /// A published block gave up its space. Reusable after the next commit, see the module.
    pub(crate) fn release(&mut self, home: BlockHome, mib: u64) {
        self.twin.moved(home.mib(), mib, Place::InUse, Place::Released);
        self.released.push(Extent { start: home.mib(), mib });
    }

    /// What was released since the last call: it travels with the commit.
    pub(crate) fn take_released(&mut self) -> Vec<Extent> {
        for extent in &self.released {
            self.twin.moved(extent.start, extent.mib, Place::Released, Place::InUse);
        }
        std::mem::take(&mut self.released)
    }

    /// The commit did not happen: what was released is still only released.
    pub(crate) fn restore_released(&mut self, mut extents: Vec<Extent>) {
        for extent in &extents {
            self.twin.moved(extent.start, extent.mib, Place::InUse, Place::Released);
        }
        self.released.append(&mut extents);
    }

    /// The commit that released these is durable.
    pub(crate) fn enter_limbo(&mut self, epoch: u64, extents: Vec<Extent>) {
        for extent in &extents {
            self.twin.moved(extent.start, extent.mib, Place::InUse, Place::Limbo);
        }
        self.limbo.extend(extents.into_iter().map(|extent| (epoch, extent)));
    }

    /// Whether anything waits for its last writer.
    pub(crate) fn has_limbo(&self) -> bool {
        !self.limbo.is_empty()
    }

    /// What waited in epochs below `epoch`: nobody can be inside it any more. The caller gives it back with
    /// [`Space::add_free`].
    pub(crate) fn leave_limbo(&mut self, epoch: u64) -> Vec<Extent> {
        let mut free = Vec::new();
        self.limbo.retain(|&(since, extent)| {
            let gone = since < epoch;
            if gone {
                self.twin.moved(extent.start, extent.mib, Place::Limbo, Place::InUse);
                free.push(extent);
            }
            !gone
        });
        free
    }

    /// Makes a stretch allocatable.
    pub(crate) fn add_free(&mut self, extent: Extent, zeroed: bool) {
        self.twin.moved(extent.start, extent.mib, Place::InUse, place(zeroed));
        let list = if zeroed { &mut self.zeroed } else { &mut self.stale };
        list.insert(extent.start, extent.mib);
    }

    /// MiB of the file as it is.
    pub(crate) fn file_end(&self) -> u64 {
        self.file_end
    }

    /// MiB into which everything that is allocated fits: LastFileOffset (MS-VHDX 2.3.1.1).
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The shortest length in MiB that keeps everything used. For closing: nothing can be allocated afterwards.
    pub(crate) fn trimmed_end(&mut self) -> u64 {
        let waiting: Vec<Extent> = self.limbo.drain(..).map(|(_, extent)| extent).collect();
        for extent in waiting {
            self.twin.moved(extent.start, extent.mib, Place::Limbo, Place::InUse);
            self.add_free(extent, false);
        }
        while let Some(start) = self.take_ending_at(self.end) {
            self.end = start;
        }
        self.twin.ends(self.end);
        self.end
    }

    /// Takes a free stretch that ends at `end` and returns its start.
    fn take_ending_at(&mut self, end: u64) -> Option<u64> {
        let stale = self.stale.take_ending_at(end).map(|start| (start, false));
        let (start, zeroed) = stale.or_else(|| Some((self.zeroed.take_ending_at(end)?, true)))?;
        self.twin.moved(start, end - start, place(zeroed), Place::InUse);
        Some(start)
    }
}

/// Where free space stands in the twin's books.
fn place(zeroed: bool) -> Place {
    if zeroed { Place::Zeroed } else { Place::Stale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_is_not_claimed() {
        let mut used = UsedMap::default();
        assert_eq!(used.claim(0, 4), Claim::Free);
        assert_eq!(used.claim(6, 2), Claim::Free);
        assert_eq!(used.claim(7, 1), Claim::Taken);
        assert_eq!(used.claim(MAX_FILE_MIB, 1), Claim::OutOfReach);
        assert_eq!(used.end(), 8);
        assert_eq!(used.gaps(10), [(4, 2), (8, 2)]);
        assert_eq!(used.gaps(8), [(4, 2)]);
    }

    #[test]
    fn released_space_is_free_only_after_commit_and_tickets() {
        let mut space = Space::opaque(4);
        let first = space.allocate(2, true).unwrap();
        assert_eq!((first.home.mib(), first.zeroed, first.reused), (4, true, false));
        space.release(first.home, 2);
        assert_eq!(space.allocate(2, false).unwrap().home.mib(), 6, "only released");
        let released = space.take_released();
        space.enter_limbo(7, released);
        assert!(space.leave_limbo(7).is_empty(), "tickets of epoch 7 may be out");
        for extent in space.leave_limbo(8) {
            space.add_free(extent, false);
        }
        let again = space.allocate(2, false).unwrap();
        assert_eq!((again.home.mib(), again.zeroed, again.reused), (4, false, true));
    }

    #[test]
    #[should_panic(expected = "cannot go to Stale")]
    fn the_twin_notices_what_is_given_back_twice() {
        let mut space = Space::opaque(4);
        let first = space.allocate(2, true).unwrap();
        let _ = space.allocate(2, true).unwrap();
        space.give_back(first);
        space.give_back(first);
    }

    #[test]
    #[should_panic(expected = "cannot go to Released")]
    fn the_twin_notices_what_is_released_and_free() {
        let mut space = Space::opaque(4);
        let first = space.allocate(2, true).unwrap();
        space.give_back(first);
        space.release(first.home, 2);
    }

    #[test]
    fn what_moves_down_goes_where_it_wastes_least() {
        let mut space = Space::opaque(4);
        let blocks: Vec<_> = (0..6).map(|_| space.allocate(2, true).unwrap()).collect();
        let last = space.allocate(1, true).unwrap();
        assert_eq!(last.home.mib(), 16);
        space.add_free(Extent { start: blocks[0].home.mib(), mib: 2 }, true);
        space.add_free(Extent { start: blocks[2].home.mib(), mib: 1 }, false);
        assert_eq!(space.allocate_below(1, 16).unwrap().home.mib(), 8, "not half of the larger one");
        assert_eq!(space.allocate_below(2, 5), None, "it must end at or below where it is");
        assert_eq!(space.allocate_below(2, 6).unwrap().home.mib(), 4);
        assert_eq!(space.allocate_below(1, 16), None);
    }

    #[test]
    fn a_withheld_tail_is_nobodys() {
        let mut space = Space::opaque(4);
        let (a, b) = (space.allocate(2, true).unwrap(), space.allocate(2, true).unwrap());
        space.grown(32);
        space.give_back(b);
        let tail = space.withhold_tail().unwrap();
        assert_eq!(tail.start, a.home.mib() + 2);
        let fresh = space.allocate(1, true).unwrap();
        assert_eq!(fresh.home.mib(), 8, "behind the tail");
        assert!(!space.is_last(&tail));
        space.return_tail(tail);
        space.give_back(fresh);
        let tail = space.withhold_tail().unwrap();
        assert!(space.is_last(&tail));
        space.cut(tail);
        assert_eq!((space.end(), space.file_end()), (6, 6));
        assert!(space.withhold_tail().is_none());
    }

    #[test]
    fn the_tail_is_trimmed_back_over_everything_free() {
        let mut space = Space::opaque(4);
        let keep = space.allocate(1, true).unwrap();
        let (a, b) = (space.allocate(2, true).unwrap(), space.allocate(3, true).unwrap());
        space.give_back(a);
        space.add_free(Extent { start: b.home.mib(), mib: b.mib }, true);
        assert_eq!(space.trimmed_end(), keep.home.mib() + 1);
    }
}
