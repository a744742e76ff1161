//! Which files stand on the layers of a chain, as far as one can know: those that lie beside its files, and those the caller names.
//!
//! A differencing disk names its parent; a parent names nobody. So the directories of the chain are looked through for files whose parent
//! locator asks for the identity of a layer. Only metadata is read, and only files that open alone; one that is open for writing
//! somewhere holds a lock on its parents, and those cannot be merged into anyway.

use crate::chain::Disk;
use crate::disk::layer::Layer;
use crate::guid::DataWriteGuid;
use crate::storage::{FileStorage, Storage, StorageId};
use crate::sync::Arc;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What was found.
#[derive(Debug, Default)]
pub(in crate::tools) struct Known {
    /// Files that stand on a layer that is going to change and are not part of the run.
    pub(in crate::tools) siblings: Vec<PathBuf>,
    /// Files that stand on the leaf.
    pub(in crate::tools) grandchildren: Vec<PathBuf>,
}

/// Looks for files that stand on the layers at `run` (leaf first, the ancestor last) of an open chain.
pub(in crate::tools) fn look(disk: &Disk, run: &[PathBuf], told: &[PathBuf]) -> Known {
    let part: BTreeSet<(u64, u64)> = disk.layers().map(|layer| key(layer.original.id())).collect();
    let identities: Vec<DataWriteGuid> = disk.layers().take(run.len()).map(|layer| layer.header.data_write).collect();
    let mut known = Known::default();
    let mut seen = part;
    let mut look_at = |path: &Path, is_told: bool| {
        let Ok(file) = FileStorage::open_read(path) else {
            // Somebody who is named and cannot be asked counts: it may be running.
            if is_told && path.exists() && !run.iter().any(|part| part == path) {
                known.siblings.push(path.to_owned());
            }
            return;
        };
        if !seen.insert(key(file.id())) {
            return;
        }
        let Ok(layer) = Layer::open(Arc::new(file), None) else { return };
        let Some(locator) = &layer.metadata.parent_locator else { return };
        match identities.iter().position(|&identity| locator.accepts(identity)) {
            Some(0) => known.grandchildren.push(path.to_owned()),
            Some(_) => known.siblings.push(path.to_owned()),
            None => {}
        }
    };
    for path in told {
        look_at(path, true);
    }
    let dirs: BTreeSet<&Path> = run.iter().map(|path| directory(path)).collect();
    for dir in dirs {
        let mut names: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        names.sort();
        for path in names.iter().filter(|path| is_vhdx(path) && path.is_file()) {
            look_at(path, false);
        }
    }
    known
}

fn key(id: StorageId) -> (u64, u64) {
    (id.device, id.object)
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn is_vhdx(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    extension.eq_ignore_ascii_case("vhdx") || extension.eq_ignore_ascii_case("avhdx")
}
