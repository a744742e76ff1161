//! Giving a child another parent, whose content is not the same: a newer generation of its image, say.
//!
//! Let *old* be what the child's parent shows and *new* what the other disk shows; *own* are the sectors about which the child says
//! something itself (it holds them, or says that they are zeros). A rebase looks at the units (4 KiB unless told otherwise) in which old
//! and new differ, and at no others: elsewhere the child shows the same over either. Zeros stand for what lies past the end of a disk.
//!
//! **Onto the new parent** ([`RebaseOptions::new`]). The child shows the new parent with its own sectors on top. That is only sound where
//! nobody depends on both, so a unit that has own sectors, all or some, and differs between old and new is a *conflict*, unless what
//! the child shows in it is what the new parent shows there: then both made the same change. With a conflict nothing is done, and all of
//! them are told. Blocks are all that is looked at here: whether two changes contradict each other in the file system or the database
//! inside only its own tools can say.
//!
//! ```text
//!   1. compare old and new; look at own                       crash: nothing changed
//!   2. a header with new identities, synced                   crash: a child of the old parent, same content; its children do not open
//!   3. one log entry: the parent locator, synced              crash: as 2, or done
//! ```
//!
//! The content changes where old and new differ, so the data write GUID does (step 2, before anything else, as MS-VHDX 2.2.2.1 asks), and
//! disks that stand on this child do not open any more: what they were made over is gone. Where nothing visible differs steps 1 and 3
//! remain and every identity stays: a relink with proof.
//!
//! **With its content kept** ([`RebaseOptions::keep_content`]). What differs between old and new and is not own is copied into the child
//! first, over the old parent, where it changes nothing that anybody can see; then the locator is rewritten.
//!
//! ```text
//!   1. a header with a new file write GUID, synced            crash: nothing changed
//!   2. copy, in any order                                     crash: a larger child of the old parent, same content
//!   3. flush                                                  crash: the same
//!   4. one log entry: the parent locator, synced              crash: the same, or a child of the new parent, same content
//! ```
//!
//! The data write GUID stays, so the disks that stand on the child go on working. Doing it again after a crash or a cancel goes on where
//! it stopped: what was copied is own by then.

use super::buffer::{Buffer, CHUNK, is_zero};
use super::content::Content;
use super::crew::Crew;
use super::diff::changes;
use super::error::{About, ToolError};
use super::pairs::{self, Sides};
use crate::chain::{Disk, OpenOptions, ParentPolicy, RelinkError};
use crate::disk::error::DiskError;
use crate::format::ParentLocator;
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::Storage;
use crate::sync::Arc;
use std::ops::{ControlFlow, Range};
use std::path::Path;

/// How [`rebase`] goes about it.
#[derive(Clone, Debug)]
pub struct RebaseOptions {
    keep_content: bool,
    dry_run: bool,
    unit: u32,
    parents: ParentPolicy,
    workers: usize,
}

impl Default for RebaseOptions {
    fn default() -> Self {
        Self { keep_content: false, dry_run: false, unit: 4096, parents: ParentPolicy::default(), workers: 0 }
    }
}

impl RebaseOptions {
    /// The child shows the new parent with its own sectors on top; units of 4 KiB; parents beneath the disks' own directories.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the child goes on showing what it shows: what the new parent has otherwise is copied into it first. Default: no.
    #[must_use]
    pub fn keep_content(mut self, keep: bool) -> Self {
        self.keep_content = keep;
        self
    }

    /// Whether only the answer is wanted, and nothing is changed. Default: no.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The unit in bytes in which own sectors and changes of the parent must not meet: a power of two from the logical sector size to
    /// 1 MiB. Default: 4096. That of the file system's blocks or the database's pages is a good one.
    #[must_use]
    pub fn unit(mut self, bytes: u32) -> Self {
        self.unit = bytes;
        self
    }

    /// Where the old parents of the child, and those of the new parent, may lie.
    #[must_use]
    pub fn parents(mut self, policy: ParentPolicy) -> Self {
        self.parents = policy;
        self
    }

    /// How many threads read; 0, the default, for as many as there are processors. The result does not depend on it.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }
}

/// What [`rebase`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebased {
    /// Where the child's own sectors meet changes of the parent, in order. When there are any, nothing was done.
    pub conflicts: Vec<Range<u64>>,
    /// Bytes that the child shows otherwise than before: those of the new parent.
    pub inherited: u64,
    /// Bytes in which child and new parent made the same change.
    pub agreed: u64,
    /// Bytes that were copied into the child so that its content stays.
    pub copied: u64,
    /// Whether the child stands on the new parent now.
    pub is_linked: bool,
}

/// Links `child` to `new_parent`, whose content may be another than that of its parent. See the module for what that means.
///
/// ```
/// use diffdisk::{Cancel, CreateOptions, Disk, NoProgress, OpenOptions, RebaseOptions, rebase};
/// # let dir = tempfile::tempdir()?;
/// # let path = |name: &str| dir.path().join(name);
/// for (name, year) in [("app-1.vhdx", 1), ("app-2.vhdx", 2)] {
///     let image = Disk::create(path(name), &CreateOptions::dynamic(1 << 30))?;
///     image.write_at(&[year; 4096], 0)?;
///     image.close()?;
/// }
/// let clone = Disk::create_child(path("alice.vhdx"), path("app-1.vhdx"), &CreateOptions::child())?;
/// clone.write_at(&[9; 4096], 1 << 20)?;
/// clone.close()?;
///
/// let done = rebase(path("alice.vhdx"), path("app-2.vhdx"), &RebaseOptions::new(), &NoProgress, &Cancel::new())?;
/// assert!(done.conflicts.is_empty() && done.is_linked);
/// let clone = Disk::open(path("alice.vhdx"), &OpenOptions::new())?;
/// let mut byte = [0; 1];
/// clone.read_at(&mut byte, 0)?;
/// assert_eq!(byte, [2]);
/// clone.read_at(&mut byte, 1 << 20)?;
/// assert_eq!(byte, [9]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `Open` when the child, its chain or the new parent cannot be opened; `Refused` when the child has no parent, the new parent stands on
/// the child, sector sizes differ, or the unit is out of range; `Relink` when the locator cannot be written; `Disk`; `Cancelled`. The child
/// then stands on its old parent and shows what it showed, or, after an error of the last step, on either.
pub fn rebase(
    child: impl AsRef<Path>,
    new_parent: impl AsRef<Path>,
    options: &RebaseOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Rebased, ToolError> {
    let (child, parent) = (child.as_ref(), new_parent.as_ref());
    let open = OpenOptions::new().parents(options.parents.clone());
    let new = Disk::open(parent, &open).about(parent)?;
    // Looked at without asking for the right to write, which a chain that holds the child would refuse with a misleading reason.
    let alone = OpenOptions::new().parents(ParentPolicy::Deny);
    let id = Disk::open(child, &alone).about(child)?.leaf.original.id();
    if new.layers().any(|layer| layer.original.id() == id) {
        return Err(ToolError::refused(child, "the new parent stands on it, or is it"));
    }
    let disk = Disk::open(child, &open.writable(!options.dry_run)).about(child)?;
    let locator = Disk::locator_to(child, parent, &new).map_err(|cause| relink(child, cause))?;
    let crew = Crew { workers: options.workers, progress, cancel };
    Rebase { disk, new, child, parent, options, crew }.run(&locator)
}

/// The same on storages of the caller: the child, its old parents and the new ones, nearest first. The new locator has a path of the right
/// form that leads nowhere.
///
/// # Errors
/// As [`rebase`].
pub fn rebase_on(
    child: Arc<dyn Storage>,
    old_parents: Vec<Arc<dyn Storage>>,
    new_parents: Vec<Arc<dyn Storage>>,
    options: &RebaseOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Rebased, ToolError> {
    let (name, parent) = (Path::new("child"), Path::new("parent"));
    let mut below = new_parents.into_iter();
    let nearest = below.next().ok_or_else(|| ToolError::refused(name, "no parent was given"))?;
    let new = Disk::open_on(nearest, below.collect(), &OpenOptions::new()).about(parent)?;
    if new.layers().any(|layer| layer.original.id() == child.id()) {
        return Err(ToolError::refused(name, "the new parent stands on it, or is it"));
    }
    let disk = Disk::open_on(child, old_parents, &OpenOptions::new().writable(!options.dry_run)).about(name)?;
    let locator = ParentLocator::new(new.leaf.header.data_write, &[("relative_path", r".\parent.vhdx")]);
    let crew = Crew { workers: options.workers, progress, cancel };
    Rebase { disk, new, child: name, parent, options, crew }.run(&locator)
}

fn relink(child: &Path, cause: RelinkError) -> ToolError {
    ToolError::Relink { path: child.to_owned(), cause: Box::new(cause) }
}

struct Rebase<'a> {
    disk: Disk,
    new: Disk,
    child: &'a Path,
    parent: &'a Path,
    options: &'a RebaseOptions,
    crew: Crew<'a>,
}

/// What a worker found.
struct Found {
    sides: Sides,
    shown: Buffer,
    conflicts: Vec<Range<u64>>,
    inherited: u64,
    agreed: u64,
    copied: u64,
    /// Starts of blocks that are to say that they are zeros.
    pins: Vec<u64>,
}

impl Rebase<'_> {
    fn run(self, locator: &ParentLocator) -> Result<Rebased, ToolError> {
        let refused = |why| Err(ToolError::refused(self.child, why));
        let Some(old) = self.disk.parent_view() else { return refused("it is not a differencing disk, so it has no parent") };
        let sector = self.disk.logical_sector_size();
        if self.new.logical_sector_size() != sector {
            return refused("the new parent has logical sectors of another size");
        }
        let unit = self.options.unit;
        if !unit.is_power_of_two() || unit < sector || u64::from(unit) > CHUNK as u64 {
            return refused("the unit must be a power of two from the logical sector size to 1 MiB");
        }
        if self.new.leaf.header.data_write.get().is_zero() {
            return refused("the new parent has no identity that a child could link to");
        }
        let (keep, dry) = (self.options.keep_content, self.options.dry_run);
        if keep && !dry {
            // Whoever reads the child sees the same before and after: its identity stays.
            let writer = self.disk.writer().about(self.child)?;
            writer.begin_as(writer.data_write()).about(self.child)?;
        }
        let old = Content::own(old, "the old parent");
        let mut done = self.look(&old)?;
        if dry || !done.conflicts.is_empty() {
            return Ok(done);
        }
        let writer = self.disk.writer().about(self.child)?;
        self.crew.check()?;
        if keep {
            self.disk.flush().about(self.child)?;
        } else if done.inherited > 0 {
            writer.begin().about(self.child)?;
        }
        self.disk.write_locator(locator).map_err(|cause| relink(self.child, cause))?;
        done.is_linked = true;
        if writer.has_begun() {
            self.disk.close().about(self.child)?;
        }
        Ok(done)
    }

    /// Goes over everything in which the old and the new parent differ.
    fn look(&self, old: &Content<'_>) -> Result<Rebased, ToolError> {
        let new = Content::of(&self.new, self.parent);
        let shown = Content::of(&self.disk, self.child);
        let (size, unit) = (self.disk.size(), self.options.unit as usize);
        let state = || Found {
            sides: Sides::new(),
            shown: Buffer::new(),
            conflicts: Vec::new(),
            inherited: 0,
            agreed: 0,
            copied: 0,
            pins: Vec::new(),
        };
        let each = |found: &mut Found, offset: u64, len: usize| {
            let Found { sides, shown: buffer, conflicts, inherited, agreed, copied, pins } = found;
            sides.read((old, &new), (offset, len), unit, |offset, was, is| {
                for (range, _) in changes(was, is, unit) {
                    let place = offset + range.start as u64..offset + range.end as u64;
                    if self.options.keep_content {
                        *copied += self.keep(old, place, &was[range], pins)?;
                        continue;
                    }
                    for (from, is) in (place.start..).step_by(unit).zip(is[range].chunks(unit)) {
                        let unit = from..from + is.len() as u64;
                        if !self.is_own(unit.clone())? {
                            *inherited += is.len() as u64;
                            continue;
                        }
                        let shows = buffer.first(is.len());
                        shown.read_at(shows, from)?;
                        if shows == is {
                            *agreed += is.len() as u64;
                        } else {
                            push(conflicts, unit);
                        }
                    }
                }
                Ok(ControlFlow::<()>::Continue(()))
            })
        };
        let chunks = pairs::chunks(old, &new, size, (unit as u64).max(4096))?;
        let (states, _) = self.crew.work(Phase::Rebase, size, chunks, state, each)?;
        let mut all = Rebased::default();
        let (mut conflicts, mut pins) = (Vec::new(), Vec::new());
        for found in states {
            all.inherited += found.inherited;
            all.agreed += found.agreed;
            all.copied += found.copied;
            conflicts.extend(found.conflicts);
            pins.extend(found.pins);
        }
        pins.sort_unstable();
        pins.dedup();
        for at in pins {
            self.crew.check()?;
            self.disk.pin_zeroes(at, self.disk.leaf.geometry.block_size().min(size - at)).about(self.child)?;
        }
        conflicts.sort_unstable_by_key(|range| range.start);
        conflicts.into_iter().for_each(|range| push(&mut all.conflicts, range));
        Ok(all)
    }

    fn is_own(&self, unit: Range<u64>) -> Result<bool, ToolError> {
        Ok(self.disk.touched(1, unit).next().transpose().about(self.child)?.is_some())
    }

    /// Makes the sectors of a range that are not the child's own its own, with the content that the old parent gives them. Returns how
    /// many bytes that are. Whole blocks that are to say "zeros" come in `pins`, for later.
    fn keep(&self, old: &Content<'_>, range: Range<u64>, bytes: &[u8], pins: &mut Vec<u64>) -> Result<u64, ToolError> {
        let mut copied = 0;
        let mut at = range.start;
        let own = self.disk.touched(1, range.clone()).collect::<Result<Vec<_>, DiskError>>().about(self.child)?;
        for own in own.into_iter().chain(std::iter::once(range.end..range.end)) {
            if at < own.start {
                copied += own.start - at;
                if !self.options.dry_run {
                    self.copy(old, at, &bytes[(at - range.start) as usize..(own.start - range.start) as usize], pins)?;
                }
            }
            at = own.end;
        }
        Ok(copied)
    }

    fn copy(&self, old: &Content<'_>, at: u64, bytes: &[u8], pins: &mut Vec<u64>) -> Result<(), ToolError> {
        if !is_zero(bytes) {
            return self.disk.write_at(bytes, at).about(self.child);
        }
        let (block, size) = (self.disk.leaf.geometry.block_size(), self.disk.size());
        let end = at + bytes.len() as u64;
        let mut from = at;
        while from < end {
            let whole = from / block * block..(from / block * block + block).min(size);
            let to = end.min(whole.end);
            // Where the old parent has nothing in the whole block, and the child neither, the block says "zeros", which takes no space.
            if old.stretches(whole.clone())?.next().is_none() && !self.is_own(whole.clone())? {
                pins.push(whole.start);
            } else {
                self.disk.pin_zeroes(from, to - from).about(self.child)?;
            }
            from = to;
        }
        Ok(())
    }
}

/// Adds a range, to the last one if it continues it.
fn push(list: &mut Vec<Range<u64>>, range: Range<u64>) {
    match list.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => list.push(range),
    }
}
