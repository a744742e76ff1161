//! Telling a differencing disk where its parent is now.

use super::ParentPolicy;
use super::disk::Disk;
use super::error::{ChainError, CreateError, OpenError};
use super::gate::directory_of;
use super::options::OpenOptions;
use crate::disk::error::DiskError;
use crate::disk::relink::RelinkFault;
use crate::format::ParentLocator;
use crate::guid::Guid;
use crate::kind::ErrorKind;
use std::path::Path;

/// What must hold before a child is linked to another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkProof {
    /// The file has the identity that the child asks for: it is the parent, somewhere else.
    Required,
    /// Nothing: the child takes the file's identity for its parent's. If its content is not what the child was made over, what the child
    /// shows is garbage from then on. For people who know that an identity changed and the content did not.
    Waived,
}

/// A child cannot be linked to the file.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelinkError {
    /// The child has no parent.
    #[error("it is not a differencing disk, so it has no parent")]
    NotDifferencing,
    /// The child cannot be opened, or the file is not its parent.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The parent cannot be opened.
    #[error("parent: {0}")]
    Parent(Box<OpenError>),
    /// No path from the child to the parent can be written down in a parent locator.
    #[error("the path to the parent cannot be stored: {0}")]
    ParentPath(&'static str),
    /// The longer locator does not fit.
    #[error("the metadata region has no room for a locator of {needed} bytes")]
    NoRoom {
        /// What it would take.
        needed: u64,
    },
    /// Writing failed. The child has its old locator or the new one.
    #[error(transparent)]
    Disk(DiskError),
}

impl RelinkError {
    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotDifferencing | Self::ParentPath(_) => ErrorKind::InvalidInput,
            Self::Open(e) => e.kind(),
            Self::Parent(e) => e.kind(),
            Self::NoRoom { .. } => ErrorKind::Unsupported,
            Self::Disk(e) => e.kind(),
        }
    }
}

impl From<RelinkFault> for RelinkError {
    fn from(fault: RelinkFault) -> Self {
        match fault {
            RelinkFault::NoRoom { needed } => Self::NoRoom { needed },
            RelinkFault::Disk(e) => Self::Disk(e),
        }
    }
}

impl Disk {
    /// Writes into `child` where its parent is: the relative and the absolute path to `parent`. What the child shows does not change, and
    /// neither does its data write GUID, so its own children stay linked. The parent is not written.
    ///
    /// ```
    /// use diffdisk::{CreateOptions, Disk, LinkProof, OpenOptions};
    /// # let dir = tempfile::tempdir()?;
    /// # let path = |name: &str| dir.path().join(name);
    /// Disk::create(path("app.vhdx"), &CreateOptions::dynamic(1 << 30))?.close()?;
    /// Disk::create_child(path("alice.vhdx"), path("app.vhdx"), &CreateOptions::child())?.close()?;
    /// std::fs::rename(path("app.vhdx"), path("app-2026.vhdx"))?;
    /// assert!(Disk::open(path("alice.vhdx"), &OpenOptions::new()).is_err());
    /// Disk::relink(path("alice.vhdx"), path("app-2026.vhdx"), LinkProof::Required)?;
    /// Disk::open(path("alice.vhdx"), &OpenOptions::new())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `NotDifferencing`; `Open` with `LinkageMismatch`, which names both identities, when `parent` is not the parent and a proof is
    /// required, or with kind `InUse` while somebody has the child open; `Parent`; `ParentPath`; `NoRoom`; `Disk`.
    pub fn relink(child: impl AsRef<Path>, parent: impl AsRef<Path>, proof: LinkProof) -> Result<(), RelinkError> {
        let (child, parent) = (child.as_ref(), parent.as_ref());
        let alone = OpenOptions::new().parents(ParentPolicy::Deny);
        let parent_disk = Self::open(parent, &alone).map_err(|e| RelinkError::Parent(Box::new(e)))?;
        let (identity, sector) = (parent_disk.leaf.header.data_write, parent_disk.leaf.metadata.logical_sector);
        let parent_id = parent_disk.leaf.original.id();
        // Looked at first without a lock on writing, which a parent that is the child would refuse with a misleading reason.
        let seen = Self::open(child, &alone)?;
        let is_same = seen.leaf.original.id() == parent_id;
        drop((seen, parent_disk));
        if is_same {
            return Err(OpenError::Chain(ChainError::Cycle { at: 0 }).into());
        }
        let disk = Self::open(child, &alone.clone().writable(true))?;
        let old = disk.leaf.metadata.parent_locator.as_ref().ok_or(RelinkError::NotDifferencing)?;
        if identity.get().is_zero() {
            return Err(OpenError::Chain(ChainError::ZeroLinkage).into());
        }
        if !old.accepts(identity) && proof == LinkProof::Required {
            let expected = old.linkage().unwrap_or(Guid::ZERO);
            let found = vec![(parent.display().to_string(), identity)];
            return Err(OpenError::Chain(ChainError::LinkageMismatch { expected, found }).into());
        }
        if sector != disk.leaf.metadata.logical_sector {
            let child = disk.leaf.metadata.logical_sector;
            return Err(OpenError::Chain(ChainError::SectorSize { child, parent: sector, layer: 1 }).into());
        }
        let paths = super::open::locator(&directory_of(child), parent, identity).map_err(|e| match e {
            CreateError::ParentPath(why) => RelinkError::ParentPath(why),
            _ => RelinkError::ParentPath("the parent has no identity"),
        })?;
        let locator = if old.accepts(identity) { with_paths(old, &paths) } else { paths };
        disk.writer.as_ref().expect("it was opened for writing").rewrite_locator(&locator)?;
        Ok(())
    }
}

/// The old locator with other paths. What else it says stays.
fn with_paths(old: &ParentLocator, new: &ParentLocator) -> ParentLocator {
    let is_path = |key: &str| matches!(key, "relative_path" | "volume_path" | "absolute_win32_path");
    let kept = old.entries.iter().filter(|(key, _)| !is_path(key));
    let paths = new.entries.iter().filter(|(key, _)| is_path(key));
    ParentLocator { entries: kept.chain(paths).cloned().collect() }
}
