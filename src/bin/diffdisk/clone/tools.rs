//! The toolbox on clones: the verbs that work on a clone's file as a whole.

use super::find;
use crate::args::{StoreArgs, bytes};
use crate::context::Context;
use crate::error::CliError;
use crate::{books, compact, merge, resize};
use diffdisk::{CompactOptions, ResizeOptions, StoreError};

/// Examine a clone with everything it stands on, its savepoints, and what the store has written down of it; exit code 6 when there are errors.
///
/// Nothing is changed. `clone repair` puts right what can be put right; images are never repaired.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone check alice --store images")]
pub struct CheckArgs {
    /// Path, name or identity.
    clone: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Give space back that a clone's file does not need. Stopping at any moment leaves a valid clone, and running again goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone compact alice --store images")]
pub struct CompactArgs {
    /// Path, name or identity.
    clone: String,
    /// Keep blocks that hold what the parent shows anyway.
    #[arg(long)]
    keep_copies: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Copy everything a clone inherits into its own file; the link to its image stays. Stopped anywhere, running again goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone hydrate alice --store images")]
pub struct HydrateArgs {
    /// Path, name or identity.
    clone: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Copy everything a clone inherits into its own file and cut the link: it needs no image any more, and its image may be removed.
///
/// It stays a clone of the store in everything else, and can be saved, reverted and removed. Stopped anywhere it is linked as it was, and running
/// again goes on. A clone with savepoints is refused: drop them first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone flatten alice --store images")]
pub struct FlattenArgs {
    /// Path, name or identity.
    clone: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Give a clone another virtual size; all or nothing. Its savepoints keep the size they have, and a revert or reset brings that back.
///
/// New space reads as zeros. A clone becomes smaller only with --shrink, and only when everything behind the new end reads as zeros.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  diffdisk clone resize alice --size 200G --store images\n  diffdisk clone resize alice --size 50G --shrink --store images"
)]
pub struct ResizeArgs {
    /// Path, name or identity.
    clone: String,
    /// The new virtual size.
    #[arg(long, value_parser = bytes)]
    size: u64,
    /// Let the clone become smaller.
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Runs `clone check`.
pub fn check(args: &CheckArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    let (bar, cancel) = ctx.watch()?;
    let report = clone.check(&bar, &cancel)?;
    drop(bar);
    books::answer("clone", &clone.path().to_string_lossy(), &report, ctx)
}

/// Runs `clone compact`.
pub fn compact(args: &CompactArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    let (bar, cancel) = ctx.watch()?;
    let report = clone.compact(&CompactOptions::new().drop_copies(!args.keep_copies), &bar, &cancel)?;
    drop(bar);
    compact::answer(clone.path(), &report, ctx)
}

/// Runs `clone hydrate`.
pub fn hydrate(args: &HydrateArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    let (bar, cancel) = ctx.watch()?;
    let done = clone.hydrate(&bar, &cancel);
    drop(bar);
    merge::answer(clone.path(), &done?, ctx)
}

/// Runs `clone resize`.
pub fn resize(args: &ResizeArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    let (bar, cancel) = ctx.watch()?;
    let done = clone.resize(args.size, &ResizeOptions::new().shrink(args.shrink), &bar, &cancel);
    drop(bar);
    let resized = done.map_err(|e| match e {
        StoreError::Work { source } => resize::refusal(source, args.shrink),
        e => e.into(),
    })?;
    let kept: Vec<String> = clone.savepoints()?.into_iter().map(|savepoint| savepoint.name).collect();
    resize::answer(clone.path(), &resized, &kept, ctx)
}

/// Runs `clone flatten`.
pub fn flatten(args: &FlattenArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    let (bar, cancel) = ctx.watch()?;
    let done = clone.flatten(&bar, &cancel);
    drop(bar);
    merge::answer(clone.path(), &done?, ctx)
}
