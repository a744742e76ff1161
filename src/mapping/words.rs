//! The 512 atomic words of a metadata page.
//!
//! A model checker pays for every word it watches, and the words of a page are all alike: under a checker the first few are its
//! own and the rest are ordinary atomics, so that models and the blocks they use stay small while pages keep their true size.

use crate::sync::{AtomicU64, Ordering};
use crate::units::PAGE_LEN;

/// Words in a page.
pub(crate) const WORDS: usize = PAGE_LEN / 8;

/// See the module.
pub(crate) struct Words {
    #[cfg(not(any(loom, shuttle)))]
    all: [AtomicU64; WORDS],
    #[cfg(any(loom, shuttle))]
    watched: [AtomicU64; WATCHED],
    #[cfg(any(loom, shuttle))]
    rest: [crate::sync::process::AtomicU64; WORDS - WATCHED],
}

#[cfg(any(loom, shuttle))]
const WATCHED: usize = 4;

#[cfg(not(any(loom, shuttle)))]
impl Words {
    /// The words of a page image.
    pub(crate) fn new(image: &[u8; PAGE_LEN]) -> Self {
        Self { all: std::array::from_fn(|i| AtomicU64::new(word_of(image, i))) }
    }

    #[inline]
    pub(crate) fn load(&self, i: usize, order: Ordering) -> u64 {
        self.all[i].load(order)
    }

    #[inline]
    pub(crate) fn store(&self, i: usize, word: u64, order: Ordering) {
        self.all[i].store(word, order);
    }

    /// Sets bits; returns the word as it was.
    pub(crate) fn set_bits(&self, i: usize, bits: u64, order: Ordering) -> u64 {
        self.all[i].fetch_or(bits, order)
    }

    /// Clears bits; returns the word as it was.
    pub(crate) fn clear_bits(&self, i: usize, bits: u64, order: Ordering) -> u64 {
        self.all[i].fetch_and(!bits, order)
    }
}

/// The same, each call on a watched word or on another one.
#[cfg(any(loom, shuttle))]
macro_rules! on_word {
    ($self:ident, $i:ident, $call:ident $args:tt) => {
        match $i.checked_sub(WATCHED) {
            None => $self.watched[$i].$call $args,
            Some(i) => $self.rest[i].$call $args,
        }
    };
}

#[cfg(any(loom, shuttle))]
impl Words {
    pub(crate) fn new(image: &[u8; PAGE_LEN]) -> Self {
        Self {
            watched: std::array::from_fn(|i| AtomicU64::new(word_of(image, i))),
            rest: std::array::from_fn(|i| crate::sync::process::AtomicU64::new(word_of(image, WATCHED + i))),
        }
    }

    pub(crate) fn load(&self, i: usize, order: Ordering) -> u64 {
        on_word!(self, i, load(order))
    }

    pub(crate) fn store(&self, i: usize, word: u64, order: Ordering) {
        on_word!(self, i, store(word, order));
    }

    pub(crate) fn set_bits(&self, i: usize, bits: u64, order: Ordering) -> u64 {
        on_word!(self, i, fetch_or(bits, order))
    }

    pub(crate) fn clear_bits(&self, i: usize, bits: u64, order: Ordering) -> u64 {
        on_word!(self, i, fetch_and(!bits, order))
    }
}

impl Words {
    /// The page as it goes to the file.
    pub(crate) fn image(&self) -> Box<[u8; PAGE_LEN]> {
        let mut image = Box::new([0; PAGE_LEN]);
        for (i, bytes) in image.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = self.load(i, Ordering::Acquire).to_le_bytes();
        }
        image
    }

    /// Every word, in order.
    pub(crate) fn iter(&self, order: Ordering) -> impl Iterator<Item = u64> + '_ {
        (0..WORDS).map(move |i| self.load(i, order))
    }
}

fn word_of(image: &[u8; PAGE_LEN], i: usize) -> u64 {
    u64::from_le_bytes(image.as_chunks::<8>().0[i])
}
