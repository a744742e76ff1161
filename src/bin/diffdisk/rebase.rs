//! `rebase`: giving a differencing disk another parent, whose content is not the same.

use crate::args::{ParentsArgs, human, small_bytes};
use crate::context::Context;
use crate::error::CliError;
use crate::relink::parent_of;
use crate::sealed;
use diffdisk::{RebaseOptions, rebase};
use serde_json::json;
use std::path::PathBuf;

/// Put a differencing disk onto another parent: a newer generation of its image, say.
///
/// It then shows the new parent with its own sectors on top. Where its own sectors meet a change from the old parent to the new one, that
/// is a conflict: all of them are listed, nothing is done, and the exit code is 6. With --keep-content it goes on showing what it shows;
/// what the new parent has otherwise is copied into it first.
///
/// Disks that stand on CHILD do not open any more when its content has changed; with --keep-content they do.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  diffdisk rebase alice.vhdx --onto app-2.vhdx\n  diffdisk rebase alice.vhdx --onto app-2.vhdx --keep-content\n  \
    diffdisk rebase alice.vhdx --onto app-2.vhdx --dry-run --json"
)]
pub struct RebaseArgs {
    /// The differencing disk.
    child: PathBuf,
    /// Its new parent.
    #[arg(long, value_name = "FILE")]
    onto: PathBuf,
    /// Keep what CHILD shows.
    #[arg(long)]
    keep_content: bool,
    /// Only look.
    #[arg(long)]
    dry_run: bool,
    /// The unit in which own sectors and changes of the parent must not meet: the page size of the database or file system.
    #[arg(long, value_name = "BYTES", value_parser = small_bytes, default_value = "4K")]
    unit: u32,
    /// Threads that read; as many as there are processors unless given.
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    workers: usize,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs the verb.
pub fn run(args: &RebaseArgs, ctx: &Context) -> Result<(), CliError> {
    if args.dry_run {
        sealed::refuse(&args.child)?
    } else {
        sealed::refuse_clone(&args.child, "rebase")?
    }
    let (bar, cancel) = ctx.watch()?;
    let options = RebaseOptions::new()
        .keep_content(args.keep_content)
        .dry_run(args.dry_run)
        .unit(args.unit)
        .parents(args.parents.policy())
        .workers(args.workers);
    let done = rebase(&args.child, &args.onto, &options, &bar, &cancel)?;
    drop(bar);
    let conflicts: Vec<_> = done.conflicts.iter().map(|at| json!({ "start": at.start, "length": at.end - at.start })).collect();
    let answer = json!({
        "file": args.child.to_string_lossy(),
        "parent": parent_of(&args.child)?,
        "linked": done.is_linked,
        "conflicts": conflicts,
        "inherited": done.inherited,
        "agreed": done.agreed,
        "copied": done.copied,
    });
    ctx.emit(&answer, |out| {
        for at in &done.conflicts {
            writeln!(out, "conflict {:>#16x} {:>#16x}", at.start, at.end - at.start)?;
        }
        let (file, parent) = (args.child.display(), args.onto.display());
        let (inherited, copied) = (human(done.inherited), human(done.copied));
        match (done.conflicts.len(), args.keep_content) {
            (0, true) => {
                writeln!(out, "{file}: {copied} that {parent} has otherwise {}", if done.is_linked { "copied" } else { "to copy" })?
            }
            (0, false) => writeln!(out, "{file}: {inherited} come from {parent} that were otherwise before")?,
            (many, _) => writeln!(out, "{file}: {many} conflicts with {parent}, so nothing was changed")?,
        }
        if done.is_linked { writeln!(out, "{file}: its parent is {parent}") } else { Ok(()) }
    })?;
    if done.conflicts.is_empty() { Ok(()) } else { Err(CliError::Answered) }
}
