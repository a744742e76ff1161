//! `map`: where the bytes of a disk are.

use crate::args::{ParentsArgs, bytes};
use crate::content::range;
use crate::context::Context;
use crate::error::{About, CliError};
use diffdisk::{Disk, Extent, ExtentKind};
use serde::Serialize;
use std::path::PathBuf;

/// List which file of the chain holds which bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk map alice.vhdx --offset 1G --length 16M")]
pub struct MapArgs {
    /// The disk.
    file: PathBuf,
    /// First byte.
    #[arg(long, value_parser = bytes, default_value = "0")]
    offset: u64,
    /// Bytes; to the end of the disk unless given.
    #[arg(long, value_parser = bytes)]
    length: Option<u64>,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// The keys are pinned: see `docs/json.md`.
#[derive(Serialize)]
struct Line {
    start: u64,
    length: u64,
    kind: &'static str,
    depth: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

impl Line {
    /// What nobody holds is reported at the depth of the base: every file down to there was asked.
    fn new(extent: Extent, files: &[Option<String>]) -> Self {
        let (kind, depth, file_offset) = match extent.kind {
            ExtentKind::Data { layer, file_offset } => ("data", layer, Some(file_offset)),
            ExtentKind::Zero { layer: Some(layer) } => ("zero", layer, None),
            ExtentKind::Zero { layer: None } => ("absent", files.len() - 1, None),
        };
        let file = if kind == "absent" { None } else { files[depth].clone() };
        Self { start: extent.offset, length: extent.len, kind, depth, file_offset, file }
    }
}

/// Runs the verb.
pub fn run(args: &MapArgs, ctx: &Context) -> Result<(), CliError> {
    let disk = Disk::open(&args.file, &args.parents.read_only()).about(&args.file)?;
    let length = range(&disk, args.offset, args.length).about(&args.file)?;
    let chain = disk.info().about(&args.file)?.chain;
    let files: Vec<Option<String>> = chain.iter().map(|layer| Some(layer.path.as_ref()?.to_string_lossy().into_owned())).collect();
    let extents = disk.extents(args.offset, length).about(&args.file)?;
    if !ctx.is_json() {
        for (depth, file) in files.iter().enumerate() {
            ctx.print(|out| writeln!(out, "depth {depth}: {}", file.as_deref().unwrap_or("a file without a path")))?;
        }
        ctx.print(|out| writeln!(out, "{:>16} {:>16} {:<6} {:>5} {:>16}", "start", "length", "kind", "depth", "file offset"))?;
    }
    let lines = extents.map(|extent| extent.map(|extent| Line::new(extent, &files)).about(&args.file));
    ctx.emit_list(lines, |out, line| {
        let at = line.file_offset.map(|at| format!("{at:#x}")).unwrap_or_default();
        writeln!(out, "{:>#16x} {:>#16x} {:<6} {:>5} {at:>16}", line.start, line.length, line.kind, line.depth)
    })
}
