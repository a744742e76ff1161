//! Payload that rides in the log entry, so that a small flush is one write ([`FlushMode::PayloadInLog`](crate::FlushMode)).
//!
//! A first write in a child puts its bytes in place, as always, and here remembers the pages it filled. If nothing else happened by
//! the next flush, the entry that makes the mappings durable takes those pages along as images, and no sync of the payload is
//! needed before it: a replay brings mapping and payload together or not at all (MS-VHDX 2.3.3 replays a data descriptor whatever
//! it names). See docs/design/0022-payload-in-the-log.md for who reads such entries.
//!
//! # What must not happen
//!
//! While an entry lives, a replay writes its images over whatever is in place. So a page that is in the live log is never just
//! written: its image here is changed too, under the same lock, and it waits for the next entry again. Three sets of pages, by
//! their place in the file:
//!
//! - *waiting*: filled or changed since the last flush; their image is what the file has;
//! - *live*: in an entry that a replay would read; their image is what the file has;
//! - everything else, which is written without a look at this module.
//!
//! A page enters only when none of its sectors was present, before its bits are published, so nobody is writing to it who does not
//! know. It leaves when an entry is durable whose tail lies behind the entry it is in: then the older entries are dead. The filter
//! answers "certainly not here" without a lock; a hot rewrite asks it once for each page.
//!
//! # When a flush cannot ride
//!
//! Payload that is not in these sets needs a sync (`Writer::flush` does one), and so does a file that grew since the last one: only
//! a sync makes sure that its new space is zeros. So that it need not grow again soon, a flush that syncs makes it longer than it has
//! to be (`Writer::grow_for_riders`). A flush that releases space must not leave live images of it behind. All of these
//! go the usual way, in this order:
//!   1. metadata home, everything synced    crash: the old entries are replayed, over payload that nobody was promised yet
//!   2. an entry whose tail is itself       crash: as 1, or the new entry alone
//!   3. forget the live pages               their entries are dead

use crate::log::writer::Page;
use crate::storage::{self, Storage, StorageError};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::units::{FileOffset, PAGE, PAGE_LEN};
use std::collections::BTreeMap;

/// Most pages that wait. What is written beyond them is synced.
const MOST: usize = 128;
/// Longest single write that rides.
pub(crate) const LONGEST: usize = 64 << 10;
/// Words of the filter.
const FILTER: usize = 64;

type Image = Box<[u8; PAGE_LEN]>;

#[derive(Default)]
struct State {
    waiting: BTreeMap<u64, Image>,
    live: BTreeMap<u64, Image>,
}

/// See the module.
pub(crate) struct Riders {
    /// Nobody boards or departs any more.
    closed: AtomicBool,
    filter: [AtomicU64; FILTER],
    state: Mutex<State>,
}

/// The bit of the filter that stands for a page.
fn bit(home: u64) -> (usize, u64) {
    let hash = (home / PAGE).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 52;
    (hash as usize / 64, 1 << (hash % 64))
}

fn pages(at: u64, len: usize) -> impl Iterator<Item = u64> {
    (at / PAGE * PAGE..at + len as u64).step_by(PAGE_LEN)
}

impl Riders {
    pub(crate) fn new() -> Self {
        Self { closed: AtomicBool::new(false), filter: std::array::from_fn(|_| AtomicU64::new(0)), state: Mutex::default() }
    }

    /// Whether some page of a range may be waiting or live. Asked before a write, without a lock.
    #[inline]
    pub(crate) fn may_hold(&self, at: u64, len: usize) -> bool {
        // Acquire pairs with the Release in `board`. Whoever sees a page's bits set saw it board before.
        pages(at, len).any(|page| {
            let (word, mask) = bit(page);
            self.filter[word].load(Ordering::Acquire) & mask != 0
        })
    }

    /// Takes whole pages that were just written and whose bits are about to be published. `false`: there is no room, and the
    /// caller marks payload. The caller holds the gate.
    pub(crate) fn board(&self, at: u64, data: &[u8]) -> bool {
        let mut state = self.state.lock();
        if self.closed.load(Ordering::Relaxed) || state.waiting.len() + data.len() / PAGE_LEN > MOST {
            return false;
        }
        for (home, bytes) in (at..).step_by(PAGE_LEN).zip(data.as_chunks::<PAGE_LEN>().0) {
            state.waiting.insert(home, Box::new(*bytes));
            let (word, mask) = bit(home);
            self.filter[word].fetch_or(mask, Ordering::Release);
        }
        true
    }

    /// Writes a range some pages of which may be here: in place, and into their images. Returns whether all of them were, so
    /// that nothing is left that only a sync would harden.
    pub(crate) fn rewrite(&self, file: &dyn Storage, at: u64, data: &[u8]) -> Result<bool, StorageError> {
        let mut state = self.state.lock();
        // Under the lock, so that place and image see two writers in one order.
        storage::write_all(file, data, at)?;
        let end = at + data.len() as u64;
        let mut all = true;
        for home in pages(at, data.len()) {
            let State { waiting, live } = &mut *state;
            if let (false, Some(image)) = (waiting.contains_key(&home), live.get(&home)) {
                waiting.insert(home, image.clone());
            }
            let Some(image) = waiting.get_mut(&home) else {
                all = false;
                continue;
            };
            let (from, to) = (at.max(home), end.min(home + PAGE));
            let bytes = &data[(from - at) as usize..(to - at) as usize];
            image[(from - home) as usize..(to - home) as usize].copy_from_slice(bytes);
            if let Some(image) = live.get_mut(&home) {
                image[(from - home) as usize..(to - home) as usize].copy_from_slice(bytes);
            }
        }
        Ok(all)
    }

    /// Ends all riding; whether it had not ended before.
    pub(crate) fn close(&self) -> bool {
        let _state = self.state.lock();
        !self.closed.swap(true, Ordering::Relaxed)
    }

    /// Whether pages may board.
    pub(crate) fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }

    /// Whether there are pages that wait and may go.
    pub(crate) fn may_depart(&self) -> bool {
        self.is_open() && self.is_waiting()
    }

    /// Whether pages wait for an entry.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.state.lock().waiting.is_empty()
    }

    /// Whether an entry that a replay would read holds pages.
    pub(crate) fn is_live(&self) -> bool {
        !self.state.lock().live.is_empty()
    }

    /// How many pages wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Takes what waits for an entry; from here on it counts as live.
    pub(crate) fn depart(&self) -> Vec<Page> {
        let mut state = self.state.lock();
        let State { waiting, live } = &mut *state;
        let mut taken = Vec::with_capacity(waiting.len());
        for (home, image) in std::mem::take(waiting) {
            taken.push(Page { home: FileOffset::new(home), image: image.clone() });
            live.insert(home, image);
        }
        taken
    }

    /// What waits will be synced in place instead. Called before that sync begins, and after the mappings were copied.
    pub(crate) fn get_off(&self) {
        self.state.lock().waiting.clear();
    }

    /// The entries that held the live pages are dead: a durable one has its tail behind them.
    pub(crate) fn forget_live(&self) {
        let mut state = self.state.lock();
        state.live.clear();
        let mut words = [0; FILTER];
        for &home in state.waiting.keys() {
            let (word, mask) = bit(home);
            words[word] |= mask;
        }
        // Under the lock, as boarding is. A writer that still saw a bit finds nothing here and goes on alone.
        for (cell, word) in self.filter.iter().zip(words) {
            cell.store(word, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn in_file(file: &MemoryStorage, at: u64) -> u8 {
        let mut byte = [0];
        storage::read_exact(file, &mut byte, at).unwrap();
        byte[0]
    }

    #[test]
    fn a_page_in_the_live_log_is_logged_again_when_it_changes() {
        let (riders, file) = (Riders::new(), MemoryStorage::new());
        assert!(!riders.may_hold(8 * PAGE, 4096));
        assert!(riders.board(8 * PAGE, &[1; 2 * PAGE_LEN]));
        assert!(riders.may_hold(9 * PAGE + 100, 1) && riders.is_waiting() && !riders.is_live());
        assert_eq!(riders.depart().len(), 2);
        assert!(!riders.is_waiting() && riders.is_live());

        assert!(riders.rewrite(&file, 8 * PAGE + 512, &[2; 512]).unwrap());
        assert_eq!(in_file(&file, 8 * PAGE + 512), 2, "in place as well");
        let again = riders.depart();
        assert_eq!(again.len(), 1, "only the page that changed");
        assert_eq!((again[0].home.get(), again[0].image[0], again[0].image[512], again[0].image[1024]), (8 * PAGE, 1, 2, 1));

        assert!(!riders.rewrite(&file, 9 * PAGE, &[3; 2 * PAGE_LEN]).unwrap(), "a page of this one is nobody's");
        riders.get_off();
        riders.forget_live();
        assert!(!riders.may_hold(8 * PAGE, 4 * PAGE_LEN) && !riders.is_live() && !riders.is_waiting());
    }

    #[test]
    fn what_waits_stays_in_the_filter_when_the_live_are_forgotten() {
        let riders = Riders::new();
        assert!(riders.board(0, &[1; PAGE_LEN]));
        let _ = riders.depart();
        assert!(riders.board(PAGE, &[1; PAGE_LEN]));
        riders.forget_live();
        assert!(riders.may_hold(PAGE, 1) && riders.waiting() == 1);
        assert!((0..2 * MOST as u64).any(|i| !riders.board(i * PAGE, &[1; PAGE_LEN])), "room is limited");
    }
}
