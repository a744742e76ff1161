//! Putting right what an examination found, without inventing anything.
//!
//! The bytes that a repair writes come from the file itself: the good one of two copies, the log, the state of an entry whose place is
//! nonsense. What a user can read stays what it is, and so does the data write GUID, by which children know the file.
//!
//! It is all or nothing. What is to be done is done to a [`Draft`] first, by the code that will do it to the file
//! ([`apply`]); the draft is examined like a file, again and again while a fix brings something else to light (an entry that is cleared
//! may set the end of the file free); and then it is weighed ([`weigh`]): every block must read as before, no finding may be new, and
//! there must be fewer. Only then is the file written, in an order in which a crash after any step leaves a file that is as good as the
//! old one or better, and reads the same.

pub(crate) mod apply;
pub(crate) mod weigh;

use super::check::raw::{self, Current, Exam, Plan};
use super::check::{CheckReport, CheckStop, Consent, Watch};
use super::error::DiskError;
use crate::format::Region;
use crate::log::overlay::Overlay;
use crate::storage::{Draft, Operation, Storage, StorageError};
use std::sync::Arc;

/// How often a repaired draft is looked at again.
const ROUNDS: usize = 4;

/// Something that a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RepairStep {
    /// Both headers were written anew.
    Headers,
    /// The header that could be read counts, although the other one may have been newer.
    OlderHeader,
    /// The log was replayed.
    Replayed {
        /// Entries of the active sequence.
        entries: u64,
    },
    /// The log was declared empty.
    EmptiedLog,
    /// A copy of the region table was written over the other one.
    RegionTable {
        /// The one that was overwritten: 1 or 2.
        copy: u8,
    },
    /// BAT entries were cleared of what does not belong there.
    Entries {
        /// How many.
        count: u64,
    },
    /// The file got another length.
    Length {
        /// Before, in bytes.
        from: u64,
        /// After.
        to: u64,
    },
}

impl RepairStep {
    /// The name with underscores, as `--json` prints it.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Headers => "headers",
            Self::OlderHeader => "older_header",
            Self::Replayed { .. } => "replayed",
            Self::EmptiedLog => "emptied_log",
            Self::RegionTable { .. } => "region_table",
            Self::Entries { .. } => "entries",
            Self::Length { .. } => "length",
        }
    }
}

impl std::fmt::Display for RepairStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Headers => f.write_str("wrote both headers anew"),
            Self::OlderHeader => f.write_str("took the header that can be read, although the other one may have been newer"),
            Self::Replayed { entries } => write!(f, "replayed the log ({entries} entries)"),
            Self::EmptiedLog => f.write_str("declared the log empty"),
            Self::RegionTable { copy } => write!(f, "copied the good region table over copy {copy}"),
            Self::Entries { count } => write!(f, "cleared {count} BAT entries of what does not belong there"),
            Self::Length { from, to } => write!(f, "changed the length of the file from {from} to {to} bytes"),
        }
    }
}

/// A repair was not made, or not to its end.
#[derive(Clone, Debug)]
pub(crate) enum RepairStop {
    Check(CheckStop),
    /// Writing failed; the file is as it was, or as good as repaired, or in between and reads the same.
    Disk(DiskError),
    /// The outcome would not have been better in every respect. Nothing was written.
    NotBetter(&'static str),
}

impl From<CheckStop> for RepairStop {
    fn from(stop: CheckStop) -> Self {
        Self::Check(stop)
    }
}

impl<E: Into<DiskError>> From<E> for RepairStop {
    fn from(e: E) -> Self {
        Self::Disk(e.into())
    }
}

/// Everything that [`apply`] needs to know.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) current: Current,
    pub(crate) overlay: Option<Arc<Overlay>>,
    pub(crate) plan: Plan,
    pub(crate) bat: Option<Region>,
}

impl Job {
    fn of(exam: &Exam) -> Option<Self> {
        let current = exam.current.clone()?;
        Some(Self { current, overlay: exam.overlay.clone(), plan: exam.plan.clone(), bat: exam.bat })
    }

    /// Adds what the examination of the draft asks for on top.
    fn extend(&mut self, more: &Plan) {
        let Plan { consents: _, headers, replay: _, empty_log: _, table, entries, len } = more;
        self.plan.headers |= headers;
        self.plan.table = self.plan.table.or(*table);
        self.plan.entries.extend_from_slice(entries);
        self.plan.len = len.or(self.plan.len);
    }
}

/// What a repair came to.
pub(crate) struct Outcome {
    pub(crate) steps: Vec<RepairStep>,
    pub(crate) before: CheckReport,
    pub(crate) after: CheckReport,
}

/// Repairs `file`, whose lock the caller holds. `consents` are what the caller accepts.
pub(crate) fn repair(file: &Arc<dyn Storage>, consents: &[Consent], watch: Watch<'_>) -> Result<Outcome, RepairStop> {
    let mut before = CheckReport::default();
    let exam = raw::examine(file, 0, &mut before, watch)?;
    let is_allowed = exam.plan.consents.iter().all(|consent| consents.contains(consent));
    let job = Job::of(&exam).filter(|job| is_allowed && !job.plan.is_empty());
    let Some(job) = job else {
        let after = before.clone();
        return Ok(Outcome { steps: Vec::new(), before, after });
    };
    let job = draft_until_settled(file, job, &exam, &before, watch)?;
    watch.pause()?;
    let steps = apply::apply(&**file, &job)?;
    let mut after = CheckReport::default();
    raw::examine(file, 0, &mut after, watch)?;
    Ok(Outcome { steps, before, after })
}

/// Tries the job on drafts until nothing more comes to light, and weighs the last one.
fn draft_until_settled(
    file: &Arc<dyn Storage>,
    mut job: Job,
    exam: &Exam,
    before: &CheckReport,
    watch: Watch<'_>,
) -> Result<Job, RepairStop> {
    for _ in 0..ROUNDS {
        let draft = Arc::new(Draft::new(Arc::clone(file)).map_err(|e| StorageError::new(Operation::Len, 0, e))?);
        apply::apply(&*draft, &job)?;
        let mut after = CheckReport::default();
        let view = Arc::clone(&draft) as Arc<dyn Storage>;
        let next = raw::examine(&view, 0, &mut after, watch)?;
        if next.plan.is_empty() {
            weigh::weigh(file, exam, before, &draft, &next, &after)?;
            return Ok(job);
        }
        job.extend(&next.plan);
    }
    Err(RepairStop::NotBetter("repairing one thing keeps damaging another"))
}
