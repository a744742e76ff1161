//! `clone`: what developers and test runs use and throw away.

use crate::args::{StoreArgs, bytes, human, span};
use crate::context::Context;
use crate::error::CliError;
use crate::exit;
use crate::table;
use diffdisk::{
    Cancel, CloneBase, CloneDisk, CloneOptions, CloneSummary, ErrorKind, IfExists, Origin, Pruned, RebaseOptions, Repaired, ResetOptions,
    Savepoint, Step, Timestamp,
};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

mod tools;

/// Make, reset and remove clones.
#[derive(Debug, clap::Subcommand)]
pub enum CloneVerb {
    Create(CreateArgs),
    List(ListArgs),
    /// Show a clone, its parents and its savepoints.
    Show(OneArgs),
    Reset(ResetArgs),
    Save(SaveArgs),
    /// Go back to a savepoint. What was changed since the last save is lost.
    Revert(SavepointArgs),
    Drop(DropArgs),
    Rebase(RebaseArgs),
    Compact(tools::CompactArgs),
    Resize(tools::ResizeArgs),
    Hydrate(tools::HydrateArgs),
    Flatten(tools::FlattenArgs),
    Rename(RenameArgs),
    Protect(ProtectArgs),
    Expire(ExpireArgs),
    Remove(RemoveArgs),
    Prune(PruneArgs),
    Check(tools::CheckArgs),
    Repair(RepairArgs),
}

/// Make a clone of an image.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk clone create app alice.vhdx --store images\n  \
    diffdisk clone create app@3 'clones/{user}-{date}-{n}' --template anonymise.sh --ttl 8h --store images")]
pub struct CreateArgs {
    /// `NAME`, `NAME@latest` or `NAME@NUMBER`.
    image: String,
    /// The new file. {user}, {date}, {image} and {n} (a free number) are filled in, `.vhdx` is added where it is missing.
    path: PathBuf,
    /// What to do when there is a clone of that name.
    #[arg(long, value_enum, default_value = "fail")]
    if_exists: Then,
    /// Run this program or shell script on the fresh clone, with its path. Repeat it for several.
    #[arg(long, value_name = "FILE")]
    template: Vec<PathBuf>,
    /// Let `clone prune --expired` remove it after this time: 90s, 30m, 8h, 7d, 2w.
    #[arg(long, value_name = "SPAN", value_parser = span)]
    ttl: Option<Duration>,
    /// Protect it from resets and removal.
    #[arg(long)]
    protect: bool,
    /// Do not wait until it would survive a power cut. For clones that are thrown away anyway.
    #[arg(long)]
    no_sync: bool,
    /// Payload block size, a power of two from 1M to 256M.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    block_size: Option<u64>,
    #[command(flatten)]
    store: StoreArgs,
}

/// What to do with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Then {
    /// Fail (exit code 5).
    Fail,
    /// Use it as it is.
    Reuse,
    /// Reset it to the image.
    Replace,
}

/// List the clones that the store knows, wherever they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone list --store images")]
pub struct ListArgs {
    /// Only those of this image: `NAME` or `NAME@NUMBER`.
    #[arg(long)]
    image: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
}

/// One clone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone show alice --store images")]
pub struct OneArgs {
    /// Path, name or identity.
    clone: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Forget every change of a clone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk clone reset alice --store images\n  diffdisk clone reset alice --to latest --store images")]
pub struct ResetArgs {
    /// Path, name or identity.
    clone: String,
    /// To this image: `latest` of the one it has, or a reference.
    #[arg(long, value_name = "IMAGE")]
    to: Option<String>,
    /// Remove its savepoints, which a reset refuses otherwise.
    #[arg(long)]
    discard_savepoints: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Freeze the clone's present state under a name, to come back to, also while `diffdisk serve` serves it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone save alice before-migration --store images")]
pub struct SaveArgs {
    #[command(flatten)]
    which: SavepointArgs,
}

/// Remove a savepoint. What stands on it is merged with it first; the clone may be in use meanwhile, unless it stands on it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone drop alice before-migration --store images")]
pub struct DropArgs {
    #[command(flatten)]
    which: SavepointArgs,
}

/// Put a clone onto a newer generation of its image and keep its changes, unless they meet what changed in the image.
///
/// The exit code is 6 when they meet; nothing was changed then.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  diffdisk clone rebase alice --store images\n  diffdisk clone rebase alice --onto app@3 --keep-content --store images"
)]
pub struct RebaseArgs {
    /// Path, name or identity.
    clone: String,
    /// `latest` generation of its image, or a reference.
    #[arg(long, value_name = "IMAGE", default_value = "latest")]
    onto: String,
    /// Keep what the clone shows: what the new image has otherwise is copied into it.
    #[arg(long)]
    keep_content: bool,
    /// Only look.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// A clone and a savepoint of it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone revert alice before-migration --store images")]
pub struct SavepointArgs {
    /// Path, name or identity.
    clone: String,
    /// Name of the savepoint.
    savepoint: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Give a clone another name, or another place on the same file system.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone rename alice.vhdx bob.vhdx --store images")]
pub struct RenameArgs {
    /// Path, name or identity.
    clone: String,
    /// The new path.
    path: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
}

/// Refuse resets, reverts, removal and pruning of a clone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk clone protect alice --store images\n  diffdisk clone protect alice --off --store images")]
pub struct ProtectArgs {
    /// Path, name or identity.
    clone: String,
    /// Allow them again.
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Say when a clone may be pruned.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  diffdisk clone expire alice --ttl 2d --store images\n  diffdisk clone expire alice --never --store images"
)]
pub struct ExpireArgs {
    /// Path, name or identity.
    clone: String,
    /// After this time from now: 90s, 30m, 8h, 7d, 2w.
    #[arg(long, value_name = "SPAN", value_parser = span, required_unless_present = "never", conflicts_with = "never")]
    ttl: Option<Duration>,
    /// Not at all.
    #[arg(long)]
    never: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Remove clones with their savepoints.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone remove alice bob --store images")]
pub struct RemoveArgs {
    /// Paths, names or identities.
    #[arg(required = true)]
    clones: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Remove the clones whose time has come.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk clone prune --expired --store images")]
pub struct PruneArgs {
    /// Those whose --ttl is over.
    #[arg(long, required = true)]
    expired: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Put right what is damaged in a clone's files, what a crash left, and paths to parents that moved; sweep.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk clone repair alice --store moved-images\n  diffdisk clone repair --store moved-images")]
pub struct RepairArgs {
    /// Path, name or identity; all clones without it.
    clone: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
}

impl CloneVerb {
    /// Runs the verb.
    pub fn run(&self, ctx: &Context) -> Result<(), CliError> {
        match self {
            Self::Create(args) => create(args, ctx),
            Self::List(args) => list(args, ctx),
            Self::Show(args) => show(&find(&args.store, &args.clone)?, ctx),
            Self::Reset(args) => reset(args, ctx),
            Self::Save(args) => save(&args.which, ctx),
            Self::Revert(args) => {
                let clone = find(&args.store, &args.clone)?;
                clone.revert(&args.savepoint)?;
                show(&clone, ctx)
            }
            Self::Drop(args) => drop_savepoint(&args.which, ctx),
            Self::Rebase(args) => rebase(args, ctx),
            Self::Compact(args) => tools::compact(args, ctx),
            Self::Resize(args) => tools::resize(args, ctx),
            Self::Hydrate(args) => tools::hydrate(args, ctx),
            Self::Flatten(args) => tools::flatten(args, ctx),
            Self::Rename(args) => show(&find(&args.store, &args.clone)?.rename(&args.path)?, ctx),
            Self::Protect(args) => {
                let clone = find(&args.store, &args.clone)?;
                clone.set_protected(!args.off)?;
                show(&clone, ctx)
            }
            Self::Expire(args) => {
                let clone = find(&args.store, &args.clone)?;
                clone.set_expiry(args.ttl.map(|ttl| Timestamp::now().after(ttl)))?;
                show(&clone, ctx)
            }
            Self::Remove(args) => remove(args, ctx),
            Self::Prune(args) => report_pruned(&args.store.open()?.prune_clones()?, ctx),
            Self::Check(args) => tools::check(args, ctx),
            Self::Repair(args) => repair(args, ctx),
        }
    }
}

fn find(store: &StoreArgs, clone: &str) -> Result<CloneDisk, CliError> {
    Ok(store.open()?.find_clone(clone)?)
}

fn create(args: &CreateArgs, ctx: &Context) -> Result<(), CliError> {
    let image = args.store.open()?.image(&args.image)?;
    let then = match args.if_exists {
        Then::Fail => IfExists::Fail,
        Then::Reuse => IfExists::Reuse,
        Then::Replace => IfExists::Replace,
    };
    let cancel = Cancel::from(ctx.interrupt()?.flag.clone());
    let mut options = CloneOptions::default().if_exists(then).protected(args.protect).durable(!args.no_sync).cancel(&cancel);
    options = args.template.iter().fold(options, |options, file| options.template(Step::script(file)));
    if let Some(ttl) = args.ttl {
        options = options.ttl(ttl);
    }
    if let Some(bytes) = args.block_size {
        options = options.block_size(bytes);
    }
    let began = Instant::now();
    let clone = image.create_clone(&args.path, &options)?;
    let took = began.elapsed();
    let origin = match clone.origin() {
        Origin::Reused => "reused",
        Origin::Replaced => "replaced",
        _ => "created",
    };
    let steps = if clone.origin() == Origin::Reused { Vec::new() } else { clone.steps()? };
    let mut value = answer(&clone.summary()?);
    value["outcome"] = json!(origin);
    value["microseconds"] = json!(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    value["steps"] = json!(steps);
    ctx.emit(&value, |out| {
        writeln!(out, "{}: {origin} from {} in {:.1?}", clone.path().display(), image.reference(), took)?;
        steps.iter().try_for_each(|step| writeln!(out, "  {}: {} ms, {} bytes allocated", step.step, step.milliseconds, step.allocated))
    })
}

/// What `--json` says of a clone.
fn answer(clone: &CloneSummary) -> Value {
    json!({
        "id": clone.id.to_string(),
        "name": clone.name,
        "path": clone.path.to_string_lossy(),
        "image": clone.base.image(),
        "flattened": match &clone.base {
            CloneBase::Alone { from, since } => json!({ "from": from, "at": since.to_string() }),
            _ => Value::Null,
        },
        "state": clone.state.key(),
        "sizes": clone.sizes.map(|sizes| json!({
            "virtual": sizes.virtual_size,
            "apparent": sizes.apparent,
            "allocated": sizes.allocated,
            "diverged": sizes.diverged,
        })),
        "savepoints": clone.savepoints,
        "savepoints_allocated": clone.savepoints_allocated,
        "created": clone.created.to_string(),
        "created_by": clone.created_by,
        "last_used": clone.last_used.map(|time| time.to_string()),
        "expires": clone.expires.map(|time| time.to_string()),
        "protected": clone.protected,
    })
}

fn savepoint(savepoint: &Savepoint) -> Value {
    json!({ "name": savepoint.name, "file": savepoint.file, "created": savepoint.created.to_string() })
}

fn list(args: &ListArgs, ctx: &Context) -> Result<(), CliError> {
    let wanted = |clone: &CloneSummary| match (args.image.as_deref(), &clone.base) {
        (None, _) => true,
        (Some(image), CloneBase::Image { name, generation }) => image == name || image == format!("{name}@{generation}"),
        (Some(_), _) => false,
    };
    let clones: Vec<CloneSummary> = args.store.open()?.clones()?.into_iter().filter(wanted).collect();
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human);
    ctx.emit(&json!({ "clones": clones.iter().map(answer).collect::<Vec<_>>() }), |out| {
        let head = ["CLONE", "IMAGE", "VIRTUAL", "APPARENT", "ALLOCATED", "DIVERGED", "LAST USED", "", "PATH"];
        let mut rows = vec![table::row(head)];
        for clone in &clones {
            let mut marks = Vec::new();
            marks.extend((clone.state != diffdisk::CloneState::Ready).then(|| clone.state.key().to_owned()));
            if let CloneBase::Alone { from, .. } = &clone.base {
                marks.push(format!("flattened, was of {from}"));
            }
            marks.extend(clone.protected.then(|| "protected".to_owned()));
            marks.extend(clone.expires.map(|time| format!("expires {time}")));
            marks.extend((clone.savepoints > 0).then(|| format!("{} saved", clone.savepoints)));
            rows.push(vec![
                clone.name.clone(),
                clone.base.image().unwrap_or_else(|| "-".to_owned()),
                size(clone.sizes.map(|sizes| sizes.virtual_size)),
                size(clone.sizes.map(|sizes| sizes.apparent)),
                size(clone.sizes.map(|sizes| sizes.allocated)),
                size(clone.sizes.map(|sizes| sizes.diverged)),
                clone.last_used.map_or_else(|| "-".to_owned(), |time| time.to_string()),
                marks.join(", "),
                clone.path.display().to_string(),
            ]);
        }
        table::print(out, &rows)
    })
}

fn show(clone: &CloneDisk, ctx: &Context) -> Result<(), CliError> {
    show_with(clone, &[], ctx)
}

/// The same, with what the verb has to add.
fn show_with(clone: &CloneDisk, more: &[(&str, Value)], ctx: &Context) -> Result<(), CliError> {
    let summary = clone.summary()?;
    let savepoints = clone.savepoints()?;
    // A clone that somebody has open cannot be asked.
    let (parents, current) = (clone.parents().unwrap_or_default(), clone.current_savepoint().ok().flatten());
    let mut value = answer(&summary);
    value["savepoints"] = json!(savepoints.iter().map(savepoint).collect::<Vec<_>>());
    value["current_savepoint"] = json!(current.as_ref().map(|savepoint| &savepoint.name));
    more.iter().for_each(|(key, more)| value[*key] = more.clone());
    value["parents"] = json!(parents.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>());
    ctx.emit(&value, |out| {
        writeln!(out, "clone        {}", summary.path.display())?;
        match &summary.base {
            CloneBase::Alone { from, since } => writeln!(out, "image        none, flattened {since} (was of {from})")?,
            base => writeln!(out, "image        {}", base.image().unwrap_or_default())?,
        }
        writeln!(out, "identity     {}", summary.id)?;
        writeln!(out, "state        {}{}", summary.state.key(), if summary.protected { ", protected" } else { "" })?;
        if let Some(sizes) = summary.sizes {
            writeln!(out, "virtual      {}", human(sizes.virtual_size))?;
            writeln!(out, "apparent     {}", human(sizes.apparent))?;
            writeln!(out, "allocated    {}", human(sizes.allocated))?;
            writeln!(out, "diverged     {}", human(sizes.diverged))?;
        }
        writeln!(out, "created      {} by {}", summary.created, summary.created_by)?;
        if let Some(time) = summary.last_used {
            writeln!(out, "last used    {time}")?;
        }
        if let Some(time) = summary.expires {
            writeln!(out, "expires      {time}")?;
        }
        for savepoint in &savepoints {
            let here = if current.as_ref() == Some(savepoint) { " (the clone stands on it)" } else { "" };
            writeln!(out, "savepoint    {} of {}{here}", savepoint.name, savepoint.created)?;
        }
        parents.iter().try_for_each(|path| writeln!(out, "parent       {}", path.display()))
    })
}

fn reset(args: &ResetArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    let mut options = ResetOptions::default().discard_savepoints(args.discard_savepoints);
    if let Some(to) = &args.to {
        options = options.to(to);
    }
    clone.reset(&options)?;
    let summary = clone.summary()?;
    ctx.emit(&answer(&summary), |out| writeln!(out, "{}: reset to {}", summary.path.display(), summary.base.image().unwrap_or_default()))
}

fn save(args: &SavepointArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    #[cfg(unix)]
    let pause = clone.save_wherever(&args.savepoint)?.pause;
    #[cfg(not(unix))]
    let pause = clone.save(&args.savepoint).map(|()| Duration::ZERO)?;
    show_with(&clone, &[("pause_microseconds", json!(u64::try_from(pause.as_micros()).unwrap_or(u64::MAX)))], ctx)
}

fn rebase(args: &RebaseArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    let (bar, cancel) = ctx.watch()?;
    let options = RebaseOptions::new().keep_content(args.keep_content).dry_run(args.dry_run);
    let done = clone.rebase(&args.onto, &options, &bar, &cancel)?;
    drop(bar);
    let conflicts: Vec<Value> = done.conflicts.iter().map(|at| json!({ "start": at.start, "length": at.end - at.start })).collect();
    let mut value = answer(&clone.summary()?);
    value["linked"] = json!(done.is_linked);
    value["conflicts"] = json!(conflicts);
    (value["inherited"], value["agreed"], value["copied"]) = (json!(done.inherited), json!(done.agreed), json!(done.copied));
    ctx.emit(&value, |out| {
        for at in &done.conflicts {
            writeln!(out, "conflict {:>#16x} {:>#16x}", at.start, at.end - at.start)?;
        }
        let name = clone.path().display();
        match (done.conflicts.len(), done.is_linked) {
            (0, true) => writeln!(out, "{name}: on {}, {} inherited, {} copied", args.onto, human(done.inherited), human(done.copied)),
            (0, false) => writeln!(out, "{name}: no conflicts, {} would be inherited", human(done.inherited)),
            (many, _) => writeln!(out, "{name}: {many} conflicts with {}, so nothing was changed", args.onto),
        }
    })?;
    if done.conflicts.is_empty() { Ok(()) } else { Err(CliError::Answered) }
}

fn drop_savepoint(args: &SavepointArgs, ctx: &Context) -> Result<(), CliError> {
    let clone = find(&args.store, &args.clone)?;
    let (bar, cancel) = ctx.watch()?;
    let dropped = clone.drop_savepoint_with(&args.savepoint, &bar, &cancel)?;
    drop(bar);
    show_with(&clone, &[("merged_files", json!(dropped.merged)), ("merged_bytes", json!(dropped.bytes))], ctx)
}

/// Removes all that can be removed; the first failure is the verb's.
fn remove(args: &RemoveArgs, ctx: &Context) -> Result<(), CliError> {
    let store = args.store.open()?;
    let mut pruned = Pruned::default();
    for text in &args.clones {
        match store.find_clone(text).and_then(|clone| clone.remove().map(|()| clone.path().display().to_string())) {
            Ok(path) => pruned.removed.push(path),
            Err(e) => pruned.kept.push((text.clone(), e)),
        }
    }
    if pruned.kept.is_empty() {
        return report_pruned(&pruned, ctx);
    }
    if !pruned.removed.is_empty() {
        report_pruned(&pruned, ctx)?;
    }
    Err(pruned.kept.remove(0).1.into())
}

/// Prints what was removed and what was not, and fails as the first of those that stay for another reason than being in use or protected.
pub fn report_pruned(pruned: &Pruned, ctx: &Context) -> Result<(), CliError> {
    let kept: Vec<Value> =
        pruned.kept.iter().map(|(name, why)| json!({ "name": name, "kind": exit::key(why.kind()), "message": why.to_string() })).collect();
    ctx.emit(&json!({ "removed": pruned.removed, "kept": kept }), |out| {
        pruned.removed.iter().try_for_each(|name| writeln!(out, "removed {name}"))?;
        pruned.kept.iter().try_for_each(|(name, why)| writeln!(out, "kept {name}: {why}"))
    })?;
    pruned.failure().map_or(Ok(()), |why| Err(why.clone().into()))
}

/// What `--json` says of a repair.
pub fn repaired(one: &Repaired) -> Value {
    json!({ "clone": one.clone.to_string_lossy(), "done": one.done, "error": one.failed.as_ref().map(ToString::to_string) })
}

fn repair(args: &RepairArgs, ctx: &Context) -> Result<(), CliError> {
    let store = args.store.open()?;
    let all = match &args.clone {
        Some(text) => vec![store.find_clone(text)?.repair()?],
        None => {
            store.sweep()?;
            store.repair_clones()?
        }
    };
    let failed = all.iter().filter(|one| one.failed.is_some()).count();
    ctx.emit(&json!({ "clones": all.iter().map(repaired).collect::<Vec<_>>() }), |out| {
        for one in &all {
            match &one.failed {
                Some(why) => writeln!(out, "{}: {why}", one.clone.display())?,
                None if one.done.is_empty() => writeln!(out, "{}: in order", one.clone.display())?,
                None => writeln!(out, "{}: {}", one.clone.display(), one.done.join("; "))?,
            }
        }
        Ok(())
    })?;
    match failed {
        0 => Ok(()),
        n => {
            // All for one reason: that one. Being in use, or of another user, is no damage.
            let mut kinds = all.iter().filter_map(|one| one.failed.as_ref().map(|why| why.kind()));
            let first = kinds.next().unwrap_or(ErrorKind::Damaged);
            let kind = if kinds.all(|kind| kind == first) { first } else { ErrorKind::Damaged };
            Err(CliError::new(kind, format!("{n} of {} clones could not be repaired; the report says why", all.len())))
        }
    }
}
