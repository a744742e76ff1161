//! The header pair: one slot is always good (MS-VHDX 2.2.2.1).
//!
//! The two slots take turns. A change goes into the slot that is *not* current, with the next sequence number, and counts once
//! it is durable. Afterwards the same content goes into the other slot ([`HeaderPair::mirror`]), so that a slot which goes bad
//! later does not bring an old log or an old identity back. The mirror needs no sync of its own: until it is durable the
//! other slot is the current one on disk, and the next sync of anything hardens it. A change while a mirror may still be in flight
//! goes over the mirror, and not over the slot that it mirrors: that one may be the only good one.
//!
//! A spare slot that is bad when the file is opened was torn by a crash, and the tear may be narrow: one sector of it wrong, the
//! rest a perfectly good header that names an old log. Writing the next header over it could tear in the opposite way and put
//! the old one together again, with a sequence number that wins. So the first change wipes the sector that holds the fields of
//! a bad spare, and syncs, before it writes the slot.
//!
//! A handle that was dropped, or whose process was killed, may leave a header in flight too, and whoever opens the file next reads it
//! as if it were durable. So the first change of a handle looks at the spare. Where both slots say the same, what is in flight can only
//! be the mirror: the change goes over it. Where they differ, what is in flight may be a change, and only a sync settles it.
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

/// What is known of the slot that is not current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spare {
    /// This handle changed the headers, and keeps count of what is in flight.
    Settled,
    /// As found: a whole header that says what the current one says, under a lower number.
    Same,
    /// As found: a whole header that says something else.
    Differs,
    /// As found: something else, which may hold most of one.
    Bad,
}

impl Spare {
    /// What was found beside a current header.
    pub(crate) fn found(current: &Header, other: Option<&Header>) -> Self {
        match other {
            None => Self::Bad,
            Some(other) if Header { sequence: current.sequence, ..other.clone() } == *current => Self::Same,
            Some(_) => Self::Differs,
        }
    }
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

    /// Writes a changed header into the slot that is not current and makes it durable. The first time, see the module.
    pub(crate) fn change(&mut self, file: &dyn Storage, site: SyncSite, edit: impl FnOnce(&mut Header)) -> Result<(), HeaderError> {
        let mut next = self.header.clone();
        edit(&mut next);
        match self.spare {
            Spare::Settled if !self.mirror_in_flight => {}
            // The mirror is what `slot` names; what it mirrors stands for it while it is written over.
            Spare::Settled | Spare::Same => self.slot = self.slot.other(),
            Spare::Differs => storage::sync(file, SyncSite::HeaderInherited)?,
            Spare::Bad => {
                storage::write_all(file, &[0; SECTOR], self.slot.other().offset().get())?;
                storage::sync(file, SyncSite::HeaderWipe)?;
            }
        }
        (self.spare, self.mirror_in_flight) = (Spare::Settled, false);
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

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::format::choose_header;
    use crate::guid::{DataWriteGuid, FileWriteGuid, LogGuid};
    use crate::storage::sim::{CrashOptions, CrashWalk, SimWorld};

    fn slots(file: &dyn Storage) -> Option<HeaderPair> {
        let read = |slot: HeaderSlot| {
            let mut bytes = [0; 4096];
            // A torn piece may be one that cannot be read: then the slot is no header.
            if storage::read_zero_extended(file, &mut bytes, slot.offset().get()).is_err() {
                bytes.fill(0);
            }
            Header::parse(slot, &bytes)
        };
        let current = choose_header(read(HeaderSlot::One), read(HeaderSlot::Two)).ok()?;
        let spare = Spare::found(&current.header, current.other.as_ref().ok());
        Some(HeaderPair::new(current.header, current.slot, spare))
    }

    /// A world with two equal headers that are durable.
    fn world() -> SimWorld {
        let world = SimWorld::new(7);
        let file = world.create("disk");
        let (file_write, data_write) = (FileWriteGuid::random(), DataWriteGuid::random());
        let header = |sequence| Header {
            sequence,
            file_write,
            data_write,
            log: LogGuid::default(),
            log_version: 0,
            version: 1,
            log_length: 1 << 20,
            log_offset: 1 << 20,
        };
        for (slot, sequence) in [(HeaderSlot::One, 0), (HeaderSlot::Two, 1)] {
            storage::write_all(&*file, &header(sequence).encode()[..], slot.offset().get()).expect("a simulated write");
        }
        storage::sync(&*file, SyncSite::Create).expect("a simulated sync");
        world.forget();
        world
    }

    /// Whether some power cut leaves no header, when two handles follow each other and the first one ends as `end` says.
    fn loses_both(without: &[SyncSite], end: impl FnOnce(&dyn Storage, &mut HeaderPair)) -> bool {
        let world = world();
        let file = world.open("disk").expect("it is there");
        let mut first = slots(&*file).expect("two good headers");
        end(&*file, &mut first);
        let mut second = slots(&*file).expect("a header");
        second.change(&*file, SyncSite::Identity, |header| header.file_write = FileWriteGuid::random()).expect("a change");
        second.mirror(&*file).expect("a mirror");
        let trace = world.trace();
        let options = CrashOptions { harsh: true, no_op: without.iter().copied().collect(), ..CrashOptions::default() };
        let (mut walk, mut lost) = (CrashWalk::new(&trace, options), false);
        loop {
            walk.for_each_choice(&mut |_, image| {
                lost = slots(&*image.boot(false).open("disk").expect("it is there")).is_none();
                !lost
            });
            if lost || walk.step().is_none() {
                return lost;
            }
        }
    }

    fn renamed(header: &Header) -> Header {
        Header { file_write: FileWriteGuid::random(), ..header.clone() }
    }

    #[test]
    fn a_handle_that_was_dropped_leaves_a_header() {
        assert!(!loses_both(&[], |_, _| {}), "the first handle only read");
        // Its mirror is in flight, and both slots say the same.
        let mirrored = |file: &dyn Storage, pair: &mut HeaderPair| {
            pair.change(file, SyncSite::Identity, |header| *header = renamed(header)).expect("a change");
            pair.mirror(file).expect("a mirror");
        };
        assert!(!loses_both(&[], mirrored));
        assert!(!loses_both(&[SyncSite::HeaderInherited], mirrored), "equal slots need no sync");
        // Killed between the write of a change and its sync: the slots differ.
        let killed = |file: &dyn Storage, pair: &mut HeaderPair| {
            let next = renamed(pair.current());
            pair.write_other(file, next).expect("a write");
        };
        assert!(!loses_both(&[], killed));
        assert!(loses_both(&[SyncSite::HeaderInherited], killed), "nothing goes wrong without the sync");
    }

    #[test]
    fn a_change_goes_over_a_mirror_in_flight() {
        let twice = |file: &dyn Storage, pair: &mut HeaderPair| {
            for _ in 0..2 {
                pair.change(file, SyncSite::Identity, |header| *header = renamed(header)).expect("a change");
                pair.mirror(file).expect("a mirror");
            }
        };
        assert!(!loses_both(&[], twice));
        let other_way = |file: &dyn Storage, pair: &mut HeaderPair| {
            twice(file, pair);
            // The rule of the settled pair, where it does not hold.
            let next = renamed(pair.current());
            pair.write_other(file, next).expect("a write");
        };
        assert!(loses_both(&[], other_way), "nothing goes wrong when the change goes over the other");
    }

    #[test]
    fn the_spare_is_looked_at_only_once() {
        let world = world();
        let file = world.open("disk").expect("it is there");
        let mut pair = slots(&*file).expect("two good headers");
        let places: Vec<HeaderSlot> = (0..3)
            .map(|_| {
                pair.change(&*file, SyncSite::Identity, |header| *header = renamed(header)).expect("a change");
                pair.slot()
            })
            .collect();
        // The first goes over the current one; from then on they take turns.
        assert_eq!(places, [HeaderSlot::Two, HeaderSlot::One, HeaderSlot::Two]);
    }
}
