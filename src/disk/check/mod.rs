//! Examining one file: every invariant of MS-VHDX, each finding with its place, its severity and what can be done about it.
//!
//! Two ways lead here. An open disk is examined as it is in memory ([`live`]): opening has judged the current header, one region table,
//! the log and the metadata, so what is left is what needs the whole table, and the copies that opening did not need. A file that may not
//! open at all is examined as bytes ([`raw`]): every structure is judged for itself, and one that is damaged does not stop the examination
//! of those that can still be trusted. Both ask the same questions of the BAT ([`table`]). Examining writes nothing.
//!
//! | severity | means | examples |
//! |---|---|---|
//! | error | content is lost, could be, or cannot be told | no valid header, a block over another, an illegal state |
//! | warning | damage that something else makes up for; nonsense that nobody looks at | a torn spare header, an entry behind the last block |
//! | note | unusual, and as the format allows it | a log to be replayed, unowned space, an odd length |

mod entries;
pub(crate) mod live;
pub(crate) mod metadata;
pub(crate) mod raw;
mod shared;
pub(crate) mod table;

use crate::format::{Fault, FormatError};
use crate::kind::{ErrorKind, Structure};
use crate::progress::{Cancel, Progress};
use crate::storage::StorageError;
use crate::units::FileOffset;
use std::fmt;

/// Findings of one severity are listed up to this many; the rest is counted.
const MOST_FINDINGS: usize = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A contradiction of MS-VHDX: content is lost, could be, or cannot be told.
    Error,
    /// Damage that something else makes up for, or nonsense that no reader looks at.
    Warning,
    /// Unusual, and allowed.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// What a repair may only do when its caller says so, because flushed data could be lost by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Consent {
    /// One header cannot be read and the other one names no log. The unreadable one may be newer and name a log with flushed changes; going
    /// on with the other one gives those up.
    OlderHeader,
    /// The header names a log that holds no entry. If entries were there once, their changes are lost; a program that crashed between
    /// writing the header and the first entry leaves exactly this and has lost nothing.
    EmptyLog,
}

impl Consent {
    /// The name with hyphens, as `--json` prints it and the command line takes it.
    pub fn key(self) -> &'static str {
        match self {
            Self::OlderHeader => "accept-older-header",
            Self::EmptyLog => "accept-empty-log",
        }
    }
}

/// What [`Disk::repair`](crate::Disk::repair) can do about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Repair {
    /// It can be put right without inventing anything.
    Repairable,
    /// It can be put right if the caller accepts what that may cost.
    WithConsent(Consent),
    /// It cannot, or need not.
    Not,
}

impl Repair {
    /// One word, as `--json` prints it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Repairable => "yes",
            Self::WithConsent(consent) => consent.key(),
            Self::Not => "no",
        }
    }
}

/// Which of many a BAT entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A payload block.
    Block(u32),
    /// The sector bitmap block of a chunk.
    Chunk(u32),
}

/// One thing that is not as MS-VHDX wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file of the chain: 0 is the leaf.
    pub layer: usize,
    /// What it is about.
    pub structure: Structure,
    /// Where that structure starts in the file.
    pub at: FileOffset,
    /// The block or chunk that a BAT entry describes.
    pub subject: Option<Subject>,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub fault: Fault,
    /// What a repair can do about it.
    pub repair: Repair,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.structure, self.at)?;
        match self.subject {
            Some(Subject::Block(block)) => write!(f, " (block {block})")?,
            Some(Subject::Chunk(chunk)) => write!(f, " (sector bitmap block of chunk {chunk})")?,
            None => {}
        }
        write!(f, ": {}", self.fault)
    }
}

/// What examining a disk found; see [`Disk::check`](crate::Disk::check) and [`Disk::examine`](crate::Disk::examine).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Contradictions of MS-VHDX: content is lost, or could be.
    pub errors: Vec<Finding>,
    /// Damage that something else makes up for, and nonsense that nobody looks at.
    pub warnings: Vec<Finding>,
    /// What is unusual and allowed: unowned space, a log to be replayed.
    pub notes: Vec<Finding>,
    /// How many there are of each severity; above a thousand not all are listed.
    counts: [u64; 3],
}

impl CheckReport {
    /// Whether there is no error.
    pub fn is_sound(&self) -> bool {
        self.errors.is_empty()
    }

    /// How many findings of a severity there are, listed or not.
    pub fn count(&self, severity: Severity) -> u64 {
        self.counts[severity as usize]
    }

    /// All that are listed, the worst first.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.errors.iter().chain(&self.warnings).chain(&self.notes)
    }

    fn list(&mut self, severity: Severity) -> &mut Vec<Finding> {
        match severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
            Severity::Note => &mut self.notes,
        }
    }

    /// Adds the findings about another file.
    pub(crate) fn absorb(&mut self, other: Self) {
        let listed = [other.errors.len(), other.warnings.len(), other.notes.len()];
        for (severity, (count, listed)) in other.counts.iter().zip(listed).enumerate() {
            self.counts[severity] += count - listed as u64;
        }
        for finding in other.errors.into_iter().chain(other.warnings).chain(other.notes) {
            self.push(finding);
        }
    }

    pub(crate) fn push(&mut self, finding: Finding) {
        self.counts[finding.severity as usize] += 1;
        let list = self.list(finding.severity);
        if list.len() < MOST_FINDINGS {
            list.push(finding);
        }
    }
}

/// Collects findings about one layer.
pub(crate) struct Collector<'a> {
    report: &'a mut CheckReport,
    layer: usize,
    errors: u64,
    incurable: u64,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(report: &'a mut CheckReport, layer: usize) -> Self {
        Self { report, layer, errors: 0, incurable: 0 }
    }

    /// Errors of this layer so far.
    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    /// Those of them that no repair puts right.
    pub(crate) fn incurable(&self) -> u64 {
        self.incurable
    }

    pub(crate) fn add(&mut self, severity: Severity, repair: Repair, structure: Structure, at: FileOffset, fault: Fault) {
        self.about(None, severity, repair, structure, at, fault);
    }

    pub(crate) fn about(
        &mut self,
        subject: Option<Subject>,
        severity: Severity,
        repair: Repair,
        structure: Structure,
        at: FileOffset,
        fault: Fault,
    ) {
        self.errors += u64::from(severity == Severity::Error);
        self.incurable += u64::from(severity == Severity::Error && repair == Repair::Not);
        self.report.push(Finding { layer: self.layer, structure, at, subject, severity, fault, repair });
    }

    /// Some more, that are counted only.
    fn unlisted(&mut self, severity: Severity, repair: Repair, count: u64) {
        self.errors += count * u64::from(severity == Severity::Error);
        self.incurable += count * u64::from(severity == Severity::Error && repair == Repair::Not);
        self.report.counts[severity as usize] += count;
    }

    /// An error that nothing can be done about.
    pub(crate) fn error(&mut self, structure: Structure, at: FileOffset, fault: Fault) {
        self.add(Severity::Error, Repair::Not, structure, at, fault);
    }

    /// Whether the file is of a sort that this version does not know.
    pub(crate) fn needs_the_unknown(&self) -> bool {
        let kind = |finding: &Finding| FormatError::new(finding.structure, finding.at, finding.fault.clone()).kind();
        self.report.errors.iter().any(|finding| finding.layer == self.layer && kind(finding) == ErrorKind::Unsupported)
    }

    /// What was called repairable among this layer's findings cannot be repaired after all, where `is_out_of_reach` says so.
    pub(crate) fn give_up(&mut self, is_out_of_reach: impl Fn(&Finding) -> bool) {
        let report = &mut *self.report;
        for finding in report.errors.iter_mut().chain(&mut report.warnings).chain(&mut report.notes) {
            if finding.layer == self.layer && finding.repair != Repair::Not && is_out_of_reach(finding) {
                finding.repair = Repair::Not;
            }
        }
    }

    /// The same from a parser.
    pub(crate) fn refuse(&mut self, e: FormatError) {
        self.error(e.structure, e.at, e.fault);
    }
}

/// An examination did not come to its end.
#[derive(Clone, Debug)]
pub(crate) enum CheckStop {
    /// The storage does not even say how long the file is.
    Storage(StorageError),
    /// Somebody asked for a stop.
    Cancelled,
}

impl From<StorageError> for CheckStop {
    fn from(e: StorageError) -> Self {
        Self::Storage(e)
    }
}

/// Who watches an examination, and may stop it.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
}

impl Watch<'_> {
    pub(crate) fn pause(&self) -> Result<(), CheckStop> {
        if self.cancel.is_cancelled() { Err(CheckStop::Cancelled) } else { Ok(()) }
    }
}
