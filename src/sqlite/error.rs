//! What can go wrong between a database and its disk.

use crate::kind::ErrorKind;
use std::io;
use std::path::PathBuf;

/// Why a disk could not be used as a SQLite database.
///
/// What goes wrong later, inside a statement, comes as `rusqlite::Error`; [`last_error`](super::last_error) has the sentence behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqliteError {
    /// The disk holds something else. Writing a database over it would destroy that.
    #[error("{path}: the disk holds neither a SQLite database nor 64 KiB of zeros where one could start")]
    NotADatabase {
        /// The clone.
        path: PathBuf,
    },
    /// SQLite's magic, but a page size that cannot be.
    #[error("{path}: the database header says {page_size} bytes a page, which is not a power of two from 512 to 65536")]
    BadPageSize {
        /// The clone.
        path: PathBuf,
        /// As stored.
        page_size: u16,
    },
    /// The header was last written by SQLite before 3.7.0.
    #[error(
        "{path}: the database header has no valid page count (written by SQLite before 3.7.0); run VACUUM on it with a newer SQLite first"
    )]
    NoPageCount {
        /// The clone.
        path: PathBuf,
    },
    /// SQLite names files in UTF-8.
    #[error("{path:?}: SQLite takes only paths in UTF-8")]
    PathNotUtf8 {
        /// The clone.
        path: PathBuf,
    },
    /// One volume for a clone at a time, because it holds the locks of all its connections.
    #[error("{path}: already in use as a SQLite volume in this process; connect to that one")]
    InUse {
        /// The clone.
        path: PathBuf,
    },
    /// The operating system's word on a file beside the clone.
    #[error("{path}: {source}")]
    Beside {
        /// The clone, or its journal.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The disk failed while its header was read or prepared.
    #[error("{path}: {message}")]
    Disk {
        /// The clone.
        path: PathBuf,
        /// What sort of failure.
        kind: ErrorKind,
        /// The disk's error.
        message: String,
    },
    /// SQLite would not take our VFS.
    #[error("SQLite did not register the diffdisk VFS: {message}")]
    Register {
        /// SQLite's reason.
        message: String,
    },
    /// SQLite's own error while opening.
    #[error("{path}: {source}")]
    Sqlite {
        /// The clone.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
}

impl SqliteError {
    /// What sort of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotADatabase { .. } | Self::PathNotUtf8 { .. } => ErrorKind::InvalidInput,
            Self::BadPageSize { .. } => ErrorKind::Damaged,
            Self::NoPageCount { .. } => ErrorKind::Unsupported,
            Self::InUse { .. } => ErrorKind::InUse,
            Self::Beside { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                _ => ErrorKind::Io,
            },
            Self::Disk { kind, .. } => *kind,
            Self::Register { .. } => ErrorKind::Unavailable,
            Self::Sqlite { source, .. } => match source.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => ErrorKind::InUse,
                Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => ErrorKind::Damaged,
                Some(rusqlite::ErrorCode::DiskFull) => ErrorKind::NoSpace,
                Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::PermissionDenied) => ErrorKind::Denied,
                _ => ErrorKind::Io,
            },
        }
    }
}
