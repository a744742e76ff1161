//! `diff`: what changed from one disk to another, as a list or as a file to send.

use crate::args::{Format, ParentsArgs, bytes, human, small_bytes};
use crate::context::Context;
use crate::error::CliError;
use diffdisk::{Change, ConvertOptions, DiffOptions, convert, diff};
use serde_json::json;
use std::path::PathBuf;

/// List what has to change in A so that it becomes B, or write it as a child of A.
///
/// A and B are any two disks: two points of a chain (an image and its clone, two savepoints), two clones, raw files. Between disks of one
/// family only what the files hold that they do not share is looked at.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  diffdisk diff app.vhdx alice.vhdx --json\n  diffdisk diff app-1.vhdx app-2.vhdx --export 1-to-2.vhdx\n  \
    diffdisk merge 1-to-2.vhdx --to app-2.vhdx --keep-identity     (where app-1.vhdx is)"
)]
pub struct DiffArgs {
    /// The disk that it was.
    a: PathBuf,
    /// The disk that it became.
    b: PathBuf,
    /// Write the changes to this new differencing VHDX over A instead of listing them. Merged into a copy of A it gives B, and with
    /// `merge --keep-identity` under B's identity, so that the next delta fits.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// The unit in which changes are listed.
    #[arg(long, value_name = "BYTES", value_parser = small_bytes, default_value = "4K", conflicts_with = "export")]
    granularity: u32,
    /// Believe what the files say about their blocks instead of reading them: fast, never too little, sometimes too much.
    #[arg(long, conflicts_with = "export")]
    by_allocation: bool,
    /// Payload block size of the exported VHDX.
    #[arg(long, value_name = "BYTES", value_parser = bytes, requires = "export")]
    block_size: Option<u64>,
    /// Replace an existing file.
    #[arg(long, requires = "export")]
    force: bool,
    /// What A is.
    #[arg(long, value_enum)]
    a_format: Option<Format>,
    /// What B is.
    #[arg(long, value_enum)]
    b_format: Option<Format>,
    /// Threads that read; as many as there are processors unless given.
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    workers: usize,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs the verb.
pub fn run(args: &DiffArgs, ctx: &Context) -> Result<(), CliError> {
    let a_format = args.a_format.unwrap_or_else(|| Format::of(&args.a));
    let b_format = args.b_format.unwrap_or_else(|| Format::of(&args.b));
    if let Some(out) = &args.export {
        return export(args, out, (a_format, b_format), ctx);
    }
    let (bar, cancel) = ctx.watch()?;
    let a = a_format.open(&args.a, &args.parents)?;
    let b = b_format.open(&args.b, &args.parents)?;
    let options = DiffOptions::new().granularity(args.granularity).by_allocation(args.by_allocation).workers(args.workers);
    let changes = diff(&a, &b, &options, &bar, &cancel)?;
    drop(bar);
    let changed: u64 = changes.iter().map(|change| change.len).sum();
    let line = |change: &Change| json!({ "start": change.offset, "length": change.len, "kind": change.kind.key() });
    let answer = json!({
        "a": { "file": args.a.to_string_lossy(), "size": a.size() },
        "b": { "file": args.b.to_string_lossy(), "size": b.size() },
        "granularity": args.granularity,
        "changed": changed,
        "extents": changes.iter().map(line).collect::<Vec<_>>(),
    });
    ctx.emit(&answer, |out| {
        writeln!(out, "{:>16} {:>16} kind", "start", "length")?;
        for change in &changes {
            writeln!(out, "{:>#16x} {:>#16x} {}", change.offset, change.len, change.kind.key())?;
        }
        writeln!(out, "{} in {} extents; {} and {} bytes", human(changed), changes.len(), a.size(), b.size())
    })
}

fn export(args: &DiffArgs, out: &std::path::Path, formats: (Format, Format), ctx: &Context) -> Result<(), CliError> {
    if formats.0 != Format::Vhdx {
        return Err(CliError::usage("changes are exported as a child of A, so A must be a VHDX"));
    }
    if args.force {
        crate::sealed::refuse(out)?;
    }
    let (bar, cancel) = ctx.watch()?;
    let b = formats.1.open(&args.b, &args.parents)?;
    let mut options = ConvertOptions::child_of(&args.a, args.parents.policy())
        .overwrite(args.force)
        .workers(args.workers)
        .keep_identity(formats.1 == Format::Vhdx);
    if let Some(bytes) = args.block_size {
        options = options.block_size(bytes);
    }
    let made = convert(&b, out, &options, &bar, &cancel)?;
    drop(bar);
    let answer = json!({
        "file": out.to_string_lossy(),
        "parent": args.a.to_string_lossy(),
        "virtual_size": made.virtual_size,
        "written": made.written,
        "zeroed": made.zeroed,
        "allocated": made.allocated,
    });
    ctx.emit(&answer, |w| {
        let (written, zeroed, held) = (human(made.written), human(made.zeroed), human(made.allocated));
        writeln!(w, "{}: {written} of changes and {zeroed} of zeros over {}, {held} allocated", out.display(), args.a.display())
    })
}
