//! What a caller asks of a compaction, and what it learns.

/// How to compact; see [`Disk::compact`](crate::Disk::compact).
#[derive(Clone, Debug)]
pub struct CompactOptions {
    drops_copies: bool,
    punches: bool,
    relocates: bool,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self { drops_copies: true, punches: true, relocates: true }
    }
}

impl CompactOptions {
    /// Everything that gives space back.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a child gives up blocks that hold what the parent shows anyway. On by default; off for a child that was hydrated, which
    /// holds such copies on purpose.
    pub fn drop_copies(mut self, drops: bool) -> Self {
        self.drops_copies = drops;
        self
    }

    /// Whether zeros inside blocks, and free space that cannot be cut off, become holes of the file. On by default; where the storage has
    /// no holes nothing happens.
    pub fn punch(mut self, punches: bool) -> Self {
        self.punches = punches;
        self
    }

    /// Whether blocks move from the end of the file into free space, so that the file becomes shorter. On by default; off, the
    /// free space inside the file stays there and is reused by later writes.
    pub fn relocate(mut self, relocates: bool) -> Self {
        self.relocates = relocates;
        self
    }

    pub(super) fn drops_copies(&self) -> bool {
        self.drops_copies
    }

    pub(super) fn punches(&self) -> bool {
        self.punches
    }

    pub(super) fn relocates(&self) -> bool {
        self.relocates
    }
}

/// What a compaction did; see [`Disk::compact`](crate::Disk::compact).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactReport {
    /// Bytes of the file before.
    pub file_before: u64,
    /// Bytes of the file afterwards. Writers that were at work meanwhile may have made it grow.
    pub file_after: u64,
    /// Bytes that the file system had given to the file before.
    pub allocated_before: u64,
    /// The same afterwards.
    pub allocated_after: u64,
    /// Blocks that held nothing but zeros.
    pub zero_blocks: u64,
    /// Blocks of a child that held what the parent shows.
    pub equal_blocks: u64,
    /// Unmapped blocks that kept a place.
    pub anchors: u64,
    /// Sector bitmap blocks that nobody needed.
    pub freed_bitmaps: u64,
    /// Blocks that moved down in the file, sector bitmap blocks included.
    pub moved_blocks: u64,
    /// Bytes of zeros inside blocks that became holes.
    pub punched_bytes: u64,
    /// Blocks that somebody was using, so that nothing was done about them: compacting again may.
    pub busy_blocks: u64,
    /// Whether the storage has holes; `None` when none was tried.
    pub has_holes: Option<bool>,
    /// The disk is fixed: it keeps every block, and only unowned space at the end was cut off.
    pub is_fixed: bool,
    /// The free space of the file is not known, because the disk had been written to before and its table is very large: only
    /// what was given up since was used. Compacting right after opening does not have this limit.
    pub is_opaque: bool,
}
