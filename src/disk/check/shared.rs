//! Who meets whom, where two entries of the BAT claim the same bytes.
//!
//! One bit for each MiB says *that* a place is taken and not by whom, because remembering owners would cost eight bytes for each block of a
//! sound disk. So whoever comes second is kept here, and only a table that has such entries is walked again, looking for who came first.
//! As many are kept as a report lists; what comes after them is counted.
//!
//! A hostile table has every entry in one place. An entry is compared with those only that it meets, and each of them is answered by
//! the first one that it meets and then gone, so that a walk costs what it costs whatever is in the table.

use super::entries::{ChunkState, Entries};
use super::{CheckReport, CheckStop, Collector, MOST_FINDINGS, Repair, Severity, Subject};
use crate::format::{BitmapState, Fault, Neighbour, PayloadState};
use crate::geometry::{BatRole, Geometry};
use crate::kind::Structure;
use crate::mapping::bat::BatTable;
use crate::units::{BatIndex, BlockHome, ChunkIndex, MIB};
use std::collections::BTreeSet;

/// An entry whose place is somebody else's.
pub(super) struct Conflict {
    pub(super) index: BatIndex,
    pub(super) subject: Subject,
    pub(super) severity: Severity,
    pub(super) repair: Repair,
    /// In MiB.
    pub(super) home: BlockHome,
    /// In MiB: a block's or a bitmap's.
    pub(super) len: u64,
    /// With nobody in it yet.
    pub(super) fault: Fault,
}

/// See the module.
#[derive(Default)]
pub(super) struct Conflicts {
    kept: Vec<Conflict>,
    /// How many more there are of each sort.
    rest: Vec<(Severity, Repair, u64)>,
}

/// Those who have no answer yet, by the MiB they start at; all are of one length.
#[derive(Default)]
struct Waiting {
    len: u64,
    starts: BTreeSet<(u64, usize)>,
}

impl Waiting {
    /// Takes out everybody whom `len` MiB at `start` meet.
    fn met_by(&mut self, start: u64, len: u64, is_oneself: impl Fn(usize) -> bool) -> Vec<usize> {
        let from = start.saturating_sub(self.len - 1);
        let met: Vec<_> = self.starts.range((from, 0)..(start + len, 0)).filter(|(_, n)| !is_oneself(*n)).copied().collect();
        met.iter().for_each(|key| {
            self.starts.remove(key);
        });
        met.into_iter().map(|(_, n)| n).collect()
    }
}

impl Conflicts {
    /// Somebody whose place is another's.
    pub(super) fn met(&mut self, conflict: Conflict) {
        if self.kept.len() < MOST_FINDINGS {
            return self.kept.push(conflict);
        }
        let Conflict { severity, repair, .. } = conflict;
        match self.rest.iter_mut().find(|(s, r, _)| (*s, *r) == (severity, repair)) {
            Some((_, _, count)) => *count += 1,
            None => self.rest.push((severity, repair, 1)),
        }
    }

    /// Finds the other one of each, and tells about it.
    pub(super) fn tell(
        mut self,
        bat: &BatTable,
        geometry: Geometry,
        has_parent: bool,
        entries: &dyn Entries,
        out: &mut Collector<'_>,
    ) -> Result<(), CheckStop> {
        let mut waiting = [1, geometry.block_mib()].map(|len| Waiting { len, starts: BTreeSet::new() });
        for (n, conflict) in self.kept.iter().enumerate() {
            waiting[usize::from(conflict.len != 1)].starts.insert((conflict.home.mib(), n));
        }
        // Who is read comes first, and then who is not.
        for is_loose in [false, true] {
            if waiting.iter().all(|waiting| waiting.starts.is_empty()) {
                break;
            }
            let mut state = ChunkState::at(ChunkIndex::new(0));
            let mut silent = CheckReport::default();
            entries.each(&mut Collector::new(&mut silent, 0), &mut |index, word, _| {
                let Some((other, len)) = claim(geometry, has_parent, index, word, &mut state, is_loose) else { return };
                for waiting in &mut waiting {
                    for n in waiting.met_by(other.at.get() / MIB, len, |n| self.kept[n].index == index) {
                        if let Fault::SharedPlace { other: found, .. } | Fault::StrayAnchor { other: found, .. } = &mut self.kept[n].fault {
                            *found = Some(Neighbour { entry: Some(bat.entry_at(index)), ..other });
                        }
                    }
                }
            })?;
        }
        for Conflict { index, subject, severity, repair, fault, .. } in self.kept {
            out.about(Some(subject), severity, repair, Structure::BatEntry, bat.entry_at(index), fault);
        }
        for (severity, repair, count) in self.rest {
            out.unlisted(severity, repair, count);
        }
        Ok(())
    }
}

/// What an entry claims, and how many MiB of it: as somebody reads it, or else.
fn claim(
    geometry: Geometry,
    has_parent: bool,
    index: BatIndex,
    word: u64,
    state: &mut ChunkState,
    is_loose: bool,
) -> Option<(Neighbour, u64)> {
    let found = |structure, number, home: BlockHome| Neighbour { structure, at: home.start(), number, entry: None };
    match geometry.bat_role(index) {
        Some(BatRole::Payload(block)) => {
            state.enter(geometry.chunk_of(block));
            let decoded = PayloadState::decode(word).ok()?;
            state.needs_bitmap |= matches!(decoded, PayloadState::PartiallyPresent(_));
            let home = match decoded {
                PayloadState::FullyPresent(home) | PayloadState::PartiallyPresent(home) if !is_loose => Some(home),
                PayloadState::Undefined | PayloadState::Unmapped if is_loose && word >> 20 != 0 => PayloadState::anchor(word),
                _ => None,
            };
            home.map(|home| (found(Structure::PayloadBlock, Some(block.get()), home), geometry.block_mib()))
        }
        Some(BatRole::Bitmap(chunk)) => {
            state.enter(chunk);
            if is_loose == (has_parent && state.needs_bitmap) {
                return None;
            }
            let BitmapState::Present(home) = BitmapState::decode(word).ok()? else { return None };
            Some((found(Structure::SectorBitmap, Some(chunk.get()), home), 1))
        }
        None if is_loose => match PayloadState::decode(word).ok()? {
            PayloadState::FullyPresent(home) | PayloadState::PartiallyPresent(home) => {
                Some((found(Structure::PayloadBlock, None, home), geometry.block_mib()))
            }
            _ => None,
        },
        None => None,
    }
}
