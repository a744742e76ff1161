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
//! A sector of the log that cannot be read (a write was torn there once, and nobody came by since) counts like a torn one, as long
//! as it cannot hide anything: if it lies where the sequence may go on, flushed data may be behind it, and the error is reported.

use super::headers::{HeaderError, HeaderPair};
use super::overlay::{Outcome, Overlay};
use super::writer::write_pages;
use crate::format::{self, ActiveSequence, FormatError, Header};
use crate::guid::{FileWriteGuid, LogGuid};
use crate::storage::{self, Storage, StorageError, SyncSite};
use crate::units::{FileOffset, PAGE_LEN};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A file whose log holds what its regions lack.
pub(crate) struct Unreplayed {
    file: Arc<dyn Storage>,
    file_len: u64,
    log: Vec<u8>,
    sequence: ActiveSequence,
}

/// The log that a header names, as it stands in the file.
pub(crate) struct RawLog {
    at: FileOffset,
    bytes: Vec<u8>,
    /// Sectors that could not be read, and why the first of them could not.
    unread: Option<(BTreeSet<usize>, StorageError)>,
}

impl RawLog {
    /// Reads it. The caller has checked the header's fields, so the log lies inside the file and is not longer than the cap.
    pub(crate) fn read(file: &dyn Storage, header: &Header) -> Result<Self, StorageError> {
        let mut bytes = vec![0; header.log_length as usize];
        let unread = match storage::read_exact(file, &mut bytes, header.log_offset) {
            Ok(()) => None,
            Err(e) => Some((read_what_reads(file, &mut bytes, header.log_offset).ok_or_else(|| e.clone())?, e)),
        };
        Ok(Self { at: FileOffset::new(header.log_offset), bytes, unread })
    }

    /// The bytes; sectors that could not be read are zeros.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether every sector could be read.
    pub(crate) fn is_read(&self) -> bool {
        self.unread.is_none()
    }

    /// The active sequence of the log that `header` names, in a file of `file_len` bytes.
    pub(crate) fn scan(&self, header: &Header, file_len: u64) -> Result<ActiveSequence, FormatError> {
        format::scan(&self.bytes, self.at, header.log, file_len)
    }

    /// Why the sequence may go on behind what could be read of it; `None` when it does not.
    pub(crate) fn hides_more(&self, sequence: &ActiveSequence) -> Option<&StorageError> {
        let (sectors, e) = self.unread.as_ref()?;
        sequence.may_go_on(&self.bytes, sectors).then_some(e)
    }
}

impl Unreplayed {
    /// Reads the log that the current header names and finds its active sequence.
    ///
    /// The caller has checked the header's fields, so the log lies inside the file and is not longer than the cap.
    pub(crate) fn find(file: &Arc<dyn Storage>, file_len: u64, headers: &HeaderPair) -> Result<Self, HeaderError> {
        let log = RawLog::read(&**file, headers.current())?;
        let sequence = match log.scan(headers.current(), file_len) {
            Ok(sequence) => sequence,
            // What could not be read may be what is missing.
            Err(e) => return Err(log.unread.map_or_else(|| e.into(), |(_, unread)| unread.into())),
        };
        if let Some(e) = log.hides_more(&sequence) {
            return Err(e.clone().into());
        }
        Ok(Self::of(Arc::clone(file), file_len, log, sequence))
    }

    /// The same from a log that was read and judged by the caller.
    pub(crate) fn of(file: Arc<dyn Storage>, file_len: u64, log: RawLog, sequence: ActiveSequence) -> Self {
        Self { file, file_len, log: log.bytes, sequence }
    }

    /// The file as it would be after a replay, without changing it.
    pub(crate) fn into_memory(self) -> Arc<Overlay> {
        Arc::new(Overlay::new(self.file, self.file_len, Outcome::of(&self.log, &self.sequence)))
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
    write_pages(file, outcome.pages.iter().map(|(&home, image)| (home, &**image)))?;
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

/// Sectors of a log that may be unreadable. With more of them it is the storage that is gone, and asking on would take long.
const MOST_UNREAD: usize = 16;

/// Reads the log sector by sector. Returns which did not read, as long as they are few; they are zeros.
#[cold]
fn read_what_reads(file: &dyn Storage, log: &mut [u8], at: u64) -> Option<BTreeSet<usize>> {
    let mut unread = BTreeSet::new();
    for (number, sector) in log.chunks_mut(PAGE_LEN).enumerate() {
        if storage::read_exact(file, sector, at + (number * PAGE_LEN) as u64).is_err() {
            sector.fill(0);
            unread.insert(number);
            if unread.len() > MOST_UNREAD {
                return None;
            }
        }
    }
    Some(unread)
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
