//! `merge`, `hydrate`, `flatten`: what a clone changed goes into an ancestor, or what it inherits comes into it.

use crate::args::{ParentsArgs, human};
use crate::context::Context;
use crate::error::{About, CliError};
use crate::sealed;
use diffdisk::{ErrorKind, Hydrated, MergeOptions, Store, ToolError, merge_into, merge_to};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Merge a differencing disk, and the layers between, into an ancestor.
///
/// In place (--into, or nothing, which means its parent) the ancestor changes, so it is refused while other files stand on it. An
/// interrupted merge leaves the child valid; the same command goes on. With --to the ancestor and everything that stands on it stay as
/// they are, and a new file appears.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk merge alice.vhdx --delete\n  diffdisk merge alice.vhdx --to app-2.vhdx\n  \
    diffdisk merge leaf.avhdx --into base.vhdx --delete")]
pub struct MergeArgs {
    /// The differencing disk.
    child: PathBuf,
    /// The ancestor that takes the changes; its parent if nothing is said.
    #[arg(long, value_name = "ANCESTOR")]
    into: Option<PathBuf>,
    /// A new file with the ancestor's content and the changes.
    #[arg(long, value_name = "NEWFILE")]
    to: Option<PathBuf>,
    /// Remove the merged files in the end; files beside them that stand on the child are linked to the ancestor. Without it the child stays
    /// and shows what it showed.
    #[arg(long, conflicts_with = "to")]
    delete: bool,
    /// Merge although other files stand on the ancestor: siblings die, they cannot be opened any more.
    #[arg(long, conflicts_with = "to")]
    force: bool,
    /// Give the new file the child's identity, so that the child's children can be linked to it with `relink`.
    #[arg(long, requires = "to")]
    keep_identity: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs `merge`.
pub fn run(args: &MergeArgs, ctx: &Context) -> Result<(), CliError> {
    let options = MergeOptions::new()
        .parents(args.parents.policy())
        .delete(args.delete)
        .sacrifice_siblings(args.force)
        .keep_identity(args.keep_identity);
    let into = args.into.as_deref();
    if args.to.is_none() {
        sealed::refuse_merge(&args.child, into, &args.parents)?;
    }
    let (bar, cancel) = ctx.watch()?;
    let merged = match &args.to {
        Some(new) => merge_to(&args.child, into, new, &options, &bar, &cancel),
        None => merge_into(&args.child, into, &options, &bar, &cancel),
    };
    drop(bar);
    let merged = merged.map_err(|e| match e {
        ToolError::Children { .. } => CliError::new(ErrorKind::InUse, format!("{e}; --to makes a new file, --force lets them die")),
        e => e.into(),
    })?;
    let paths = |paths: &[PathBuf]| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect::<Vec<_>>();
    let value = json!({
        "child": args.child.to_string_lossy(),
        "into": merged.into.to_string_lossy(),
        "is_new": args.to.is_some(),
        "layers": merged.layers,
        "bytes": merged.bytes,
        "data_write_guid": merged.data_write_guid.to_string(),
        "removed": paths(&merged.removed),
        "relinked": paths(&merged.relinked),
        "lost": paths(&merged.lost),
    });
    ctx.emit(&value, |out| {
        writeln!(out, "{}: merged into {}, {} moved", args.child.display(), merged.into.display(), human(merged.bytes))?;
        for (what, paths) in [("removed", &merged.removed), ("linked to it", &merged.relinked), ("lost", &merged.lost)] {
            for path in paths {
                writeln!(out, "{what}: {}", path.display())?;
            }
        }
        Ok(())
    })
}

/// Copy everything a differencing disk inherits into its own file; the link to the parent stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk hydrate alice.vhdx --parents /srv/images")]
pub struct HydrateArgs {
    /// The differencing disk.
    child: PathBuf,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Copy everything a differencing disk inherits into its own file and cut the link: it needs no parent any more.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk flatten alice.vhdx --parents /srv/images")]
pub struct FlattenArgs {
    /// The differencing disk.
    child: PathBuf,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs `hydrate`.
pub fn run_hydrate(args: &HydrateArgs, ctx: &Context) -> Result<(), CliError> {
    bring_in(&args.child, &args.parents, ctx, false)
}

/// Runs `flatten`.
pub fn run_flatten(args: &FlattenArgs, ctx: &Context) -> Result<(), CliError> {
    bring_in(&args.child, &args.parents, ctx, true)
}

fn bring_in(child: &Path, parents: &ParentsArgs, ctx: &Context, cuts: bool) -> Result<(), CliError> {
    let (bar, cancel) = ctx.watch()?;
    // A clone that a store knows is cut by the store, or its books would go on naming an image.
    if cuts && let Ok(Some(clone)) = Store::clone_of_file(child) {
        let done = clone.flatten(&bar, &cancel);
        drop(bar);
        return answer(child, &done?, ctx);
    }
    let disk = sealed::open_writable(child, parents)?;
    let done = if cuts { disk.flatten(&bar, &cancel) } else { disk.hydrate(&bar, &cancel) };
    drop(bar);
    // What was copied before a cancel is kept.
    let closed = disk.close().about(child);
    let done: Hydrated = done?;
    closed?;
    answer(child, &done, ctx)
}

/// Prints what was brought into a file.
pub fn answer(child: &Path, done: &Hydrated, ctx: &Context) -> Result<(), CliError> {
    let value = json!({
        "file": child.to_string_lossy(),
        "blocks": done.blocks,
        "copied": done.copied,
        "is_cut": done.is_cut,
    });
    ctx.emit(&value, |out| {
        let how = if done.is_cut { "stands alone" } else { "holds all it inherits" };
        writeln!(out, "{}: {how}, {} copied", child.display(), human(done.copied))
    })
}
