//! Who may still be using a piece of the file that was given up.
//!
//! A block's space may be given to another block only when nobody can still be writing into it under the old mapping. Writers
//! hold a [`Ticket`] from before they look up a mapping until their bytes are in the file. Time is cut into epochs: a ticket
//! counts in the epoch it was drawn in, space given up in one epoch becomes free when all tickets of that epoch and of older
//! ones are gone.
//!
//! Readers draw no ticket: they look at [`Quarantine::reuses`] before they look up a mapping and ask [`Quarantine::none_since`]
//! after they have their bytes. Unless somebody reused space in between, what they read was theirs; otherwise they read again.

use crate::sync::{AtomicU64, AtomicUsize, Ordering, fence, fewer_when_checked, thread_number};

const SHARDS: usize = fewer_when_checked(16, 2);

/// A counter pair on a cache line of its own.
#[repr(align(128))]
struct Shard {
    tickets: [AtomicUsize; 2],
}

/// See the module.
pub(crate) struct Quarantine {
    epoch: AtomicU64,
    shards: [Shard; SHARDS],
    reuses: AtomicU64,
}

/// While held, no space given up since it was drawn is handed to another block.
#[must_use]
pub(crate) struct Ticket<'a> {
    counter: &'a AtomicUsize,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        // Release pairs with the SeqCst load in `drained`: what the holder did is over before the space moves on.
        self.counter.fetch_sub(1, Ordering::Release);
    }
}

impl Quarantine {
    pub(crate) fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
            shards: std::array::from_fn(|_| Shard { tickets: [AtomicUsize::new(0), AtomicUsize::new(0)] }),
            reuses: AtomicU64::new(0),
        }
    }

    /// Draws a ticket.
    #[inline]
    pub(crate) fn enter(&self) -> Ticket<'_> {
        let shard = &self.shards[thread_number() % SHARDS];
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let counter = &shard.tickets[(epoch & 1) as usize];
            counter.fetch_add(1, Ordering::SeqCst);
            // If the epoch moved between the load and the count, `drained` may have looked before we counted: draw again.
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return Ticket { counter };
            }
            counter.fetch_sub(1, Ordering::Release);
        }
    }

    /// The current epoch: what is given up now carries it.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Tries to move time on; space that was given up in an epoch below the returned one is free of tickets.
    ///
    /// One caller at a time (the space lock is held).
    pub(crate) fn advance(&self) -> u64 {
        let epoch = self.epoch.load(Ordering::SeqCst);
        // The counters of the epoch before last are reused by the next one, so they must be empty before time moves.
        if !self.drained(epoch.wrapping_add(1)) {
            return epoch.saturating_sub(1);
        }
        self.epoch.store(epoch + 1, Ordering::SeqCst);
        if self.drained(epoch) { epoch + 1 } else { epoch }
    }

    fn drained(&self, epoch: u64) -> bool {
        self.shards.iter().all(|shard| shard.tickets[(epoch & 1) as usize].load(Ordering::SeqCst) == 0)
    }

    /// How often space changed hands, for [`Quarantine::none_since`].
    #[inline]
    pub(crate) fn reuses(&self) -> u64 {
        // Pairs with the Release in `count_reuse`: who counts a reuse sees that the block which gave the space up is gone.
        self.reuses.load(Ordering::Acquire)
    }

    /// Whether no space changed hands since [`Quarantine::reuses`] said `before`. Called when the bytes are read.
    #[inline]
    pub(crate) fn none_since(&self, before: u64) -> bool {
        // Pairs with the fence in `count_reuse`: who read a byte of the new owner sees the count. Without the two fences a processor
        // may answer this load before it has the bytes, or show the new owner's bytes before the count.
        fence(Ordering::Acquire);
        self.reuses.load(Ordering::Relaxed) == before
    }

    /// Space is about to be handed to another block; called before the new owner writes.
    pub(crate) fn count_reuse(&self) {
        self.reuses.fetch_add(1, Ordering::Release);
        fence(Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_waits_for_tickets_that_were_drawn_before_it_was_given_up() {
        let quarantine = Quarantine::new();
        let early = quarantine.enter();
        let given_up = quarantine.epoch();
        assert!(quarantine.advance() <= given_up, "a ticket of that epoch is out");
        let late = quarantine.enter();
        drop(early);
        let free_below = (0..3).map(|_| quarantine.advance()).max().unwrap();
        assert!(free_below > given_up, "later tickets do not hold up earlier space");
        drop(late);
    }

    #[test]
    fn time_moves_on_when_nobody_holds_a_ticket() {
        let quarantine = Quarantine::new();
        for _ in 0..5 {
            let given_up = quarantine.epoch();
            assert!(quarantine.advance() > given_up);
        }
    }
}
