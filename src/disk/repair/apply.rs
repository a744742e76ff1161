//! Writing a repair, in an order in which no crash makes anything worse.
//!
//! ```text
//!   with a log to be replayed                       otherwise
//!   1. replay, see `log/replay.rs`                  1. a header with a new file write GUID (and an empty log), synced
//!                                                   2. the other header likewise
//!   3. pages of region tables and BAT in one log entry that no header names, synced
//!   4. a header that names the log, synced; its mirror
//!   5. pages home, synced; headers that declare the log empty, synced
//!   6. the length, synced
//! ```
//!
//! | crash after | what is left |
//! |---|---|
//! | 1 | a good header and the old spare one, or what a replay leaves; everything else as before |
//! | 2 | both headers good; everything else as before |
//! | 3 | as 2: nobody names the log |
//! | 4 | a dirty log that brings the repaired pages; a reader that replays sees them all, or, torn, the header before it and none |
//! | 5 | all but the length |
//!
//! A torn or unreadable spare header is wiped and synced before it is written over, so that the remains of an old one cannot come together
//! again (`log/headers.rs`). Every state in the table reads the same, because no page that is written here holds anything a user can read,
//! and each is repaired by repairing it again. More than about 250 pages do not fit one entry of a log of 1 MiB: then steps 3 to 5 bring
//! several entries one after the other, each of which leaves a table that is better than before and reads the same.
//!
//! The file write GUID changes before anything else, the data write GUID never does.

use super::{Job, RepairStep};
use crate::disk::check::Consent;
use crate::disk::error::DiskError;
use crate::disk::writer::first_sequence;
use crate::format::{REGION_TABLES, TABLE_LEN};
use crate::guid::{FileWriteGuid, LogGuid};
use crate::log::headers::HeaderPair;
use crate::log::replay;
use crate::log::writer::{Lengths, LogWriter, Page};
use crate::storage::{self, Storage, StorageError, SyncSite};
use crate::units::{FileOffset, MIB, PAGE, PAGE_LEN};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

type Pages = BTreeMap<u64, Box<[u8; PAGE_LEN]>>;

/// Does the job to `file`, which is the file or a draft of it. Returns what was done.
pub(crate) fn apply(file: &dyn Storage, job: &Job) -> Result<Vec<RepairStep>, DiskError> {
    let Job { current, overlay, plan, bat } = job;
    let mut steps = Vec::new();
    if plan.consents.contains(&Consent::OlderHeader) {
        steps.push(RepairStep::OlderHeader);
    }
    let mut headers = HeaderPair::new(current.header.clone(), current.slot, current.spare);
    if let Some(view) = overlay {
        replay::onto_disk(file, view.outcome(), &mut headers)?;
        steps.push(RepairStep::Replayed { entries: view.outcome().entries });
    } else {
        headers.change(file, SyncSite::RepairIdentity, |header| {
            header.file_write = FileWriteGuid::random();
            if plan.empty_log {
                header.log = LogGuid::default();
            }
        })?;
        headers.mirror(file)?;
        if plan.empty_log {
            steps.push(RepairStep::EmptiedLog);
        }
    }
    if plan.headers {
        steps.push(RepairStep::Headers);
    }
    let mut pages = Pages::new();
    if let Some(copy) = plan.table {
        table_pages(file, copy, &mut pages)?;
        steps.push(RepairStep::RegionTable { copy: copy as u8 + 1 });
    }
    if let Some(region) = bat.filter(|_| !plan.entries.is_empty()) {
        for fix in &plan.entries {
            let at = region.offset.get() + u64::from(fix.index.get()) * 8;
            let within = (at % PAGE) as usize;
            page(file, &mut pages, at - at % PAGE)?[within..within + 8].copy_from_slice(&fix.word.to_le_bytes());
        }
        steps.push(RepairStep::Entries { count: plan.entries.len() as u64 });
    }
    if pages.is_empty() {
        if headers.mirror_in_flight() {
            storage::sync(file, SyncSite::RepairMirror)?;
            headers.settled();
        }
    } else {
        through_the_log(file, &mut headers, pages)?;
    }
    if let Some(to) = plan.len {
        let from = storage::len(file)?;
        if from != to {
            // Both headers say that the log is empty, so no entry vouches for the old length (MS-VHDX 2.3.1.1).
            storage::set_len(file, to)?;
            storage::sync(file, SyncSite::Truncate)?;
            steps.push(RepairStep::Length { from, to });
        }
    }
    Ok(steps)
}

/// The pages of the region table `copy` that differ from the other one.
fn table_pages(file: &dyn Storage, copy: usize, pages: &mut Pages) -> Result<(), StorageError> {
    let [from, to] = if copy == 0 { [REGION_TABLES[1], REGION_TABLES[0]] } else { REGION_TABLES };
    let mut good = vec![0; TABLE_LEN];
    storage::read_exact(file, &mut good, from.get())?;
    for (image, home) in good.as_chunks::<PAGE_LEN>().0.iter().zip((to.get()..).step_by(PAGE_LEN)) {
        let mut old = [0; PAGE_LEN];
        if storage::read_exact(file, &mut old, home).is_err() || old != *image {
            pages.insert(home, Box::new(*image));
        }
    }
    Ok(())
}

fn page<'a>(file: &dyn Storage, pages: &'a mut Pages, home: u64) -> Result<&'a mut [u8; PAGE_LEN], StorageError> {
    match pages.entry(home) {
        Entry::Occupied(page) => Ok(page.into_mut()),
        Entry::Vacant(free) => {
            let mut image = Box::new([0; PAGE_LEN]);
            storage::read_zero_extended(file, &mut image[..], home)?;
            Ok(free.insert(image))
        }
    }
}

/// Steps 3 to 5.
fn through_the_log(file: &dyn Storage, headers: &mut HeaderPair, pages: Pages) -> Result<(), DiskError> {
    let len = storage::len(file)?;
    let lengths = Lengths { flushed: len / MIB * MIB, last: len.next_multiple_of(MIB) };
    let header = headers.current();
    let mut log = LogWriter::new(header.log_offset, u64::from(header.log_length), first_sequence());
    let all: Vec<Page> = pages.into_iter().map(|(home, image)| Page { home: FileOffset::new(home), image }).collect();
    for batch in all.chunks(log.batch_pages()) {
        let frozen = log.freeze(batch.to_vec());
        if log.is_started() {
            let durable = log.append(file, headers, frozen.settle_without_payload(), lengths)?;
            log.accept(durable);
        } else {
            let (guid, entry) = log.write_unnamed(file, frozen, lengths)?;
            let barrier = log.sync(file, headers, SyncSite::RepairEntry)?;
            log.name(file, headers, guid, entry.settle(&barrier))?;
        }
    }
    log.stop(file, headers, None)?;
    Ok(())
}
