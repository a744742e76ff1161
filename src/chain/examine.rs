//! Examining a file that need not open, and the chain it stands on.
//!
//! Each file is examined for itself (`disk/check/raw.rs`); then the links between them: is the next one the file that this one asks for,
//! do sector sizes agree, does the chain come back to itself. Paths found in files go through the gate, as everywhere. A parent that cannot
//! be found, or may not be opened, says nothing about the files and is an error of the call; one that is there and does not fit is a finding.

use super::ancestor::MAX_CHAIN_DEPTH;
use super::error::{ChainError, OpenError};
use super::gate::{Gate, GateError, directory_of};
use super::options::OpenOptions;
use crate::disk::check::raw::{self, Exam};
use crate::disk::check::{CheckReport, CheckStop, Collector, Repair, Severity, Watch};
use crate::format::Fault;
use crate::guid::{DataWriteGuid, Guid};
use crate::kind::Structure;
use crate::storage::{FileStorage, Storage, StorageId};
use crate::units::FileOffset;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An examination did not come to its end.
pub(crate) enum ExamineStop {
    Open(OpenError),
    Cancelled,
}

impl From<CheckStop> for ExamineStop {
    fn from(stop: CheckStop) -> Self {
        match stop {
            CheckStop::Storage(e) => Self::Open(e.into()),
            CheckStop::Cancelled => Self::Cancelled,
        }
    }
}

impl From<ChainError> for ExamineStop {
    fn from(e: ChainError) -> Self {
        Self::Open(e.into())
    }
}

/// Examines the file at `path`, and its parents unless the policy is `Deny`.
pub(crate) fn by_path(path: &Path, options: &OpenOptions, watch: Watch<'_>) -> Result<CheckReport, ExamineStop> {
    let file = FileStorage::open_read(path).map_err(|e| ExamineStop::Open(e.into()))?;
    on(Arc::new(file), path, options, watch)
}

/// The same for a file that is open already, under the name `path`.
pub(crate) fn on(file: Arc<dyn Storage>, path: &Path, options: &OpenOptions, watch: Watch<'_>) -> Result<CheckReport, ExamineStop> {
    let mut report = CheckReport::default();
    let leaf = raw::examine(&file, 0, &mut report, watch)?;
    if options.chain_is_wanted() {
        let dir = directory_of(path);
        let gate = Gate::new(&options.parents, &dir, &options.windows_paths);
        parents(&mut ByGate { gate, dir }, leaf, file.id(), &mut report, watch)?;
    }
    Ok(report)
}

/// Examines storages of the caller: a leaf and, if there are any, its parents, nearest first.
pub(crate) fn given(leaf: &Arc<dyn Storage>, line: Vec<Arc<dyn Storage>>, watch: Watch<'_>) -> Result<CheckReport, ExamineStop> {
    let mut report = CheckReport::default();
    let exam = raw::examine(leaf, 0, &mut report, watch)?;
    if !line.is_empty() {
        parents(&mut Given(line.into_iter()), exam, leaf.id(), &mut report, watch)?;
    }
    Ok(report)
}

/// What is known of a child while its parent is looked for.
struct Link<'a> {
    exam: &'a Exam,
    /// Of the child.
    layer: usize,
    seen: &'a [StorageId],
}

/// What a look for a parent came to.
enum Found {
    /// Files that may be the parent, in the order in which they are to be tried.
    Candidates(Vec<Candidate>),
    Cycle(usize),
}

struct Candidate {
    file: Arc<dyn Storage>,
    /// The directory it lies in.
    dir: PathBuf,
}

/// Where parents come from.
trait Line {
    fn next(&mut self, link: &Link<'_>) -> Result<Found, ExamineStop>;
    /// This candidate is the one.
    fn chosen(&mut self, candidate: &Candidate);
}

struct ByGate {
    gate: Gate,
    dir: PathBuf,
}

impl Line for ByGate {
    fn next(&mut self, link: &Link<'_>) -> Result<Found, ExamineStop> {
        let locator = link.exam.metadata.as_ref().and_then(|metadata| metadata.parent_locator.as_ref());
        let places = match (self.gate.given(link.layer), locator) {
            (Some(given), _) => vec![given],
            (None, Some(locator)) => self.gate.candidates(&self.dir, &locator.paths()),
            (None, None) => Vec::new(),
        };
        if places.is_empty() && self.gate.ignores_locators() {
            let hint = format!("the list of parents ends before layer {}", link.layer + 1);
            return Err(ChainError::ParentMissing { tried: Vec::new(), hint }.into());
        }
        let (mut candidates, mut refusals) = (Vec::new(), Vec::new());
        for place in &places {
            match self.gate.open_in_chain(place, link.seen) {
                Ok((file, found)) => {
                    let dir = found.parent().map(Path::to_path_buf).unwrap_or_default();
                    candidates.push(Candidate { file: Arc::new(file), dir });
                }
                Err(GateError::Cycle { at }) => return Ok(Found::Cycle(at)),
                Err(refusal) => refusals.push(refusal),
            }
        }
        if candidates.is_empty() && !refusals.is_empty() {
            return Err(ChainError::from_refusals(&refusals).into());
        }
        Ok(Found::Candidates(candidates))
    }

    fn chosen(&mut self, candidate: &Candidate) {
        self.dir.clone_from(&candidate.dir);
    }
}

struct Given(std::vec::IntoIter<Arc<dyn Storage>>);

impl Line for Given {
    fn next(&mut self, link: &Link<'_>) -> Result<Found, ExamineStop> {
        let hint = || format!("the list of parents ends before layer {}", link.layer + 1);
        let file = self.0.next().ok_or_else(|| ChainError::ParentMissing { tried: Vec::new(), hint: hint() })?;
        if let Some(at) = link.seen.iter().position(|id| *id == file.id()) {
            return Ok(Found::Cycle(at));
        }
        Ok(Found::Candidates(vec![Candidate { file, dir: PathBuf::new() }]))
    }

    fn chosen(&mut self, _candidate: &Candidate) {}
}

/// Goes down the chain, one file after the other, without recursion.
fn parents(line: &mut dyn Line, leaf: Exam, leaf_id: StorageId, report: &mut CheckReport, watch: Watch<'_>) -> Result<(), ExamineStop> {
    let mut seen = vec![leaf_id];
    let mut child = leaf;
    // A locator that says nonsense is told about where it stands, and leads nowhere.
    while child.metadata.as_ref().is_some_and(|metadata| metadata.has_parent && metadata.parent_locator.is_some()) {
        watch.pause()?;
        let layer = seen.len() - 1;
        let at = child.metadata_at.unwrap_or(FileOffset::new(0));
        let refuse = |report: &mut CheckReport, fault| Collector::new(report, layer).error(Structure::ParentLocator, at, fault);
        if seen.len() >= MAX_CHAIN_DEPTH {
            refuse(report, Fault::TooDeep(MAX_CHAIN_DEPTH));
            return Ok(());
        }
        let candidates = match line.next(&Link { exam: &child, layer, seen: &seen })? {
            Found::Candidates(candidates) => candidates,
            Found::Cycle(at) => {
                refuse(report, Fault::Cycle(at));
                return Ok(());
            }
        };
        let Some((candidate, next, found)) = choose(candidates, &child, layer + 1, watch)? else {
            // The examination of the file itself has told that its locator names no path.
            refuse(report, Fault::NoPath);
            return Ok(());
        };
        report.absorb(found);
        if let Some(fault) = mismatch(&child, &next) {
            refuse(report, fault);
            return Ok(());
        }
        if next.current.is_none() {
            return Ok(());
        }
        fits(&child, &next, layer + 1, report);
        line.chosen(&candidate);
        seen.push(candidate.file.id());
        child = next;
    }
    Ok(())
}

/// The first candidate that is the parent; without one, the first of all. With its examination.
fn choose(
    candidates: Vec<Candidate>,
    child: &Exam,
    layer: usize,
    watch: Watch<'_>,
) -> Result<Option<(Candidate, Exam, CheckReport)>, ExamineStop> {
    let mut first = None;
    for candidate in candidates {
        let mut report = CheckReport::default();
        let exam = raw::examine(&candidate.file, layer, &mut report, watch)?;
        if mismatch(child, &exam).is_none() && exam.current.is_some() {
            return Ok(Some((candidate, exam, report)));
        }
        first = first.or(Some((candidate, exam, report)));
    }
    Ok(first)
}

/// Why `parent` is not the file that `child` asks for. A file without a valid header has no identity that could be compared.
fn mismatch(child: &Exam, parent: &Exam) -> Option<Fault> {
    let locator = child.metadata.as_ref()?.parent_locator.as_ref()?;
    let found: DataWriteGuid = parent.current.as_ref()?.header.data_write;
    if locator.accepts(found) {
        return None;
    }
    let expected = locator.linkage().unwrap_or(Guid::ZERO);
    if expected.is_zero() || found.get().is_zero() {
        Some(Fault::ZeroLinkage)
    } else {
        Some(Fault::Linkage { expected, found: found.get() })
    }
}

/// What must agree between a child and its parent, and what need not.
fn fits(child: &Exam, parent: &Exam, layer: usize, report: &mut CheckReport) {
    let (Some(child), Some(of_parent)) = (&child.metadata, &parent.metadata) else { return };
    let at = parent.metadata_at.unwrap_or(FileOffset::new(0));
    let mut out = Collector::new(report, layer);
    if child.logical_sector != of_parent.logical_sector {
        let fault = Fault::SectorSizes { child: child.logical_sector, parent: of_parent.logical_sector };
        out.error(Structure::MetadataItem, at, fault);
    }
    if child.virtual_size != of_parent.virtual_size {
        let fault = Fault::SizesDiffer { child: child.virtual_size, parent: of_parent.virtual_size };
        out.add(Severity::Note, Repair::Not, Structure::MetadataItem, at, fault);
    }
}
