//! `relink`: telling a differencing disk where its parent is now.

use crate::context::Context;
use crate::error::{About, CliError};
use diffdisk::{ChainError, Disk, LinkProof, OpenError, OpenOptions, ParentPolicy, RelinkError};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write into a differencing disk where its parent is.
///
/// The file must be the parent: its data write GUID is compared with the one that the child asks for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk relink alice.vhdx --parent /srv/images/app.vhdx")]
pub struct RelinkArgs {
    /// The differencing disk.
    child: PathBuf,
    /// Where its parent is now.
    #[arg(long, value_name = "FILE")]
    parent: PathBuf,
    /// Take the file for the parent although its identity is another. If its content is not what the child was made over, what the child
    /// shows is garbage from then on.
    #[arg(long)]
    force_unproven: bool,
}

/// Runs the verb.
pub fn run(args: &RelinkArgs, ctx: &Context) -> Result<(), CliError> {
    let proof = if args.force_unproven { LinkProof::Waived } else { LinkProof::Required };
    Disk::relink(&args.child, &args.parent, proof).map_err(|e| {
        let is_mismatch = matches!(e, RelinkError::Open(OpenError::Chain(ChainError::LinkageMismatch { .. })));
        let error = CliError::from(e).about(&args.child);
        if is_mismatch {
            return CliError::new(error.kind(), format!("{error}; --force-unproven links it all the same"));
        }
        error
    })?;
    let value = json!({ "file": args.child.to_string_lossy(), "parent": parent_of(&args.child)? });
    ctx.emit(&value, |out| writeln!(out, "{}: its parent is {}", args.child.display(), args.parent.display()))
}

/// What the locator of a differencing disk says, as `info` prints it.
pub fn parent_of(child: &Path) -> Result<serde_json::Value, CliError> {
    let info = Disk::open(child, &OpenOptions::new().parents(ParentPolicy::Deny)).about(child)?.info().about(child)?;
    let parent = info.parent.expect("a relinked disk has a parent");
    let paths: std::collections::BTreeMap<String, String> = parent.paths.into_iter().collect();
    Ok(json!({ "linkage": parent.linkage.to_string(), "paths": paths }))
}
