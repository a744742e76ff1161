//! `resize`: another virtual size.

use crate::args::{ParentsArgs, bytes, human};
use crate::context::Context;
use crate::error::CliError;
use crate::sealed;
use diffdisk::{Disk, OpenOptions, ResizeOptions, Resized, ToolError};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Give a disk another virtual size; all or nothing.
///
/// New space reads as zeros. A disk becomes smaller only with --shrink, and only when everything behind the new end reads as zeros. A disk
/// on which others stand is refused, because its identity changes; those beside it are found, others cannot be.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk resize app.vhdx --size 200G\n  diffdisk resize app.vhdx --size 50G --shrink")]
pub struct ResizeArgs {
    /// The disk.
    file: PathBuf,
    /// The new virtual size.
    #[arg(long, value_parser = bytes)]
    size: u64,
    /// Let the disk become smaller.
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs the verb.
pub fn run(args: &ResizeArgs, ctx: &Context) -> Result<(), CliError> {
    let options = ResizeOptions::new().open(OpenOptions::new().parents(args.parents.policy())).shrink(args.shrink);
    sealed::refuse(&args.file)?;
    let (bar, cancel) = ctx.watch()?;
    let result = Disk::resize(&args.file, args.size, &options, &bar, &cancel);
    drop(bar);
    answer(&args.file, &result.map_err(|e| refusal(e, args.shrink))?, &[], ctx)
}

/// Says how to have it nevertheless, where that is possible.
pub fn refusal(e: ToolError, may_shrink: bool) -> CliError {
    let shrinks = matches!(e, ToolError::Refused { .. }) && !may_shrink;
    let error = CliError::from(e);
    if shrinks { CliError::new(error.kind(), format!("{error}; --shrink says so")) } else { error }
}

/// Prints what became of a disk; `kept` are savepoints of it, which keep the size they have.
pub fn answer(file: &Path, resized: &Resized, kept: &[String], ctx: &Context) -> Result<(), CliError> {
    let value = json!({ "file": file.to_string_lossy(), "virtual_size_before": resized.from, "virtual_size": resized.to });
    ctx.emit(&value, |out| {
        writeln!(out, "{}: {} (was {})", file.display(), human(resized.to), human(resized.from))?;
        match kept {
            [] => Ok(()),
            kept => writeln!(out, "savepoints keep the size they have: {}", kept.join(", ")),
        }
    })
}
