//! What can go wrong with one file: using it, opening it, laying it down.

use crate::format::FormatError;
use crate::geometry::GeometryError;
use crate::kind::ErrorKind;
use crate::log::headers::HeaderError;
use crate::log::writer::LogError;
use crate::mapping::bat::MapError;
use crate::storage::StorageError;

/// A read, write, trim or flush failed.
///
/// ```
/// use diffdisk::{CreateOptions, Disk, ErrorKind};
/// # let dir = tempfile::tempdir()?;
/// let disk = Disk::create(dir.path().join("a.vhdx"), &CreateOptions::dynamic(1 << 30))?;
/// let error = disk.read_at(&mut [0; 512], 1 << 30).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The range does not lie inside the disk.
    #[error("bytes {offset}..+{len} do not lie inside the disk of {size} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// The virtual size.
        size: u64,
    },
    /// The disk was opened read-only.
    #[error("the disk was opened read-only")]
    ReadOnly,
    /// An earlier sync or metadata write failed, so nothing more is written: what the file holds is what the last successful
    /// flush left. Reads go on; reopening recovers.
    #[error("the disk is latched since an earlier failure: {cause}")]
    Latched {
        /// The failure that latched it.
        cause: Box<DiskError>,
    },
    /// The file contradicts MS-VHDX where the request needed it.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file cannot grow any further.
    #[error("the file would exceed {limit} bytes")]
    FileTooLarge {
        /// The largest file this engine writes.
        limit: u64,
    },
    /// The bytes are the parent's, and the disk was opened without its parents.
    #[error("these bytes belong to the parent, which was not opened")]
    ParentNotOpen,
    /// A host that does its own I/O asked for a range that is not made of whole sectors.
    #[error("bytes {offset}..+{len} are not whole sectors of {sector} bytes")]
    Misaligned {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// The logical sector size.
        sector: u32,
    },
}

impl DiskError {
    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange { .. } | Self::Misaligned { .. } => ErrorKind::InvalidInput,
            Self::ReadOnly | Self::ParentNotOpen => ErrorKind::Denied,
            Self::Latched { .. } => ErrorKind::Unavailable,
            Self::Format(e) => e.kind(),
            Self::Storage(e) => e.kind(),
            Self::FileTooLarge { .. } => ErrorKind::NoSpace,
        }
    }
}

impl From<MapError> for DiskError {
    fn from(e: MapError) -> Self {
        match e {
            MapError::Format(e) => Self::Format(*e),
            MapError::Storage(e) => Self::Storage(*e),
        }
    }
}

impl From<HeaderError> for DiskError {
    fn from(e: HeaderError) -> Self {
        match e {
            HeaderError::Format(e) => Self::Format(e),
            HeaderError::Storage(e) => Self::Storage(e),
        }
    }
}

impl From<LogError> for DiskError {
    fn from(e: LogError) -> Self {
        match e {
            LogError::Header(e) => e.into(),
            LogError::Storage(e) => Self::Storage(e),
        }
    }
}

/// One file could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<HeaderError> for LayerError {
    fn from(e: HeaderError) -> Self {
        match e {
            HeaderError::Format(e) => Self::Format(e),
            HeaderError::Storage(e) => Self::Storage(e),
        }
    }
}

/// A new file could not be laid down.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LayDownError {
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    #[error("{option} is {value}, {rule}")]
    Option { option: &'static str, value: u64, rule: &'static str },
    #[error("the storage for the new disk is not empty")]
    NotEmpty,
    #[error(transparent)]
    Storage(#[from] StorageError),
}
