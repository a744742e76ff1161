//! `check`: every invariant of a file, or of a whole chain.

use crate::args::ParentsArgs;
use crate::context::Context;
use crate::error::{About, CliError};
use diffdisk::{CheckReport, Disk, ErrorKind, Finding, OpenError, OpenOptions, ParentPolicy};
use serde::Serialize;
use std::path::PathBuf;

/// Examine a disk; exit code 6 when there are errors. Nothing is changed.
///
/// Without --chain only FILE itself is opened.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk check alice.vhdx --chain")]
pub struct CheckArgs {
    /// The disk.
    file: PathBuf,
    /// Examine every file of the chain.
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

#[derive(Serialize)]
struct Answer {
    file: String,
    errors: Vec<Line>,
    warnings: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    /// Absent when opening the chain failed and the file at fault is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    structure: &'static str,
    offset: u64,
    message: String,
}

impl Line {
    fn new(finding: &Finding) -> Self {
        Self { layer: Some(finding.layer), structure: finding.structure.key(), offset: finding.at.get(), message: finding.message.clone() }
    }

    /// What opening refuses is a finding too, if it is about the content of the files.
    fn of_refusal(e: &OpenError, chain: bool) -> Option<Self> {
        match e {
            OpenError::Format(e) => {
                Some(Self { layer: (!chain).then_some(0), structure: e.structure.key(), offset: e.at.get(), message: e.fault.to_string() })
            }
            OpenError::Chain(e) if e.kind() == ErrorKind::Damaged => {
                Some(Self { layer: None, structure: "parent_locator", offset: 0, message: e.to_string() })
            }
            _ => None,
        }
    }
}

/// Runs the verb.
pub fn run(args: &CheckArgs, ctx: &Context) -> Result<(), CliError> {
    let options = if args.chain { args.parents.read_only() } else { OpenOptions::new().parents(ParentPolicy::Deny) };
    let (errors, warnings) = match Disk::open(&args.file, &options) {
        Ok(disk) => lines(&disk.check().about(&args.file)?),
        Err(e) => match Line::of_refusal(&e, args.chain) {
            Some(line) => (vec![line], Vec::new()),
            None => return Err(e).about(&args.file),
        },
    };
    let answer = Answer { file: args.file.to_string_lossy().into_owned(), errors, warnings };
    ctx.emit(&answer, |out| {
        for (word, line) in answer.errors.iter().map(|l| ("error", l)).chain(answer.warnings.iter().map(|l| ("warning", l))) {
            let layer = line.layer.map(|layer| format!(" of layer {layer}")).unwrap_or_default();
            writeln!(out, "{word}: {}{layer} at {:#x}: {}", line.structure.replace('_', " "), line.offset, line.message)?;
        }
        writeln!(out, "{}: {} errors, {} warnings", args.file.display(), answer.errors.len(), answer.warnings.len())
    })?;
    if answer.errors.is_empty() { Ok(()) } else { Err(CliError::Answered) }
}

fn lines(report: &CheckReport) -> (Vec<Line>, Vec<Line>) {
    (report.errors.iter().map(Line::new).collect(), report.warnings.iter().map(Line::new).collect())
}
