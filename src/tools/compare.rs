//! Whether two disks hold the same, and where they first do not.

use super::buffer::GRAIN;
use super::content::Content;
use super::crew::Crew;
use super::error::ToolError;
use super::pairs::{self, Sides};
use crate::progress::{Cancel, Phase, Progress};
use std::ops::ControlFlow;

/// How [`compare`] compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompareOptions {
    zero_tail: bool,
    workers: usize,
}

impl CompareOptions {
    /// Disks of unequal size differ; as many workers as there are processors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a longer disk counts as the same when the rest of it is zeros. Default: no.
    #[must_use]
    pub fn zero_tail(mut self, zero_tail: bool) -> Self {
        self.zero_tail = zero_tail;
        self
    }

    /// How many threads read; 0, the default, for as many as there are processors. The answer does not depend on it.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }
}

/// The first byte at which two contents differ, `None` when they are the same. Of disks of unequal size that is the end of the shorter
/// one at the latest, unless [`CompareOptions::zero_tail`].
///
/// What both have in the same place of the same file is not read: two clones of one image are compared in a time that follows what
/// changed in them.
///
/// ```
/// use diffdisk::{Cancel, CompareOptions, Content, NoProgress, compare};
/// # let dir = tempfile::tempdir()?;
/// # let path = |name: &str| dir.path().join(name);
/// std::fs::write(path("a.img"), [1; 5000])?;
/// std::fs::write(path("b.img"), [&[1; 4999][..], &[2]].concat())?;
/// let (a, b) = (Content::raw(path("a.img"))?, Content::raw(path("b.img"))?);
/// assert_eq!(compare(&a, &b, &CompareOptions::new(), &NoProgress, &Cancel::new())?, Some(4999));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `Storage` or `Disk` when reading fails before a difference is found; `Cancelled`.
pub fn compare(
    a: &Content<'_>,
    b: &Content<'_>,
    options: &CompareOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Option<u64>, ToolError> {
    let (common, longer) = (a.size().min(b.size()), a.size().max(b.size()));
    let size = if options.zero_tail { longer } else { common };
    let crew = Crew { workers: options.workers, progress, cancel };
    let each = |sides: &mut Sides, offset: u64, len: usize| {
        sides.read((a, b), (offset, len), GRAIN, |at, left, right| {
            Ok(match first_difference(left, right) {
                None => ControlFlow::Continue(()),
                Some(within) => ControlFlow::Break(at + within as u64),
            })
        })
    };
    let chunks = pairs::chunks(a, b, size, GRAIN as u64)?;
    let (_, found) = crew.work(Phase::Compare, size, chunks, Sides::new, each)?;
    Ok(found.or((size < longer).then_some(common)))
}

fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    let grain = left.chunks(GRAIN).zip(right.chunks(GRAIN)).position(|(x, y)| x != y)?;
    let within = left[grain * GRAIN..].iter().zip(&right[grain * GRAIN..]).position(|(x, y)| x != y)?;
    Some(grain * GRAIN + within)
}
