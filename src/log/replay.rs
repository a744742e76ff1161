//! Reading a log that somebody left behind (MS-VHDX 2.3.3).
//!
//! What opening a file yields first is [`Unreplayed`]: nothing in it may be believed but the headers. Only [`Unreplayed::into_memory`]
//! turns it into something that can be read. Who opens read-only, or a parent, stops there; who is going to write has the same
//! outcome brought to disk by [`onto_disk`], once everything else about the opening has gone well.
//!
//! Replay to disk, in this order:
//!   1. header with a new file write GUID, both slots   crash: as before, the log is still named
//!   2. pages and zeros home, length                    crash: replayed again, same result
//!   3. sync                                            crash: as 2
//!   4. header without a log GUID, synced               crash: either; everything the log held is home
//!   5. the other slot likewise, synced                 crash: as 4
//!
//! The log is read in pieces ([`Window`]) and its pages are never copied: the outcome says where in the log each of them is, and a
//! replay to disk carries them over one after the other. Until step 4 nothing writes to the log, so they stay where they are.
//!
//! A sector of the log that cannot be read (a write was torn there once, and nobody came by since) counts like a torn one, as long
//! as it cannot hide anything: if it lies where the sequence may go on, flushed data may be behind it, and the error is reported.

use super::headers::{HeaderError, HeaderPair};
use super::overlay::{Outcome, Overlay};
use super::window::Window;
use super::writer::HomeRun;
use crate::format;
use crate::guid::{FileWriteGuid, LogGuid};
use crate::storage::{self, Operation, Storage, StorageError, SyncSite};
use crate::units::{FileOffset, PAGE_LEN};
use std::sync::Arc;

/// A file whose log holds what its regions lack.
pub(crate) struct Unreplayed {
    file: Arc<dyn Storage>,
    file_len: u64,
    outcome: Outcome,
}

impl Unreplayed {
    /// Reads the log that the current header names, finds its active sequence and what a replay of that leaves.
    ///
    /// The caller has checked the header's fields, so the log lies inside the file and is not longer than the cap.
    pub(crate) fn find(file: &Arc<dyn Storage>, file_len: u64, headers: &HeaderPair) -> Result<Self, HeaderError> {
        let header = headers.current();
        let mut log = Window::new(&**file, header.log_offset, header.log_length as usize / PAGE_LEN);
        let found = format::scan(&mut log, FileOffset::new(header.log_offset), header.log, file_len);
        if let Some((sectors, error)) = log.unread() {
            let hidden = match &found {
                Ok(sequence) => sequence.may_go_on(&mut log, &sectors)?,
                Err(_) => true,
            };
            if hidden {
                return Err(error.into());
            }
        }
        let outcome = Outcome::of(&mut log, header.log_offset, &found?)?;
        Ok(Self { file: Arc::clone(file), file_len, outcome })
    }

    /// The file as it would be after a replay, without changing it.
    pub(crate) fn into_memory(self) -> Arc<Overlay> {
        Arc::new(Overlay::new(self.file, self.file_len, self.outcome))
    }
}

/// Replays, see the module. Afterwards the log is empty and the file has a new file write GUID; the data write GUID stays,
/// because nothing a user can read has changed.
pub(crate) fn onto_disk(file: &dyn Storage, outcome: &Outcome, headers: &mut HeaderPair) -> Result<(), HeaderError> {
    headers.change(file, SyncSite::ReplayIdentity, |header| header.file_write = FileWriteGuid::random())?;
    headers.mirror(file)?;
    // Only what the replay leaves in the end is written, not what it passes through: any part of it may land or not
    // before step 3, and replaying again gives the same.
    for (&start, &end) in &outcome.zeros {
        zero(file, start, end - start)?;
    }
    let mut homes = HomeRun::default();
    let mut image = [0; PAGE_LEN];
    for (&home, page) in &outcome.pages {
        page.read(file, &mut image).map_err(|e| StorageError::new(Operation::Read, page.at, e))?;
        homes.add(file, home, &image)?;
    }
    homes.finish(file)?;
    // MS-VHDX 2.3.1.1: the file must reach at least the head's LastFileOffset.
    if storage::len(file)? < outcome.len {
        storage::set_len(file, outcome.len)?;
    }
    storage::sync(file, SyncSite::ReplayHome)?;
    headers.settled();
    headers.change(file, SyncSite::ReplayFirst, |header| header.log = LogGuid::default())?;
    headers.mirror(file)?;
    storage::sync(file, SyncSite::ReplaySecond)?;
    headers.settled();
    Ok(())
}

/// Zeroes a range; the file grows to hold it.
fn zero(file: &dyn Storage, at: u64, len: u64) -> Result<(), StorageError> {
    let end = at + len;
    let file_len = storage::len(file)?;
    if at < file_len {
        storage::punch_or_zero(file, at, len.min(file_len - at))?;
    }
    if end > file_len {
        storage::set_len(file, end)?;
    }
    Ok(())
}
