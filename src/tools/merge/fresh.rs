//! Merging into a new file: the ancestor's next generation.
//!
//! The new file is what the ancestor is (type, block size, log, what it stands on) with the size and the items of the child's virtual disk
//! (MS-VHDX 2.6.1.2), and holds what the layers from the child down to the ancestor hold. It is made under a temporary name and appears
//! whole or not at all; no other file changes.
//!
//! Where a layer of the run hides what lies below it, the new file has to hide it as well: a block that says zero, and everything past
//! the end of a layer that is shorter than what it stands on.

use super::{Line, MergeOptions, Merged};
use crate::chain::merge::lay_down_like;
use crate::chain::{CreateOptions, Disk, ExtentKind, Parents, locator};
use crate::disk::layer::Layer;
use crate::guid::DataWriteGuid;
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::{Operation, StorageError};
use crate::sync::Arc;
use crate::tools::buffer::{Buffer, CHUNK, data_runs};
use crate::tools::error::{About, ToolError};
use crate::tools::make::{Draft, Spot, make_whole, place};
use std::path::Path;

/// Writes what `child` shows, from its own layer down to `ancestor` (its parent if none is given), into the new file `new`, which stands on
/// whatever the ancestor stands on. The ancestor, its other children and the child stay as they are.
///
/// ```
/// use diffdisk::{Cancel, CreateOptions, Disk, MergeOptions, NoProgress, OpenOptions, merge_to};
/// # let dir = tempfile::tempdir()?;
/// # let path = |name: &str| dir.path().join(name);
/// Disk::create(path("app.vhdx"), &CreateOptions::dynamic(1 << 30))?.close()?;
/// let clone = Disk::create_child(path("alice.vhdx"), path("app.vhdx"), &CreateOptions::child())?;
/// clone.write_at(b"changed", 4096)?;
/// clone.close()?;
/// merge_to(&path("alice.vhdx"), None, &path("app-2.vhdx"), &MergeOptions::new(), &NoProgress, &Cancel::new())?;
/// let mut word = [0; 7];
/// Disk::open(path("app-2.vhdx"), &OpenOptions::new())?.read_at(&mut word, 4096)?;
/// assert_eq!(&word, b"changed");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// `Refused` when `ancestor` is none; `Storage` with kind `AlreadyExists` when `new` is taken; `Open`, `Create`, `Disk`; `Cancelled`. After
/// each of them there is no new file.
pub fn merge_to(
    child: &Path,
    ancestor: Option<&Path>,
    new: &Path,
    options: &MergeOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Merged, ToolError> {
    let disk = Disk::open(child, &options.open()).about(child)?;
    let line = Line::of(&disk, child, ancestor)?;
    let (volume, name) = place(new)?;
    let spot = Spot { volume: &volume, name: &name, path: new, overwrite: false, durable: true };
    let job = Job { disk: &disk, depth: line.ancestor, new, progress, cancel };
    let (_, (bytes, data_write_guid)) = make_whole(spot, |file| {
        let draft = Draft(Arc::clone(file));
        job.fill(Arc::new(draft), options.keeps_identity)
    })?;
    Ok(Merged {
        into: new.to_owned(),
        layers: line.ancestor,
        bytes,
        data_write_guid,
        removed: Vec::new(),
        relinked: Vec::new(),
        lost: Vec::new(),
    })
}

/// One new file.
struct Job<'a> {
    /// The child, with its chain.
    disk: &'a Disk,
    /// Which layer of it is the ancestor.
    depth: usize,
    new: &'a Path,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Job<'_> {
    fn fill(&self, file: Arc<Draft>, keeps_identity: bool) -> Result<(u64, DataWriteGuid), ToolError> {
        let below = match &self.disk.parents {
            Parents::Line(line) => line.beneath(self.depth - 1).cloned(),
            Parents::None | Parents::NotOpened => None,
        };
        let like: &Layer = self.disk.layers().nth(self.depth).expect("the ancestor is a layer of the chain");
        let link = match &below {
            None => None,
            Some(below) => {
                let path = below.layer.path.clone().ok_or_else(|| ToolError::refused(self.new, "the way to its parent is not known"))?;
                let dir = std::fs::canonicalize(self.new.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
                    .map_err(|e| StorageError::new(Operation::Open, 0, e))
                    .about(self.new)?;
                Some(locator(&dir, &path, below.layer.header.data_write).about(self.new)?)
            }
        };
        let creator = CreateOptions::child().creator_text().to_owned();
        lay_down_like(&*file, like, &self.disk.leaf, link, creator).about(self.new)?;
        let target = Disk::over(file, below).about(self.new)?;
        let bytes = self.copy(&target)?;
        let writer = target.writer().about(self.new)?;
        if keeps_identity {
            writer.close_as(self.disk.leaf.header.data_write).about(self.new)?;
        } else {
            writer.close().about(self.new)?;
        }
        let identity = writer.data_write();
        Ok((bytes, identity))
    }

    fn copy(&self, target: &Disk) -> Result<u64, ToolError> {
        let size = self.disk.size();
        self.progress.phase(Phase::Merge, Some(size));
        let mut buffer = Buffer::new();
        let mut bytes = 0;
        // From here on a layer of the run that is shorter than the child hides what it stands on.
        let seen_through = self.disk.layers().take(self.depth + 1).map(|layer| layer.geometry.size()).min().unwrap_or(0);
        for extent in self.disk.extents(0, size).about(self.new)? {
            let extent = extent.about(self.new)?;
            match extent.kind {
                ExtentKind::Data { layer, .. } if layer <= self.depth => {
                    bytes += self.data(target, &mut buffer, extent.offset, extent.len)?
                }
                ExtentKind::Zero { layer: Some(layer) } if layer <= self.depth => {
                    self.stop()?;
                    if target.leaf.has_parent() {
                        target.write_zeroes(extent.offset, extent.len).about(self.new)?;
                        bytes += extent.len;
                    }
                }
                ExtentKind::Zero { .. } if extent.offset + extent.len > seen_through => {
                    let from = extent.offset.max(seen_through);
                    self.hide(target, from, extent.offset + extent.len - from)?;
                }
                ExtentKind::Data { .. } | ExtentKind::Zero { .. } => {}
            }
            self.progress.advance(extent.offset + extent.len);
        }
        Ok(bytes)
    }

    fn data(&self, target: &Disk, buffer: &mut Buffer, offset: u64, len: u64) -> Result<u64, ToolError> {
        let (mut done, mut bytes) = (0, 0);
        while done < len {
            self.stop()?;
            let part = buffer.first(usize::try_from(len - done).unwrap_or(CHUNK));
            let at = offset + done;
            self.disk.read_at(part, at).about(self.new)?;
            done += part.len() as u64;
            if target.leaf.has_parent() {
                target.write_at(part, at).about(self.new)?;
                bytes += part.len() as u64;
                continue;
            }
            // What nobody writes is zeros already.
            for run in data_runs(part) {
                target.write_at(&part[run.clone()], at + run.start as u64).about(self.new)?;
                bytes += run.len() as u64;
            }
        }
        Ok(bytes)
    }

    /// Zeros where the child shows zeros and the new file's parents show something else.
    fn hide(&self, target: &Disk, offset: u64, len: u64) -> Result<(), ToolError> {
        let mut shown = Vec::new();
        for extent in target.extents(offset, len).about(self.new)? {
            self.stop()?;
            let extent = extent.about(self.new)?;
            if matches!(extent.kind, ExtentKind::Data { layer, .. } if layer > 0) {
                shown.push((extent.offset, extent.len));
            }
        }
        for (offset, len) in shown {
            target.write_zeroes(offset, len).about(self.new)?;
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), ToolError> {
        if self.cancel.is_cancelled() { Err(ToolError::Cancelled) } else { Ok(()) }
    }
}
