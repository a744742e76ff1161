//! The text of a locator path, read and written.
//!
//! Windows writes `.\p.vhdx`, `\\?\Volume{GUID}\dir\p.vhdx` and `C:\dir\p.vhdx` (with or without `\\?\`). This crate writes the first
//! form and, on other systems, a plain absolute path in the place of the last. Nothing here asks the file system about a path that
//! came out of a file: `..` is resolved as text, as Windows does it.

use crate::storage::{Operation, StorageError};
use std::path::{Component, Path, PathBuf};

const UNC_ROOT: &str = r"\\";

/// A locator path, taken apart: which kind it is and its components, without `.` and with `..` only at the start of a relative one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// From the child's directory.
    Relative(Vec<String>),
    /// From `/`.
    Rooted(Vec<String>),
    /// From a drive (`C:`), a volume (`Volume{GUID}`) or a server and share (`\\`, `server`, `share`).
    Windows(Vec<String>),
}

/// Takes a locator's text apart, or says why it names nothing that could be opened.
pub(super) fn parse(text: &str) -> Result<Parsed, &'static str> {
    if text.is_empty() {
        return Err("the path is empty");
    }
    if text.contains('\0') {
        return Err("the path contains a NUL character");
    }
    let text = text.replace('\\', "/");
    if let Some(rest) = text.strip_prefix("//") {
        return parse_double(rest);
    }
    if let Some((drive, rest)) = split_drive(&text) {
        return Ok(Parsed::Windows(components(vec![drive], 1, rest)?));
    }
    match text.strip_prefix('/') {
        Some(rest) => Ok(Parsed::Rooted(components(Vec::new(), 0, rest)?)),
        None => Ok(Parsed::Relative(relative_components(&text)?)),
    }
}

/// What follows two separators: `?\...` or a server.
fn parse_double(rest: &str) -> Result<Parsed, &'static str> {
    let Some(verbatim) = rest.strip_prefix("?/") else {
        if rest.starts_with("./") {
            return Err("it is a Windows device path");
        }
        return Ok(Parsed::Windows(components(vec![UNC_ROOT.to_owned()], 3, rest)?));
    };
    if let Some(share) = verbatim.get(..4).filter(|unc| unc.eq_ignore_ascii_case("unc/")).map(|unc| &verbatim[unc.len()..]) {
        return Ok(Parsed::Windows(components(vec![UNC_ROOT.to_owned()], 3, share)?));
    }
    match split_drive(verbatim) {
        Some((drive, rest)) => Ok(Parsed::Windows(components(vec![drive], 1, rest)?)),
        None => Ok(Parsed::Windows(components(Vec::new(), 1, verbatim)?)),
    }
}

/// `C:` alone or before a separator. `C:file` (relative to a drive's current directory) is no such thing; its colon gets it refused.
fn split_drive(text: &str) -> Option<(String, &str)> {
    let (drive, rest) = text.split_at_checked(2)?;
    let is_drive = drive.ends_with(':') && drive.starts_with(|c: char| c.is_ascii_alphabetic());
    (is_drive && (rest.is_empty() || rest.starts_with('/'))).then(|| (drive.to_owned(), rest))
}

fn checked(component: &str) -> Result<&str, &'static str> {
    if component.contains(':') {
        return Err("a `:` in a path names a stream or a drive, which is not opened");
    }
    Ok(component)
}

/// Appends components to an absolute path whose first `root` components cannot be climbed out of.
fn components(mut path: Vec<String>, root: usize, rest: &str) -> Result<Vec<String>, &'static str> {
    for component in rest.split('/') {
        match checked(component)? {
            "" | "." => {}
            ".." if path.len() <= root => return Err("the path climbs above its root"),
            ".." => drop(path.pop()),
            name => path.push(name.to_owned()),
        }
    }
    Ok(path)
}

fn relative_components(text: &str) -> Result<Vec<String>, &'static str> {
    let mut path: Vec<String> = Vec::new();
    for component in text.split('/') {
        match checked(component)? {
            "" | "." => {}
            ".." if path.last().is_some_and(|last| last != "..") => drop(path.pop()),
            name => path.push(name.to_owned()),
        }
    }
    Ok(path)
}

impl Parsed {
    /// The absolute path that this means for a child in `child_dir` (absolute, without links).
    pub(super) fn resolve(&self, child_dir: &Path, table: &WindowsTable) -> Result<PathBuf, &'static str> {
        match self {
            Self::Relative(components) => {
                let mut path = child_dir.to_path_buf();
                for component in components {
                    match component.as_str() {
                        ".." => drop(path.pop()),
                        name => path.push(name),
                    }
                }
                Ok(path)
            }
            Self::Rooted(_) if cfg!(windows) => Err("the path has no drive"),
            Self::Rooted(components) => Ok(Path::new("/").join(components.iter().collect::<PathBuf>())),
            Self::Windows(components) => match table.map(components) {
                Some(mapped) => Ok(mapped),
                None if cfg!(windows) && components.first().is_some_and(|root| root.ends_with(':')) => {
                    Ok(PathBuf::from(components.join(r"\")))
                }
                None => Err("it is a Windows path, and the table of Windows paths says nothing about its start"),
            },
        }
    }
}

/// What Windows prefixes mean on this machine.
#[derive(Debug)]
pub(super) struct WindowsTable(Vec<(Vec<String>, PathBuf)>);

impl WindowsTable {
    /// From (`D:\images`, `/srv/images`) pairs. A prefix that is not a Windows path matches nothing.
    pub(super) fn new(pairs: &[(String, PathBuf)]) -> Self {
        let entry = |(prefix, dir): &(String, PathBuf)| match parse(prefix) {
            Ok(Parsed::Windows(components)) => Some((components, real(dir))),
            // `Volume{GUID}` without its `\\?\`.
            Ok(Parsed::Relative(components)) if components.first().is_some_and(|first| first.contains('{')) => {
                Some((components, real(dir)))
            }
            Ok(Parsed::Relative(_) | Parsed::Rooted(_)) | Err(_) => None,
        };
        Self(pairs.iter().filter_map(entry).collect())
    }

    /// The longest prefix wins. Components are compared without regard to case, and only whole ones.
    fn map(&self, path: &[String]) -> Option<PathBuf> {
        let matches = |prefix: &[String]| {
            prefix.len() < path.len() && prefix.iter().zip(path).all(|(a, b)| a == b || a.to_lowercase() == b.to_lowercase())
        };
        let (prefix, dir) = self.0.iter().filter(|(prefix, _)| matches(prefix)).max_by_key(|(prefix, _)| prefix.len())?;
        Some(dir.join(path[prefix.len()..].iter().collect::<PathBuf>()))
    }
}

/// The path without links, for a file that is there.
pub(crate) fn canonical(path: &Path) -> Result<PathBuf, StorageError> {
    std::fs::canonicalize(path).map_err(|e| StorageError::new(Operation::Open, 0, e))
}

/// A path of the caller's without links; where there is nothing yet, at least an absolute one.
pub(super) fn real(path: &Path) -> PathBuf {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_path_buf())
}

/// The directory that a file really is in: what its relative locator path starts from. A file that does not exist yet is taken to
/// be where its path says.
pub(crate) fn directory_of(file: &Path) -> PathBuf {
    let parent = |path: &Path| path.parent().map(Path::to_path_buf).unwrap_or_default();
    std::fs::canonicalize(file).map_or_else(|_| real(&parent(file)), |file| parent(&file))
}

/// A component as a locator can carry it: Unicode, and free of the characters that mean something else there.
fn writable<'p>(component: &Component<'p>) -> Option<&'p str> {
    component.as_os_str().to_str().filter(|name| !name.contains(['\\', ':']))
}

/// The `relative_path` that leads from a child in `child_dir` to `parent`: `.\p.vhdx`, `..\images\p.vhdx`. Both are absolute paths
/// without links.
///
/// `None` when there is no such path that a reader would take back for the same file: another drive, a name that is not Unicode, or
/// one with a backslash or colon in it.
pub(crate) fn relative_locator_path(child_dir: &Path, parent: &Path) -> Option<String> {
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) = (child_dir.components().collect(), parent.components().collect());
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let (up, down) = (from.get(common..)?, to.get(common..)?);
    let all_names = |part: &[Component<'_>]| part.iter().all(|c| matches!(c, Component::Normal(_)));
    if common == 0 || down.is_empty() || !all_names(up) || !all_names(down) {
        return None;
    }
    let mut parts = if up.is_empty() { vec!["."] } else { vec![".."; up.len()] };
    for component in down {
        parts.push(writable(component)?);
    }
    Some(parts.join(r"\"))
}

/// The `absolute_win32_path` of a parent whose absolute path without links this is: `\\?\C:\dir\p.vhdx` on Windows; elsewhere,
/// where no Windows path would be true, `/dir/p.vhdx`. `None` as for [`relative_locator_path`].
pub(crate) fn absolute_locator_path(parent: &Path) -> Option<String> {
    for component in parent.components() {
        if let Component::Normal(_) = component {
            writable(&component)?;
        }
    }
    parent.to_str().map(str::to_owned)
}
