//! `diffdisk mount`: a disk as a file, until it is unmounted.

use crate::args::ParentsArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::served::Served;
use diffdisk::ErrorKind;
use diffdisk::export::fuse::{FuseError, FuseMount};
use serde::Serialize;
use std::ffi::OsString;
use std::path::PathBuf;

/// Shows a disk as a raw file through FUSE until it is unmounted or Ctrl-C, then flushes and closes it. A clone of a store can be saved meanwhile
/// with `clone save`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: mkdir -p mnt && diffdisk mount alice.vhdx --fuse mnt &\n         \
    sudo losetup -fP --show mnt/alice.img        # partitions and file systems in it\n         \
    umount mnt                                   # or fusermount3 -u mnt")]
pub struct MountArgs {
    /// The disk. Its parents are opened with it and never written.
    file: PathBuf,
    /// Where: a directory, in which NAME.img appears, or a regular file, in whose place the disk is.
    #[arg(long, value_name = "PATH", required = true)]
    fuse: PathBuf,
    /// Refuse every change; the file is not even opened for writing.
    #[arg(long)]
    read_only: bool,
    /// Let root and others look at the mount too, as far as its mode 0600 allows. Not for root this needs `user_allow_other` in /etc/fuse.conf.
    #[arg(long)]
    allow_other: bool,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// The keys are documented in `docs/json.md`.
#[derive(Serialize)]
struct Answer {
    file: String,
    size: u64,
    read_only: bool,
    /// The raw file.
    mounted: String,
    /// Whether `clone save` works meanwhile.
    can_be_saved: bool,
}

impl From<FuseError> for CliError {
    fn from(e: FuseError) -> Self {
        Self::new(e.kind(), e.to_string())
    }
}

/// Mounts and serves until unmounted. The path of the raw file is printed as soon as it is there.
pub fn run(args: &MountArgs, ctx: &Context) -> Result<(), CliError> {
    let served = Served::open(&args.file, args.read_only, &args.parents)?;
    let mut name = args.file.file_stem().map_or_else(|| OsString::from("disk"), OsString::from);
    name.push(".img");
    let mounted = FuseMount::new(served.device()).name(name).allow_other(args.allow_other).mount(&args.fuse)?;
    let stopper = mounted.stopper();
    ctrlc::set_handler(move || {
        if let Err(e) = stopper.unmount() {
            eprintln!("diffdisk: {e}; close it and try again");
        }
    })
    .map_err(|e| CliError::new(ErrorKind::Io, format!("cannot catch Ctrl-C: {e}")))?;
    let control = served.control();
    let answer = Answer {
        file: args.file.display().to_string(),
        size: served.device().size(),
        read_only: args.read_only,
        mounted: mounted.file().display().to_string(),
        can_be_saved: control.is_some(),
    };
    ctx.emit(&answer, |out| writeln!(out, "{}", answer.mounted))?;
    ctx.flush()?;
    let ended = served.answering(control.as_ref(), || mounted.serve());
    // Closed in any case: what was written is made durable even when the connection broke.
    served.close(&args.file)?;
    Ok(ended?)
}
