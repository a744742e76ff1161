//! The header pair: one slot is always good (MS-VHDX 2.2.2.1).
//!
//! The two slots take turns. A change goes into the slot that is *not* current, with the next sequence number, and counts once
//! it is durable. Afterwards the same content goes into the other slot ([`HeaderPair::mirror`]), so that a slot which goes bad
//! later does not bring an old log or an old identity back. The mirror needs no sync of its own: until it is durable the
//! other slot is the current one on disk, and the next sync of anything hardens it. What must never happen is a change while a
//! mirror may still be in flight: a crash could tear both slots. `change` refuses that, as a bug of ours.
//!
//! A spare slot that is bad when the file is opened was torn by a crash, and the tear may be narrow: one sector of it wrong, the
//! rest a perfectly good header that names an old log. Writing the next header over it could tear in the opposite way and put
//! the old one together again, with a sequence number that wins. So the first change wipes the sector that holds the fields of
//! a bad spare, and syncs, before it writes the slot.
//!
//! | crash | slot A (being written) | slot B | opens as |
//! |---|---|---|---|
//! | before the write | old | current n | n |
//! | torn | bad checksum | current n | n |
//! | whole, not synced | n+1 or old | current n | either, both consistent |
//! | mirror torn | current n+1 | bad checksum | n+1 |

use crate::format::{FormatError, Header, HeaderSlot};
use crate::storage::{self, Storage, StorageError, SyncSite};

/// The smallest piece that media keep whole; the fields of a header lie in the first one.
const SECTOR: usize = 512;

/// Rewriting a header failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct HeaderPair {
    header: Header,
    slot: HeaderSlot,
    spare: Spare,
    mirror_in_flight: bool,
}

/// The slot that is not current, as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spare {
    /// A whole header.
    Good,
    /// Something else, which may hold most of one.
    Bad,
}

impl HeaderPair {
    /// The pair as found in the file: `slot` is current.
    pub(crate) fn new(header: Header, slot: HeaderSlot, spare: Spare) -> Self {
        Self { header, slot, spare, mirror_in_flight: false }
    }

    /// What is known of the slot that is not current.
    pub(crate) fn spare(&self) -> Spare {
        self.spare
    }

    /// What the current header says.
    pub(crate) fn current(&self) -> &Header {
        &self.header
    }

    /// The slot that holds it.
    pub(crate) fn slot(&self) -> HeaderSlot {
        self.slot
    }

    /// Whether a mirror was written and no sync followed yet.
    pub(crate) fn mirror_in_flight(&self) -> bool {
        self.mirror_in_flight
    }

    /// A sync of the file began after the last [`HeaderPair::mirror`] and succeeded.
    pub(crate) fn settled(&mut self) {
        self.mirror_in_flight = false;
    }

    /// Writes a changed header into the slot that is not current and makes it durable.
    pub(crate) fn change(&mut self, file: &dyn Storage, site: SyncSite, edit: impl FnOnce(&mut Header)) -> Result<(), HeaderError> {
        assert!(!self.mirror_in_flight, "a header change may not race with an unsettled mirror");
        let mut next = self.header.clone();
        edit(&mut next);
        if self.spare == Spare::Bad {
            storage::write_all(file, &[0; SECTOR], self.slot.other().offset().get())?;
            storage::sync(file, SyncSite::HeaderWipe)?;
            self.spare = Spare::Good;
        }
        self.write_other(file, next)?;
        storage::sync(file, site)?;
        Ok(())
    }

    /// Copies the current header into the other slot, with the next sequence number. The next sync makes it durable.
    pub(crate) fn mirror(&mut self, file: &dyn Storage) -> Result<(), HeaderError> {
        assert!(!self.mirror_in_flight, "a mirror may not race with an unsettled mirror");
        let next = self.header.clone();
        self.write_other(file, next)?;
        self.mirror_in_flight = true;
        Ok(())
    }

    fn write_other(&mut self, file: &dyn Storage, mut next: Header) -> Result<(), HeaderError> {
        next.sequence = self.header.next_sequence(self.slot)?;
        let slot = self.slot.other();
        storage::write_all(file, &next.encode()[..], slot.offset().get())?;
        self.header = next;
        self.slot = slot;
        Ok(())
    }
}
