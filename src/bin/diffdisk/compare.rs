//! `compare`: whether two disks hold the same.

use crate::args::{Format, ParentsArgs};
use crate::context::Context;
use crate::error::CliError;
use diffdisk::{CompareOptions, compare};
use serde_json::json;
use std::path::PathBuf;

/// Compare the content of two disks, raw or VHDX; exit code 6 when they differ.
///
/// What a file is follows from its extension (.vhdx and .avhdx are VHDX, everything else is raw) unless a format is given. What two disks
/// have in the same place of the same file is not read, so two clones of one image are compared in a time that follows their changes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk compare db.img app.vhdx")]
pub struct CompareArgs {
    /// One disk.
    a: PathBuf,
    /// The other.
    b: PathBuf,
    /// What A is.
    #[arg(long, visible_alias = "from", value_enum)]
    a_format: Option<Format>,
    /// What B is.
    #[arg(long, value_enum)]
    b_format: Option<Format>,
    /// A longer disk counts as the same when the rest of it is zeros.
    #[arg(long)]
    zero_tail: bool,
    /// Threads that read; as many as there are processors unless given.
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    workers: usize,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs the verb.
pub fn run(args: &CompareArgs, ctx: &Context) -> Result<(), CliError> {
    let (bar, cancel) = ctx.watch()?;
    let a = args.a_format.unwrap_or_else(|| Format::of(&args.a)).open(&args.a, &args.parents)?;
    let b = args.b_format.unwrap_or_else(|| Format::of(&args.b)).open(&args.b, &args.parents)?;
    let options = CompareOptions::new().zero_tail(args.zero_tail).workers(args.workers);
    let first = compare(&a, &b, &options, &bar, &cancel)?;
    drop(bar);
    let common = a.size().min(b.size());
    let lengths_differ = a.size() != b.size() && !args.zero_tail;
    let answer = json!({
        "same": first.is_none(),
        "first_difference": first,
        "a": { "file": args.a.to_string_lossy(), "size": a.size() },
        "b": { "file": args.b.to_string_lossy(), "size": b.size() },
    });
    ctx.emit(&answer, |out| match first {
        None => writeln!(out, "they are the same"),
        Some(at) if at == common && lengths_differ => {
            writeln!(out, "they differ in size: {} and {} bytes; the first {common} are the same", a.size(), b.size())
        }
        Some(at) => writeln!(out, "they differ, first at byte {at} ({at:#x})"),
    })?;
    if first.is_none() { Ok(()) } else { Err(CliError::Answered) }
}
