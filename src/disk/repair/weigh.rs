//! Whether a repaired draft is better than the file in every respect.
//!
//! Three questions. Does every block read as before? Entries are compared by what they mean, piece by piece of the table, so a table of
//! 512 MiB costs no memory; and every byte that the draft changed outside of headers, log, region tables and BAT is compared with the file
//! as a reader sees it, up to a bound that only a replay of gigabytes reaches. Is any finding new? And are there fewer?

use super::RepairStop;
use crate::disk::check::raw::Exam;
use crate::disk::check::{CheckReport, Finding, Severity};
use crate::disk::layer::Layer;
use crate::format::{BitmapState, HEADER_SECTION, PayloadState};
use crate::geometry::{BatRole, Geometry};
use crate::storage::{self, Draft, Operation, Storage, StorageError};
use crate::units::{BatIndex, MIB};
use std::sync::Arc;

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;
/// Changed bytes that are compared. Only a replay that clears whole sector bitmap blocks changes more.
const MOST_COMPARED: u64 = 256 << 20;

/// Refuses what is not better.
pub(crate) fn weigh(
    file: &Arc<dyn Storage>,
    exam: &Exam,
    before: &CheckReport,
    draft: &Arc<Draft>,
    next: &Exam,
    after: &CheckReport,
) -> Result<(), RepairStop> {
    let refuse = |why| Err(RepairStop::NotBetter(why));
    if !exam.blocks_read_as_before(&**draft)? {
        return refuse("a block would read differently");
    }
    if !exam.bytes_are_as_before(draft)? {
        return refuse("content would change");
    }
    let identity = |exam: &Exam| exam.current.as_ref().map(|current| current.header.data_write);
    if identity(exam) != identity(next) {
        return refuse("the identity would change");
    }
    let draft = Arc::clone(draft) as Arc<dyn Storage>;
    if Layer::open(Arc::clone(file), None).is_ok() && Layer::open(draft, None).is_err() {
        return refuse("the file would no longer open");
    }
    for severity in [Severity::Error, Severity::Warning] {
        if after.count(severity) > before.count(severity) {
            return refuse("there would be more to find");
        }
    }
    let was_there = |finding: &Finding| {
        before.findings().any(|old| (old.structure, old.at, &old.fault) == (finding.structure, finding.at, &finding.fault))
    };
    // A list that is cut off holds others of the same sort, which moved up.
    let is_listed =
        |severity| before.count(severity) as usize <= if severity == Severity::Error { before.errors.len() } else { before.warnings.len() };
    let is_new = |finding: &&Finding| finding.severity != Severity::Note && is_listed(finding.severity) && !was_there(finding);
    if after.findings().any(|finding| is_new(&finding)) {
        return refuse("something else would be wrong");
    }
    let total = |report: &CheckReport| [Severity::Error, Severity::Warning, Severity::Note].map(|severity| report.count(severity));
    if total(after) >= total(before) {
        return refuse("nothing would be gained");
    }
    Ok(())
}

impl Exam {
    /// Whether every entry of the BAT means in `draft` what it means in this file.
    fn blocks_read_as_before(&self, draft: &dyn Storage) -> Result<bool, StorageError> {
        let (Some(region), Some(geometry)) = (self.bat, self.geometry()) else { return Ok(true) };
        let has_parent = self.metadata.as_ref().is_some_and(|metadata| metadata.has_parent);
        let entries = if has_parent { geometry.bat_entries_differencing() } else { geometry.bat_entries() };
        let end = region.offset.get() + (entries * 8).min(u64::from(region.length));
        let mut buffers = [vec![0; PIECE as usize], vec![0; PIECE as usize]];
        let mut at = region.offset.get();
        while at < end {
            let next = |file: &dyn Storage| file.next_data(at).map_err(|e| StorageError::new(Operation::Seek, at, e));
            let starts = [next(&*self.view)?, next(draft)?].into_iter().flatten().map(|(start, _)| start);
            let Some(start) = starts.min().filter(|&start| start < end) else { break };
            at = start / 8 * 8;
            let len = (end - at).min(PIECE) as usize;
            let [old, new] = &mut buffers;
            let (old, new) = (&mut old[..len], &mut new[..len]);
            if storage::read_zero_extended(&*self.view, old, at).is_ok() {
                storage::read_zero_extended(draft, new, at)?;
                let first = (at - region.offset.get()) / 8;
                if old != new && !same_meaning(geometry, has_parent, first, old, new) {
                    return Ok(false);
                }
            }
            at += len as u64;
        }
        Ok(true)
    }

    /// Whether the draft changed nothing but headers, region tables, the log, the BAT, and what a replay changes.
    fn bytes_are_as_before(&self, draft: &Draft) -> Result<bool, StorageError> {
        let mut own = vec![(0, HEADER_SECTION)];
        own.extend(self.bat.map(|region| (region.offset.get(), region.end())));
        own.extend(self.current.as_ref().map(|c| (c.header.log_offset, c.header.log_offset + u64::from(c.header.log_length))));
        let len = storage::len(&*self.view)?.min(storage::len(draft)?);
        let mut left = MOST_COMPARED;
        let (mut old, mut new) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
        for (start, end) in draft.changes() {
            if own.iter().any(|&(from, to)| from <= start && end <= to) {
                continue;
            }
            let mut at = start;
            while at < end.min(len) && left > 0 {
                let part = (end.min(len) - at).min(PIECE - at % PIECE).min(left);
                let (old, new) = (&mut old[..part as usize], &mut new[..part as usize]);
                if storage::read_zero_extended(&*self.view, old, at).is_ok() {
                    storage::read_zero_extended(draft, new, at)?;
                    if old != new {
                        return Ok(false);
                    }
                }
                (at, left) = (at + part, left - part);
            }
        }
        Ok(true)
    }
}

/// What an entry says to a reader. Places that nobody reads do not count, and neither do bitmaps of files without a parent.
#[derive(PartialEq, Eq)]
enum Meaning {
    Payload(PayloadState),
    Bitmap(BitmapState),
    Nothing,
    Illegal(u64),
}

fn meaning(geometry: Geometry, has_parent: bool, index: u64, word: u64) -> Meaning {
    let role = u32::try_from(index).ok().and_then(|index| geometry.bat_role(BatIndex::new(index)));
    match role {
        Some(BatRole::Payload(_)) => PayloadState::decode(word).map_or(Meaning::Illegal(word), Meaning::Payload),
        Some(BatRole::Bitmap(_)) if has_parent => BitmapState::decode(word).map_or(Meaning::Illegal(word), Meaning::Bitmap),
        Some(BatRole::Bitmap(_)) | None => Meaning::Nothing,
    }
}

fn same_meaning(geometry: Geometry, has_parent: bool, first: u64, old: &[u8], new: &[u8]) -> bool {
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let pairs = old.as_chunks::<8>().0.iter().zip(new.as_chunks::<8>().0);
    (first..).zip(pairs).all(|(index, (old, new))| {
        let of = |bytes| meaning(geometry, has_parent, index, word(bytes));
        let role = u32::try_from(index).ok().and_then(|index| geometry.bat_role(BatIndex::new(index)));
        // A sector bitmap that no block of its chunk needs may go; the examination of the draft finds the blocks that lack one.
        old == new || of(old) == of(new) || (matches!(role, Some(BatRole::Bitmap(_))) && word(new) == 0)
    })
}

const _: () = assert!(PIECE.is_multiple_of(MIB));
