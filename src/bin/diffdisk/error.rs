//! The one error of the command line: what sort of thing went wrong, and one sentence for a person.

use diffdisk::storage::{Operation, StorageError};
use diffdisk::{ChainError, CreateError, DiskError, ErrorKind, OpenError, RelinkError, StoreError, ToolError};
use std::fmt;
use std::io;
use std::path::Path;

/// A verb did not do what it was asked.
#[derive(Debug)]
pub enum CliError {
    /// Something went wrong.
    Failed {
        /// What sort of thing.
        kind: ErrorKind,
        /// One sentence: what, where, and what to do next.
        message: String,
    },
    /// The verb worked and has printed its answer, and the answer is "damaged" or "they differ".
    Answered,
}

impl CliError {
    /// An error in words.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Failed { kind, message: message.into() }
    }

    /// The arguments make no sense together.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// Ctrl-C.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled; nothing was left behind")
    }

    /// What sort of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Failed { kind, .. } => *kind,
            Self::Answered => ErrorKind::Damaged,
        }
    }

    /// The same with the name of the file that it is about, and what to do next where that is always the same.
    pub fn about(self, path: &Path) -> Self {
        match self {
            Self::Failed { kind: ErrorKind::Cancelled, .. } | Self::Answered => self,
            Self::Failed { kind, message } => Self::Failed { kind, message: format!("{}: {message}", path.display()) },
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { message, .. } => f.write_str(message),
            Self::Answered => f.write_str("see the report"),
        }
    }
}

impl std::error::Error for CliError {}

impl From<StorageError> for CliError {
    fn from(e: StorageError) -> Self {
        let kind = e.kind();
        let message = match (kind, e.operation) {
            (ErrorKind::InUse, _) => "in use by another process".to_owned(),
            (ErrorKind::AlreadyExists, _) => "the name is taken; --force replaces the file".to_owned(),
            (_, Operation::Open | Operation::Lock | Operation::Rename | Operation::Remove | Operation::Sync) => {
                format!("cannot {}: {}", e.operation, e.source)
            }
            _ => e.to_string(),
        };
        Self::new(kind, message)
    }
}

impl From<RelinkError> for CliError {
    fn from(e: RelinkError) -> Self {
        match e {
            RelinkError::Open(e) => e.into(),
            RelinkError::Parent(e) => {
                let inner = Self::from(*e);
                Self::new(inner.kind(), format!("parent: {inner}"))
            }
            RelinkError::Disk(e) => e.into(),
            e => Self::new(e.kind(), e.to_string()),
        }
    }
}

impl From<StoreError> for CliError {
    fn from(e: StoreError) -> Self {
        Self::new(e.kind(), e.to_string())
    }
}

impl From<ToolError> for CliError {
    fn from(e: ToolError) -> Self {
        match e {
            ToolError::Open { path, cause } => Self::from(*cause).about(&path),
            ToolError::Create { path, cause } => Self::from(*cause).about(&path),
            ToolError::Disk { path, cause } => Self::from(cause).about(&path),
            ToolError::Storage { path, cause } => Self::from(cause).about(&path),
            ToolError::Relink { path, cause } => Self::from(*cause).about(&path),
            ToolError::Cancelled => Self::cancelled(),
            e => Self::new(e.kind(), e.to_string()),
        }
    }
}

impl From<ChainError> for CliError {
    fn from(e: ChainError) -> Self {
        Self::new(e.kind(), e.to_string())
    }
}

impl From<OpenError> for CliError {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Storage(e) => e.into(),
            e => Self::new(e.kind(), e.to_string()),
        }
    }
}

impl From<CreateError> for CliError {
    fn from(e: CreateError) -> Self {
        match e {
            CreateError::Storage(e) => e.into(),
            CreateError::Open(e) => e.into(),
            CreateError::Parent(e) => {
                let inner = Self::from(*e);
                Self::new(inner.kind(), format!("parent: {inner}"))
            }
            e => Self::new(e.kind(), e.to_string()),
        }
    }
}

impl From<DiskError> for CliError {
    fn from(e: DiskError) -> Self {
        match e {
            DiskError::Storage(e) => e.into(),
            e => Self::new(e.kind(), e.to_string()),
        }
    }
}

impl From<io::Error> for CliError {
    fn from(e: io::Error) -> Self {
        // The library's own mapping from what the system says; the call that failed is not known here.
        let message = e.to_string();
        Self::new(StorageError::new(Operation::Open, 0, e).kind(), message)
    }
}

/// Names the file in an error.
pub trait About<T> {
    /// Turns the error into a [`CliError`] about `path`.
    fn about(self, path: &Path) -> Result<T, CliError>;
}

impl<T, E: Into<CliError>> About<T> for Result<T, E> {
    fn about(self, path: &Path) -> Result<T, CliError> {
        self.map_err(|e| e.into().about(path))
    }
}
