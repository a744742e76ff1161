//! Proving by digests that a file holds what a sealed image holds, and linking a child to it.
//!
//! A child knows its parent by the parent's data write GUID. A copy of an image made by another tool, or restored from raw bytes, has the
//! same content and another GUID, and no child of the image opens over it. What the image held when it was sealed stands in its manifest:
//! the GUID, and the digest of every block. So the chain of proof is
//!
//! ```text
//!   child ── asks for GUID ──► manifest ── BLAKE3 ──► digests ── BLAKE3 of each block ──► what the new parent shows
//! ```
//!
//! and where each link holds, the child shows over the new parent what it showed over the image. Its own identity stays, so its children
//! go on working. The manifest is trusted as the caller trusts where it comes from: it is not signed.

use super::catalog::Store;
use super::digest;
use super::error::StoreError;
use super::files;
use super::manifest::Manifest;
use super::seal::{Verified, match_blocks};
use crate::chain::{Disk, LinkProof, OpenOptions, ParentPolicy};
use crate::guid::Guid;
use crate::progress::{Cancel, Progress};
use std::path::Path;

/// Links `child` to `parent`, whose identity is another than that of the image it was made over, after proving with the manifest of that
/// image (`GENERATION.json`, with `GENERATION.blake3` beside it) that `parent` shows what the image held. `parent` may stand on parents of
/// its own, found as `parents` says.
///
/// # Errors
/// `Invalid` when the child has no parent, or the manifest is that of another image; `Damaged` when manifest or digests are not whole, or
/// the size differs; `BadBlock` for the first block that differs; `Open`, `Relink`, `Cancelled`. The child is then as it was.
pub fn relink_proven(
    child: impl AsRef<Path>,
    parent: impl AsRef<Path>,
    manifest: impl AsRef<Path>,
    parents: &ParentPolicy,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Verified, StoreError> {
    let (child, path) = (child.as_ref(), manifest.as_ref());
    let manifest: Manifest = files::read(path)?;
    let wanted = linkage_of(child)?;
    if wanted != manifest.data_write_guid {
        let what = format!("the manifest {} as a proof for {}", path.display(), child.display());
        let rule = format!("it is that of {}, and the child was made over {wanted}", manifest.data_write_guid);
        return Err(StoreError::Invalid { what, rule });
    }
    prove(child, parent.as_ref(), &manifest, &path.with_extension("blake3"), parents, progress, cancel)
}

impl Store {
    /// The same with the manifest of whichever image of this store the child was made over.
    ///
    /// # Errors
    /// As [`relink_proven`]; `Invalid` when no image of the store has the identity that the child asks for.
    pub fn relink_proven(
        &self,
        child: impl AsRef<Path>,
        parent: impl AsRef<Path>,
        parents: &ParentPolicy,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Verified, StoreError> {
        let child = child.as_ref();
        let wanted = linkage_of(child)?;
        let image = self.find_by_identity(wanted)?.ok_or_else(|| StoreError::Invalid {
            what: format!("the store {} as a proof for {}", self.dir().display(), child.display()),
            rule: format!("the child was made over {wanted}, and no image of the store is that"),
        })?;
        prove(child, parent.as_ref(), image.manifest(), &image.digests_path(), parents, progress, cancel)
    }
}

/// The identity of the parent that a child asks for.
fn linkage_of(child: &Path) -> Result<Guid, StoreError> {
    let disk = Disk::open(child, &OpenOptions::new().parents(ParentPolicy::Deny)).map_err(StoreError::open(child))?;
    let parent = disk.info().map_err(StoreError::disk(child))?.parent;
    parent.map(|parent| parent.linkage).ok_or_else(|| StoreError::Invalid {
        what: child.display().to_string(),
        rule: "it is not a differencing disk, so it has no parent".to_owned(),
    })
}

fn prove(
    child: &Path,
    parent: &Path,
    manifest: &Manifest,
    digests: &Path,
    parents: &ParentPolicy,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Verified, StoreError> {
    let sealed = digest::read(digests, manifest)?;
    // Open, and so locked against writers, until the child is linked to it.
    let disk = Disk::open(parent, &OpenOptions::new().parents(parents.clone())).map_err(StoreError::open(parent))?;
    if disk.size() != manifest.virtual_size {
        let what = format!("it is a disk of {} bytes, and {} had {}", disk.size(), manifest.reference(), manifest.virtual_size);
        return Err(StoreError::Damaged { path: parent.to_owned(), what, next: "find the file that was the image, or a true copy of it" });
    }
    let verified = match_blocks(&disk, parent, manifest, &sealed, progress, cancel)?;
    Disk::relink(child, parent, LinkProof::Waived).map_err(|source| StoreError::Relink { path: child.to_owned(), source })?;
    Ok(verified)
}
