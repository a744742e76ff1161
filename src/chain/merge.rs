//! Merging a child into its parent, in place (our format reference §9.3): the child stays valid until the parent is the child.
//!
//! The parent's content changes, so its identity must, and at every instant the child must accept the one that the parent has. With L the
//! parent's identity before, N the child's own, and M a random one that nobody knows:
//!
//! ```text
//!   step                                                    the parent is   the child accepts   a crash after it
//!   1 the child's locator names L and M                     L               L M                 nothing has happened
//!   2 the parent's header says M, then its content changes  M               L M                 the child reads what it read
//!   3 the child's locator names M and N                     M               M N                 the same
//!   4 the child's blocks are copied, sizes and items follow M               M N                 the same; merged again from the start
//!   5 the parent is closed: everything durable, then the
//!     header that empties its log says N                    N               M N                 merged: both show the same
//!   6 the child's locator names N, or the child is removed  N               N                   done
//! ```
//!
//! Steps 1 and 3 are entries of the child's log, 2 and 5 headers of the parent; each is durable before the next begins, but for 3, which
//! only has to be durable before 5. The child reads right all the while: where it holds a sector it reads its own, and everywhere else
//! the parent has not changed. Copying is idempotent, so whoever finds the state of one of these steps goes on from there.
//!
//! Why M and not N at once: N is the child's identity, and files may stand on the child. Told to look at the half merged parent they would
//! take it for what they stand on. With M nobody but the child recognises it, and when it says N it *is* N: grandchildren need nothing
//! but a new path. Other children of the parent do not recognise it ever again; whether there are any is for the caller to find out.

use super::disk::Disk;
use super::error::CreateError;
use crate::disk::create::Blueprint;
use crate::disk::error::DiskError;
use crate::disk::items::{ItemChange, ItemFault};
use crate::disk::layer::Layer;
use crate::disk::writer::Writer;
use crate::format::{Metadata, ParentLocator, PayloadState};
use crate::geometry::BatRole;
use crate::guid::DataWriteGuid;
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::{self, StorageError};
use crate::units::BlockIndex;
use std::ops::Range;

mod size;

/// Bytes copied at a time.
const COPY: usize = 1 << 20;
/// From this length on it is asked whether data of the child is a hole.
const HOLES_FROM: u64 = 64 << 10;

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Child,
    Parent,
}

/// The child cannot be merged, or not now. It is valid all the same.
#[derive(Clone, Debug)]
pub(crate) enum FoldError {
    /// The child does not stand on this parent.
    NotParent,
    /// This pair cannot be merged in place.
    Refused(Side, &'static str),
    /// Reading or writing failed.
    Disk(Side, DiskError),
    /// Somebody asked for a stop.
    Cancelled,
}

impl From<StorageError> for FoldError {
    fn from(e: StorageError) -> Self {
        Self::Disk(Side::Child, e.into())
    }
}

/// Errors of one side.
trait On<T> {
    fn on(self, side: Side) -> Result<T, FoldError>;
}

impl<T, E: Into<DiskError>> On<T> for Result<T, E> {
    fn on(self, side: Side) -> Result<T, FoldError> {
        self.map_err(|e| FoldError::Disk(side, e.into()))
    }
}

fn item_fault(side: Side) -> impl Fn(ItemFault) -> FoldError {
    move |fault| match fault {
        ItemFault::NoRoom { .. } => FoldError::Refused(side, "its metadata region has no room for the items that change"),
        ItemFault::Disk(e) => FoldError::Disk(side, e),
    }
}

/// How far it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folded {
    /// The parent got another size and is closed: open it again and fold again.
    Again,
    /// The parent is closed and has the content and the identity of the child. So many bytes were copied or zeroed.
    Done { bytes: u64 },
}

/// A child, open for writing without its parents, and its parent, open for writing on whatever that stands on.
pub(crate) struct Fold<'a> {
    pub(crate) child: &'a Disk,
    pub(crate) parent: &'a Disk,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
}

impl Fold<'_> {
    /// Steps 1 to 5; see the module. After a cancel both files are closed and the child is valid.
    pub(crate) fn run(&self) -> Result<Folded, FoldError> {
        let (child, parent) = (writer(self.child, Side::Child)?, writer(self.parent, Side::Parent)?);
        let locator = self.child.leaf.metadata.parent_locator.as_ref().ok_or(FoldError::NotParent)?;
        let (wanted, found) = (child.data_write(), parent.data_write());
        if !locator.accepts(found) {
            return Err(FoldError::NotParent);
        }
        if wanted.get().is_zero() {
            return Err(FoldError::Refused(Side::Child, "its data write GUID is zero, which is no identity"));
        }
        if found == wanted {
            return Ok(Folded::Done { bytes: 0 });
        }
        self.refuse()?;
        if self.cancel.is_cancelled() {
            return Err(FoldError::Cancelled);
        }
        self.announce(locator, wanted, found)?;
        if self.child.size() > self.parent.size() {
            size::grow(self.parent, self.child.size())?;
            parent.close().on(Side::Parent)?;
            return Ok(Folded::Again);
        }
        let bytes = match self.copy() {
            Err(FoldError::Cancelled) => {
                parent.close().on(Side::Parent)?;
                child.close().on(Side::Child)?;
                return Err(FoldError::Cancelled);
            }
            result => result?,
        };
        self.items()?;
        parent.close_as(wanted).on(Side::Parent)?;
        Ok(Folded::Done { bytes })
    }

    /// What cannot be done is said before anything is written.
    fn refuse(&self) -> Result<(), FoldError> {
        let (child, parent) = (&self.child.leaf.metadata, &self.parent.leaf.metadata);
        if child.logical_sector != parent.logical_sector {
            return Err(FoldError::Refused(Side::Parent, "its logical sector size is not the child's"));
        }
        if child.virtual_size > parent.virtual_size { size::may_grow(self.parent, child.virtual_size) } else { Ok(()) }
    }

    /// Steps 1 to 3, from whichever of them an earlier run reached.
    fn announce(&self, locator: &ParentLocator, wanted: DataWriteGuid, found: DataWriteGuid) -> Result<(), FoldError> {
        let (child, parent) = (writer(self.child, Side::Child)?, writer(self.parent, Side::Parent)?);
        let second = locator.linkage2().map(DataWriteGuid::new);
        child.begin_layout().on(Side::Child)?;
        let say = |first, second| {
            child.change_items(&[ItemChange::locator(&locator.linked(first, Some(second)))]).map_err(item_fault(Side::Child))
        };
        if second == Some(wanted) {
            // Step 3 was reached: the parent has its M.
            return parent.begin_as(found).on(Side::Parent);
        }
        let between = if second == Some(found) {
            found
        } else {
            let between = DataWriteGuid::random();
            say(found, between)?;
            between
        };
        parent.begin_as(between).on(Side::Parent)?;
        say(between, wanted)
    }

    /// Step 4, the content.
    fn copy(&self) -> Result<u64, FoldError> {
        let layer = &*self.child.leaf;
        let g = &layer.geometry;
        self.progress.phase(Phase::Merge, Some(self.child.size()));
        let mut mover = Mover { fold: self, buffer: vec![0; COPY], from: 0, to: 0, len: 0, bytes: 0 };
        layer.bat.walk(&*layer.file, u64::MAX, |index, word| -> Result<(), FoldError> {
            let Some(BatRole::Payload(block)) = g.bat_role(index) else { return Ok(()) };
            if let Some(fault) = layer.bat.fault(index, word) {
                let e = crate::format::FormatError::new(crate::kind::Structure::BatEntry, layer.bat.entry_at(index), fault);
                return Err(FoldError::Disk(Side::Child, e.into()));
            }
            let (start, visible) = (g.block_start(block).get(), u64::from(g.visible_len(block)));
            match PayloadState::decode(word) {
                Ok(PayloadState::FullyPresent(home)) => mover.data(home.start().get(), start, visible)?,
                Ok(PayloadState::PartiallyPresent(home)) => {
                    for sectors in present(layer, block)? {
                        let (from, to) = (u64::from(sectors.start) << g.sector_shift(), u64::from(sectors.end) << g.sector_shift());
                        mover.data(home.start().get() + from, start + from, to - from)?;
                    }
                }
                Ok(PayloadState::Zero | PayloadState::Unmapped | PayloadState::Undefined) => mover.zeros(start, visible)?,
                // The last cannot be: it is a fault.
                Ok(PayloadState::NotPresent) | Err(_) => {}
            }
            self.progress.advance(start + visible);
            Ok(())
        })?;
        mover.flush()?;
        self.progress.advance(self.child.size());
        Ok(mover.bytes)
    }

    /// Step 4, the rest: size, identity and whatever else belongs to the virtual disk (MS-VHDX 2.6.1.2).
    fn items(&self) -> Result<(), FoldError> {
        let (child, parent) = (&self.child.leaf.metadata, &self.parent.leaf.metadata);
        let mut changes = Vec::new();
        if child.virtual_size < parent.virtual_size {
            size::clear_beyond(self.parent, child.virtual_size)?;
            changes.push(ItemChange::virtual_size(child.virtual_size));
        }
        if child.disk_id != parent.disk_id {
            changes.push(ItemChange::disk_id(child.disk_id));
        }
        if child.physical_sector != parent.physical_sector {
            changes.push(ItemChange::physical_sector(child.physical_sector));
        }
        let of_disk = |metadata: &Metadata| metadata.others.iter().filter(|item| item.entry.is_virtual_disk).cloned().collect::<Vec<_>>();
        let wanted = of_disk(child);
        for item in of_disk(parent).iter().filter(|item| !wanted.iter().any(|other| other.entry.id == item.entry.id)) {
            changes.push(ItemChange::Remove { id: item.entry.id, is_user: item.entry.is_user });
        }
        for item in wanted.into_iter().filter(|item| !parent.others.iter().any(|o| o.entry.id == item.entry.id && o.bytes == item.bytes)) {
            changes.push(ItemChange::Put { entry: item.entry, bytes: item.bytes });
        }
        if changes.is_empty() {
            return Ok(());
        }
        writer(self.parent, Side::Parent)?.change_items(&changes).map_err(item_fault(Side::Parent))
    }
}

/// Step 6 for a child that stays: it holds what its parent holds by now, and stands on it as on any other.
pub(crate) fn settle(child: &Disk) -> Result<(), FoldError> {
    let writer = writer(child, Side::Child)?;
    let locator = child.leaf.metadata.parent_locator.as_ref().ok_or(FoldError::NotParent)?;
    let settled = locator.linked(writer.data_write(), None);
    if settled != *locator || writer.has_begun() {
        writer.change_items(&[ItemChange::locator(&settled)]).map_err(item_fault(Side::Child))?;
    }
    writer.close().on(Side::Child)
}

fn writer(disk: &Disk, side: Side) -> Result<&Writer, FoldError> {
    disk.writer().on(side)
}

/// The sectors of a partially present block that are here, in runs.
fn present(layer: &Layer, block: BlockIndex) -> Result<Vec<Range<u32>>, FoldError> {
    let g = &layer.geometry;
    let sectors = g.visible_len(block) >> g.sector_shift();
    let (mut at, mut runs) = (0, Vec::new());
    while at < sectors {
        let (first, left) = (g.first_bit(block) + at, sectors - at);
        let run = layer.bitmaps.run(g.chunk_of(block), first, left, &*layer.file, || layer.bitmap_home(block)).on(Side::Child)?;
        if run.present {
            runs.push(at..at + run.len);
        }
        at += run.len;
    }
    Ok(runs)
}

/// Copies stretches of the child's file; neighbours in the file and on the disk travel together.
struct Mover<'a> {
    fold: &'a Fold<'a>,
    buffer: Vec<u8>,
    from: u64,
    to: u64,
    len: u64,
    bytes: u64,
}

impl Mover<'_> {
    fn data(&mut self, from: u64, to: u64, len: u64) -> Result<(), FoldError> {
        if self.len > 0 && self.from + self.len == from && self.to + self.len == to && self.len < COPY as u64 {
            self.len += len;
        } else {
            self.flush()?;
            (self.from, self.to, self.len) = (from, to, len);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), FoldError> {
        let file = &*self.fold.child.leaf.file;
        let end = self.from + self.len;
        while self.len > 0 {
            let data = if self.len < HOLES_FROM {
                Some((self.from, end))
            } else {
                file.next_data(self.from).map_err(|e| StorageError::new(storage::Operation::Seek, self.from, e))?
            };
            let (hole, next) = data.map_or((end, end), |(start, stop)| (start.clamp(self.from, end), stop.min(end)));
            self.skip(hole - self.from)?;
            while self.from < next {
                self.stop()?;
                let part = (next - self.from).min(COPY as u64);
                let bytes = &mut self.buffer[..part as usize];
                storage::read_zero_extended(file, bytes, self.from)?;
                self.fold.parent.write_at(bytes, self.to).on(Side::Parent)?;
                self.step(part);
            }
        }
        Ok(())
    }

    /// A hole of the child's file.
    fn skip(&mut self, len: u64) -> Result<(), FoldError> {
        if len > 0 {
            self.stop()?;
            self.fold.parent.write_zeroes(self.to, len).on(Side::Parent)?;
            self.step(len);
        }
        Ok(())
    }

    fn step(&mut self, len: u64) {
        self.from += len;
        self.to += len;
        self.len -= len;
        self.bytes += len;
    }

    fn zeros(&mut self, to: u64, len: u64) -> Result<(), FoldError> {
        self.flush()?;
        self.stop()?;
        self.fold.parent.write_zeroes(to, len).on(Side::Parent)?;
        self.bytes += len;
        Ok(())
    }

    fn stop(&self) -> Result<(), FoldError> {
        if self.fold.cancel.is_cancelled() { Err(FoldError::Cancelled) } else { Ok(()) }
    }
}

/// Lays down a file for what `leaf` shows, in the manner of `like` (type, block size, log), over the parent that `locator` names: the
/// items of the virtual disk are the leaf's.
pub(crate) fn lay_down_like(
    file: &dyn storage::Storage,
    like: &Layer,
    leaf: &Layer,
    locator: Option<ParentLocator>,
    creator: String,
) -> Result<(), CreateError> {
    let others = leaf.metadata.others.iter().filter(|item| item.entry.is_virtual_disk);
    let metadata = Metadata {
        has_parent: locator.is_some(),
        virtual_size: leaf.metadata.virtual_size,
        disk_id: leaf.metadata.disk_id,
        physical_sector: leaf.metadata.physical_sector,
        parent_locator: locator,
        others: others.chain(like.metadata.others.iter().filter(|item| !item.entry.is_virtual_disk)).cloned().collect(),
        ..like.metadata.clone()
    };
    let log_size = u64::from(like.header.log_length).clamp(1 << 20, 64 << 20);
    Ok(Blueprint { creator, log_size, metadata }.lay_down(file)?)
}
