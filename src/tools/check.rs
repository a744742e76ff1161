//! Examining files that need not open, and repairing them.

use super::ToolError;
use crate::chain::examine::{self, ExamineStop};
use crate::chain::{Disk, OpenError, OpenOptions, ParentPolicy};
use crate::disk::check::{CheckReport, CheckStop, Consent, Finding, Repair, Watch};
use crate::disk::repair::{self, RepairStep, RepairStop};
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::{FileStorage, Storage};
use crate::sync::Arc;
use std::path::Path;

/// What a repair may do, and what is examined beside the file.
///
/// ```
/// use diffdisk::{Consent, RepairOptions};
/// let options = RepairOptions::new().accept(Consent::OlderHeader);
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct RepairOptions {
    consents: Vec<Consent>,
    open: OpenOptions,
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl RepairOptions {
    /// Nothing is done that could cost flushed data, and the file alone is examined.
    pub fn new() -> Self {
        Self { consents: Vec::new(), open: OpenOptions::new().parents(ParentPolicy::Deny) }
    }

    /// Accepts what a repair may cost; see [`Consent`].
    #[must_use]
    pub fn accept(mut self, consent: Consent) -> Self {
        self.consents.push(consent);
        self
    }

    /// Examines the chain as well, with parents found as `options` say. Parents are never written: each is repaired under its own name.
    #[must_use]
    pub fn chain(mut self, options: OpenOptions) -> Self {
        self.open = options;
        self
    }
}

/// What [`Disk::repair`] did and what it left.
#[derive(Clone, Debug)]
pub struct RepairReport {
    /// What was done, in order. Empty: not a byte was written.
    pub steps: Vec<RepairStep>,
    /// Findings that are gone.
    pub repaired: Vec<Finding>,
    /// What an examination of the file (and its chain) finds now.
    pub left: CheckReport,
    /// What the caller would have to accept for more to be done.
    pub needs: Vec<Consent>,
}

impl Disk {
    /// Examines a file that need not open: identifier, both headers, the log, both region tables, metadata, parent locator, every BAT
    /// entry, overlap of anything with anything, space that nobody owns; and with it the chain, unless `options` forbid parents
    /// ([`ParentPolicy::Deny`]). One damaged structure does not hide what is wrong with the others. Not a byte is written.
    ///
    /// Memory: one bit for each MiB of the file (16 MiB for 64 TiB of data), and the log where it is not empty. Progress counts bytes of
    /// the BAT.
    ///
    /// ```
    /// use diffdisk::{Cancel, CreateOptions, Disk, NoProgress, OpenOptions, Severity, Structure};
    /// use std::io::{Seek, SeekFrom, Write};
    /// # let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("app.vhdx");
    /// Disk::create(&path, &CreateOptions::dynamic(1 << 30))?.close()?;
    /// let mut file = std::fs::OpenOptions::new().write(true).open(&path)?;
    /// file.seek(SeekFrom::Start(0x1_0010))?;
    /// file.write_all(&[1; 8])?;
    /// let report = Disk::examine(&path, &OpenOptions::new(), &NoProgress, &Cancel::new())?;
    /// assert!(report.is_sound(), "the other header counts");
    /// assert_eq!((report.warnings.len(), report.warnings[0].structure), (1, Structure::Header));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Open` when the file or a parent is not there, may not be opened, or somebody writes to it; `Cancelled`. What is wrong with the
    /// content of the files is in the report.
    pub fn examine(
        path: impl AsRef<Path>,
        options: &OpenOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<CheckReport, ToolError> {
        let path = path.as_ref();
        progress.phase(Phase::Check, None);
        examine::by_path(path, options, Watch { progress, cancel }).map_err(|stop| stopped(stop, path))
    }

    /// [`Disk::examine`] on storages of the caller: a leaf and, where the chain is to be examined, its parents, nearest first.
    ///
    /// # Errors
    /// As [`Disk::examine`].
    pub fn examine_on(
        leaf: &Arc<dyn Storage>,
        parents: Vec<Arc<dyn Storage>>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<CheckReport, ToolError> {
        progress.phase(Phase::Check, None);
        examine::given(leaf, parents, Watch { progress, cancel }).map_err(|stop| stopped(stop, Path::new("")))
    }

    /// Puts right what [`Disk::examine`] calls repairable, without inventing anything: a spare header, a copy of the region table, a log
    /// to be replayed, nonsense in BAT entries that nobody reads, the length of the file. What can be read stays what it is, and so does the
    /// data write GUID: children stay linked. Parents are not written.
    ///
    /// All or nothing: the repaired file is built in memory first and examined; unless it is better in every respect, not a byte is
    /// written. A crash while it is written leaves a file that reads the same, and that another repair puts right.
    ///
    /// ```
    /// use diffdisk::{Cancel, CreateOptions, Disk, NoProgress, RepairOptions, RepairStep};
    /// use std::io::{Seek, SeekFrom, Write};
    /// # let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("app.vhdx");
    /// Disk::create(&path, &CreateOptions::dynamic(1 << 30))?.close()?;
    /// let mut file = std::fs::OpenOptions::new().write(true).open(&path)?;
    /// file.seek(SeekFrom::Start(0x4_0000))?;
    /// file.write_all(&[0; 4096])?;
    /// let report = Disk::repair(&path, &RepairOptions::new(), &NoProgress, &Cancel::new())?;
    /// assert_eq!(report.steps, [RepairStep::RegionTable { copy: 2 }]);
    /// assert!(report.left.findings().next().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Open` as [`Disk::examine`], and while anybody has the file open; `Disk` when writing failed; `NotBetter` when the outcome would have
    /// been worse in some respect; `Cancelled`, before anything was written.
    pub fn repair(
        path: impl AsRef<Path>,
        options: &RepairOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RepairReport, ToolError> {
        let path = path.as_ref();
        let open_error = |cause: OpenError| ToolError::Open { path: path.to_owned(), cause: Box::new(cause) };
        let file = FileStorage::open_write(path).map_err(|e| open_error(e.into()))?;
        let file: Arc<dyn Storage> = Arc::new(file);
        let mut report = repair_file(&file, options, Watch { progress, cancel }, path)?;
        if options.open.chain_is_wanted() {
            progress.phase(Phase::Check, None);
            let watch = Watch { progress, cancel };
            report.left = examine::on(file, path, &options.open, watch).map_err(|stop| stopped(stop, path))?;
        }
        Ok(report)
    }

    /// [`Disk::repair`] on a storage of the caller, which nobody else uses meanwhile.
    ///
    /// # Errors
    /// As [`Disk::repair`].
    pub fn repair_on(
        file: &Arc<dyn Storage>,
        options: &RepairOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RepairReport, ToolError> {
        repair_file(file, options, Watch { progress, cancel }, Path::new(""))
    }
}

fn repair_file(file: &Arc<dyn Storage>, options: &RepairOptions, watch: Watch<'_>, path: &Path) -> Result<RepairReport, ToolError> {
    watch.progress.phase(Phase::Repair, None);
    let outcome = repair::repair(file, &options.consents, watch).map_err(|stop| match stop {
        RepairStop::Check(CheckStop::Cancelled) => ToolError::Cancelled,
        RepairStop::Check(CheckStop::Storage(cause)) => ToolError::Storage { path: path.to_owned(), cause },
        RepairStop::Disk(cause) => ToolError::Disk { path: path.to_owned(), cause },
        RepairStop::NotBetter(why) => ToolError::NotBetter { path: path.to_owned(), why },
    })?;
    let repair::Outcome { steps, before, after } = outcome;
    let is_left =
        |finding: &Finding| after.findings().any(|f| (f.structure, f.at, &f.fault) == (finding.structure, finding.at, &finding.fault));
    let repaired = before.findings().filter(|finding| !is_left(finding)).cloned().collect();
    let mut needs: Vec<Consent> = Vec::new();
    for finding in after.findings() {
        if let Repair::WithConsent(consent) = finding.repair
            && !needs.contains(&consent)
        {
            needs.push(consent);
        }
    }
    Ok(RepairReport { steps, repaired, left: after, needs })
}

fn stopped(stop: ExamineStop, path: &Path) -> ToolError {
    match stop {
        ExamineStop::Cancelled => ToolError::Cancelled,
        ExamineStop::Open(cause) => ToolError::Open { path: path.to_owned(), cause: Box::new(cause) },
    }
}
