//! Why a server does not start, or did not stop cleanly.

use crate::kind::ErrorKind;
use std::io;
use std::path::PathBuf;

/// A server cannot start, or its last flush failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// Nothing to serve.
    #[error("there is no export to serve")]
    NoExport,
    /// Nowhere to listen.
    #[error("there is no address to listen at")]
    NoAddress,
    /// Two exports of one name.
    #[error("two exports are called \"{0}\"")]
    DuplicateExport(String),
    /// A name or description that the protocol cannot carry.
    #[error("the name or description of an export is longer than 4096 bytes or contains a NUL")]
    BadName,
    /// Another server listens at this path.
    #[error("{}: another server is listening there", .0.display())]
    InUse(PathBuf),
    /// The path of the socket is taken by something that is no socket.
    #[error("{}: a file of this name exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The address can be reached from other machines, and the protocol has no passwords.
    #[error("{0}: anybody who reaches this address could read and write the disk; listen on a loopback address or allow remote clients")]
    RemoteRefused(String),
    /// The operating system refuses.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done, and to which address.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The last flush failed: writes that clients saw acknowledged, but never flushed, may be lost.
    #[error("the last flush of export \"{export}\" failed: {source}")]
    Flush {
        /// Name of the export.
        export: String,
        /// What the device said.
        source: io::Error,
    },
}

impl NbdError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// What sort of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoExport | Self::NoAddress | Self::DuplicateExport(_) | Self::BadName => ErrorKind::InvalidInput,
            Self::InUse(_) => ErrorKind::InUse,
            Self::NotASocket(_) => ErrorKind::AlreadyExists,
            Self::RemoteRefused(_) => ErrorKind::Denied,
            Self::Io { source, .. } | Self::Flush { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                io::ErrorKind::AddrInUse => ErrorKind::InUse,
                io::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                _ => ErrorKind::Io,
            },
        }
    }
}
