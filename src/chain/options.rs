//! What callers may ask for when they create or open a disk.

use super::gate::ParentPolicy;
use crate::guid::Guid;
use std::path::PathBuf;

/// How to open a disk. Read-only, with parents beneath the disk's own directory, unless told otherwise.
///
/// ```
/// use diffdisk::{OpenOptions, ParentPolicy};
/// let options = OpenOptions::new().writable(true).parents(ParentPolicy::Beneath(vec!["/images".into()]));
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    pub(crate) writable: bool,
    pub(crate) parents: ParentPolicy,
    pub(crate) map_ancestors: bool,
    pub(crate) untrusted: bool,
    pub(crate) flush_mode: FlushMode,
    pub(crate) windows_paths: Vec<(String, PathBuf)>,
}

impl OpenOptions {
    /// Read-only, parents beneath the disk's own directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the disk will be written to. A dirty log is then replayed to disk, and no other process may have the file open.
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// Where parents may lie.
    #[must_use]
    pub fn parents(mut self, policy: ParentPolicy) -> Self {
        self.parents = policy;
        self
    }

    /// Reads ancestors through memory mappings: no system call for a hot read. Only for sealed files on local disks, because
    /// an I/O error or a truncation by somebody else becomes a fatal signal instead of an error.
    #[must_use]
    pub fn map_ancestors(mut self, map: bool) -> Self {
        self.map_ancestors = map;
        self
    }

    /// How small flushes of a clone become durable. Only for this handle; the file says nothing of it.
    #[must_use]
    pub fn flush_mode(mut self, mode: FlushMode) -> Self {
        self.flush_mode = mode;
        self
    }

    /// The file comes from somebody who may mean harm: besides what is always checked, the whole BAT is examined for blocks
    /// that overlap, at the cost of reading it.
    #[must_use]
    pub fn untrusted(mut self, untrusted: bool) -> Self {
        self.untrusted = untrusted;
        self
    }

    /// Whether parents may be opened at all.
    pub(crate) fn chain_is_wanted(&self) -> bool {
        self.parents != ParentPolicy::Deny
    }

    /// Where Windows paths in parent locators lie here: pairs of a Windows prefix (`C:\images`) and a local directory.
    #[must_use]
    pub fn windows_paths(mut self, table: Vec<(String, PathBuf)>) -> Self {
        self.windows_paths = table;
        self
    }
}

/// How a small flush of first writes becomes durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlushMode {
    /// The payload is synced, then the log entry that exposes it is made durable. What the format describes.
    #[default]
    PayloadFirst,
    /// A clone's first writes of whole pages ride in the log entry that exposes them, which is then the only write of a small flush.
    /// MS-VHDX 2.3.1.3 lets a data descriptor name any place in the file and describes the log for metadata; after a crash the
    /// readers that were looked at replay such an entry (QEMU, OpenVMM, DiscUtils), Windows was not tried. A closed disk
    /// looks as ever; until then its file may be up to 256 MiB longer than it has to be (a hole) and its log takes up to 1 MiB of space.
    /// [`Disk::begin_write`](crate::Disk::begin_write) ends it for the handle.
    PayloadInLog,
}

/// What sort of disk to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewKind {
    Fixed,
    Dynamic,
    Child,
}

/// How to create a disk.
///
/// ```
/// use diffdisk::CreateOptions;
/// let base = CreateOptions::dynamic(10 << 30).block_size(2 << 20).logical_sector(512);
/// let child = CreateOptions::child().block_size(1 << 20);
/// # let _ = (base, child);
/// ```
#[derive(Clone, Debug)]
pub struct CreateOptions {
    pub(crate) kind: NewKind,
    pub(crate) size: Option<u64>,
    pub(crate) block_size: Option<u64>,
    pub(crate) logical_sector: Option<u32>,
    pub(crate) physical_sector: Option<u32>,
    pub(crate) log_size: u64,
    pub(crate) disk_id: Option<Guid>,
    pub(crate) overwrite: bool,
    /// Whether the caller holds the lock of the file that is replaced.
    pub(crate) holds_lock: bool,
    pub(crate) durable: bool,
    pub(crate) parents: ParentPolicy,
    pub(crate) creator: String,
}

impl CreateOptions {
    fn new(kind: NewKind, size: Option<u64>) -> Self {
        Self {
            kind,
            size,
            block_size: None,
            logical_sector: None,
            physical_sector: None,
            log_size: 1 << 20,
            disk_id: None,
            overwrite: false,
            holds_lock: false,
            durable: true,
            parents: ParentPolicy::default(),
            creator: concat!("diffdisk ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// A disk of `size` bytes that grows as it is written.
    pub fn dynamic(size: u64) -> Self {
        Self::new(NewKind::Dynamic, Some(size))
    }

    /// A disk of `size` bytes all of whose blocks have their place from the start. Where the file system has holes, the space
    /// itself is still only taken when it is written.
    pub fn fixed(size: u64) -> Self {
        Self::new(NewKind::Fixed, Some(size))
    }

    /// A differencing disk: size, sectors and disk identity come from the parent.
    pub fn child() -> Self {
        Self::new(NewKind::Child, None)
    }

    /// The virtual size in bytes: a whole number of sectors, at most 64 TiB. A child may be larger or smaller than its parent.
    #[must_use]
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Payload block size: a power of two from 1 MiB to 256 MiB. Default: 1 MiB up to 1 TiB, then growing with the size so that
    /// the BAT stays within a few MiB.
    #[must_use]
    pub fn block_size(mut self, bytes: u64) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// Logical sector size: 512 (default) or 4096. A child has its parent's.
    #[must_use]
    pub fn logical_sector(mut self, bytes: u32) -> Self {
        self.logical_sector = Some(bytes);
        self
    }

    /// Physical sector size, informational: 512 or 4096 (default).
    #[must_use]
    pub fn physical_sector(mut self, bytes: u32) -> Self {
        self.physical_sector = Some(bytes);
        self
    }

    /// Log size: a multiple of 1 MiB (default) up to 64 MiB.
    #[must_use]
    pub fn log_size(mut self, bytes: u64) -> Self {
        self.log_size = bytes;
        self
    }

    /// The identity that a guest sees as SCSI page 0x83. Default: random; a child has its parent's.
    #[must_use]
    pub fn disk_id(mut self, id: Guid) -> Self {
        self.disk_id = Some(id);
        self
    }

    /// Whether an existing file of that name is replaced. Default: no.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Replaces an existing file whose exclusive lock the caller holds.
    #[cfg(feature = "store")]
    pub(crate) fn overwrite_locked(mut self) -> Self {
        (self.overwrite, self.holds_lock) = (true, true);
        self
    }

    /// Whether the new file survives a power cut when the call returns. Default: yes.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Where the parents of the parent may lie.
    #[must_use]
    pub fn parent_policy(mut self, policy: ParentPolicy) -> Self {
        self.parents = policy;
        self
    }

    /// The creator string that a new file gets.
    pub(crate) fn creator_text(&self) -> &str {
        &self.creator
    }

    /// The creator string in the file, for people to read.
    #[must_use]
    pub fn creator(mut self, creator: &str) -> Self {
        creator.clone_into(&mut self.creator);
        self
    }
}
