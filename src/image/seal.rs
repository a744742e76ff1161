//! Sealing a disk as an image, and verifying that it still is what was sealed.
//!
//! ```text
//!   step                                     a crash after it leaves
//!   1 close the disk: its log is empty       the work file
//!   2 digest what it reads back              the work file
//!   3 make it read-only, sync it             the work file
//!   4 move it to NAME/GENERATION.vhdx        a disk without manifest: not an image, swept
//!   5 write GENERATION.blake3                the same
//!   6 write GENERATION.json                  the image
//! ```

use super::catalog::Store;
use super::clock::Timestamp;
use super::digest::{self, BlockDigest};
use super::error::StoreError;
use super::files::{self, Durability};
use super::image::Image;
use super::load::Workspace;
use super::manifest::{self, Manifest, SourceInfo};
use super::names;
use super::record::StepCost;
use crate::chain::{Disk, DiskKind, OpenOptions, ParentPolicy};
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::{FileStorage, Storage, StorageError, SyncSite};
use std::collections::BTreeMap;
use std::path::Path;

/// What a verification found in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that hold data and are what was sealed.
    pub blocks: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

/// What a manifest says that the disk does not.
pub(super) struct Sealing {
    pub(super) name: String,
    pub(super) generation: u32,
    pub(super) created: Timestamp,
    pub(super) source: SourceInfo,
    pub(super) modified_by: Vec<StepCost>,
    pub(super) labels: BTreeMap<String, String>,
}

/// Seals the closed disk in the workspace.
pub(super) fn seal(
    store: &Store,
    workspace: &Workspace,
    sealing: Sealing,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Image, StoreError> {
    let work = workspace.disk();
    let disk = Disk::open(&work, &OpenOptions::new().parents(ParentPolicy::Deny)).map_err(StoreError::open(&work))?;
    let info = disk.info().map_err(StoreError::disk(&work))?;
    let unsound =
        |what: String| StoreError::Damaged { path: work.clone(), what, next: "the steps that changed it must leave a sound disk" };
    if info.kind == DiskKind::Differencing {
        return Err(unsound("it has become a differencing disk".into()));
    }
    if info.log_dirty {
        return Err(unsound("its log is not empty".into()));
    }
    if let Some(finding) = disk.check().map_err(StoreError::disk(&work))?.errors.into_iter().next() {
        return Err(unsound(finding.fault.to_string()));
    }
    let mut digests = Vec::new();
    digest::walk(&disk, &work, info.block_size, Phase::Digest, progress, cancel, |block, found| {
        digests.extend(found.map(|digest| BlockDigest { block, digest }));
        Ok(())
    })?;
    drop(disk);
    let text = digest::encode(info.block_size, &digests);
    let Sealing { name, generation, created, source, modified_by, labels } = sealing;
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: name.clone(),
        generation,
        data_write_guid: info.data_write_guid.get(),
        virtual_size: info.virtual_size,
        block_size: info.block_size,
        logical_sector_size: info.logical_sector_size,
        file_size: info.sizes.apparent,
        allocated: info.sizes.allocated,
        data_blocks: digests.len() as u64,
        digest: blake3::hash(text.as_bytes()).to_hex().to_string(),
        created,
        sealed: Timestamp::now(),
        created_by: names::user(),
        source,
        modified_by,
        labels,
    };
    publish(store, workspace, &manifest, text.as_bytes())?;
    Ok(Image::new(store.clone(), &name, generation, manifest))
}

fn publish(store: &Store, workspace: &Workspace, manifest: &Manifest, digests: &[u8]) -> Result<(), StoreError> {
    let work = workspace.disk();
    harden(&work)?;
    let dir = store.image_dir(&manifest.name);
    files::make_dir(&dir)?;
    let place = |ending: &str| dir.join(format!("{}.{ending}", manifest.generation));
    // We hold the name's lock and there is no manifest: what is there is what a crash left.
    for ending in ["vhdx", "blake3", "disabled"] {
        files::remove(&place(ending))?;
    }
    let made = files::rename(&work, &place("vhdx"))
        .and_then(|()| files::put_bytes(&place("blake3"), digests, false, Durability::Durable))
        .and_then(|_| files::sync_dir(store.dir(), Durability::Durable))
        .and_then(|()| files::Held::create(&place("json"), manifest, Durability::Durable));
    if let Err(e) = made {
        for ending in ["vhdx", "blake3"] {
            // The first failure is the one to report; what cannot be removed is swept.
            let _ = files::remove(&place(ending));
        }
        let _ = std::fs::remove_dir(&dir);
        return Err(e);
    }
    workspace.clear()
}

/// Makes it read-only and durable. Windows syncs only what is open for writing, so there the attribute comes last, and is as durable
/// as the journal of NTFS.
fn harden(work: &Path) -> Result<(), StoreError> {
    let settle = |opened: Result<FileStorage, StorageError>| {
        opened.map_err(StoreError::storage("open", work))?.sync(SyncSite::Seal).map_err(StoreError::io("sync", work))
    };
    if cfg!(unix) {
        make_read_only(work)?;
        settle(FileStorage::open_read(work))
    } else {
        settle(FileStorage::open_write(work))?;
        make_read_only(work)
    }
}

/// Sets the read-only attribute.
pub(super) fn make_read_only(path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("make read-only", path)(e);
    let mut permissions = std::fs::metadata(path).map_err(failed)?.permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(path, permissions).map_err(failed)
}

impl Image {
    /// Reads the whole image and compares it with what was sealed: identity, structure, and the digest of every block.
    ///
    /// # Errors
    /// `BadBlock` for the first block that differs; `Damaged` when the structure, the identity or the digests are not what the manifest
    /// says; `Cancelled`.
    pub fn verify(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<Verified, StoreError> {
        let (path, manifest) = (self.path(), self.manifest());
        let damaged = |path: &Path, what: String| {
            let next = "restore it from a copy, or refresh the image";
            StoreError::Damaged { path: path.to_path_buf(), what, next }
        };
        let sealed = digest::read(&self.digests_path(), manifest)?;
        self.refuse_if_missing()?;
        let disk = Disk::open(&path, &OpenOptions::new().parents(ParentPolicy::Deny)).map_err(StoreError::open(&path))?;
        let info = disk.info().map_err(StoreError::disk(&path))?;
        let found = (info.data_write_guid.get(), info.virtual_size, info.block_size);
        if found != (manifest.data_write_guid, manifest.virtual_size, manifest.block_size) {
            let what = format!("its identity is {} and the sealed one was {}", found.0, manifest.data_write_guid);
            return Err(damaged(&path, what));
        }
        if let Some(finding) = disk.check().map_err(StoreError::disk(&path))?.errors.into_iter().next() {
            return Err(damaged(&path, finding.to_string()));
        }
        match_blocks(&disk, &path, manifest, &sealed, progress, cancel)
    }
}

/// Reads a whole disk and compares it with the digests of an image, block by block.
pub(super) fn match_blocks(
    disk: &Disk,
    path: &Path,
    manifest: &Manifest,
    sealed: &[BlockDigest],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Verified, StoreError> {
    let bad = |block: u64| {
        let offset = block * manifest.block_size;
        let len = manifest.block_size.min(manifest.virtual_size.saturating_sub(offset));
        StoreError::BadBlock { image: manifest.reference(), path: path.to_path_buf(), block, offset, len }
    };
    let mut expected = sealed.iter().peekable();
    let mut verified = Verified { blocks: 0, bytes: 0 };
    digest::walk(disk, path, manifest.block_size, Phase::Verify, progress, cancel, |block, found| {
        verified.bytes += manifest.block_size.min(manifest.virtual_size - block * manifest.block_size);
        if let Some(missing) = expected.peek().filter(|next| next.block < block) {
            return Err(bad(missing.block));
        }
        let wanted = expected.next_if(|next| next.block == block).map(|next| next.digest);
        verified.blocks += u64::from(wanted.is_some());
        if found == wanted { Ok(()) } else { Err(bad(block)) }
    })?;
    match expected.next() {
        Some(missing) => Err(bad(missing.block)),
        None => Ok(verified),
    }
}
