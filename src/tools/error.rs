//! What can go wrong while working on whole disks.

use crate::chain::{CreateError, OpenError, RelinkError};
use crate::disk::error::DiskError;
use crate::kind::ErrorKind;
use crate::storage::StorageError;
use std::path::{Path, PathBuf};

/// A verb of the toolbox failed. Names the file; what was there before is still there unless the verb's documentation says otherwise.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// A disk, or the chain it stands on, cannot be opened.
    #[error("{}: {cause}", path.display())]
    Open {
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<OpenError>,
    },
    /// A new disk cannot be made.
    #[error("{}: {cause}", path.display())]
    Create {
        /// The new disk.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<CreateError>,
    },
    /// Reading or writing an open disk failed.
    #[error("{}: {cause}", path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        cause: DiskError,
    },
    /// A file failed.
    #[error("{}: {cause}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: StorageError,
    },
    /// A repair would have made something worse, so nothing was written.
    #[error("{}: nothing was repaired: {why}", path.display())]
    NotBetter {
        /// The disk.
        path: PathBuf,
        /// What would have been worse.
        why: &'static str,
    },
    /// A child's parent locator cannot be rewritten.
    #[error("{}: {cause}", path.display())]
    Relink {
        /// The child.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<RelinkError>,
    },
    /// The request makes no sense for this file.
    #[error("{}: {why}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// Other files stand on a file that would change, and could not be opened any more.
    #[error("{}: {} stand on it and would become unreadable: {}", path.display(), children.len(), names(children))]
    Children {
        /// The file.
        path: PathBuf,
        /// What stands on it, or on a layer between.
        children: Vec<PathBuf>,
    },
    /// Somebody asked for a stop.
    #[error("cancelled")]
    Cancelled,
}

impl ToolError {
    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { cause, .. } => cause.kind(),
            Self::Create { cause, .. } => cause.kind(),
            Self::Disk { cause, .. } => cause.kind(),
            Self::Storage { cause, .. } => cause.kind(),
            Self::NotBetter { .. } => ErrorKind::Damaged,
            Self::Relink { cause, .. } => cause.kind(),
            Self::Refused { .. } => ErrorKind::InvalidInput,
            Self::Children { .. } => ErrorKind::InUse,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// A request that makes no sense.
    pub(crate) fn refused(path: &Path, why: &'static str) -> Self {
        Self::Refused { path: path.to_owned(), why }
    }
}

/// A few of the names.
fn names(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 5;
    let mut text: Vec<String> = paths.iter().take(SHOWN).map(|path| path.display().to_string()).collect();
    if paths.len() > SHOWN {
        text.push(format!("and {} more", paths.len() - SHOWN));
    }
    text.join(", ")
}

/// Says which file an error is about.
pub(crate) trait About<T> {
    /// The same result, naming `path`.
    fn about(self, path: &Path) -> Result<T, ToolError>;
}

impl<T> About<T> for Result<T, OpenError> {
    fn about(self, path: &Path) -> Result<T, ToolError> {
        self.map_err(|cause| ToolError::Open { path: path.to_owned(), cause: Box::new(cause) })
    }
}

impl<T> About<T> for Result<T, CreateError> {
    fn about(self, path: &Path) -> Result<T, ToolError> {
        self.map_err(|cause| ToolError::Create { path: path.to_owned(), cause: Box::new(cause) })
    }
}

impl<T> About<T> for Result<T, DiskError> {
    fn about(self, path: &Path) -> Result<T, ToolError> {
        self.map_err(|cause| ToolError::Disk { path: path.to_owned(), cause })
    }
}

impl<T> About<T> for Result<T, StorageError> {
    fn about(self, path: &Path) -> Result<T, ToolError> {
        self.map_err(|cause| ToolError::Storage { path: path.to_owned(), cause })
    }
}
