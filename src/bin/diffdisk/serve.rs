//! `diffdisk serve`: a disk over NBD, until somebody presses Ctrl-C.

use crate::args::ParentsArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::served::Served;
use diffdisk::export::nbd::{Export, NbdError, NbdServer};
use serde::Serialize;
use std::path::PathBuf;

/// Serves a disk over NBD until Ctrl-C or SIGTERM, then flushes and closes it. A clone of a store can be saved meanwhile with `clone save`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk serve alice.vhdx --nbd unix:/run/alice.sock\n         \
    nbdinfo --map 'nbd+unix:///?socket=/run/alice.sock'")]
pub struct ServeArgs {
    /// The disk. Its parents are opened with it and never written.
    file: PathBuf,
    /// Where to listen: a unix socket (made with mode 0600) or a TCP address. Repeat it for several.
    #[arg(long, value_name = "unix:PATH|HOST:PORT", required = true)]
    nbd: Vec<String>,
    /// Refuse every change; the file is not even opened for writing.
    #[arg(long)]
    read_only: bool,
    /// Name of the export. Without it the disk is the default export.
    #[arg(long, value_name = "EXPORT", default_value = "")]
    name: String,
    /// Allow TCP addresses that other machines can reach. Whoever reaches them reads and writes the disk.
    #[arg(long)]
    allow_remote: bool,
    #[command(flatten)]
    parents: ParentsArgs,
    /// How many clients may be connected at once.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_connections: usize,
}

/// The keys are documented in `docs/json.md`.
#[derive(Serialize)]
struct Answer {
    file: String,
    size: u64,
    read_only: bool,
    export: String,
    uris: Vec<String>,
    /// Whether `clone save` works meanwhile.
    can_be_saved: bool,
}

impl From<NbdError> for CliError {
    fn from(e: NbdError) -> Self {
        Self::new(e.kind(), e.to_string())
    }
}

/// Serves until stopped. Where the disk is to be had is printed as soon as clients can connect.
pub fn run(args: &ServeArgs, ctx: &Context) -> Result<(), CliError> {
    let served = Served::open(&args.file, args.read_only, &args.parents)?;
    let about = args.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut server = NbdServer::new()
        .export(Export::new(&args.name, served.device()).description(about))
        .allow_remote(args.allow_remote)
        .max_connections(args.max_connections);
    for address in &args.nbd {
        server = match address.strip_prefix("unix:") {
            #[cfg(unix)]
            Some(path) => server.unix(path),
            _ => server.tcp(address),
        };
    }
    let running = server.spawn()?;
    let stopper = running.stopper();
    ctrlc::set_handler(move || stopper.request())
        .map_err(|e| CliError::new(diffdisk::ErrorKind::Io, format!("cannot catch Ctrl-C: {e}")))?;
    #[cfg(unix)]
    let control = served.control();
    let answer = Answer {
        file: args.file.display().to_string(),
        size: served.device().size(),
        read_only: args.read_only,
        export: args.name.clone(),
        #[cfg(unix)]
        can_be_saved: control.is_some(),
        #[cfg(not(unix))]
        can_be_saved: false,
        uris: running.addresses().iter().map(|address| address.uri(&args.name)).collect(),
    };
    ctx.emit(&answer, |out| answer.uris.iter().try_for_each(|uri| writeln!(out, "{uri}")))?;
    ctx.flush()?;
    #[cfg(unix)]
    served.answering(control.as_ref(), || running.wait())?;
    #[cfg(not(unix))]
    running.wait()?;
    served.close(&args.file)
}
