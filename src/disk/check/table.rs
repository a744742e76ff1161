//! The BAT against itself, the file and everything else in it.
//!
//! Two passes at most, in the order of the table, neither of which keeps what it reads; one bit for each MiB of the file says what is taken.
//! The first pass takes what somebody reads: present blocks, and the bitmaps of chunks that need one. The second pass, made only where
//! there is something for it to look at, takes what nobody reads: places that unmapped blocks keep, bitmaps that no block of their chunk
//! needs, entries behind the last block. Where two of the first sort meet, content is lost and nobody can tell whose; where one of the
//! second sort meets anything, it is the one that can go.
//!
//! Entries behind the last block are cleared only when they make no sense. Where they name good places that nothing else claims, it may
//! well be the virtual size that is wrong, and what they name the rest of somebody's disk.

use super::entries::{ChunkState, Entries};
use super::shared::{Conflict, Conflicts};
use super::{CheckStop, Collector, Repair, Severity, Subject};
use crate::format::{BitmapState, Fault, PayloadState};
use crate::geometry::{BatRole, Geometry};
use crate::kind::Structure;
use crate::mapping::bat::BatTable;
use crate::mapping::space::{Claim, MAX_FILE_MIB, UsedMap};
use crate::units::{BatIndex, BlockHome, BlockIndex, ChunkIndex, FileOffset, MIB};

/// Entries that one repair puts right; more than that wait for the next one.
const MOST_FIXES: usize = 1 << 20;

/// An entry and what it should be instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryFix {
    pub(crate) index: BatIndex,
    pub(crate) word: u64,
}

/// See the module.
pub(crate) struct TableExam<'a> {
    bat: &'a BatTable,
    geometry: Geometry,
    has_parent: bool,
    file_len: u64,
    used: UsedMap,
    /// Something waits for the second pass.
    has_loose: bool,
    /// Who meets somebody else; told about when both are known.
    conflicts: Conflicts,
    /// A block claims space of the log, so that nothing may be written there.
    pub(crate) over_log: Option<Fault>,
    pub(crate) fixes: Vec<EntryFix>,
}

impl<'a> TableExam<'a> {
    /// `bat` is where the entries stand and what they must keep off.
    pub(crate) fn new(bat: &'a BatTable, geometry: Geometry, has_parent: bool, file_len: u64) -> Self {
        let mut used = UsedMap::default();
        for &(start, end, _) in bat.taken() {
            let _ = used.claim(start / MIB, end.saturating_sub(start).div_ceil(MIB));
        }
        Self {
            bat,
            geometry,
            has_parent,
            file_len,
            used,
            has_loose: false,
            conflicts: Conflicts::default(),
            over_log: None,
            fixes: Vec::new(),
        }
    }

    /// Every entry, and every stretch of the file against every other.
    pub(crate) fn entries(&mut self, entries: &dyn Entries, out: &mut Collector<'_>) -> Result<(), CheckStop> {
        let mut state = ChunkState::at(ChunkIndex::new(0));
        entries.each(out, &mut |index, word, out| self.firm(index, word, &mut state, entries, out))?;
        if self.has_loose {
            let mut state = ChunkState::at(ChunkIndex::new(0));
            let mut silent = super::CheckReport::default();
            // What cannot be read was told about by the first pass.
            entries.each(&mut Collector::new(&mut silent, 0), &mut |index, word, _| self.loose(index, word, &mut state, out))?;
        }
        let conflicts = std::mem::take(&mut self.conflicts);
        conflicts.tell(self.bat, self.geometry, self.has_parent, entries, out)
    }

    fn fix(&mut self, index: BatIndex, word: u64) {
        if self.fixes.len() < MOST_FIXES {
            self.fixes.push(EntryFix { index, word });
        }
    }

    /// The first pass.
    fn firm(&mut self, index: BatIndex, word: u64, state: &mut ChunkState, entries: &dyn Entries, out: &mut Collector<'_>) {
        match self.geometry.bat_role(index) {
            None => self.has_loose = true,
            Some(BatRole::Payload(block)) => {
                state.enter(self.geometry.chunk_of(block));
                self.payload(index, block, word, state, entries, out);
            }
            Some(BatRole::Bitmap(chunk)) => {
                state.enter(chunk);
                if !self.has_parent || !state.needs_bitmap {
                    self.has_loose = true;
                } else if let Ok(BitmapState::Present(home)) =
                    self.judged(index, Subject::Chunk(chunk.get()), word, BitmapState::decode, out)
                {
                    self.take(index, Subject::Chunk(chunk.get()), home, 1, out);
                }
            }
        }
    }

    fn payload(
        &mut self,
        index: BatIndex,
        block: BlockIndex,
        word: u64,
        state: &mut ChunkState,
        entries: &dyn Entries,
        out: &mut Collector<'_>,
    ) {
        let subject = Subject::Block(block.get());
        let Ok(decoded) = self.judged(index, subject, word, PayloadState::decode, out) else { return };
        match decoded {
            PayloadState::NotPresent | PayloadState::Zero => {
                if word >> 20 != 0 {
                    // Hyper-V is said to refuse these.
                    let fault = Fault::NeedlessPlace { mib: word >> 20 };
                    self.about(out, subject, Severity::Warning, Repair::Repairable, index, fault);
                    self.fix(index, decoded.encode());
                }
            }
            PayloadState::Undefined | PayloadState::Unmapped => self.has_loose |= word >> 20 != 0,
            PayloadState::FullyPresent(home) => self.take(index, subject, home, self.geometry.block_mib(), out),
            PayloadState::PartiallyPresent(_) if !self.has_parent => {
                self.about(out, subject, Severity::Error, Repair::Not, index, Fault::State(7));
            }
            PayloadState::PartiallyPresent(home) => {
                state.needs_bitmap = true;
                let bitmap = self.geometry.bitmap_bat_index(state.chunk);
                // A bitmap entry that cannot be read, or says nonsense, is told about where it stands.
                if !*state.has_bitmap.get_or_insert_with(|| entries.word(bitmap).is_none_or(|word| word & 7 != 0)) {
                    self.about(out, subject, Severity::Error, Repair::Not, index, Fault::NoSectorBitmap);
                }
                self.take(index, subject, home, self.geometry.block_mib(), out);
            }
        }
    }

    fn judged<T>(
        &self,
        index: BatIndex,
        subject: Subject,
        word: u64,
        decode: impl FnOnce(u64) -> Result<T, Fault>,
        out: &mut Collector<'_>,
    ) -> Result<T, ()> {
        decode(word).map_err(|fault| self.about(out, subject, Severity::Error, Repair::Not, index, fault))
    }

    fn about(&self, out: &mut Collector<'_>, subject: Subject, severity: Severity, repair: Repair, index: BatIndex, fault: Fault) {
        out.about(Some(subject), severity, repair, Structure::BatEntry, self.bat.entry_at(index), fault);
    }

    /// What stands in the way of a block at `home`, apart from other blocks.
    fn obstacle(&self, home: BlockHome, mib: u64) -> Option<Fault> {
        let fault = self.bat.fences().check(home.start().get(), mib * MIB, self.file_len).err();
        let beyond = || Fault::BeyondFile { end: home.start().get() + mib * MIB, len: MAX_FILE_MIB * MIB };
        fault.or_else(|| (home.mib() + mib > MAX_FILE_MIB).then(beyond))
    }

    /// Space that somebody reads.
    fn take(&mut self, index: BatIndex, subject: Subject, home: BlockHome, mib: u64, out: &mut Collector<'_>) {
        if let Some(fault) = self.obstacle(home, mib) {
            if fault.other().is_some_and(|other| other.structure == Structure::Log) {
                self.over_log = Some(fault.clone());
            }
            return self.about(out, subject, Severity::Error, Repair::Not, index, fault);
        }
        if self.used.claim(home.mib(), mib) != Claim::Free {
            let fault = Fault::SharedPlace { mib: home.mib(), other: None };
            self.conflicts.met(Conflict { index, subject, severity: Severity::Error, repair: Repair::Not, home, len: mib, fault });
        }
        let end = (home.mib() + mib) * MIB;
        if end > self.file_len {
            let fault = Fault::CutByEnd { end, len: self.file_len };
            self.about(out, subject, Severity::Warning, Repair::Not, index, fault);
        }
    }

    /// The second pass.
    fn loose(&mut self, index: BatIndex, word: u64, state: &mut ChunkState, out: &mut Collector<'_>) {
        match self.geometry.bat_role(index) {
            None => self.behind(index, word, out),
            Some(BatRole::Payload(block)) => {
                state.enter(self.geometry.chunk_of(block));
                state.needs_bitmap |= word & 7 == 7;
                match PayloadState::decode(word) {
                    Ok(kept @ (PayloadState::Undefined | PayloadState::Unmapped)) if word >> 20 != 0 => {
                        self.anchor(index, block, word, kept, out);
                    }
                    _ => {}
                }
            }
            Some(BatRole::Bitmap(chunk)) => {
                state.enter(chunk);
                let subject = Subject::Chunk(chunk.get());
                if !self.has_parent {
                    self.about(out, subject, Severity::Warning, Repair::Repairable, index, Fault::NeedlessBitmap { value: word });
                    self.fix(index, 0);
                } else if !state.needs_bitmap
                    && let Some((fault, home)) = self.unneeded_bitmap(word)
                {
                    let (severity, repair) = (Severity::Warning, Repair::Repairable);
                    match home {
                        Some(home) => self.conflicts.met(Conflict { index, subject, severity, repair, home, len: 1, fault }),
                        None => self.about(out, subject, severity, repair, index, fault),
                    }
                    self.fix(index, 0);
                }
            }
        }
    }

    /// What is wrong with the bitmap entry of a chunk in which no block needs one; with its place, where that is another's.
    fn unneeded_bitmap(&mut self, word: u64) -> Option<(Fault, Option<BlockHome>)> {
        match BitmapState::decode(word) {
            Ok(BitmapState::Present(home)) => {
                let fault = self.claim_loose(home, 1).err()?;
                let is_shared = matches!(fault, Fault::SharedPlace { .. });
                Some((fault, is_shared.then_some(home)))
            }
            Ok(BitmapState::NotPresent) => (word != 0).then_some((Fault::NeedlessPlace { mib: word >> 20 }, None)),
            Err(fault) => Some((fault, None)),
        }
    }

    fn claim_loose(&mut self, home: BlockHome, mib: u64) -> Result<(), Fault> {
        if let Some(fault) = self.obstacle(home, mib) {
            return Err(fault);
        }
        if self.used.is_free(home.mib(), mib) && self.used.claim(home.mib(), mib) == Claim::Free {
            return Ok(());
        }
        Err(Fault::SharedPlace { mib: home.mib(), other: None })
    }

    fn anchor(&mut self, index: BatIndex, block: BlockIndex, word: u64, state: PayloadState, out: &mut Collector<'_>) {
        let mib = self.geometry.block_mib();
        let home = PayloadState::anchor(word);
        let refused = match home {
            Some(home) => self.claim_loose(home, mib).err(),
            None => Some(Fault::BeyondFile { end: word & !(MIB - 1), len: self.file_len }),
        };
        let Some(fault) = refused else { return };
        // A place that is another's is one that a careless writer would write to; one outside of the file is only nonsense.
        let severity = if matches!(fault, Fault::BeyondFile { .. }) { Severity::Warning } else { Severity::Error };
        let (subject, repair) = (Subject::Block(block.get()), Repair::Repairable);
        let stray = Fault::StrayAnchor { mib: word >> 20, other: fault.other() };
        match home.filter(|_| matches!(fault, Fault::SharedPlace { .. })) {
            Some(home) => self.conflicts.met(Conflict { index, subject, severity, repair, home, len: mib, fault: stray }),
            None => self.about(out, subject, severity, repair, index, stray),
        }
        self.fix(index, state.encode());
    }

    fn behind(&mut self, index: BatIndex, word: u64, out: &mut Collector<'_>) {
        let home = match PayloadState::decode(word) {
            Ok(PayloadState::FullyPresent(home) | PayloadState::PartiallyPresent(home)) => Some(home),
            _ => None,
        };
        let names_something = home.is_some_and(|home| self.claim_loose(home, self.geometry.block_mib()).is_ok());
        let repair = if names_something { Repair::Not } else { Repair::Repairable };
        out.add(Severity::Warning, repair, Structure::BatEntry, self.bat.entry_at(index), Fault::BehindLastBlock { value: word });
        if !names_something {
            self.fix(index, 0);
        }
    }

    /// Space that nobody owns, once all entries were looked at. Returns the length that the file should have, where that is another one.
    pub(crate) fn space(&mut self, is_fixed: bool, out: &mut Collector<'_>) -> Option<u64> {
        let at = FileOffset::new(0);
        let (inner, end) = self.used.leaks();
        let tail = (self.file_len / MIB).saturating_sub(end);
        if inner > 0 {
            out.add(Severity::Note, Repair::Not, Structure::File, at, Fault::Leaked { mib: inner });
        }
        // The file of a fixed disk keeps what all its blocks need, placed or not (MS-VHDX 2.6.2.1). A block that is cut stays cut: what is
        // missing reads as zeros now, and would after a crash only if the lengthening and the zeros landed together.
        let is_too_long = !is_fixed && end * MIB < self.file_len;
        let repair = if is_too_long { Repair::Repairable } else { Repair::Not };
        if tail > 0 && is_too_long {
            out.add(Severity::Note, repair, Structure::File, at, Fault::LeakedTail { mib: tail });
        }
        if !self.file_len.is_multiple_of(MIB) {
            out.add(Severity::Note, repair, Structure::File, at, Fault::OddLength { len: self.file_len });
        }
        is_too_long.then_some(end * MIB)
    }
}
