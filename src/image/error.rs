//! What can go wrong with images and clones, each in one sentence: what, where, and what to do next.

use crate::chain::{CreateError, OpenError, RelinkError, SwitchError};
use crate::disk::error::DiskError;
use crate::kind::ErrorKind;
use crate::storage::{Operation, StorageError, io_kind};
use crate::tools::ToolError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An act on a store, an image or a clone failed. Nothing is left half done: what was there before is there now.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A name that no image, clone or savepoint can have.
    #[error("{name:?} cannot be the name of {what}: {rule}")]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The name.
        name: String,
        /// What names look like.
        rule: &'static str,
    },
    /// An option outside the rules.
    #[error("{what}: {rule}")]
    Invalid {
        /// What was asked for.
        what: String,
        /// Why it cannot be, and what can.
        rule: String,
    },
    /// The directory is not a store.
    #[error("{} is not an image store: {why}; name the directory of a store, or an empty one to begin a store in", dir.display())]
    NotAStore {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no such image.
    #[error("there is no image {reference} in {}; {hint}", store.display())]
    NoImage {
        /// What was asked for.
        reference: String,
        /// The store.
        store: PathBuf,
        /// What there is instead.
        hint: String,
    },
    /// The name is taken.
    #[error("there is already an image {name} in {}; refresh it to add a generation, or choose another name", store.display())]
    ImageExists {
        /// The name.
        name: String,
        /// The store.
        store: PathBuf,
    },
    /// No new clones of this image for now.
    #[error("{image} is disabled, so no new clones are made of it; enable it again or use another generation")]
    Disabled {
        /// The image.
        image: String,
    },
    /// Clones stand on the image.
    #[error("{image} has {} and cannot be removed: {}; remove, reset or flatten them first", count(clones.len(), "clone"), list(clones))]
    HasClones {
        /// The image.
        image: String,
        /// Its clones.
        clones: Vec<PathBuf>,
    },
    /// There is no such clone.
    #[error("there is no clone {clone} that the store {} knows; `clone list` shows those it does", store.display())]
    NoClone {
        /// What was asked for.
        clone: String,
        /// The store.
        store: PathBuf,
    },
    /// A file that the store knows is not where it was.
    #[error("{what} is missing: {} was deleted or moved, or what it lies on is not mounted; {next}", path.display())]
    NoFile {
        /// What the file is: a clone, a savepoint, an image.
        what: String,
        /// Where it was.
        path: PathBuf,
        /// What to do.
        next: &'static str,
    },
    /// Several clones have this name.
    #[error("{} clones are named {name}: {}; say which by its path", paths.len(), list(paths))]
    Ambiguous {
        /// The name.
        name: String,
        /// Where they are.
        paths: Vec<PathBuf>,
    },
    /// The path is taken.
    #[error("{} is already there; choose another name (a creation may reuse or replace a clone: `--if-exists`)", path.display())]
    CloneExists {
        /// The path.
        path: PathBuf,
    },
    /// The file is not ours to touch.
    #[error("{} is left alone: {why}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Why it is taken for somebody else's.
        why: String,
    },
    /// Somebody protected the clone.
    #[error("the clone {} is protected; take the protection away first (`clone protect --off`)", clone.display())]
    Protected {
        /// The clone.
        clone: PathBuf,
    },
    /// Somebody is using it.
    #[error("{} is in use by {who}; {next}", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who, as far as that is known.
        who: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// There is no such savepoint.
    #[error("the clone {} has no savepoint {name}; it has {}", clone.display(), if have.is_empty() { "none".to_owned() } else { have.join(", ") })]
    NoSavepoint {
        /// The clone.
        clone: PathBuf,
        /// What was asked for.
        name: String,
        /// What it has.
        have: Vec<String>,
    },
    /// The savepoint's name is taken.
    #[error("the clone {} already has a savepoint {name}; choose another name or drop that one first", clone.display())]
    SavepointExists {
        /// The clone.
        clone: PathBuf,
        /// The name.
        name: String,
    },
    /// Something stands on the savepoint, or would be lost with it.
    #[error("the savepoints {} of {} are in the way: {next}", names.join(", "), clone.display())]
    SavepointsInTheWay {
        /// The clone.
        clone: PathBuf,
        /// The savepoints.
        names: Vec<String>,
        /// What to do.
        next: &'static str,
    },
    /// A file of ours is not what it must be.
    #[error("{} is damaged: {what}; {next}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        next: &'static str,
    },
    /// A sealed image does not hold what was sealed.
    #[error("block {block} of {image} (bytes {offset}..+{len}) is not what was sealed; restore {} from a copy, or refresh the image", path.display())]
    BadBlock {
        /// The image.
        image: String,
        /// Its file.
        path: PathBuf,
        /// The first bad block.
        block: u64,
        /// Where it starts on the virtual disk.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// A step that was to change a new image or clone failed, so there is no image or clone.
    #[error("the step `{step}` {outcome}, so nothing was made; {}", said(output))]
    Step {
        /// The command.
        step: String,
        /// How it ended.
        outcome: String,
        /// The end of what it printed.
        output: String,
    },
    /// A program that does part of the work is missing or failed.
    #[error("{tool} {outcome}; {next}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// How that went.
        outcome: String,
        /// What to do.
        next: &'static str,
    },
    /// The source of an image cannot be used.
    #[error("{source_name} cannot be the source of an image: {why}")]
    Source {
        /// The source.
        source_name: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The caller cancelled.
    #[error("cancelled while {doing}; {left}")]
    Cancelled {
        /// What was going on.
        doing: &'static str,
        /// What is there now.
        left: &'static str,
    },
    /// The system refused something.
    #[error("cannot {doing} {}: {source}{}", path.display(), advice(doing, source))]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A VHDX cannot be opened.
    #[error("cannot open {}: {source}{}", path.display(), who_tells_more(source.kind()))]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// A VHDX cannot be created.
    #[error("cannot create {}: {source}{}", path.display(), who_tells_more(source.kind()))]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CreateError,
    },
    /// A clone cannot be told where its parent is.
    #[error("cannot relink {}: {source}", path.display())]
    Relink {
        /// The clone or savepoint.
        path: PathBuf,
        /// Why.
        source: RelinkError,
    },
    /// A clone that is in use cannot be saved.
    #[error("cannot save {}: {source}", clone.display())]
    Switch {
        /// The clone.
        clone: PathBuf,
        /// Why, and whether it takes effect later.
        source: SwitchError,
    },
    /// A verb of the toolbox failed.
    #[error(transparent)]
    Work {
        /// Why.
        source: ToolError,
    },
    /// The process that has the clone open could not do what it was asked.
    #[error("{message}")]
    Remote {
        /// What sort of failure.
        kind: ErrorKind,
        /// What it said.
        message: String,
    },
    /// Reading or writing a VHDX failed.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
}

impl StoreError {
    /// The coarse sort of failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name { .. } | Self::Invalid { .. } | Self::Ambiguous { .. } | Self::NotAStore { .. } | Self::Source { .. } => {
                ErrorKind::InvalidInput
            }
            Self::NoImage { .. } | Self::NoClone { .. } | Self::NoSavepoint { .. } | Self::NoFile { .. } => ErrorKind::NotFound,
            Self::ImageExists { .. } | Self::CloneExists { .. } | Self::SavepointExists { .. } | Self::Foreign { .. } => {
                ErrorKind::AlreadyExists
            }
            Self::Disabled { .. } | Self::Protected { .. } => ErrorKind::Denied,
            Self::HasClones { .. } | Self::InUse { .. } | Self::SavepointsInTheWay { .. } => ErrorKind::InUse,
            Self::Damaged { .. } | Self::BadBlock { .. } => ErrorKind::Damaged,
            Self::Step { .. } => ErrorKind::Io,
            Self::Tool { .. } => ErrorKind::Unavailable,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::Io { source, .. } => io_kind(source),
            Self::Open { source, .. } => source.kind(),
            Self::Create { source, .. } => source.kind(),
            Self::Relink { source, .. } => source.kind(),
            Self::Switch { source, .. } => source.kind(),
            Self::Work { source } => source.kind(),
            Self::Remote { kind, .. } => *kind,
            Self::Disk { source, .. } => source.kind(),
        }
    }

    pub(super) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |e| Self::Io { doing, path, source: Arc::new(e) }
    }

    pub(super) fn storage(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(StorageError) -> Self {
        let path = path.as_ref().to_path_buf();
        move |e| Self::Io { doing, path, source: e.source }
    }

    pub(super) fn open(path: impl AsRef<Path>) -> impl FnOnce(OpenError) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| match source.kind() {
            // Whoever asks for a lock that is held wants to hear who might hold it, not which system call refused.
            ErrorKind::InUse => Self::in_use(&path),
            _ => match source {
                // What the system said of the file itself, once.
                OpenError::Storage(e) if matches!(e.operation, Operation::Open) => Self::Io { doing: "open", path, source: e.source },
                source => Self::Open { path, source },
            },
        }
    }

    pub(super) fn create(path: impl AsRef<Path>) -> impl FnOnce(CreateError) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Create { path, source }
    }

    pub(super) fn disk(path: impl AsRef<Path>) -> impl FnOnce(DiskError) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Disk { path, source }
    }

    /// A verb of the toolbox that found the file in use says so in our words.
    pub(super) fn work(path: impl AsRef<Path>) -> impl FnOnce(ToolError) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| match &source {
            ToolError::Open { .. } if source.kind() == ErrorKind::InUse => Self::in_use(&path),
            _ => Self::Work { source },
        }
    }

    pub(super) fn in_use(path: &Path) -> Self {
        let next = "close the database, server or mount that has it open and try again";
        Self::InUse { path: path.to_path_buf(), who: "somebody else", next }
    }
}

fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// The first few of a list; nobody reads ten thousand paths.
fn list(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 10;
    let mut text = paths.iter().take(SHOWN).map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    if paths.len() > SHOWN {
        text.push_str(&format!(" and {} more", paths.len() - SHOWN));
    }
    text
}

fn said(output: &str) -> String {
    if output.is_empty() { "it printed nothing".to_owned() } else { format!("it said: {output}") }
}

/// What to do about failures that have one usual cause.
fn advice(doing: &str, source: &io::Error) -> &'static str {
    match io_kind(source) {
        ErrorKind::NoSpace => "; free some space and try again, nothing was left behind",
        ErrorKind::Denied if source.kind() == io::ErrorKind::ReadOnlyFilesystem => "; mount it writable or use another directory",
        ErrorKind::Denied if ["read", "read the digests", "list", "look at", "find", "find the directory"].contains(&doing) => {
            "; this needs permission to read there"
        }
        // For reading or for writing, which the call does not tell.
        ErrorKind::Denied if doing == "open" => "; look at its permissions and its owner",
        ErrorKind::Denied => "; this needs permission to write there",
        _ => "",
    }
}

/// Damage may be in any file of a chain.
fn who_tells_more(kind: ErrorKind) -> &'static str {
    if kind == ErrorKind::Damaged { "; `clone check` or `image check` tells which file it is and what can be done" } else { "" }
}
