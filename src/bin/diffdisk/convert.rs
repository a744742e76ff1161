//! `convert`: raw to VHDX, VHDX to raw, dynamic to fixed and back, chains to one file.
//!
//! Holes stay holes on both sides: what the source does not have is not read, and what turns out to be zeros is not written. The
//! destination is made under a temporary name and appears whole or not at all; Ctrl-C, a full disk or a crash leave what was there.

use crate::args::{Format, ParentsArgs, bytes, human, small_bytes};
use crate::buffer::{Buffer, is_zero};
use crate::context::{Context, Interrupt};
use crate::error::{About, CliError};
use crate::source::Source;
use diffdisk::storage::{DirVolume, FileStorage, Storage, create_atomically, set_len, write_all};
use diffdisk::{CreateOptions, Disk};
use indicatif::ProgressBar;
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Zeros are looked for in units of this.
const GRAIN: usize = 4096;

/// Copy a disk into another format; a chain becomes one file.
///
/// What a file is follows from its extension (.vhdx and .avhdx are VHDX, everything else is raw) unless a format is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  diffdisk convert db.img app.vhdx\n  diffdisk convert alice.vhdx alice.img\n  \
    diffdisk convert /dev/vg0/db app.vhdx --from raw --to vhdx-fixed")]
pub struct ConvertArgs {
    /// What to copy.
    src: PathBuf,
    /// The new file.
    dst: PathBuf,
    /// What SRC is.
    #[arg(long, value_enum)]
    from: Option<Format>,
    /// What DST becomes.
    #[arg(long, value_enum)]
    to: Option<Target>,
    /// Payload block size of a new VHDX.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    block_size: Option<u64>,
    /// Logical sector size of a new VHDX; a VHDX source hands on its own.
    #[arg(long, value_name = "BYTES", value_parser = small_bytes)]
    sector: Option<u32>,
    /// Replace an existing file.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// What the destination becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// The bytes of the disk, sparse.
    Raw,
    /// A dynamic VHDX.
    Vhdx,
    /// A fixed VHDX.
    VhdxFixed,
}

impl Target {
    fn key(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::VhdxFixed => "vhdx-fixed",
        }
    }
}

/// One conversion.
struct Job<'a> {
    args: &'a ConvertArgs,
    to: Target,
    source: &'a Source,
    interrupt: &'a Interrupt,
    bar: &'a ProgressBar,
}

impl Job<'_> {
    /// Fills the new file; returns its virtual size and the bytes that were worth writing.
    fn fill(&self, file: &Arc<dyn Storage>) -> Result<(u64, u64), CliError> {
        let dst = &self.args.dst;
        if self.to == Target::Raw {
            set_len(&**file, self.source.size()).about(dst)?;
            let written = self.copy(|content, at| write_all(&**file, content, at).about(dst))?;
            return Ok((self.source.size(), written));
        }
        let disk = Disk::create_on(Arc::clone(file), &options(self.args, self.to, self.source)?).about(dst)?;
        let written = self.copy(|content, at| disk.write_at(content, at).about(dst))?;
        let size = disk.size();
        disk.close().about(dst)?;
        Ok((size, written))
    }

    fn copy(&self, mut put: impl FnMut(&[u8], u64) -> Result<(), CliError>) -> Result<u64, CliError> {
        let (mut buffer, mut written) = (Buffer::new(), 0);
        for chunk in self.source.chunks()? {
            self.interrupt.check()?;
            let (offset, len) = chunk?;
            let content = buffer.first(len);
            self.source.read(content, offset)?;
            for run in runs(content) {
                written += run.len() as u64;
                put(&content[run.clone()], offset + run.start as u64)?;
            }
            self.bar.set_position(offset + len as u64);
        }
        self.interrupt.check()?;
        Ok(written)
    }
}

/// Runs the verb.
pub fn run(args: &ConvertArgs, ctx: &Context) -> Result<(), CliError> {
    let from = args.from.unwrap_or_else(|| Format::of(&args.src));
    let to = args.to.unwrap_or_else(|| match Format::of(&args.dst) {
        Format::Raw => Target::Raw,
        Format::Vhdx => Target::Vhdx,
    });
    if to == Target::Raw && (args.block_size.is_some() || args.sector.is_some()) {
        return Err(CliError::usage("--block-size and --sector are for VHDX destinations, and this one is raw"));
    }
    let interrupt = ctx.interrupt()?;
    let source = Source::open(&args.src, from, &args.parents)?;
    let _replaced = args.force.then(|| may_replace(&args.dst, &source)).transpose()?;
    let (volume, name) = place(&args.dst)?;
    let bar = ctx.progress("converting", source.size());
    let job = Job { args, to, source: &source, interrupt, bar: &bar };
    let (file, (size, written)) =
        create_atomically(&volume, &name, args.force, true, |file| job.fill(file)).map_err(|e: CliError| naming(e, &args.dst))?;
    bar.finish_and_clear();
    let allocated = file.allocated().about(&args.dst)?;
    let answer = json!({
        "source": args.src.to_string_lossy(),
        "destination": args.dst.to_string_lossy(),
        "from": from.key(),
        "to": to.key(),
        "source_size": source.size(),
        "virtual_size": size,
        "written": written,
        "allocated": allocated,
    });
    ctx.emit(&answer, |out| {
        let (kind, held) = (to.key(), human(allocated));
        writeln!(out, "{}: {kind}, {}, {} copied, {held} allocated", args.dst.display(), human(size), human(written))
    })
}

/// Errors of the atomic creation itself do not name the file yet.
fn naming(e: CliError, dst: &Path) -> CliError {
    if e.to_string().starts_with(&*dst.to_string_lossy()) { e } else { e.about(dst) }
}

/// What the new VHDX is like. The size of a raw source is rounded up to whole sectors; the rest is zeros.
fn options(args: &ConvertArgs, to: Target, source: &Source) -> Result<CreateOptions, CliError> {
    let info = source.disk().map(Disk::info).transpose().about(source.path())?;
    let sector = args.sector.or(info.as_ref().map(|info| info.logical_sector_size)).unwrap_or(512);
    let size = source.size().checked_next_multiple_of(u64::from(sector.max(1))).unwrap_or(source.size());
    let mut options = if to == Target::VhdxFixed { CreateOptions::fixed(size) } else { CreateOptions::dynamic(size) };
    options = options.logical_sector(sector);
    if let Some(info) = &info {
        options = options.physical_sector(info.physical_sector_size);
    }
    if let Some(bytes) = args.block_size {
        options = options.block_size(bytes);
    }
    Ok(options)
}

/// Whether the existing destination may be replaced: a regular file that nobody uses and that is no part of the source. Returns
/// the lock on it.
fn may_replace(dst: &Path, source: &Source) -> Result<Option<FileStorage>, CliError> {
    let metadata = match std::fs::symlink_metadata(dst) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).about(dst),
    };
    if !metadata.is_file() {
        return Err(CliError::usage("it is not a regular file, so it is not replaced").about(dst));
    }
    match FileStorage::open_write(dst) {
        Ok(lock) => Ok(Some(lock)),
        // The source holds a shared lock on each of its files.
        Err(e) => Err(e).about(dst).map_err(|e| if is_part(dst, source) { part_of_source(dst) } else { e }),
    }
}

fn part_of_source(dst: &Path) -> CliError {
    CliError::usage("it is part of the source, so it is not replaced").about(dst)
}

fn is_part(dst: &Path, source: &Source) -> bool {
    let same = |path: &Path| matches!((path.canonicalize(), dst.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let chain = source.disk().and_then(|disk| disk.info().ok()).map(|info| info.chain).unwrap_or_default();
    same(source.path()) || chain.iter().filter_map(|layer| layer.path.as_deref()).any(same)
}

/// The directory that the new file goes to, and its name there.
fn place(dst: &Path) -> Result<(DirVolume, String), CliError> {
    let name = dst.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| CliError::usage("it has no file name, or one that is not Unicode").about(dst))?;
    let dir = match dst.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    Ok((DirVolume::open(dir).about(dir)?, name.to_owned()))
}

/// The stretches of `content` that are worth writing.
fn runs(content: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (grain, start) in content.chunks(GRAIN).zip((0..).step_by(GRAIN)) {
        if is_zero(grain) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == start => run.end += grain.len(),
            _ => runs.push(start..start + grain.len()),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_split_runs() {
        let mut content = vec![0; 4 * GRAIN + 10];
        assert!(runs(&content).is_empty());
        content[GRAIN + 5] = 1;
        content[2 * GRAIN] = 1;
        content[4 * GRAIN + 9] = 1;
        assert_eq!(runs(&content), [GRAIN..3 * GRAIN, 4 * GRAIN..4 * GRAIN + 10]);
    }
}
