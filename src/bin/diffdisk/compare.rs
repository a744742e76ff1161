//! `compare`: whether two disks hold the same.

use crate::args::{Format, ParentsArgs};
use crate::buffer::Buffer;
use crate::context::Context;
use crate::error::CliError;
use crate::source::{Chunks, Source, union};
use serde_json::json;
use std::path::PathBuf;

/// Compare the content of two disks, raw or VHDX; exit code 6 when they differ.
///
/// What a file is follows from its extension (.vhdx and .avhdx are VHDX, everything else is raw) unless a format is given.
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
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs the verb.
pub fn run(args: &CompareArgs, ctx: &Context) -> Result<(), CliError> {
    let a = Source::open(&args.a, args.a_format.unwrap_or_else(|| Format::of(&args.a)), &args.parents)?;
    let b = Source::open(&args.b, args.b_format.unwrap_or_else(|| Format::of(&args.b)), &args.parents)?;
    let common = a.size().min(b.size());
    let found = first_difference(&a, &b, ctx)?;
    let lengths_differ = a.size() != b.size() && !args.zero_tail;
    let first = if lengths_differ { Some(found.map_or(common, |at| at.min(common))) } else { found };
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

/// The shorter disk counts as filled up with zeros.
fn first_difference(a: &Source, b: &Source, ctx: &Context) -> Result<Option<u64>, CliError> {
    let size = a.size().max(b.size());
    let bar = ctx.progress("comparing", size);
    let (mut left, mut right) = (Buffer::new(), Buffer::new());
    for chunk in Chunks::new(union(a.data()?, b.data()?), size) {
        let (offset, len) = chunk?;
        let (left, right) = (left.first(len), right.first(len));
        a.read(left, offset)?;
        b.read(right, offset)?;
        if left != right {
            let at = left.iter().zip(right.iter()).position(|(x, y)| x != y).expect("they differ");
            bar.finish_and_clear();
            return Ok(Some(offset + at as u64));
        }
        bar.set_position(offset);
    }
    bar.finish_and_clear();
    Ok(None)
}
