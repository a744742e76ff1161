//! What a disk tells about itself: geometry, identity, chain, and the four sizes.

use super::disk::{Disk, Parents};
use crate::disk::error::DiskError;
use crate::disk::layer::Layer;
use crate::format::PayloadState;
use crate::geometry::BatRole;
use crate::guid::{DataWriteGuid, FileWriteGuid, Guid};
use crate::mapping::bat::MapError;
use crate::storage::{Operation, StorageError};
use crate::units::BlockIndex;
use std::path::PathBuf;

/// The three types of VHDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskKind {
    /// Every block keeps its place.
    Fixed,
    /// Grows as it is written.
    Dynamic,
    /// Holds what differs from a parent.
    Differencing,
}

impl DiskKind {
    /// The name that `--json` prints.
    pub fn key(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

/// The four sizes of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// What a guest sees.
    pub virtual_size: u64,
    /// Length of the leaf's file.
    pub apparent: u64,
    /// What the file system gave to the leaf's file.
    pub allocated: u64,
    /// Bytes of the virtual disk that come from the leaf and not from a parent, zeroed blocks included.
    pub diverged: u64,
}

/// What a parent locator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentInfo {
    /// The data write GUID that the parent must have.
    pub linkage: Guid,
    /// Key and value of each path, in the order of resolution.
    pub paths: Vec<(String, String)>,
}

/// One file of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Where it is; `None` for storages of the caller.
    pub path: Option<PathBuf>,
    /// Its type.
    pub kind: DiskKind,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
    /// Its payload block size in bytes.
    pub block_size: u64,
    /// The identity that children link to.
    pub data_write_guid: DataWriteGuid,
    /// Length of the file.
    pub apparent: u64,
    /// What the file system gave to it.
    pub allocated: u64,
    /// Whether its log held entries when it was opened.
    pub log_dirty: bool,
}

/// See [`Disk::info`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// The type of the leaf.
    pub kind: DiskKind,
    /// The virtual size in bytes.
    pub virtual_size: u64,
    /// The leaf's payload block size in bytes.
    pub block_size: u64,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// 512 or 4096.
    pub physical_sector_size: u32,
    /// The identity a guest sees (SCSI page 0x83).
    pub disk_id: Guid,
    /// The identity of the content, as of now.
    pub data_write_guid: DataWriteGuid,
    /// The identity of the file, as of now.
    pub file_write_guid: FileWriteGuid,
    /// Whether the log held entries when the disk was opened.
    pub log_dirty: bool,
    /// Who created the file, for people to read.
    pub creator: String,
    /// The four sizes.
    pub sizes: Sizes,
    /// The parent locator of a differencing disk.
    pub parent: Option<ParentInfo>,
    /// The files of the chain, leaf first. Only the leaf when the parents were not opened.
    pub chain: Vec<LayerInfo>,
}

impl Disk {
    /// Geometry, identity, chain and sizes. Reads the BAT and the bitmaps of the leaf to count what diverged.
    ///
    /// # Errors
    /// `Format` or `Storage` when the BAT or a bitmap cannot be read.
    pub fn info(&self) -> Result<DiskInfo, DiskError> {
        let layer = &*self.leaf;
        let (file_write_guid, data_write_guid) = match &self.writer {
            Some(writer) => {
                let commit = writer.commit.lock();
                (commit.headers.current().file_write, commit.headers.current().data_write)
            }
            None => (layer.header.file_write, layer.header.data_write),
        };
        let mut chain: Vec<LayerInfo> = self.layers().map(layer_info).collect::<Result<_, _>>()?;
        chain[0].data_write_guid = data_write_guid;
        let locator = layer.metadata.parent_locator.as_ref().filter(|_| layer.has_parent());
        let parent = locator.map(|locator| ParentInfo {
            linkage: locator.linkage().unwrap_or(Guid::ZERO),
            paths: locator.paths().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        });
        Ok(DiskInfo {
            kind: layer.kind(),
            virtual_size: layer.geometry.size(),
            block_size: layer.geometry.block_size(),
            logical_sector_size: layer.metadata.logical_sector,
            physical_sector_size: layer.metadata.physical_sector,
            disk_id: layer.metadata.disk_id,
            data_write_guid,
            file_write_guid,
            log_dirty: layer.log_was_dirty,
            creator: layer.creator.clone(),
            sizes: Sizes {
                virtual_size: layer.geometry.size(),
                apparent: chain[0].apparent,
                allocated: chain[0].allocated,
                diverged: diverged(layer)?,
            },
            parent,
            chain,
        })
    }

    /// The layers that are open, leaf first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Layer> {
        let below = match &self.parents {
            Parents::Line(line) if self.leaf.has_parent() => line.line(),
            Parents::Line(_) | Parents::None | Parents::NotOpened => &[],
        };
        std::iter::once(&*self.leaf).chain(below.iter().map(|layer| &**layer))
    }
}

impl Layer {
    /// The type of this file.
    pub(crate) fn kind(&self) -> DiskKind {
        if self.has_parent() {
            DiskKind::Differencing
        } else if self.is_fixed() {
            DiskKind::Fixed
        } else {
            DiskKind::Dynamic
        }
    }
}

fn layer_info(layer: &Layer) -> Result<LayerInfo, DiskError> {
    let file = &*layer.original;
    Ok(LayerInfo {
        path: layer.path.clone(),
        kind: layer.kind(),
        virtual_size: layer.geometry.size(),
        block_size: layer.geometry.block_size(),
        data_write_guid: layer.header.data_write,
        apparent: crate::storage::len(file)?,
        allocated: file.allocated().map_err(|e| StorageError::new(Operation::Len, 0, e))?,
        log_dirty: layer.log_was_dirty,
    })
}

/// Bytes whose owner is this file.
fn diverged(layer: &Layer) -> Result<u64, DiskError> {
    let g = &layer.geometry;
    let mut total = 0;
    layer.bat.walk(&*layer.file, u64::MAX, |index, word| -> Result<(), DiskError> {
        let Some(BatRole::Payload(block)) = g.bat_role(index) else { return Ok(()) };
        // An entry that breaks a rule cannot be read either.
        if layer.bat.fault(index, word).is_some() {
            return Ok(());
        }
        total += match PayloadState::decode(word) {
            Ok(PayloadState::FullyPresent(_)) => u64::from(g.visible_len(block)),
            Ok(PayloadState::PartiallyPresent(_)) => present_bytes(layer, block)?,
            Ok(PayloadState::Zero | PayloadState::Unmapped | PayloadState::Undefined) if layer.has_parent() => {
                u64::from(g.visible_len(block))
            }
            Ok(PayloadState::NotPresent | PayloadState::Zero | PayloadState::Unmapped | PayloadState::Undefined) | Err(_) => 0,
        };
        Ok(())
    })?;
    Ok(total)
}

fn present_bytes(layer: &Layer, block: BlockIndex) -> Result<u64, MapError> {
    let g = &layer.geometry;
    let sectors = g.visible_len(block) >> g.sector_shift();
    let (mut at, mut present) = (0, 0);
    while at < sectors {
        let (first, left) = (g.first_bit(block) + at, sectors - at);
        let run = layer.bitmaps.run(g.chunk_of(block), first, left, &*layer.file, || layer.bitmap_home(block))?;
        present += if run.present { u64::from(run.len) } else { 0 };
        at += run.len;
    }
    Ok(present << g.sector_shift())
}
