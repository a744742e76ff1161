//! What changed from one disk to another: between two points of a chain, two clones, or any two disks.

use super::buffer::is_zero;
use super::content::Content;
use super::crew::Crew;
use super::error::ToolError;
use super::pairs::{self, Sides};
use crate::progress::{Cancel, Phase, Progress};
use std::ops::{ControlFlow, Range};

/// What a stretch became.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// Other bytes.
    Data,
    /// Zeros.
    Zero,
}

impl ChangeKind {
    /// The name that `--json` prints.
    pub fn key(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Zero => "zero",
        }
    }
}

/// A stretch that is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What it became.
    pub kind: ChangeKind,
}

/// How [`diff`] looks for changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffOptions {
    granularity: u32,
    by_allocation: bool,
    workers: usize,
}

impl Default for DiffOptions {
    fn default() -> Self {
        Self { granularity: 4096, by_allocation: false, workers: 0 }
    }
}

impl DiffOptions {
    /// Every changed 4 KiB, and nothing that did not change.
    pub fn new() -> Self {
        Self::default()
    }

    /// The unit in bytes in which changes are told: a power of two from 512 to 1 MiB. Default: 4096.
    #[must_use]
    pub fn granularity(mut self, bytes: u32) -> Self {
        self.granularity = bytes;
        self
    }

    /// Whether what the files say about their blocks is believed unread: whatever is not known to be the same counts as changed, and as
    /// zeros only what a file says is zeros. Fast and never too little between disks of one family; of others it is all their data.
    /// Default: no.
    #[must_use]
    pub fn by_allocation(mut self, by_allocation: bool) -> Self {
        self.by_allocation = by_allocation;
        self
    }

    /// How many threads read; 0, the default, for as many as there are processors. The answer does not depend on it.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }
}

/// What has to change in `a` so that it becomes `b`, in order, neighbours of one kind together. The shorter one counts as filled up with
/// zeros. Takes 24 bytes of memory for each change.
///
/// Between disks of one family (an image and its clone, two clones, two savepoints) only what the files hold that they do not share is
/// looked at. To send the changes instead of listing them, [`convert`](crate::convert) `b` to a
/// [child of `a`](crate::ConvertOptions::child_of).
///
/// ```
/// use diffdisk::{Cancel, Change, ChangeKind, Content, CreateOptions, DiffOptions, Disk, NoProgress, OpenOptions, diff};
/// # let dir = tempfile::tempdir()?;
/// # let path = |name: &str| dir.path().join(name);
/// let image = Disk::create(path("app.vhdx"), &CreateOptions::dynamic(64 << 30))?;
/// image.write_at(&[1; 8192], 1 << 30)?;
/// image.close()?;
/// let clone = Disk::create_child(path("alice.vhdx"), path("app.vhdx"), &CreateOptions::child())?;
/// clone.write_at(&[2; 512], 1 << 30)?;
/// clone.close()?;
/// let open = |name: &str| Content::vhdx(path(name), &OpenOptions::new());
/// let changes = diff(&open("app.vhdx")?, &open("alice.vhdx")?, &DiffOptions::new(), &NoProgress, &Cancel::new())?;
/// assert_eq!(changes, [Change { offset: 1 << 30, len: 4096, kind: ChangeKind::Data }]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `Refused` for a granularity outside its range; `Storage` or `Disk` when reading fails; `Cancelled`.
pub fn diff(
    a: &Content<'_>,
    b: &Content<'_>,
    options: &DiffOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Change>, ToolError> {
    let unit = options.granularity;
    if !unit.is_power_of_two() || !(512..=1 << 20).contains(&unit) {
        return Err(ToolError::refused(b.path(), "the granularity must be a power of two from 512 to 1 MiB"));
    }
    let size = a.size().max(b.size());
    let crew = Crew { workers: options.workers, progress, cancel };
    if options.by_allocation {
        return by_allocation(a, b, size, crew);
    }
    let each = |(sides, found): &mut (Sides, Vec<Change>), offset: u64, len: usize| {
        sides.read((a, b), (offset, len), unit as usize, |at, left, right| {
            for (range, kind) in changes(left, right, unit as usize) {
                push(found, Change { offset: at + range.start as u64, len: range.len() as u64, kind });
            }
            Ok(ControlFlow::<()>::Continue(()))
        })
    };
    let chunks = pairs::chunks(a, b, size, u64::from(unit.max(4096)))?;
    let (states, _) = crew.work(Phase::Diff, size, chunks, || (Sides::new(), Vec::new()), each)?;
    let mut all: Vec<Change> = states.into_iter().flat_map(|(_, found)| found).collect();
    all.sort_unstable_by_key(|change| change.offset);
    let mut joined = Vec::with_capacity(all.len());
    all.into_iter().for_each(|change| push(&mut joined, change));
    Ok(joined)
}

fn by_allocation(a: &Content<'_>, b: &Content<'_>, size: u64, crew: Crew<'_>) -> Result<Vec<Change>, ToolError> {
    crew.progress.phase(Phase::Diff, Some(size));
    let mut found = Vec::new();
    for pair in pairs::pairs(a, b, size)? {
        crew.check()?;
        let pair = pair?;
        let kind = if pair.second_has_data { ChangeKind::Data } else { ChangeKind::Zero };
        push(&mut found, Change { offset: pair.range.start, len: pair.range.end - pair.range.start, kind });
        crew.progress.advance(pair.range.end);
    }
    Ok(found)
}

/// Adds a change, to the last one if it continues it.
fn push(list: &mut Vec<Change>, change: Change) {
    match list.last_mut() {
        Some(last) if last.kind == change.kind && last.offset + last.len == change.offset => last.len += change.len,
        _ => list.push(change),
    }
}

/// The stretches of whole units (the last one may be short) in which `new` is not `old`, and what they became.
pub(crate) fn changes<'a>(old: &'a [u8], new: &'a [u8], unit: usize) -> impl Iterator<Item = (Range<usize>, ChangeKind)> + 'a {
    let kind = move |at: usize| {
        let end = (at + unit).min(new.len());
        let is = &new[at..end];
        (old[at..end] != *is).then(|| if is_zero(is) { ChangeKind::Zero } else { ChangeKind::Data })
    };
    let same = old == new;
    let mut ahead: Option<Option<ChangeKind>> = None;
    let mut at = if same { new.len() } else { 0 };
    std::iter::from_fn(move || {
        let found = loop {
            if at >= new.len() {
                return None;
            }
            match ahead.take().unwrap_or_else(|| kind(at)) {
                Some(found) => break found,
                None => at += unit,
            }
        };
        let start = at;
        while at < new.len() {
            let next = if at == start { Some(found) } else { kind(at) };
            if next != Some(found) {
                ahead = Some(next);
                break;
            }
            at += unit;
        }
        Some((start..at.min(new.len()), found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_whole_units_of_one_kind() {
        let list = |old: &[u8], new: &[u8]| changes(old, new, 4).collect::<Vec<_>>();
        let old = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 0, 0, 0, 0, 5, 5];
        assert_eq!(list(&old, &old), []);
        let mut new = old;
        new[1] = 9;
        new[8..12].fill(0);
        new[17] = 0;
        assert_eq!(list(&old, &new), [(0..4, ChangeKind::Data), (8..12, ChangeKind::Zero), (16..18, ChangeKind::Data)]);
        new[4..8].fill(0);
        new[13] = 1;
        new[16] = 0;
        let expected = [(0..4, ChangeKind::Data), (4..12, ChangeKind::Zero), (12..16, ChangeKind::Data), (16..18, ChangeKind::Zero)];
        assert_eq!(list(&old, &new), expected);
        assert_eq!(list(&old[..1], &[0]), [(0..1, ChangeKind::Zero)]);
    }
}
