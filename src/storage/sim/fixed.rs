//! What the engine leaves to chance, held still.
//!
//! New identities and the first sequence number of a log are random, so two runs of one script write different bytes. Under a
//! [`Fixed`] they come from a seed. A log may begin in any of its sectors (MS-VHDX 2.3); the engine takes the first one, and it
//! takes hundreds of commits until entries wrap around the end. Under a [`Fixed`] a log begins where the test says.

use crate::guid::seeded;
use std::cell::Cell;

thread_local!(static LOG_START: Cell<u64> = const { Cell::new(0) });

/// While it lives, this thread's disks draw their identities from a seed and begin their logs at a given sector.
#[must_use]
#[derive(Debug)]
pub struct Fixed {
    seed_before: Option<u64>,
    log_start_before: u64,
}

impl Fixed {
    /// `log_start` is the offset in the log of the first entry of a session, in 4 KiB sectors; it is taken modulo the log.
    pub fn new(seed: u64, log_start: u64) -> Self {
        Self { seed_before: seeded::set(Some(seed)), log_start_before: LOG_START.replace(log_start) }
    }

    /// The same with the log's beginning left as it is.
    pub fn seed(seed: u64) -> Self {
        Self::new(seed, LOG_START.get())
    }
}

impl Drop for Fixed {
    fn drop(&mut self) {
        seeded::set(self.seed_before);
        LOG_START.set(self.log_start_before);
    }
}

/// The sector of a new log's first entry.
pub(crate) fn log_start() -> u64 {
    LOG_START.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guid::Guid;

    #[test]
    fn identities_repeat_under_one_seed_and_only_there() {
        let drawn = |seed| {
            let _fixed = Fixed::new(seed, 5);
            (Guid::random(), Guid::random(), log_start())
        };
        let first = drawn(1);
        assert_eq!(first, drawn(1));
        assert_ne!(first.0, first.1);
        assert_ne!(first.0, drawn(2).0);
        assert_ne!(Guid::random(), Guid::random());
        assert_eq!(log_start(), 0);
    }

    #[test]
    fn an_inner_one_gives_back_what_it_took() {
        let _outer = Fixed::new(1, 3);
        let expected = {
            let _again = Fixed::new(1, 3);
            Guid::random()
        };
        {
            let _inner = Fixed::seed(9);
            let _ = Guid::random();
            assert_eq!(log_start(), 3);
        }
        assert_eq!(Guid::random(), expected);
    }
}
