//! Which files may be parents.
//!
//! A differencing disk names its parent by path, and the file may come from anywhere. Following that path blindly lets a file
//! choose what its reader opens: `/etc/shadow` as the "parent" of a disk handed to a guest, a FIFO that blocks a service for ever,
//! a share on an attacker's server that collects credentials. So the caller states a [`ParentPolicy`], and [`Gate`] is the only
//! code that opens a path found in a file.
//!
//! From a locator's text to an open file:
//!
//! 1. The text is taken apart (`gate/path.rs`): backslashes become separators, `.` and `..` are resolved as text, and everything
//!    that has no honest meaning here is refused: empty paths, NUL, `:` streams, drives, UNC and `\\?\` forms. Those Windows forms
//!    gain a meaning through the caller's table of Windows prefixes.
//! 2. The result is an absolute path. Under [`ParentPolicy::Beneath`] it must lie in an allowed directory *as text*; if it does
//!    not, the refusal is given without asking the file system anything, so it cannot reveal what exists out there.
//! 3. It is opened relative to a handle of that directory without following any link (`gate/beneath.rs`), so what was true as text
//!    is true of the file, also while somebody is swapping links.
//! 4. What is open is looked at (regular files only) and locked, and this very descriptor is what the caller gets. Nothing is
//!    opened twice and nothing is tested by path first. Whether it *is* the parent (its GUID) is for the caller to check.

mod beneath;
mod path;

pub(crate) use path::{absolute_locator_path, canonical, directory_of, relative_locator_path};

use super::ChainError;
use super::error::Plain;
use crate::storage::{Access, FileStorage, Operation, StorageError, StorageId};
use beneath::{Directory, Refusal};
use path::WindowsTable;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Which files may be opened because a differencing disk names them as its parent.
///
/// ```
/// use diffdisk::ParentPolicy;
/// assert_eq!(ParentPolicy::default(), ParentPolicy::Beneath(vec![]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentPolicy {
    /// None: only disks without a parent can be opened.
    Deny,
    /// Those in the leaf's own directory and in these, at any depth, reached without a symbolic link below them.
    Beneath(Vec<PathBuf>),
    /// Whatever the files name. For migration tools and people who know where the files come from.
    Anywhere,
    /// These, nearest parent first; what the locators say is ignored. Identity is verified as always.
    Paths(Vec<PathBuf>),
}

impl Default for ParentPolicy {
    fn default() -> Self {
        Self::Beneath(Vec::new())
    }
}

/// The order in which a locator's paths are tried (MS-VHDX 2.6.2.6.3).
const PATH_KEYS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];

/// The door through which every parent is opened. One for each chain.
#[derive(Debug)]
pub(crate) struct Gate {
    rule: Rule,
    table: WindowsTable,
}

#[derive(Debug)]
enum Rule {
    Deny,
    Anywhere,
    Given(Vec<PathBuf>),
    Beneath {
        allowed: Vec<Allowed>,
        /// Directories that were to be allowed and cannot be opened, with the reason: part of every hint.
        unusable: Vec<String>,
    },
}

#[derive(Debug)]
struct Allowed {
    /// The path as the caller gave it, made absolute. Locators may spell it that way.
    spelled: PathBuf,
    /// The path without links.
    real: PathBuf,
    handle: Directory,
}

impl Allowed {
    fn open(dir: &Path) -> io::Result<Self> {
        // The handle comes first: if the path is redirected in between, names are compared with one directory and opened in
        // another, both of which the caller's path has led to.
        let handle = Directory::open(dir)?;
        Ok(Self { spelled: std::path::absolute(dir)?, real: std::fs::canonicalize(dir)?, handle })
    }

    fn rest<'p>(&self, target: &'p Path) -> Option<&'p Path> {
        let found = target.strip_prefix(&self.real).or_else(|_| target.strip_prefix(&self.spelled)).ok();
        // Windows' canonical paths are verbatim, and what locators and people write is not.
        #[cfg(windows)]
        let found = found.or_else(|| target.strip_prefix(plain(&self.real)?).ok());
        found
    }
}

/// The same path without the prefix that makes it verbatim; `None` where it has none, or where only that form names the place.
#[cfg(windows)]
fn plain(path: &Path) -> Option<PathBuf> {
    use std::path::{Component, Prefix};
    let mut components = path.components();
    let Some(Component::Prefix(prefix)) = components.next() else { return None };
    let Prefix::VerbatimDisk(drive) = prefix.kind() else { return None };
    Some(PathBuf::from(format!("{}:\\", char::from(drive))).join(components.as_path()))
}

/// One place where a parent may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The path as the locator has it (or as the caller gave it).
    pub(crate) written: String,
    target: Result<PathBuf, &'static str>,
}

/// A candidate was not opened.
#[derive(Clone, Debug)]
pub(crate) enum GateError {
    /// The policy says no. The same whether or not the file exists.
    Denied { path: String, hint: String },
    /// It is not where it would be allowed to be.
    Missing { path: String, hint: String },
    /// The path names nothing that could be opened here, whatever the policy.
    Unusable { path: String, why: &'static str },
    /// It is the layer `at` of the chain that is being opened.
    Cycle { at: usize },
    /// It is there and allowed, and the system refuses.
    Failed { path: String, source: StorageError },
}

impl Gate {
    /// Opens the allowed directories, of which `leaf_dir` is always one. One that cannot be opened allows nothing.
    pub(crate) fn new(policy: &ParentPolicy, leaf_dir: &Path, windows_paths: &[(String, PathBuf)]) -> Self {
        let rule = match policy {
            ParentPolicy::Deny => Rule::Deny,
            ParentPolicy::Anywhere => Rule::Anywhere,
            ParentPolicy::Paths(paths) => Rule::Given(paths.clone()),
            ParentPolicy::Beneath(dirs) => {
                let (mut allowed, mut unusable) = (Vec::new(), Vec::new());
                for dir in std::iter::once(leaf_dir).chain(dirs.iter().map(PathBuf::as_path)) {
                    match Allowed::open(dir) {
                        Ok(dir) => allowed.push(dir),
                        Err(e) => unusable.push(format!("{} cannot be opened: {e}", dir.display())),
                    }
                }
                Rule::Beneath { allowed, unusable }
            }
        };
        Self { rule, table: WindowsTable::new(windows_paths) }
    }

    /// The places that a locator names, in the order to try them; no place twice. `child_dir` is a path without links. `paths` are its (key, value) pairs, in any order
    /// and with any other keys among them. Empty under [`ParentPolicy::Paths`]: see [`Gate::given`].
    pub(crate) fn candidates(&self, child_dir: &Path, paths: &[(&str, &str)]) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = Vec::new();
        if matches!(self.rule, Rule::Given(_)) {
            return candidates;
        }
        for wanted in PATH_KEYS {
            let Some((_, written)) = paths.iter().find(|(key, _)| *key == wanted) else { continue };
            let target = path::parse(written).and_then(|parsed| parsed.resolve(child_dir, &self.table));
            if target.is_err() || candidates.iter().all(|earlier| earlier.target != target) {
                candidates.push(Candidate { written: (*written).to_owned(), target });
            }
        }
        candidates
    }

    /// Under [`ParentPolicy::Paths`] the parent of the layer `child` (0 is the leaf); under other policies nothing.
    pub(crate) fn given(&self, child: usize) -> Option<Candidate> {
        match &self.rule {
            Rule::Given(paths) => paths.get(child).map(|path| Candidate { written: path.display().to_string(), target: Ok(path.clone()) }),
            Rule::Deny | Rule::Anywhere | Rule::Beneath { .. } => None,
        }
    }

    /// Whether the caller listed the chain, so that locators count for nothing.
    pub(crate) fn ignores_locators(&self) -> bool {
        matches!(self.rule, Rule::Given(_))
    }

    /// Opens a candidate for reading, with the shared lock, and says where it was found (a path without links, whose directory is
    /// the next `child_dir`).
    #[cfg(all(test, unix))]
    pub(crate) fn open(&self, candidate: &Candidate) -> Result<(FileStorage, PathBuf), GateError> {
        self.open_in_chain(candidate, &[])
    }

    /// The same, and a file that is one of the layers opened so far is reported as a cycle. Asked before the lock, because a leaf that
    /// is open for writing and names itself would otherwise be told that somebody else is using it.
    pub(crate) fn open_in_chain(&self, candidate: &Candidate, layers: &[StorageId]) -> Result<(FileStorage, PathBuf), GateError> {
        let path = || candidate.written.clone();
        if matches!(self.rule, Rule::Deny) {
            let hint = "parents are not followed here; `--parents DIR` allows those in DIR, `--parents anywhere` all".to_owned();
            return Err(GateError::Denied { path: path(), hint });
        }
        let target = match &candidate.target {
            Ok(target) => target,
            Err(why) => return Err(GateError::Unusable { path: path(), why }),
        };
        let (file, found) = match &self.rule {
            Rule::Beneath { allowed, unusable } => open_allowed(allowed, unusable, candidate, target)?,
            Rule::Anywhere | Rule::Given(_) | Rule::Deny => open_anywhere(candidate, target)?,
        };
        let failed = |source| GateError::Failed { path: path(), source };
        let metadata = file.metadata().map_err(|e| failed(StorageError::new(Operation::Open, 0, e)))?;
        if !metadata.is_file() {
            return Err(not_regular(candidate));
        }
        let id = FileStorage::id_of(&file, &metadata).map_err(|e| failed(StorageError::new(Operation::Open, 0, e)))?;
        if let Some(at) = layers.iter().position(|&layer| layer == id) {
            return Err(GateError::Cycle { at });
        }
        Ok((FileStorage::adopt(file, Access::Read).map_err(failed)?, found))
    }
}

fn open_allowed(allowed: &[Allowed], unusable: &[String], candidate: &Candidate, target: &Path) -> Result<(File, PathBuf), GateError> {
    let path = || candidate.written.clone();
    let mut outcome = Err(outside(candidate, target, unusable));
    for dir in allowed {
        let Some(rest) = dir.rest(target) else { continue };
        if rest.as_os_str().is_empty() {
            return Err(not_regular(candidate));
        }
        let refused = match dir.handle.open_beneath(rest) {
            Ok(file) => return Ok((file, dir.real.join(rest))),
            Err(Refusal::Missing) => GateError::Missing { path: path(), hint: gone() },
            Err(Refusal::NotRegular) => not_regular(candidate),
            Err(Refusal::Link) => GateError::Denied {
                path: path(),
                hint: "it is, or lies behind, a symbolic link, which is not followed; `--parents anywhere` would follow it".to_owned(),
            },
            Err(Refusal::Failed(e)) => GateError::Failed { path: path(), source: StorageError::new(Operation::Open, 0, e) },
        };
        outcome = Err(refused);
    }
    outcome
}

/// Follows links. A look at the type first keeps the open from touching devices, some of which act on being opened; it decides
/// nothing, the descriptor is looked at again.
fn open_anywhere(candidate: &Candidate, target: &Path) -> Result<(File, PathBuf), GateError> {
    let attempt = || -> io::Result<Option<(File, PathBuf)>> {
        if !std::fs::metadata(target)?.is_file() {
            return Ok(None);
        }
        Ok(Some((beneath::open_following(target)?, std::fs::canonicalize(target)?)))
    };
    match attempt() {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(not_regular(candidate)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename) => {
            Err(GateError::Missing { path: candidate.written.clone(), hint: gone() })
        }
        Err(e) => Err(GateError::Failed { path: candidate.written.clone(), source: StorageError::new(Operation::Open, 0, e) }),
    }
}

fn gone() -> String {
    "if it has moved, `diffdisk relink CHILD --parent FILE` tells the child where".to_owned()
}

fn not_regular(candidate: &Candidate) -> GateError {
    GateError::Denied { path: candidate.written.clone(), hint: "it is not a regular file, and nothing allows that".to_owned() }
}

fn outside(candidate: &Candidate, target: &Path, unusable: &[String]) -> GateError {
    let dir = target.parent().unwrap_or(target).display().to_string();
    let mut hint = format!("it is not in an allowed directory; `--parents {:?}` or `--parents anywhere` would allow it", Plain(&dir));
    for why in unusable {
        hint.push_str("; ");
        hint.push_str(why);
    }
    GateError::Denied { path: candidate.written.clone(), hint }
}

impl ChainError {
    /// The one error for a parent of which no candidate could be opened. A cycle weighs most, then what the system refused, then what
    /// the policy refused (a flag would help), then what is not there; paths that mean nothing here count only if all are such.
    pub(crate) fn from_refusals(refusals: &[GateError]) -> Self {
        let weight = |refusal: &&GateError| match refusal {
            GateError::Cycle { .. } => 0,
            GateError::Failed { .. } => 1,
            GateError::Denied { .. } => 2,
            GateError::Missing { .. } => 3,
            GateError::Unusable { .. } => 4,
        };
        match refusals.iter().min_by_key(weight) {
            None => Self::NoLocatorPath,
            Some(GateError::Cycle { at }) => Self::Cycle { at: *at },
            Some(GateError::Failed { path, source }) => Self::ParentUnreadable { path: path.clone(), source: source.clone() },
            Some(GateError::Denied { path, hint }) => Self::Denied { path: path.clone(), hint: hint.clone() },
            Some(GateError::Unusable { path, why }) => Self::Denied { path: path.clone(), hint: (*why).to_owned() },
            Some(GateError::Missing { hint, .. }) => {
                let tried = |refusal: &GateError| match refusal {
                    GateError::Missing { path, .. } | GateError::Unusable { path, .. } => Some(path.clone()),
                    GateError::Cycle { .. } | GateError::Failed { .. } | GateError::Denied { .. } => None,
                };
                Self::ParentMissing { tried: refusals.iter().filter_map(tried).collect(), hint: hint.clone() }
            }
        }
    }
}

#[cfg(all(test, windows))]
mod windows_tests {
    use super::*;

    #[test]
    fn a_path_as_locators_have_it_lies_in_the_canonical_directory() {
        let dir = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        let allowed = Allowed::open(&real).unwrap();
        let written = plain(&real).expect("canonical paths are verbatim");
        for target in [&real, &written] {
            assert_eq!(allowed.rest(&target.join("base.vhdx")), Some(Path::new("base.vhdx")), "{target:?}");
        }
        assert_eq!(allowed.rest(written.parent().unwrap()), None);
        assert_eq!(plain(Path::new(r"\\?\Volume{2dc27766-f623-4200-9d64-115e9bfd4a08}\x")), None);
    }
}

#[cfg(all(test, unix))]
mod tests;
