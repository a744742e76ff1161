//! Telling a differencing disk where its parent is now.

use super::ParentPolicy;
use super::disk::Disk;
use super::error::{ChainError, CreateError, OpenError};
use super::gate::directory_of;
use super::options::OpenOptions;
use crate::disk::error::DiskError;
use crate::disk::items::{ItemChange, ItemFault};
use crate::format::ParentLocator;
use crate::guid::{DataWriteGuid, Guid};
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

impl From<ItemFault> for RelinkError {
    fn from(fault: ItemFault) -> Self {
        match fault {
            ItemFault::NoRoom { needed } => Self::NoRoom { needed },
            ItemFault::Disk(e) => Self::Disk(e),
        }
    }
}

impl Disk {
    /// Writes into `child` where its parent is: the relative and the absolute path to `parent`. What the child shows does not change, and
    /// neither does its data write GUID, so its own children stay linked. The parent is not written.
    ///
    /// ```
    /// use diffdisk::{CreateOptions, Disk, LinkProof, OpenOptions};
    /// use std::fs;
    /// # let dir = tempfile::tempdir()?;
    /// # let path = |name: &str| dir.path().join(name);
    /// Disk::create(path("app.vhdx"), &CreateOptions::dynamic(1 << 30))?.close()?;
    /// Disk::create_child(path("alice.vhdx"), path("app.vhdx"), &CreateOptions::child())?.close()?;
    /// fs::rename(path("app.vhdx"), path("app-2026.vhdx"))?;
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
        let paths = paths(child, parent, identity)?;
        let locator = if old.accepts(identity) { with_paths(old, &paths) } else { paths };
        disk.write_locator(&locator)
    }

    /// The locator of a child at `child` whose parent is the open disk at `parent`.
    pub(crate) fn locator_to(child: &Path, parent: &Path, parent_disk: &Self) -> Result<ParentLocator, RelinkError> {
        paths(child, parent, parent_disk.leaf.header.data_write)
    }

    /// Puts another locator in place of the disk's own, durably. The open disk goes on with its old parents: it is to be closed.
    pub(crate) fn write_locator(&self, locator: &ParentLocator) -> Result<(), RelinkError> {
        let writer = self.writer().map_err(RelinkError::Disk)?;
        Ok(writer.change_items(&[ItemChange::locator(locator)])?)
    }
}

fn paths(child: &Path, parent: &Path, identity: DataWriteGuid) -> Result<ParentLocator, RelinkError> {
    super::open::locator(&directory_of(child), parent, identity).map_err(|e| match e {
        CreateError::ParentPath(why) => RelinkError::ParentPath(why),
        _ => RelinkError::ParentPath("the parent has no identity"),
    })
}

/// The old locator with other paths. What else it says stays.
fn with_paths(old: &ParentLocator, new: &ParentLocator) -> ParentLocator {
    let is_path = |key: &str| matches!(key, "relative_path" | "volume_path" | "absolute_win32_path");
    let kept = old.entries.iter().filter(|(key, _)| !is_path(key));
    let paths = new.entries.iter().filter(|(key, _)| is_path(key));
    ParentLocator { entries: kept.chain(paths).cloned().collect() }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::chain::CreateOptions;
    use crate::storage::Storage;
    use crate::storage::sim::{CrashOptions, CrashWalk, SimWorld};
    use crate::sync::Arc;
    use std::collections::HashSet;

    type Given = Vec<Arc<dyn Storage>>;

    fn alone(writable: bool) -> OpenOptions {
        OpenOptions::new().parents(ParentPolicy::Deny).writable(writable)
    }

    fn locator_of(disk: &Disk) -> ParentLocator {
        disk.leaf.metadata.parent_locator.clone().unwrap()
    }

    /// Whatever a crash in the middle of a relink leaves, the child opens, has its old locator or the new one, keeps its data write GUID
    /// and shows what it showed; and relinking again works.
    #[test]
    fn every_crash_leaves_the_old_locator_or_the_new_one() {
        let world = SimWorld::new(3);
        let (base, child) = (world.create("base"), world.create("child"));
        let id = child.file();
        let parents: Given = vec![base];
        let options = CreateOptions::dynamic(4 << 20);
        Disk::create_on(Arc::clone(&parents[0]), &options).unwrap().close().unwrap();
        let disk = Disk::create_child_on(child.clone(), parents.clone(), &CreateOptions::child()).unwrap();
        disk.write_at(&[7; 512], 1 << 20).unwrap();
        disk.close().unwrap();
        world.forget();

        let disk = Disk::open_on(child, Vec::new(), &alone(true)).unwrap();
        let (old, data_write) = (locator_of(&disk), disk.leaf.header.data_write);
        let long = format!(r".\{}\p.vhdx", "directory".repeat(600));
        let linkage = DataWriteGuid::new(old.linkage().unwrap());
        let new = ParentLocator::new(linkage, &[("relative_path", &long), ("absolute_win32_path", r"\p.vhdx")]);
        disk.writer.as_ref().unwrap().change_items(&[ItemChange::locator(&new)]).unwrap();
        drop(disk);

        let trace = world.trace();
        let mut walk = CrashWalk::new(&trace, CrashOptions { harsh: true, ..CrashOptions::default() });
        let (mut states, mut seen, mut refused) = (HashSet::new(), [0, 0], 0);
        loop {
            walk.for_each_choice(&mut |_, image| {
                if !states.insert(image.hash()) {
                    return true;
                }
                let again: Arc<dyn Storage> = image.file(id).unwrap();
                let disk = match Disk::open_on(Arc::clone(&again), parents.clone(), &OpenOptions::new()) {
                    Ok(disk) => disk,
                    // A header that cannot be read at all, beside one that names no log, is reported and not passed over.
                    Err(OpenError::Storage(e)) if e.operation == crate::storage::Operation::Read => {
                        refused += 1;
                        return true;
                    }
                    Err(e) => panic!("{e}"),
                };
                let locator = locator_of(&disk);
                assert!(locator == old || locator == new);
                seen[usize::from(locator == new)] += 1;
                assert_eq!(disk.leaf.header.data_write, data_write);
                let mut bytes = [0; 512];
                disk.read_at(&mut bytes, 1 << 20).unwrap();
                assert_eq!(bytes, [7; 512]);
                drop(disk);
                let disk = Disk::open_on(Arc::clone(&again), Vec::new(), &alone(true)).unwrap();
                disk.writer.as_ref().unwrap().change_items(&[ItemChange::locator(&old)]).unwrap();
                drop(disk);
                let disk = Disk::open_on(again, parents.clone(), &OpenOptions::new()).unwrap();
                assert!(locator_of(&disk) == old && disk.check().unwrap().is_sound());
                true
            });
            if walk.step().is_none() {
                break;
            }
        }
        let few = states.len() / 5;
        assert!(states.len() > 100 && seen[0] > 10 && seen[1] > 10 && refused < few, "{} states, {seen:?}, {refused}", states.len());
    }
}
