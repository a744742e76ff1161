//! Why a disk, or the chain it stands on, cannot be opened or made.

use crate::disk::error::{DiskError, LayDownError, LayerError};
use crate::format::FormatError;
use crate::geometry::GeometryError;
use crate::guid::{DataWriteGuid, Guid};
use crate::kind::ErrorKind;
use crate::storage::StorageError;

/// A chain cannot be put together. Every variant says what an operator needs for the next step.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// None of the locator's paths leads to a file.
    #[error("the parent is not there (tried {}); {hint}", quoted(tried))]
    ParentMissing {
        /// The locator's paths, in the order in which they were tried.
        tried: Vec<String>,
        /// What to do next.
        hint: String,
    },
    /// The caller's policy does not allow to open what the locator names. Says nothing about whether it exists.
    #[error("the parent {path:?} may not be opened: {hint}", path = Plain(path))]
    Denied {
        /// The path as the locator has it.
        path: String,
        /// Why, and what would allow it.
        hint: String,
    },
    /// A parent is where it is allowed to be, and the system refuses to open it: somebody is writing it, or an I/O error.
    #[error("cannot open the parent {path:?}: {source}", path = Plain(path))]
    ParentUnreadable {
        /// The path as the locator has it.
        path: String,
        /// What the system said.
        source: StorageError,
    },
    /// The locator has none of the three path keys.
    #[error("the parent locator names no path")]
    NoLocatorPath,
    /// Files are where the locator says, and none of them is the parent: its content changed, or it is another disk.
    #[error("the parent has changed or is another disk: the child wants data write GUID {expected}, found {}", guids(found))]
    LinkageMismatch {
        /// What the child's locator asks for.
        expected: Guid,
        /// The files that were looked at and the identity that each has.
        found: Vec<(String, DataWriteGuid)>,
    },
    /// The linkage is missing or all zero, or the parent's identity is: nothing could prove that the two belong together.
    #[error("the child or its parent has no identity (the data write GUID is zero), so nothing proves that they belong together")]
    ZeroLinkage,
    /// The chain comes back to a file that is already in it.
    #[error("the chain comes back to itself: layer {at} is already part of it")]
    Cycle {
        /// The layer (0 is the leaf) that was met a second time.
        at: usize,
    },
    /// The chain is longer than this implementation follows.
    #[error("the chain has more than {limit} layers")]
    TooDeep {
        /// The longest chain that is followed.
        limit: usize,
    },
    /// Logical sector sizes must be equal along a chain (MS-VHDX 2.6.2.4).
    #[error("layer {layer} has logical sectors of {parent} bytes and its child of {child} bytes; they must be equal")]
    SectorSize {
        /// The child's size.
        child: u32,
        /// The parent's size.
        parent: u32,
        /// The parent's layer (0 is the leaf).
        layer: usize,
    },
}

impl ChainError {
    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::ParentMissing { .. } => ErrorKind::NotFound,
            Self::Denied { .. } => ErrorKind::Denied,
            Self::ParentUnreadable { source, .. } => source.kind(),
            Self::TooDeep { .. } => ErrorKind::Unsupported,
            Self::NoLocatorPath | Self::LinkageMismatch { .. } | Self::ZeroLinkage | Self::Cycle { .. } | Self::SectorSize { .. } => {
                ErrorKind::Damaged
            }
        }
    }
}

/// Opening a disk or one of its parents failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file contradicts MS-VHDX.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The storage failed, or somebody else holds the lock.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The chain does not fit together, or the parent policy forbids it.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The file has no log, so it cannot be changed safely.
    #[error("the file has no log (LogLength is 0), so it can only be opened read-only")]
    NoLog,
    /// The disk could not be examined as `untrusted` asks.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl OpenError {
    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Format(e) => e.kind(),
            Self::Storage(e) => e.kind(),
            Self::Chain(e) => e.kind(),
            Self::NoLog => ErrorKind::Unsupported,
            Self::Disk(e) => e.kind(),
        }
    }
}

/// Creating a disk failed; nothing is left under its name.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The sizes do not make a disk.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// An option is out of its range.
    #[error("{option} is {value}, {rule}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// The parent cannot be used.
    #[error("parent: {0}")]
    Parent(Box<OpenError>),
    /// The parent's data write GUID is zero, so a child could never tell it from another.
    #[error("the parent has no identity (its DataWriteGuid is zero)")]
    ParentWithoutIdentity,
    /// No path from the child to the parent can be written down in a parent locator.
    #[error("the path to the parent cannot be stored: {0}")]
    ParentPath(&'static str),
    /// A storage that should be empty is not.
    #[error("the storage for the new disk is not empty")]
    NotEmpty,
    /// The storage failed, or the name is taken.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The new file could not be opened again.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl CreateError {
    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Geometry(_) | Self::Option { .. } | Self::ParentPath(_) => ErrorKind::InvalidInput,
            Self::Parent(e) => e.kind(),
            Self::ParentWithoutIdentity => ErrorKind::Unsupported,
            Self::NotEmpty => ErrorKind::AlreadyExists,
            Self::Storage(e) => e.kind(),
            Self::Open(e) => e.kind(),
        }
    }
}

impl From<LayerError> for OpenError {
    fn from(e: LayerError) -> Self {
        match e {
            LayerError::Format(e) => Self::Format(e),
            LayerError::Storage(e) => Self::Storage(e),
        }
    }
}

impl From<LayDownError> for CreateError {
    fn from(e: LayDownError) -> Self {
        match e {
            LayDownError::Geometry(e) => Self::Geometry(e),
            LayDownError::Option { option, value, rule } => Self::Option { option, value, rule },
            LayDownError::NotEmpty => Self::NotEmpty,
            LayDownError::Storage(e) => Self::Storage(e),
        }
    }
}

impl From<LayerError> for CreateError {
    fn from(e: LayerError) -> Self {
        Self::Open(e.into())
    }
}

/// Text from a file, in quotes: a hostile one must not send escape sequences to a terminal. Backslashes stay single, because
/// Windows paths are full of them.
pub(super) struct Plain<'a>(pub(super) &'a str);

impl std::fmt::Debug for Plain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Write;
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '\\' => f.write_char(c)?,
                c => write!(f, "{}", c.escape_debug())?,
            }
        }
        f.write_char('"')
    }
}

fn quoted(paths: &[String]) -> String {
    paths.iter().map(|path| format!("{:?}", Plain(path))).collect::<Vec<_>>().join(", ")
}

fn guids(found: &[(String, DataWriteGuid)]) -> String {
    found.iter().map(|(path, guid)| format!("{guid} in {:?}", Plain(path))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_both_guids_and_the_file() {
        let expected = Guid::from_u128(1);
        let error = ChainError::LinkageMismatch { expected, found: vec![(r".\p.vhdx".into(), DataWriteGuid::new(Guid::from_u128(2)))] };
        let text = error.to_string();
        assert!(text.contains(&expected.to_string()) && text.contains(&Guid::from_u128(2).to_string()), "{text}");
        assert!(text.contains(r#"".\p.vhdx""#), "{text}");
    }

    #[test]
    fn what_a_file_says_cannot_drive_a_terminal() {
        let error = ChainError::Denied { path: "\u{1b}[2Jx\n\u{202e}".into(), hint: "no".into() };
        assert_eq!(error.to_string(), r#"the parent "\u{1b}[2Jx\n\u{202e}" may not be opened: no"#);
    }
}
