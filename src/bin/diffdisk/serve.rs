//! `diffdisk serve`: a disk over NBD, until somebody presses Ctrl-C.

use diffdisk::export::nbd::{Export, NbdError, NbdServer, NbdStopper};
use diffdisk::{Disk, DiskError, ErrorKind, OpenError, OpenOptions, ParentPolicy};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// Serves a disk over NBD until Ctrl-C or SIGTERM, then flushes and closes it.
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
    /// How many clients may be connected at once.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_connections: usize,
}

/// Why a disk was not served, or not to a good end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The disk cannot be opened.
    #[error("{}: {source}", .file.display())]
    Open {
        /// Which.
        file: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The server cannot start, or its last flush failed.
    #[error(transparent)]
    Server(#[from] NbdError),
    /// The disk was served and flushed, but could not be closed cleanly.
    #[error("{}: cannot close it cleanly: {source}", .file.display())]
    Close {
        /// Which.
        file: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// Nobody could be told where the disk is.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl ServeError {
    /// What sort of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { source, .. } => source.kind(),
            Self::Server(e) => e.kind(),
            Self::Close { source, .. } => source.kind(),
            Self::Output(_) => ErrorKind::Io,
        }
    }
}

/// Serves until stopped. `when_interrupted` gets the means to stop: it is for the handler of Ctrl-C. Where the disk is to be had
/// is printed as soon as clients can connect: one URI per line, or one JSON object `{file, size, read_only, export, uris}`.
///
/// # Errors
/// The disk cannot be opened or closed, an address cannot be listened at, the last flush failed.
pub fn run(
    args: &ServeArgs,
    parents: ParentPolicy,
    json: bool,
    out: &mut dyn Write,
    when_interrupted: impl FnOnce(NbdStopper),
) -> Result<(), ServeError> {
    let options = OpenOptions::new().writable(!args.read_only).parents(parents);
    let disk = Disk::open(&args.file, &options).map_err(|source| ServeError::Open { file: args.file.clone(), source })?;
    let disk = Arc::new(disk);
    let about = args.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut server = NbdServer::new()
        .export(Export::new(&args.name, disk.clone()).description(about))
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
    when_interrupted(running.stopper());
    let uris: Vec<String> = running.addresses().iter().map(|address| address.uri(&args.name)).collect();
    if json {
        let told = serde_json::json!({
            "file": args.file.to_string_lossy(),
            "size": disk.size(),
            "read_only": args.read_only,
            "export": args.name,
            "uris": uris,
        });
        writeln!(out, "{told}")?;
    } else {
        uris.iter().try_for_each(|uri| writeln!(out, "{uri}"))?;
    }
    out.flush()?;
    running.wait()?;
    let disk = Arc::into_inner(disk).expect("a stopped server holds no disk");
    if args.read_only {
        return Ok(());
    }
    disk.close().map_err(|source| ServeError::Close { file: args.file.clone(), source })
}
