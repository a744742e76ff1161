//! `check`: every invariant of a file, or of a whole chain, and what can be put right.

use crate::args::ParentsArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::sealed;
use diffdisk::format::Neighbour;
use diffdisk::{
    CheckReport, Consent, Disk, Finding, OpenOptions, ParentPolicy, RepairOptions, RepairReport, RepairStep, Severity, Structure, Subject,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Examine a disk, whether or not it opens, and repair it; exit code 6 when errors remain.
///
/// Without --repair nothing is changed. With it, what can be put right without inventing anything is put right, all or nothing; what can
/// be read stays what it is. Without --chain only FILE itself is opened, and --repair never changes any other file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk check alice.vhdx --chain\n         diffdisk check alice.vhdx --repair")]
pub struct CheckArgs {
    /// The disk.
    file: PathBuf,
    /// Examine every file of the chain.
    #[arg(long)]
    chain: bool,
    /// Put right what can be put right.
    #[arg(long)]
    repair: bool,
    /// One header cannot be read and the other one names no log: go on with the other one, although changes that were flushed may be in a
    /// log that only the unreadable one names.
    #[arg(long, requires = "repair")]
    accept_older_header: bool,
    /// The header names a log that holds no entry: take it for one that nothing was ever written to.
    #[arg(long, requires = "repair")]
    accept_empty_log: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

#[derive(Serialize)]
struct Answer {
    file: String,
    #[serde(flatten)]
    findings: Findings,
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<Repaired>,
}

/// What `--json` says of a report.
#[derive(Serialize)]
pub struct Findings {
    errors: Vec<Line>,
    warnings: Vec<Line>,
    notes: Vec<Line>,
    /// Findings beyond the first thousand of a severity.
    #[serde(skip_serializing_if = "is_zero")]
    unlisted: u64,
}

impl Findings {
    /// Of a report.
    pub fn new(report: &CheckReport) -> Self {
        let counted: u64 = [Severity::Error, Severity::Warning, Severity::Note].into_iter().map(|severity| report.count(severity)).sum();
        Self {
            errors: Line::all(&report.errors),
            warnings: Line::all(&report.warnings),
            notes: Line::all(&report.notes),
            unlisted: counted - report.findings().count() as u64,
        }
    }
}

#[derive(Serialize)]
struct Repaired {
    steps: Vec<Step>,
    repaired: Vec<Line>,
    needs: Vec<&'static str>,
}

#[derive(Serialize)]
struct Step {
    step: &'static str,
    message: String,
}

/// Who claims the same bytes.
#[derive(Serialize)]
struct Other {
    structure: &'static str,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<u64>,
}

impl Other {
    fn new(other: Neighbour) -> Self {
        let is_block = other.structure == Structure::PayloadBlock;
        Self {
            structure: other.structure.key(),
            offset: other.at.get(),
            block: other.number.filter(|_| is_block),
            chunk: other.number.filter(|_| !is_block),
            entry: other.entry.map(|entry| entry.get()),
        }
    }
}

#[derive(Serialize)]
struct Line {
    layer: usize,
    structure: &'static str,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk: Option<u32>,
    fault: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    values: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    other: Option<Other>,
    message: String,
    repair: &'static str,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Line {
    fn new(finding: &Finding) -> Self {
        let (block, chunk) = match finding.subject {
            Some(Subject::Block(block)) => (Some(block), None),
            Some(Subject::Chunk(chunk)) => (None, Some(chunk)),
            None => (None, None),
        };
        Self {
            layer: finding.layer,
            structure: finding.structure.key(),
            offset: finding.at.get(),
            block,
            chunk,
            fault: finding.fault.key(),
            values: finding.fault.numbers().into_iter().collect(),
            other: finding.fault.other().map(Other::new),
            message: finding.fault.to_string(),
            repair: finding.repair.key(),
        }
    }

    fn all(findings: &[Finding]) -> Vec<Self> {
        findings.iter().map(Self::new).collect()
    }
}

impl Step {
    fn new(step: &RepairStep) -> Self {
        Self { step: step.key(), message: step.to_string() }
    }
}

impl Answer {
    fn new(file: String, report: &CheckReport, repair: Option<&RepairReport>) -> Self {
        Self {
            file,
            findings: Findings::new(report),
            repair: repair.map(|repair| Repaired {
                steps: repair.steps.iter().map(Step::new).collect(),
                repaired: Line::all(&repair.repaired),
                needs: repair.needs.iter().map(|consent| consent.key()).collect(),
            }),
        }
    }
}

/// Runs the verb.
pub fn run(args: &CheckArgs, ctx: &Context) -> Result<(), CliError> {
    let (bar, cancel) = ctx.watch()?;
    let options = if args.chain { args.parents.read_only() } else { OpenOptions::new().parents(ParentPolicy::Deny) };
    let file = args.file.to_string_lossy().into_owned();
    if !args.repair {
        let report = Disk::examine(&args.file, &options, &bar, &cancel)?;
        drop(bar);
        ctx.emit(&Answer::new(file, &report, None), |out| print(out, args, &report))?;
        return if report.is_sound() { Ok(()) } else { Err(CliError::Answered) };
    }
    sealed::refuse_image(&args.file)?;
    let mut wanted = RepairOptions::new().chain(options);
    for (given, consent) in [(args.accept_older_header, Consent::OlderHeader), (args.accept_empty_log, Consent::EmptyLog)] {
        if given {
            wanted = wanted.accept(consent);
        }
    }
    let report = Disk::repair(&args.file, &wanted, &bar, &cancel)?;
    drop(bar);
    ctx.emit(&Answer::new(file, &report.left, Some(&report)), |out| {
        for finding in &report.repaired {
            writeln!(out, "repaired: {}", sentence(finding))?;
        }
        for step in &report.steps {
            writeln!(out, "did: {step}")?;
        }
        if report.steps.is_empty() {
            writeln!(out, "nothing was changed")?;
        }
        print(out, args, &report.left)?;
        for consent in &report.needs {
            writeln!(out, "--{} would allow more to be repaired", consent.key())?;
        }
        Ok(())
    })?;
    if report.left.is_sound() { Ok(()) } else { Err(CliError::Answered) }
}

fn print(out: &mut dyn Write, args: &CheckArgs, report: &CheckReport) -> io::Result<()> {
    for finding in report.findings() {
        let can = match finding.repair {
            diffdisk::Repair::Repairable if !args.repair => " (--repair)",
            _ => "",
        };
        writeln!(out, "{}: {}{can}", finding.severity, sentence(finding))?;
    }
    let [errors, warnings, notes] = [Severity::Error, Severity::Warning, Severity::Note].map(|severity| report.count(severity));
    writeln!(out, "{}: {errors} errors, {warnings} warnings, {notes} notes", args.file.display())
}

fn sentence(finding: &Finding) -> String {
    format!("{} of layer {}{}", what(finding), finding.layer, place(finding))
}

/// The same for a finding in a file that is named otherwise.
pub fn sentence_about(finding: &Finding, file: &Path) -> String {
    format!("{}: {}{}", file.display(), what(finding), place(finding))
}

fn what(finding: &Finding) -> String {
    finding.structure.key().replace('_', " ")
}

fn place(finding: &Finding) -> String {
    let subject = match finding.subject {
        Some(Subject::Block(block)) => format!(" (block {block})"),
        Some(Subject::Chunk(chunk)) => format!(" (sector bitmap block of chunk {chunk})"),
        None => String::new(),
    };
    format!(" at {:#x}{subject}: {}", finding.at.get(), finding.fault)
}
