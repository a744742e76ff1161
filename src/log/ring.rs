//! The arithmetic of the log's ring buffer (MS-VHDX 2.3, and the two tails of our format reference §3.8).
//!
//! Two tails, because they answer different questions. The *durable* tail is the one inside the newest entry known to be on
//! disk: a replay would start there, so nothing from it up to the head may be overwritten. The *recordable* tail is the oldest
//! entry that is not yet applied and synced: the next entry may name it, and only once that entry is durable does the space in
//! between become free. Two sectors always stay unused: one for the empty entry that moves the tail when nothing else fits,
//! one so that a full ring never looks like an empty one.

use crate::units::PAGE;

/// Bytes that are never used by an ordinary entry.
const SPARE: u64 = 2 * PAGE;

/// See the module. All positions are bytes from the start of the log.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    len: u64,
    head: u64,
    durable_tail: u64,
    /// The oldest entry that is not applied and synced; `None` when there is none, so that the next entry names itself.
    recordable: Option<u64>,
}

impl Ring {
    /// An empty ring of `len` bytes whose first entry goes to `start`.
    pub(crate) fn new(len: u64, start: u64) -> Self {
        Self { len, head: start, durable_tail: start, recordable: None }
    }

    /// Bytes of the ring.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn used(&self) -> u64 {
        if self.head >= self.durable_tail { self.head - self.durable_tail } else { self.len - self.durable_tail + self.head }
    }

    /// Whether an entry of `bytes` may be written now.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        self.used() + bytes + SPARE <= self.len
    }

    /// Whether the empty entry that moves the tail may be written now. It always may; that is what the spare is for.
    pub(crate) fn fits_empty(&self) -> bool {
        self.used() + 2 * PAGE <= self.len
    }

    /// The largest entry that a ring with a freshly moved tail takes.
    pub(crate) fn largest_entry(&self) -> u64 {
        self.len - SPARE - PAGE
    }

    /// Whether so much is used that bringing pages home is worth it.
    pub(crate) fn is_half_full(&self) -> bool {
        self.used() > self.len / 2
    }

    /// The tail that the next entry names.
    pub(crate) fn tail_to_record(&self) -> u64 {
        self.recordable.unwrap_or(self.head)
    }

    /// An entry of `bytes` that names `tail` is durable at the head. An entry that holds pages must be applied before the tail
    /// may pass it.
    pub(crate) fn appended(&mut self, bytes: u64, holds_pages: bool) {
        let tail = self.tail_to_record();
        if self.recordable.is_none() && holds_pages {
            self.recordable = Some(self.head);
        }
        self.durable_tail = tail;
        self.head = (self.head + bytes) % self.len;
    }

    /// Every entry so far is applied and a sync hardened that.
    pub(crate) fn all_applied(&mut self) {
        self.recordable = None;
    }

    /// The pieces of the file that an entry of `bytes` at the head covers: one, or two when it wraps.
    pub(crate) fn pieces(&self, bytes: u64) -> [(u64, u64); 2] {
        self.stretch(self.head, bytes)
    }

    /// The pieces of `bytes` from `start` on, which may lie one lap ahead. No more than one lap.
    pub(crate) fn stretch(&self, start: u64, bytes: u64) -> [(u64, u64); 2] {
        let start = start % self.len;
        let first = bytes.min(self.len - start);
        [(start, first), (0, bytes - first)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_comes_back_only_when_a_durable_entry_says_so() {
        let mut ring = Ring::new(64 * PAGE, 0);
        ring.appended(40 * PAGE, true);
        assert!(!ring.fits(30 * PAGE));
        ring.all_applied();
        assert!(!ring.fits(30 * PAGE), "applied, but the durable tail is still the old entry");
        assert!(ring.fits_empty());
        ring.appended(PAGE, false);
        assert!(ring.fits(30 * PAGE));
    }

    #[test]
    fn the_largest_entry_fits_behind_an_empty_one_and_leaves_room_for_the_next() {
        let mut ring = Ring::new(256 * PAGE, 250 * PAGE);
        for _ in 0..1000 {
            ring.all_applied();
            ring.appended(PAGE, false);
            assert!(ring.fits(ring.largest_entry()));
            ring.appended(ring.largest_entry(), true);
            assert!(ring.fits_empty(), "a full ring still takes the entry that empties it");
        }
    }

    #[test]
    fn entries_wrap_between_sectors() {
        let mut ring = Ring::new(16 * PAGE, 0);
        ring.appended(10 * PAGE, true);
        ring.all_applied();
        ring.appended(PAGE, false);
        assert_eq!(ring.pieces(7 * PAGE), [(11 * PAGE, 5 * PAGE), (0, 2 * PAGE)]);
    }
}
