//! The toolbox on clones: the verbs that work on a clone's file as a whole.

use super::find;
use crate::args::StoreArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::{books, compact};
use diffdisk::CompactOptions;

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
