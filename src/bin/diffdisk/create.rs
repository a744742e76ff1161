//! `create`: an empty disk, or an empty child of another.

use crate::args::{ParentsArgs, bytes, human, small_bytes};
use crate::context::Context;
use crate::error::{About, CliError};
use crate::sealed;
use diffdisk::{CreateOptions, Disk};
use serde_json::json;
use std::path::PathBuf;

/// Create a dynamic, fixed or differencing disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk create app.vhdx --size 10G\n  diffdisk create alice.vhdx --parent app.vhdx")]
pub struct CreateArgs {
    /// The new file.
    file: PathBuf,
    /// Virtual size; a child has its parent's unless told otherwise.
    #[arg(long, value_parser = bytes, required_unless_present = "parent")]
    size: Option<u64>,
    /// Give every block its place in the file now.
    #[arg(long, conflicts_with = "parent")]
    fixed: bool,
    /// Create a differencing disk over this one.
    #[arg(long, value_name = "PARENT")]
    parent: Option<PathBuf>,
    /// Payload block size, a power of two from 1M to 256M.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    block_size: Option<u64>,
    /// Logical sector size: 512 (default) or 4096.
    #[arg(long, value_name = "BYTES", value_parser = small_bytes)]
    sector: Option<u32>,
    /// Physical sector size that guests are told: 512 or 4096 (default).
    #[arg(long, value_name = "BYTES", value_parser = small_bytes)]
    physical_sector: Option<u32>,
    /// Size of the metadata log, a multiple of 1M up to 64M.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    log_size: Option<u64>,
    /// Replace an existing file.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

impl CreateArgs {
    fn options(&self) -> CreateOptions {
        let size = self.size.unwrap_or(0);
        let mut options = match (&self.parent, self.fixed) {
            (Some(_), _) => CreateOptions::child(),
            (None, true) => CreateOptions::fixed(size),
            (None, false) => CreateOptions::dynamic(size),
        };
        if let Some(size) = self.size {
            options = options.size(size);
        }
        if let Some(bytes) = self.block_size {
            options = options.block_size(bytes);
        }
        if let Some(bytes) = self.sector {
            options = options.logical_sector(bytes);
        }
        if let Some(bytes) = self.physical_sector {
            options = options.physical_sector(bytes);
        }
        if let Some(bytes) = self.log_size {
            options = options.log_size(bytes);
        }
        options.overwrite(self.force).parent_policy(self.parents.policy())
    }
}

/// Runs the verb.
pub fn run(args: &CreateArgs, ctx: &Context) -> Result<(), CliError> {
    if args.force {
        sealed::refuse(&args.file)?;
    }
    let options = args.options();
    let disk = match &args.parent {
        None => Disk::create(&args.file, &options),
        Some(parent) => Disk::create_child(&args.file, parent, &options),
    }
    .about(&args.file)?;
    let info = disk.info().about(&args.file)?;
    disk.close().about(&args.file)?;
    let answer = json!({
        "file": args.file.to_string_lossy(),
        "type": info.kind.key(),
        "virtual_size": info.virtual_size,
        "block_size": info.block_size,
        "data_write_guid": info.data_write_guid.to_string(),
    });
    ctx.emit(&answer, |out| {
        let (kind, size, block) = (info.kind.key(), human(info.virtual_size), human(info.block_size));
        writeln!(out, "{}: {kind}, {size}, blocks of {block}", args.file.display())
    })
}
