//! How far a long act is, and how to stop it.

use crate::sync::{Arc, AtomicBool, Ordering};

/// The stages of long acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// A file system or a stream is put into a temporary file.
    Gather,
    /// The source is copied.
    Load,
    /// The steps that change the image run.
    Modify,
    /// The image is read back and digested.
    Digest,
    /// The image is compared with its digests.
    Verify,
    /// Every structure of a file, or of a chain, is examined.
    Check,
    /// What was found wrong is put right.
    Repair,
    /// A child's changes go into its parent, or into a new file.
    Merge,
    /// What a child inherits is copied into it.
    Hydrate,
    /// Blocks move, and space goes back to the file system.
    Compact,
    /// A disk becomes larger or smaller.
    Resize,
    /// A child is examined against another parent.
    Rebase,
    /// One disk is copied into another file.
    Convert,
    /// Two disks are read side by side.
    Compare,
    /// What differs between two disks is written down.
    Diff,
}

impl Phase {
    /// One word for people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Gather => "gather",
            Self::Load => "load",
            Self::Modify => "modify",
            Self::Digest => "digest",
            Self::Verify => "verify",
            Self::Check => "check",
            Self::Repair => "repair",
            Self::Merge => "merge",
            Self::Hydrate => "hydrate",
            Self::Compact => "compact",
            Self::Resize => "resize",
            Self::Rebase => "rebase",
            Self::Convert => "convert",
            Self::Compare => "compare",
            Self::Diff => "diff",
        }
    }
}

/// Told how far a long act is. Called from the thread that does the work, a few times for each MiB at most.
pub trait Progress: Sync {
    /// A phase begins; `total` bytes (or steps, while modifying) lie before it, if that is known.
    fn phase(&self, phase: Phase, total: Option<u64>);

    /// So much of the phase is done.
    fn advance(&self, done: u64);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn phase(&self, _phase: Phase, _total: Option<u64>) {}
    fn advance(&self, _done: u64) {}
}

/// A wish to stop, shared between who waits and who works. Clones are the same wish.
///
/// ```
/// let cancel = diffdisk::Cancel::new();
/// let handler = cancel.clone();
/// handler.cancel();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Nobody wants to stop yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for a stop. The work ends at its next pause with an error of kind `Cancelled`.
    pub fn cancel(&self) {
        // Relaxed: the flag carries no data with it, and the worker polls.
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<Arc<AtomicBool>> for Cancel {
    /// A flag that a signal handler sets.
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }
}
