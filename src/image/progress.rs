//! How far a long act is, and how to stop it.

use crate::sync::{Arc, AtomicBool, Ordering};

/// The stages of making or checking an image.
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
