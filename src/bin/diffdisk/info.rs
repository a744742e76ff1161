//! `info`: what a disk is, and what it stands on.

use crate::args::{ParentsArgs, human};
use crate::context::Context;
use crate::error::{About, CliError};
use diffdisk::{Disk, DiskInfo, LayerInfo, OpenOptions, ParentPolicy};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

/// Show geometry, identity, sizes and parents.
///
/// Without --chain only FILE itself is opened.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk info alice.vhdx --chain")]
pub struct InfoArgs {
    /// The disk.
    file: PathBuf,
    /// Open the whole chain and list it, leaf first.
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// The keys are pinned: see `docs/json.md`.
#[derive(Serialize)]
struct Answer {
    file: String,
    r#type: &'static str,
    virtual_size: u64,
    block_size: u64,
    logical_sector_size: u32,
    physical_sector_size: u32,
    disk_id: String,
    data_write_guid: String,
    file_write_guid: String,
    log: &'static str,
    creator: String,
    sizes: SizesAnswer,
    parent: Option<ParentAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<Vec<LayerAnswer>>,
}

#[derive(Serialize)]
struct SizesAnswer {
    r#virtual: u64,
    apparent: u64,
    allocated: u64,
    diverged: u64,
}

#[derive(Serialize)]
struct ParentAnswer {
    linkage: String,
    paths: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct LayerAnswer {
    file: String,
    r#type: &'static str,
    virtual_size: u64,
    block_size: u64,
    data_write_guid: String,
    log: &'static str,
    apparent: u64,
    allocated: u64,
}

fn log(dirty: bool) -> &'static str {
    if dirty { "dirty" } else { "clean" }
}

impl LayerAnswer {
    fn new(layer: &LayerInfo) -> Self {
        Self {
            file: layer.path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            r#type: layer.kind.key(),
            virtual_size: layer.virtual_size,
            block_size: layer.block_size,
            data_write_guid: layer.data_write_guid.to_string(),
            log: log(layer.log_dirty),
            apparent: layer.apparent,
            allocated: layer.allocated,
        }
    }
}

impl Answer {
    fn new(args: &InfoArgs, info: &DiskInfo) -> Self {
        Self {
            file: args.file.to_string_lossy().into_owned(),
            r#type: info.kind.key(),
            virtual_size: info.virtual_size,
            block_size: info.block_size,
            logical_sector_size: info.logical_sector_size,
            physical_sector_size: info.physical_sector_size,
            disk_id: info.disk_id.to_string(),
            data_write_guid: info.data_write_guid.to_string(),
            file_write_guid: info.file_write_guid.to_string(),
            log: log(info.log_dirty),
            creator: info.creator.clone(),
            sizes: SizesAnswer {
                r#virtual: info.sizes.virtual_size,
                apparent: info.sizes.apparent,
                allocated: info.sizes.allocated,
                diverged: info.sizes.diverged,
            },
            parent: info
                .parent
                .as_ref()
                .map(|parent| ParentAnswer { linkage: parent.linkage.to_string(), paths: parent.paths.iter().cloned().collect() }),
            chain: args.chain.then(|| info.chain.iter().map(LayerAnswer::new).collect()),
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        // What a file says about itself is quoted, so that it cannot drive the terminal.
        writeln!(out, "file            {}", self.file)?;
        writeln!(out, "type            {}", self.r#type)?;
        writeln!(out, "virtual size    {} ({} bytes)", human(self.virtual_size), self.virtual_size)?;
        writeln!(out, "block size      {}", human(self.block_size))?;
        writeln!(out, "sectors         {} logical, {} physical", self.logical_sector_size, self.physical_sector_size)?;
        writeln!(out, "data write guid {}", self.data_write_guid)?;
        writeln!(out, "disk id         {}", self.disk_id)?;
        writeln!(out, "log             {}", self.log)?;
        writeln!(out, "creator         {:?}", self.creator)?;
        writeln!(out, "file length     {}", human(self.sizes.apparent))?;
        writeln!(out, "allocated       {}", human(self.sizes.allocated))?;
        writeln!(out, "diverged        {}", human(self.sizes.diverged))?;
        if let Some(parent) = &self.parent {
            writeln!(out, "parent          {}", parent.linkage)?;
            for (key, value) in &parent.paths {
                writeln!(out, "  {key:<20} {}", value.escape_debug().to_string().replace("\\\\", "\\"))?;
            }
        }
        for (depth, layer) in self.chain.iter().flatten().enumerate() {
            let (kind, size, held) = (layer.r#type, human(layer.virtual_size), human(layer.allocated));
            writeln!(out, "chain {depth:<9} {} ({kind}, {size}, {held} allocated, log {})", layer.file, layer.log)?;
        }
        Ok(())
    }
}

/// Runs the verb.
pub fn run(args: &InfoArgs, ctx: &Context) -> Result<(), CliError> {
    let options = if args.chain { args.parents.read_only() } else { OpenOptions::new().parents(ParentPolicy::Deny) };
    let info = Disk::open(&args.file, &options).about(&args.file)?.info().about(&args.file)?;
    let answer = Answer::new(args, &info);
    ctx.emit(&answer, |out| answer.print(out))
}
