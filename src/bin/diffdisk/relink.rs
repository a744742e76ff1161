//! `relink`: telling a differencing disk where its parent is now.

use crate::args::ParentsArgs;
use crate::context::Context;
use crate::error::{About, CliError};
use crate::sealed;
use diffdisk::{ChainError, Disk, ErrorKind, LinkProof, OpenError, OpenOptions, ParentPolicy, RelinkError, Store, Verified, relink_proven};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write into a differencing disk where its parent is.
///
/// The file must be the parent: its data write GUID is compared with the one that the child asks for. A copy of an image that has another
/// GUID and the same content is proven with the digests of the image, from its manifest or from the store that it is in.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk relink alice.vhdx --parent /srv/images/app.vhdx\n  \
    diffdisk relink alice.vhdx --parent restored.vhdx --manifest /srv/store/app/3.json")]
pub struct RelinkArgs {
    /// The differencing disk.
    child: PathBuf,
    /// Where its parent is now.
    #[arg(long, value_name = "FILE")]
    parent: PathBuf,
    /// Take the file for the parent although its identity is another. If its content is not what the child was made over, what the child
    /// shows is garbage from then on.
    #[arg(long, conflicts_with_all = ["manifest", "from_store"])]
    force_unproven: bool,
    /// Prove with this manifest of a sealed image, and the digests beside it, that the file holds what the image held.
    #[arg(long, value_name = "FILE", conflicts_with = "from_store")]
    manifest: Option<PathBuf>,
    /// The same with the manifest of the image in this store that the child was made over.
    #[arg(long, value_name = "DIR")]
    from_store: Option<PathBuf>,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs the verb.
pub fn run(args: &RelinkArgs, ctx: &Context) -> Result<(), CliError> {
    sealed::refuse_image(&args.child)?;
    if let Some(verified) = prove(args, ctx)? {
        return done(args, Some(verified), ctx);
    }
    let proof = if args.force_unproven { LinkProof::Waived } else { LinkProof::Required };
    Disk::relink(&args.child, &args.parent, proof).map_err(|e| {
        let is_mismatch = matches!(e, RelinkError::Open(OpenError::Chain(ChainError::LinkageMismatch { .. })));
        let error = CliError::from(e).about(&args.child);
        if is_mismatch {
            return CliError::new(error.kind(), format!("{error}; --force-unproven links it all the same"));
        }
        error
    })?;
    done(args, None, ctx)
}

/// Links with a proof by digests, if one was asked for.
fn prove(args: &RelinkArgs, ctx: &Context) -> Result<Option<Verified>, CliError> {
    let policy = args.parents.policy();
    if let Some(manifest) = &args.manifest {
        let (bar, cancel) = ctx.watch()?;
        return Ok(Some(relink_proven(&args.child, &args.parent, manifest, &policy, &bar, &cancel)?));
    }
    let Some(dir) = &args.from_store else { return Ok(None) };
    if !dir.exists() {
        return Err(CliError::new(ErrorKind::NotFound, format!("there is no store {}", dir.display())));
    }
    let (bar, cancel) = ctx.watch()?;
    Ok(Some(Store::open(dir)?.relink_proven(&args.child, &args.parent, &policy, &bar, &cancel)?))
}

fn done(args: &RelinkArgs, verified: Option<Verified>, ctx: &Context) -> Result<(), CliError> {
    let value = json!({
        "file": args.child.to_string_lossy(),
        "parent": parent_of(&args.child)?,
        "verified": verified.map(|verified| json!({ "blocks": verified.blocks, "bytes": verified.bytes })),
    });
    ctx.emit(&value, |out| {
        let (child, parent) = (args.child.display(), args.parent.display());
        match verified {
            Some(verified) => writeln!(out, "{child}: its parent is {parent}, whose {} blocks are those of the image", verified.blocks),
            None => writeln!(out, "{child}: its parent is {parent}"),
        }
    })
}

/// What the locator of a differencing disk says, as `info` prints it.
pub fn parent_of(child: &Path) -> Result<serde_json::Value, CliError> {
    let info = Disk::open(child, &OpenOptions::new().parents(ParentPolicy::Deny)).about(child)?.info().about(child)?;
    let parent = info.parent.expect("a relinked disk has a parent");
    let paths: std::collections::BTreeMap<String, String> = parent.paths.into_iter().collect();
    Ok(json!({ "linkage": parent.linkage.to_string(), "paths": paths }))
}
