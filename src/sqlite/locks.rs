//! SQLite's five lock levels among the connections of one volume.
//!
//! The engine's lock on the file keeps other writing processes out, so nothing here leaves the process. The rules are SQLite's: any number
//! of readers (SHARED) beside one writer that still prepares (RESERVED); a writer that waits for the readers to finish lets no new
//! one in (PENDING); one that writes is alone (EXCLUSIVE). A reader may go straight to EXCLUSIVE: it found a left-over journal.

use rsqlite_vfs::LockLevel;

/// Names one open file of a volume.
pub(super) type HolderId = u64;

/// Who holds what on one volume.
#[derive(Debug, Default)]
pub(super) struct LockTable {
    /// Holders at SHARED or above.
    shared: usize,
    /// The one holder above SHARED.
    writer: Option<(HolderId, LockLevel)>,
}

impl LockTable {
    /// Raises `level` of `holder` to `want`. False means somebody is in the way; a waiting writer may then be left at PENDING.
    #[must_use]
    pub(super) fn lock(&mut self, holder: HolderId, level: &mut LockLevel, want: LockLevel) -> bool {
        if *level >= want {
            return true;
        }
        let other = self.writer.filter(|&(id, _)| id != holder).map(|(_, held)| held);
        if *level == LockLevel::None {
            if other.is_some_and(|held| held >= LockLevel::Pending) {
                return false;
            }
            self.shared += 1;
            *level = LockLevel::Shared;
        }
        if want == LockLevel::Shared {
            return true;
        }
        if other.is_some() {
            return false;
        }
        let reached = if want == LockLevel::Exclusive && self.shared > 1 { LockLevel::Pending } else { want };
        self.writer = Some((holder, reached));
        *level = reached;
        reached == want
    }

    /// Lowers `level` of `holder` to `keep`.
    pub(super) fn unlock(&mut self, holder: HolderId, level: &mut LockLevel, keep: LockLevel) {
        if *level <= keep {
            return;
        }
        if *level > LockLevel::Shared && keep <= LockLevel::Shared && self.writer.is_some_and(|(id, _)| id == holder) {
            self.writer = None;
        }
        if keep == LockLevel::None {
            self.shared -= 1;
        }
        *level = keep;
    }

    /// Whether somebody is about to write.
    pub(super) fn is_reserved(&self) -> bool {
        self.writer.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::LockLevel::{Exclusive, None as Unlocked, Pending, Reserved, Shared};
    use super::*;

    #[test]
    fn a_writer_waits_for_readers_and_lets_no_new_one_in() {
        let mut table = LockTable::default();
        let (mut reader, mut writer, mut late) = (Unlocked, Unlocked, Unlocked);
        assert!(table.lock(1, &mut reader, Shared));
        assert!(table.lock(2, &mut writer, Shared));
        assert!(table.lock(2, &mut writer, Reserved));
        assert!(table.lock(3, &mut late, Shared), "a reserved lock does not keep readers out");
        assert!(!table.lock(3, &mut late, Reserved), "there is one writer");
        table.unlock(3, &mut late, Unlocked);
        assert!(!table.lock(2, &mut writer, Exclusive));
        assert_eq!(writer, Pending);
        assert!(!table.lock(3, &mut late, Shared));
        assert_eq!(late, Unlocked);
        table.unlock(1, &mut reader, Unlocked);
        assert!(table.lock(2, &mut writer, Exclusive));
        assert!(table.is_reserved());
        table.unlock(2, &mut writer, Shared);
        assert!(!table.is_reserved());
        assert!(table.lock(3, &mut late, Shared));
    }

    #[test]
    fn one_of_two_readers_with_a_left_over_journal_gets_it() {
        let mut table = LockTable::default();
        let (mut a, mut b) = (Unlocked, Unlocked);
        assert!(table.lock(1, &mut a, Shared) && table.lock(2, &mut b, Shared));
        assert!(!table.lock(1, &mut a, Exclusive));
        assert!(!table.lock(2, &mut b, Exclusive));
        assert_eq!((a, b), (Pending, Shared));
        table.unlock(2, &mut b, Unlocked);
        assert!(table.lock(1, &mut a, Exclusive));
        table.unlock(1, &mut a, Unlocked);
        assert!(table.lock(2, &mut b, Shared) && table.lock(2, &mut b, Exclusive));
    }
}
