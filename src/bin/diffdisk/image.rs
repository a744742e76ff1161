//! `image`: sealed, read-only images that clones are made of.

use crate::args::{Format, ParentsArgs, StoreArgs, bytes, human, small_bytes};
use crate::books;
use crate::context::Context;
use crate::error::CliError;
use crate::table;
use diffdisk::{CloneBase, Image, ImageOptions, Source, Step, Store};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Make, check and remove the images that clones are made of.
#[derive(Debug, clap::Subcommand)]
pub enum ImageVerb {
    Create(CreateArgs),
    Refresh(RefreshArgs),
    List(ListArgs),
    Show(OneArgs),
    Check(CheckArgs),
    Verify(VerifyArgs),
    Rename(RenameArgs),
    /// Allow no new clones of an image; those it has live on.
    Disable(OneArgs),
    /// Allow new clones again.
    Enable(OneArgs),
    Remove(RemoveArgs),
    Prune(PruneArgs),
    Sweep(SweepArgs),
}

/// How to read a source and what to do to the image.
#[derive(Debug, clap::Args)]
struct MakeArgs {
    /// What SOURCE is. Default: a stream for `-`, VHDX by its extension, raw otherwise. Never guessed from the content.
    #[arg(long, value_enum)]
    from: Option<From>,
    /// Virtual size, where it is to be larger than the source; for a directory the size of the file system.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    size: Option<u64>,
    /// Payload block size, a power of two from 1M to 256M.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    block_size: Option<u64>,
    /// Logical sector size: 512 (default) or 4096.
    #[arg(long, value_name = "BYTES", value_parser = small_bytes)]
    sector: Option<u32>,
    /// Run this command on the image before it is sealed; the disk is $1 and $DIFFDISK_DISK. Repeat it for several.
    #[arg(long, value_name = "COMMAND")]
    modify: Vec<String>,
    /// Write this into the manifest. Repeat it for several.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Go on where an interrupted attempt stopped, and keep what is done if this one is interrupted.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Sorts of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum From {
    /// A file whose bytes are the disk's.
    Raw,
    /// A block device that nobody writes to.
    Device,
    /// A VHDX with its parents.
    Vhdx,
    /// A clone of the store, by path, name or identity, as it is now.
    Clone,
    /// A directory, which becomes an ext4 file system (needs mke2fs).
    Directory,
}

/// Make an image and seal it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk image create app db.img --store images\n  \
    diffdisk image create app prod.vhdx --store images --modify './mask.sh \"$1\"'\n  \
    pg_basebackup ... | diffdisk image create app - --store images")]
pub struct CreateArgs {
    /// The image's name.
    name: String,
    /// A file, device or directory; `-` is standard input.
    source: PathBuf,
    #[command(flatten)]
    make: MakeArgs,
    #[command(flatten)]
    store: StoreArgs,
}

/// Add a generation to an image.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  diffdisk image refresh app --store images && diffdisk clone reset alice --to latest --store images\n  \
    diffdisk image refresh app alice --from clone --store images"
)]
pub struct RefreshArgs {
    /// The image's name.
    name: String,
    /// A file, device or directory; `-` is standard input. Default: where the last generation came from.
    source: Option<PathBuf>,
    #[command(flatten)]
    make: MakeArgs,
    #[command(flatten)]
    store: StoreArgs,
}

/// List images and their generations.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk image list --store images")]
pub struct ListArgs {
    /// Only this one.
    name: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Show what an image holds, where it came from, and its clones.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk image show app@3 --store images\n  diffdisk image disable app --store images")]
pub struct OneArgs {
    /// `NAME`, `NAME@latest` or `NAME@NUMBER`.
    image: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Compare an image with what was sealed: structure and the digest of every block.
///
/// The exit code is 6 when it differs, and the message names the first bad block.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk image verify app --store images")]
pub struct VerifyArgs {
    /// `NAME`, `NAME@latest` or `NAME@NUMBER`.
    image: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Examine an image's file and hold it against its manifest, without reading its content; exit code 6 when there are errors.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk image check app --store images")]
pub struct CheckArgs {
    /// `NAME`, `NAME@latest` or `NAME@NUMBER`.
    image: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Give an image another name. Its clones keep working.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk image rename app shop --store images")]
pub struct RenameArgs {
    /// The image.
    name: String,
    /// Its new name.
    new_name: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Remove one generation. Refused while it has clones.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk image remove app@1 --store images")]
pub struct RemoveArgs {
    /// `NAME@NUMBER`; `NAME` if it has one generation.
    image: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Remove old generations that have no clones.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk image prune app --keep 2 --unused --store images")]
pub struct PruneArgs {
    /// Only of this image.
    name: Option<String>,
    /// How many of the newest generations stay in any case.
    #[arg(long, value_name = "N")]
    keep: usize,
    /// Only those without clones. Others are never removed; the word is there so that a script says what it means.
    #[arg(long)]
    unused: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// Clear away what crashed processes left, and forget clones that are gone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk image sweep --store images")]
pub struct SweepArgs {
    #[command(flatten)]
    store: StoreArgs,
}

impl ImageVerb {
    /// Runs the verb.
    pub fn run(&self, ctx: &Context) -> Result<(), CliError> {
        match self {
            Self::Create(args) => create(args, ctx),
            Self::Refresh(args) => refresh(args, ctx),
            Self::List(args) => list(args, ctx),
            Self::Show(args) => show(&args.store.open()?.image(&args.image)?, ctx),
            Self::Verify(args) => verify(args, ctx),
            Self::Check(args) => {
                let image = args.store.open()?.image(&args.image)?;
                let (bar, cancel) = ctx.watch()?;
                let report = image.check(&bar, &cancel)?;
                drop(bar);
                books::answer("reference", &image.reference(), &report, ctx)
            }
            Self::Rename(args) => rename(args, ctx),
            Self::Disable(args) => set_enabled(args, false, ctx),
            Self::Enable(args) => set_enabled(args, true, ctx),
            Self::Remove(args) => remove(args, ctx),
            Self::Prune(args) => prune(args, ctx),
            Self::Sweep(args) => sweep(args, ctx),
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl MakeArgs {
    fn options(&self) -> ImageOptions {
        let mut options = ImageOptions::default().resume(self.resume);
        if let Some(size) = self.size {
            options = options.size(size);
        }
        if let Some(bytes) = self.block_size {
            options = options.block_size(bytes);
        }
        if let Some(bytes) = self.sector {
            options = options.logical_sector(bytes);
        }
        options = self.label.iter().fold(options, |options, (key, value)| options.label(key, value));
        self.modify.iter().fold(options, |options, command| options.modify(Step::shell(command)))
    }

    fn source(&self, path: &Path, store: &Store) -> Result<Source, CliError> {
        if path.as_os_str() == "-" {
            return match self.from {
                None | Some(From::Raw) => Ok(Source::stdin()),
                Some(_) => Err(CliError::usage("standard input is a raw stream; --from cannot make it anything else")),
            };
        }
        let by_extension = || if Format::of(path) == Format::Vhdx { From::Vhdx } else { From::Raw };
        Ok(match self.from.unwrap_or_else(by_extension) {
            From::Raw => Source::raw(path),
            From::Device => Source::block_device(path),
            From::Vhdx => Source::vhdx_with_parents(path, self.parents.policy()),
            From::Clone => Source::clone_of(&store.find_clone(&path.to_string_lossy())?)?,
            From::Directory => match self.size {
                Some(size) => Source::directory_sized(path, size),
                None => Source::directory(path),
            },
        })
    }
}

fn create(args: &CreateArgs, ctx: &Context) -> Result<(), CliError> {
    let store = args.store.begin()?;
    let source = args.make.source(&args.source, &store)?;
    let (bar, cancel) = ctx.watch()?;
    let image = store.create_image(&args.name, source, &args.make.options(), &bar, &cancel)?;
    drop(bar);
    show(&image, ctx)
}

fn refresh(args: &RefreshArgs, ctx: &Context) -> Result<(), CliError> {
    let store = args.store.open()?;
    let source = args.source.as_deref().map(|path| args.make.source(path, &store)).transpose()?;
    let (bar, cancel) = ctx.watch()?;
    let image = store.refresh_image(&args.name, source, &args.make.options(), &bar, &cancel)?;
    drop(bar);
    show(&image, ctx)
}

/// The manifest with what is known beside it.
fn answer(image: &Image) -> Result<Value, CliError> {
    let mut answer = serde_json::to_value(image.manifest()).expect("a manifest has string keys");
    answer["name"] = json!(image.name());
    answer["reference"] = json!(image.reference());
    answer["path"] = json!(image.path().to_string_lossy());
    answer["enabled"] = json!(image.is_enabled()?);
    Ok(answer)
}

fn show(image: &Image, ctx: &Context) -> Result<(), CliError> {
    let clones: Vec<String> = image.clones()?.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let mut value = answer(image)?;
    value["clones"] = json!(clones);
    let manifest = image.manifest();
    ctx.emit(&value, |out| {
        writeln!(out, "image           {}{}", image.reference(), if value["enabled"] == true { "" } else { " (disabled)" })?;
        writeln!(out, "disk            {}", image.path().display())?;
        writeln!(out, "virtual size    {} ({} bytes)", human(manifest.virtual_size), manifest.virtual_size)?;
        writeln!(out, "allocated       {}", human(manifest.allocated))?;
        writeln!(out, "data write guid {}", manifest.data_write_guid)?;
        writeln!(out, "digest          {} ({} blocks of {})", manifest.digest, manifest.data_blocks, human(manifest.block_size))?;
        writeln!(out, "sealed          {} by {}", manifest.sealed, manifest.created_by)?;
        let from = manifest.source.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        writeln!(out, "source          {} {from}", manifest.source.kind)?;
        for step in &manifest.modified_by {
            writeln!(out, "modified by     {} ({} ms)", step.step, step.milliseconds)?;
        }
        for (key, value) in &manifest.labels {
            writeln!(out, "label           {key}={value}")?;
        }
        clones.iter().try_for_each(|clone| writeln!(out, "clone           {clone}"))
    })
}

fn list(args: &ListArgs, ctx: &Context) -> Result<(), CliError> {
    let store = args.store.open()?;
    let catalog = store.images()?;
    let images: Vec<&Image> = catalog.images.iter().filter(|i| args.name.as_deref().is_none_or(|name| name == i.name())).collect();
    if let (Some(name), true) = (&args.name, images.is_empty()) {
        return Err(store.image(name).map(drop).err().map_or_else(|| CliError::usage("the image is gone"), CliError::from));
    }
    let mut clones: HashMap<(String, u32), u64> = HashMap::new();
    for clone in store.clones()? {
        if let CloneBase::Image { name, generation } = clone.base {
            *clones.entry((name, generation)).or_default() += 1;
        }
    }
    let mut values = Vec::new();
    for image in &images {
        let mut value = answer(image)?;
        value["clones"] = json!(clones.get(&(image.name().to_owned(), image.generation())).unwrap_or(&0));
        values.push(value);
    }
    let problems: Vec<Value> =
        catalog.problems.iter().map(|problem| json!({ "path": problem.path.to_string_lossy(), "message": problem.what })).collect();
    ctx.emit(&json!({ "images": values, "problems": problems }), |out| {
        let mut rows = vec![table::row(["IMAGE", "SIZE", "ALLOCATED", "CLONES", "SEALED", "SOURCE", ""])];
        for (image, value) in images.iter().zip(&values) {
            let manifest = image.manifest();
            rows.push(vec![
                image.reference(),
                human(manifest.virtual_size),
                human(manifest.allocated),
                value["clones"].to_string(),
                manifest.sealed.to_string(),
                manifest.source.kind.clone(),
                if value["enabled"] == true { String::new() } else { "disabled".to_owned() },
            ]);
        }
        table::print(out, &rows)?;
        catalog.problems.iter().try_for_each(|problem| writeln!(out, "{}: {}", problem.path.display(), problem.what))
    })
}

fn verify(args: &VerifyArgs, ctx: &Context) -> Result<(), CliError> {
    let image = args.store.open()?.image(&args.image)?;
    let (bar, cancel) = ctx.watch()?;
    let verified = image.verify(&bar, &cancel)?;
    drop(bar);
    let value = json!({ "reference": image.reference(), "blocks": verified.blocks, "bytes": verified.bytes });
    ctx.emit(&value, |out| writeln!(out, "{} is what was sealed: {} blocks, {}", image.reference(), verified.blocks, human(verified.bytes)))
}

fn rename(args: &RenameArgs, ctx: &Context) -> Result<(), CliError> {
    let repaired = args.store.open()?.rename_image(&args.name, &args.new_name)?;
    let value = json!({ "name": args.new_name, "clones": repaired.iter().map(crate::clone::repaired).collect::<Vec<_>>() });
    ctx.emit(&value, |out| {
        writeln!(out, "{} is now {}", args.name, args.new_name)?;
        repaired.iter().filter_map(|one| Some((&one.clone, one.failed.as_ref()?))).try_for_each(|(clone, why)| {
            writeln!(out, "{}: other programs do not find its parent until `clone repair` ({why})", clone.display())
        })
    })
}

fn set_enabled(args: &OneArgs, enabled: bool, ctx: &Context) -> Result<(), CliError> {
    let store = args.store.open()?;
    // Without a generation all of them are meant: `latest` would be another one afterwards.
    let images = match args.image.split_once('@') {
        None => store.generations(&args.image)?,
        Some(_) => vec![store.image(&args.image)?],
    };
    for image in &images {
        image.set_enabled(enabled)?;
    }
    let references: Vec<String> = images.iter().map(Image::reference).collect();
    ctx.emit(&json!({ "images": references, "enabled": enabled }), |out| {
        writeln!(out, "{}: {}", references.join(", "), if enabled { "enabled" } else { "disabled" })
    })
}

fn remove(args: &RemoveArgs, ctx: &Context) -> Result<(), CliError> {
    let store = args.store.open()?;
    let image = match args.image.contains('@') {
        true => store.image(&args.image)?,
        false => {
            let mut generations = store.generations(&args.image)?;
            if generations.len() > 1 {
                let names: Vec<String> = generations.iter().map(Image::reference).collect();
                return Err(CliError::usage(format!("say which generation: {}", names.join(", "))));
            }
            generations.remove(0)
        }
    };
    image.remove()?;
    ctx.emit(&json!({ "removed": [image.reference()], "kept": [] }), |out| writeln!(out, "removed {}", image.reference()))
}

fn prune(args: &PruneArgs, ctx: &Context) -> Result<(), CliError> {
    let pruned = args.store.open()?.prune_images(args.name.as_deref(), args.keep)?;
    crate::clone::report_pruned(&pruned, ctx)
}

fn sweep(args: &SweepArgs, ctx: &Context) -> Result<(), CliError> {
    let sweep = args.store.open()?.sweep()?;
    let swept: Vec<Value> = sweep.swept.iter().map(|s| json!({ "path": s.path.to_string_lossy(), "message": s.what })).collect();
    let problems: Vec<Value> = sweep.problems.iter().map(|p| json!({ "path": p.path.to_string_lossy(), "message": p.what })).collect();
    ctx.emit(&json!({ "swept": swept, "problems": problems }), |out| {
        sweep.swept.iter().try_for_each(|s| writeln!(out, "{}: {}", s.path.display(), s.what))?;
        sweep.problems.iter().try_for_each(|p| writeln!(out, "{}: {}", p.path.display(), p.what))?;
        if sweep.swept.is_empty() && sweep.problems.is_empty() { writeln!(out, "there was nothing to clear away") } else { Ok(()) }
    })
}
