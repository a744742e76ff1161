//! `convert`: raw to VHDX, VHDX to raw, dynamic to fixed and back, chains to one file, anything to a child of an image.

use crate::args::{Format, ParentsArgs, bytes, human, small_bytes};
use crate::context::Context;
use crate::error::CliError;
use crate::sealed;
use diffdisk::{Content, ConvertOptions, Converted, convert, copy_out};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Copy a disk into another format; a chain becomes one file.
///
/// What a file is follows from its extension (.vhdx and .avhdx are VHDX, everything else is raw) unless a format is given. With --parent
/// the new file is a differencing disk that holds what differs from the parent, and nothing else.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk convert db.img app.vhdx\n  diffdisk convert alice.vhdx alice.img\n  \
    diffdisk convert /dev/vg0/db app.vhdx --from raw --to vhdx-fixed\n  diffdisk convert dump.img bob.vhdx --parent app.vhdx\n  \
    diffdisk convert alice.vhdx - | zstd > alice.img.zst")]
pub struct ConvertArgs {
    /// What to copy.
    src: PathBuf,
    /// The new file; - for the raw bytes on standard output.
    dst: PathBuf,
    /// What SRC is.
    #[arg(long, value_enum)]
    from: Option<Format>,
    /// What DST becomes.
    #[arg(long, value_enum)]
    to: Option<Target>,
    /// Make a differencing disk over this one.
    #[arg(long, value_name = "FILE")]
    parent: Option<PathBuf>,
    /// Payload block size of a new VHDX.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    block_size: Option<u64>,
    /// Logical sector size of a new VHDX; a VHDX source hands on its own.
    #[arg(long, value_name = "BYTES", value_parser = small_bytes)]
    sector: Option<u32>,
    /// Replace an existing file.
    #[arg(long)]
    force: bool,
    /// Threads that read and write; as many as there are processors unless given.
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    workers: usize,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// What the destination becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// The bytes of the disk, sparse.
    Raw,
    /// A dynamic VHDX, or with --parent a differencing one.
    Vhdx,
    /// A fixed VHDX.
    VhdxFixed,
}

impl Target {
    fn key(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::VhdxFixed => "vhdx-fixed",
        }
    }
}

/// Runs the verb.
pub fn run(args: &ConvertArgs, ctx: &Context) -> Result<(), CliError> {
    let from = args.from.unwrap_or_else(|| Format::of(&args.src));
    let to = args.to.unwrap_or_else(|| match Format::of(&args.dst) {
        Format::Raw => Target::Raw,
        Format::Vhdx => Target::Vhdx,
    });
    let options = options(args, to)?;
    if args.dst.as_os_str() == "-" {
        return to_stdout(args, from, to, ctx);
    }
    if args.force {
        sealed::refuse(&args.dst)?;
    }
    let (bar, cancel) = ctx.watch()?;
    let source = from.open(&args.src, &args.parents)?;
    let made = convert(&source, &args.dst, &options, &bar, &cancel)?;
    drop(bar);
    ctx.emit(&answer(args, from, to, &source, &made), |out| {
        let (kind, size, written, held) = (to.key(), human(made.virtual_size), human(made.written), human(made.allocated));
        writeln!(out, "{}: {kind}, {size}, {written} copied, {held} allocated", args.dst.display())
    })
}

fn answer(args: &ConvertArgs, from: Format, to: Target, source: &Content<'_>, made: &Converted) -> serde_json::Value {
    json!({
        "source": args.src.to_string_lossy(),
        "destination": args.dst.to_string_lossy(),
        "from": from.key(),
        "to": to.key(),
        "parent": args.parent.as_deref().map(Path::to_string_lossy),
        "source_size": source.size(),
        "virtual_size": made.virtual_size,
        "written": made.written,
        "zeroed": made.zeroed,
        "allocated": made.allocated,
    })
}

fn options(args: &ConvertArgs, to: Target) -> Result<ConvertOptions, CliError> {
    let mut options = match (to, &args.parent) {
        (Target::Vhdx, None) => ConvertOptions::dynamic(),
        (Target::VhdxFixed, None) => ConvertOptions::fixed(),
        (Target::Vhdx, Some(parent)) => ConvertOptions::child_of(parent, args.parents.policy()),
        (Target::Raw, None) if args.block_size.is_none() && args.sector.is_none() => ConvertOptions::raw(),
        (Target::Raw, None) => return Err(CliError::usage("--block-size and --sector are for VHDX destinations, and this one is raw")),
        (Target::Raw | Target::VhdxFixed, Some(_)) => {
            return Err(CliError::usage("--parent is for differencing disks, and only a VHDX that is not fixed can be one"));
        }
    };
    if let Some(bytes) = args.block_size {
        options = options.block_size(bytes);
    }
    if let Some(bytes) = args.sector {
        options = options.logical_sector(bytes);
    }
    Ok(options.overwrite(args.force).workers(args.workers))
}

/// The raw bytes to whoever reads standard output. It takes no seeks, so holes are written out.
fn to_stdout(args: &ConvertArgs, from: Format, to: Target, ctx: &Context) -> Result<(), CliError> {
    if to != Target::Raw || ctx.is_json() {
        return Err(CliError::usage("standard output takes raw bytes, and no answer beside them"));
    }
    let (bar, cancel) = ctx.watch()?;
    let source = from.open(&args.src, &args.parents)?;
    let mut gone = false;
    let mut out = std::io::stdout().lock();
    let result = copy_out(&source, &mut out, "standard output", &bar, &cancel).inspect_err(|e| gone = is_broken_pipe(e));
    // A reader that has seen enough is no failure.
    if gone { Ok(()) } else { result.map_err(CliError::from) }
}

fn is_broken_pipe(e: &diffdisk::ToolError) -> bool {
    matches!(e, diffdisk::ToolError::Storage { cause, .. } if cause.source.kind() == std::io::ErrorKind::BrokenPipe)
}
