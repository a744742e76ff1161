//! Merging: what a clone, or a run of a chain, changed becomes part of an ancestor.
//!
//! | | into the ancestor ([`merge_into`]) | into a new file ([`merge_to`]) |
//! |---|---|---|
//! | the ancestor | changes | stays as it is |
//! | its other children | become unreadable, so it is refused while there are any | stay as they are |
//! | interrupted | the child is valid, and merging again goes on | nothing has happened |
//! | needs | exclusive use of the child and the ancestor | space for the ancestor once more |
//!
//! A run of several layers is merged in place from the lowest up, one layer at a time, each step the protocol of `chain/merge.rs`: after
//! every step the chain is valid and one layer shorter, and a layer that was merged is what it was, standing on its equal.

use super::error::{About, ToolError};
use super::make::place;
use crate::chain::merge::{Fold, FoldError, Folded, Side, settle};
use crate::chain::{Disk, LinkProof, OpenOptions, ParentPolicy, Parents, RelinkError};
use crate::disk::layer::Layer;
use crate::guid::DataWriteGuid;
use crate::progress::{Cancel, Progress};
use crate::storage::{FileStorage, Operation, Storage, StorageError, Volume};
use crate::sync::Arc;
use std::io;
use std::path::{Path, PathBuf};

mod fresh;
pub(super) mod known;

pub use fresh::merge_to;

/// How to merge.
#[derive(Clone, Debug, Default)]
pub struct MergeOptions {
    pub(crate) parents: ParentPolicy,
    pub(crate) windows_paths: Vec<(String, PathBuf)>,
    pub(crate) known: Vec<PathBuf>,
    pub(crate) sacrifices: bool,
    pub(crate) deletes: bool,
    pub(crate) keeps_identity: bool,
}

impl MergeOptions {
    /// Parents beneath the child's own directory; other children are spared; the child stays.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where parents may lie.
    #[must_use]
    pub fn parents(mut self, policy: ParentPolicy) -> Self {
        self.parents = policy;
        self
    }

    /// Where Windows paths in parent locators lie here; see [`OpenOptions::windows_paths`].
    #[must_use]
    pub fn windows_paths(mut self, table: Vec<(String, PathBuf)>) -> Self {
        self.windows_paths = table;
        self
    }

    /// Files that the caller knows to stand on a layer that is going to change, besides those that lie beside the files of the chain.
    #[must_use]
    pub fn known_children(mut self, children: Vec<PathBuf>) -> Self {
        self.known = children;
        self
    }

    /// Whether the ancestor is changed although other files stand on it. They cannot be opened ever again: siblings die.
    #[must_use]
    pub fn sacrifice_siblings(mut self, sacrifice: bool) -> Self {
        self.sacrifices = sacrifice;
        self
    }

    /// Whether the merged files are removed in the end. Files that are found to stand on the child are linked to the ancestor first.
    #[must_use]
    pub fn delete(mut self, delete: bool) -> Self {
        self.deletes = delete;
        self
    }

    /// Whether a new file ([`merge_to`]) takes the identity of the child's content, so that the child's children can be linked to it with
    /// [`Disk::relink`] and nothing else.
    #[must_use]
    pub fn keep_identity(mut self, keep: bool) -> Self {
        self.keeps_identity = keep;
        self
    }

    fn open(&self) -> OpenOptions {
        OpenOptions::new().parents(self.parents.clone()).windows_paths(self.windows_paths.clone())
    }
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The file that shows what the child showed.
    pub into: PathBuf,
    /// Layers that are part of it now.
    pub layers: usize,
    /// Bytes that were copied or zeroed.
    pub bytes: u64,
    /// The identity of its content.
    pub data_write_guid: DataWriteGuid,
    /// Files that were removed.
    pub removed: Vec<PathBuf>,
    /// Files that stood on the child and stand on the ancestor now.
    pub relinked: Vec<PathBuf>,
    /// Files that stood on the ancestor, or on a layer in between, and cannot be opened any more.
    pub lost: Vec<PathBuf>,
}

/// An open chain, as paths.
struct Line {
    /// Of every layer, leaf first.
    paths: Vec<PathBuf>,
    /// Which of them is the ancestor.
    ancestor: usize,
}

impl Line {
    /// Opens the chain, finds the ancestor in it (the parent if none is given), and takes note where everything is.
    fn of(disk: &Disk, child: &Path, ancestor: Option<&Path>) -> Result<Self, ToolError> {
        if !disk.leaf.has_parent() {
            return Err(ToolError::refused(child, "it is not a differencing disk, so there is nothing to merge it into"));
        }
        if matches!(disk.parents, Parents::NotOpened) {
            return Err(ToolError::refused(child, "its parents may not be opened"));
        }
        let path = |layer: &Layer| layer.path.clone().unwrap_or_else(|| child.to_owned());
        let paths: Vec<PathBuf> = disk.layers().map(path).collect();
        let Some(wanted) = ancestor else { return Ok(Self { paths, ancestor: 1 }) };
        let id = FileStorage::open_read(wanted).about(wanted)?.id();
        let found = disk.layers().position(|layer| layer.original.id() == id);
        let Some(ancestor) = found.filter(|&at| at > 0) else {
            return Err(ToolError::refused(wanted, "it is not an ancestor of the child"));
        };
        Ok(Self { paths, ancestor })
    }
}

/// Merges `child`, and every layer between, into `ancestor` (into its parent if none is given), in place. Whatever interrupts it, the child
/// can be opened and shows what it showed, and merging again goes on.
///
/// ```
/// use diffdisk::{Cancel, CreateOptions, Disk, MergeOptions, NoProgress, OpenOptions, merge_into};
/// # let dir = tempfile::tempdir()?;
/// # let path = |name: &str| dir.path().join(name);
/// Disk::create(path("app.vhdx"), &CreateOptions::dynamic(1 << 30))?.close()?;
/// let clone = Disk::create_child(path("alice.vhdx"), path("app.vhdx"), &CreateOptions::child())?;
/// clone.write_at(b"changed", 4096)?;
/// clone.close()?;
/// let options = MergeOptions::new().delete(true);
/// merge_into(&path("alice.vhdx"), None, &options, &NoProgress, &Cancel::new())?;
/// let mut word = [0; 7];
/// Disk::open(path("app.vhdx"), &OpenOptions::new())?.read_at(&mut word, 4096)?;
/// assert_eq!(&word, b"changed");
/// assert!(!path("alice.vhdx").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `Refused` when `ancestor` is none, or cannot take the child's size; `Children` while other files stand on a layer that would change;
/// `Open` with kind `InUse` while somebody has the child or the ancestor open; `Disk` and `Storage` when a file fails; `Cancelled`.
pub fn merge_into(
    child: &Path,
    ancestor: Option<&Path>,
    options: &MergeOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Merged, ToolError> {
    let disk = Disk::open(child, &options.open()).about(child)?;
    let line = Line::of(&disk, child, ancestor)?;
    if line.ancestor > 1 && !options.deletes {
        return Err(ToolError::refused(child, "the layers between it and the ancestor would become unreadable; have them deleted"));
    }
    let known = known::look(&disk, &line.paths[..=line.ancestor], &options.known);
    drop(disk);
    let into = line.paths[line.ancestor].clone();
    if !known.siblings.is_empty() && !options.sacrifices {
        return Err(ToolError::Children { path: into, children: known.siblings });
    }
    let below = &line.paths[line.ancestor + 1..];
    let mut merged = Merged {
        into: into.clone(),
        layers: line.ancestor,
        bytes: 0,
        data_write_guid: DataWriteGuid::default(),
        removed: Vec::new(),
        relinked: Vec::new(),
        lost: known.siblings,
    };
    for number in (0..line.ancestor).rev() {
        let path = &line.paths[number];
        merged.bytes += fold(path, &into, below, End::of(options.deletes), progress, cancel)?;
        // Whatever stood on this layer finds its content in the ancestor now, under the identity it knows.
        let above = if number > 0 { std::slice::from_ref(&line.paths[number - 1]) } else { &known.grandchildren[..] };
        if number > 0 || options.deletes {
            for file in above {
                Disk::relink(file, &into, LinkProof::Required).map_err(|e| relink_error(file, e))?;
            }
        }
        if options.deletes {
            remove(path)?;
            merged.removed.push(path.clone());
        }
        if number == 0 && options.deletes {
            merged.relinked = known.grandchildren.clone();
        }
    }
    let alone = OpenOptions::new().parents(ParentPolicy::Deny);
    merged.data_write_guid = Disk::open(&into, &alone).about(&into)?.leaf.header.data_write;
    Ok(merged)
}

/// What becomes of a merged child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It stands on its equal, as on any other parent.
    Stays,
    /// It is removed next, so it is left as it is: valid, but not closed.
    Goes,
}

impl End {
    fn of(deletes: bool) -> Self {
        if deletes { Self::Goes } else { Self::Stays }
    }
}

/// Merges a child into the file it stands on. Returns the bytes that moved.
fn fold(child: &Path, parent: &Path, below: &[PathBuf], end: End, progress: &dyn Progress, cancel: &Cancel) -> Result<u64, ToolError> {
    let alone = OpenOptions::new().parents(ParentPolicy::Deny).writable(true);
    let on_its_own = OpenOptions::new().parents(ParentPolicy::Paths(below.to_vec())).writable(true);
    let open_child = || Disk::open(child, &alone).about(child);
    let open_parent = || Disk::open(parent, &on_its_own).about(parent);
    fold_disks([child, parent], &open_child, &open_parent, end, progress, cancel)
}

/// The same for storages of the caller: `child` into `parent`, which stands on `below`, nearest first. In the end the child stays, and
/// stands on its equal.
///
/// # Errors
/// As [`merge_into`]; the storages are called "child" and "parent".
pub fn merge_into_on(
    child: &Arc<dyn Storage>,
    parent: &Arc<dyn Storage>,
    below: &[Arc<dyn Storage>],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<u64, ToolError> {
    let names = [Path::new("child"), Path::new("parent")];
    let alone = OpenOptions::new().parents(ParentPolicy::Deny).writable(true);
    let open_child = || Disk::open_on(Arc::clone(child), Vec::new(), &alone).about(names[0]);
    let open_parent = || Disk::open_on(Arc::clone(parent), below.to_vec(), &OpenOptions::new().writable(true)).about(names[1]);
    fold_disks(names, &open_child, &open_parent, End::Stays, progress, cancel)
}

type Opener<'a> = &'a dyn Fn() -> Result<Disk, ToolError>;

fn fold_disks(
    [child, parent]: [&Path; 2],
    open_child: Opener<'_>,
    open_parent: Opener<'_>,
    end: End,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<u64, ToolError> {
    let explain = |e: FoldError| {
        let path = |side| if side == Side::Child { child } else { parent };
        match e {
            FoldError::NotParent => ToolError::refused(child, "it does not stand on this parent"),
            FoldError::Refused(side, why) => ToolError::refused(path(side), why),
            FoldError::Disk(side, cause) => ToolError::Disk { path: path(side).to_owned(), cause },
            FoldError::Cancelled => ToolError::Cancelled,
        }
    };
    loop {
        let (child, parent) = (open_child()?, open_parent()?);
        let folded = Fold { child: &child, parent: &parent, progress, cancel }.run().map_err(explain)?;
        match folded {
            Folded::Again => {}
            Folded::Done { bytes } => {
                drop(parent);
                if end == End::Stays {
                    settle(&child).map_err(explain)?;
                }
                return Ok(bytes);
            }
        }
    }
}

fn relink_error(path: &Path, e: RelinkError) -> ToolError {
    match e {
        RelinkError::Open(cause) => ToolError::Open { path: path.to_owned(), cause: Box::new(cause) },
        RelinkError::Parent(cause) => ToolError::Open { path: path.to_owned(), cause },
        RelinkError::Disk(cause) => ToolError::Disk { path: path.to_owned(), cause },
        RelinkError::NotDifferencing => ToolError::refused(path, "it is not a differencing disk"),
        RelinkError::ParentPath(why) => ToolError::refused(path, why),
        RelinkError::NoRoom { .. } => ToolError::refused(path, "its metadata region has no room for the way to its parent"),
    }
}

/// Removes a file, durably.
fn remove(path: &Path) -> Result<(), ToolError> {
    let (volume, name) = place(path)?;
    let failed = |operation| move |e: io::Error| StorageError::new(operation, 0, e);
    volume.remove(&name).map_err(failed(Operation::Remove)).about(path)?;
    volume.sync_dir().map_err(failed(Operation::Sync)).about(path)
}
