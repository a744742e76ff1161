//! `compact`: giving space back to the file system.

use crate::args::ParentsArgs;
use crate::context::Context;
use crate::error::{About, CliError};
use crate::sealed;
use diffdisk::{CompactOptions, CompactReport, ErrorKind, ToolError};
use serde_json::json;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Make the file of a disk smaller, in place; what the disk shows stays the same.
///
/// Given up are blocks of zeros, blocks of a child that hold what the parent shows, places that trimmed blocks kept, and space that nobody
/// owns. Blocks at the end of the file move into the gaps and the file is cut; zeros inside blocks become holes where the file system has
/// them. Stopping at any moment leaves a valid disk, and running again goes on. Children of the disk stay linked.
///
/// The free space of a file system inside the disk is known to that file system alone: let it discard first (fstrim, through `serve`).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  diffdisk compact alice.vhdx\n  diffdisk compact alice.vhdx --keep-copies   (for a clone that was hydrated)"
)]
pub struct CompactArgs {
    /// The disk.
    file: PathBuf,
    /// Keep blocks of a child that hold what the parent shows anyway.
    #[arg(long)]
    keep_copies: bool,
    /// Make no holes: only the length of the file counts.
    #[arg(long)]
    no_holes: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs the verb.
pub fn run(args: &CompactArgs, ctx: &Context) -> Result<(), CliError> {
    let (bar, cancel) = ctx.watch()?;
    let disk = sealed::open_writable(&args.file, &args.parents)?;
    let options = CompactOptions::new().drop_copies(!args.keep_copies).punch(!args.no_holes);
    let result = disk.compact(&options, &bar, &cancel);
    drop(bar);
    let report = match result {
        Ok(report) => report,
        Err(ToolError::Cancelled) => {
            disk.close().about(&args.file)?;
            let message = format!("{}: cancelled; what was done is done, and running again goes on", args.file.display());
            return Err(CliError::new(ErrorKind::Cancelled, message));
        }
        Err(e) => return Err(e.into()),
    };
    disk.close().about(&args.file)?;
    answer(&args.file, &report, ctx)
}

/// Prints what was done to a file.
pub fn answer(file: &Path, report: &CompactReport, ctx: &Context) -> Result<(), CliError> {
    let value = json!({
        "file": file.to_string_lossy(),
        "apparent_before": report.file_before,
        "apparent": report.file_after,
        "allocated_before": report.allocated_before,
        "allocated": report.allocated_after,
        "zero_blocks": report.zero_blocks,
        "equal_blocks": report.equal_blocks,
        "anchors": report.anchors,
        "freed_bitmaps": report.freed_bitmaps,
        "moved_blocks": report.moved_blocks,
        "punched_bytes": report.punched_bytes,
        "busy_blocks": report.busy_blocks,
        "holes": report.has_holes,
        "fixed": report.is_fixed,
    });
    ctx.emit(&value, |out| tell(out, file, report))
}

fn tell(out: &mut dyn Write, file: &Path, report: &CompactReport) -> io::Result<()> {
    writeln!(
        out,
        "{}: {} bytes long (was {}), {} allocated (was {})",
        file.display(),
        report.file_after,
        report.file_before,
        report.allocated_after,
        report.allocated_before
    )?;
    if report.is_fixed {
        writeln!(out, "  a fixed disk keeps its blocks; only space behind the last one was cut off")?;
    }
    let counts = [
        (report.zero_blocks, "blocks of zeros given up"),
        (report.equal_blocks, "blocks equal to the parent given up"),
        (report.anchors, "places of trimmed blocks given up"),
        (report.freed_bitmaps, "sector bitmaps given up"),
        (report.moved_blocks, "blocks moved"),
        (report.punched_bytes, "bytes of zeros became holes"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "  {count} {what}")?;
    }
    if report.has_holes == Some(false) {
        writeln!(out, "  this file system has no holes")?;
    }
    Ok(())
}
