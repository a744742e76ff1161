//! What can go wrong between the engine and the bytes.

use crate::kind::ErrorKind;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Which call of a [`Storage`](super::Storage) failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Opening the file.
    Open,
    /// Taking the lock.
    Lock,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Asking for the length.
    Len,
    /// Setting the length.
    SetLen,
    /// Making writes durable.
    Sync,
    /// Punching a hole.
    Punch,
    /// Looking for data behind a hole.
    Seek,
    /// Giving a file its name.
    Rename,
    /// Removing a file.
    Remove,
    /// Mapping a file into memory.
    Map,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Lock => "lock",
            Self::Read => "read",
            Self::Write => "write",
            Self::Len => "get length",
            Self::SetLen => "set length",
            Self::Sync => "sync",
            Self::Punch => "punch hole",
            Self::Seek => "seek data",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Map => "map",
        })
    }
}

/// A storage call failed: which one, where, and what the system said.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {operation} at {at:#x}: {source}")]
pub struct StorageError {
    /// The call.
    pub operation: Operation,
    /// The byte of the file it was about (for [`Operation::SetLen`] the new length).
    pub at: u64,
    /// What the system said. Shared, because io errors cannot be cloned and errors here can.
    pub source: Arc<io::Error>,
}

impl StorageError {
    /// Wraps what the system said.
    pub fn new(operation: Operation, at: u64, source: io::Error) -> Self {
        Self { operation, at, source: Arc::new(source) }
    }

    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        io_kind(&self.source)
    }
}

/// Maps what the system said to the coarse sort of failure.
pub(crate) fn io_kind(e: &io::Error) -> ErrorKind {
    match e.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorKind::NoSpace,
        io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy | io::ErrorKind::ExecutableFileBusy => ErrorKind::InUse,
        io::ErrorKind::UnexpectedEof => ErrorKind::Damaged,
        io::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
        io::ErrorKind::NotConnected
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::StaleNetworkFileHandle
        | io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown => ErrorKind::Unavailable,
        _ => ErrorKind::Io,
    }
}
