//! The shape of a virtual disk: the only code that divides by block, sector or chunk.
//!
//! All sizes are powers of two (MS-VHDX 2.6.2), so every division is a shift; the interleaving of sector bitmap entries with
//! payload entries in the BAT (MS-VHDX 2.5) is written down here once.

use crate::units::{BatIndex, BlockIndex, ChunkIndex, InBlock, MIB, VirtualOffset};

/// Largest virtual disk: 64 TiB (MS-VHDX 2.6.2.2).
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// Smallest payload block: 1 MiB (MS-VHDX 2.6.2.1).
pub const MIN_BLOCK_SIZE: u32 = 1 << 20;
/// Largest payload block: 256 MiB (MS-VHDX 2.6.2.1).
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// Sectors that one sector bitmap block describes, whatever their size (MS-VHDX 2.4).
pub const SECTORS_PER_CHUNK_SHIFT: u32 = 23;

/// Why a combination of sizes is not a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// Not a power of two from 1 MiB to 256 MiB.
    #[error("block size {0} is not a power of two from 1 MiB to 256 MiB")]
    BlockSize(u64),
    /// Neither 512 nor 4096.
    #[error("logical sector size {0} is neither 512 nor 4096")]
    LogicalSectorSize(u32),
    /// Zero, above 64 TiB, or not a whole number of sectors.
    #[error("virtual size {size} is not a whole number of {sector}-byte sectors from 1 sector to 64 TiB")]
    VirtualSize {
        /// Bytes asked for.
        size: u64,
        /// The logical sector size.
        sector: u32,
    },
}

/// The sizes of one virtual disk, checked once and then only shifted by.
///
/// ```
/// use diffdisk::geometry::Geometry;
/// use diffdisk::units::BlockIndex;
/// let disk = Geometry::new(10 << 30, 2 << 20, 512).unwrap();
/// assert_eq!(disk.blocks(), 5120);
/// assert_eq!(disk.bat_index(BlockIndex::new(2563)).get(), 2564); // one sector bitmap entry stands before it
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
    block_shift: u32,
    sector_shift: u32,
    ratio_shift: u32,
    blocks: u32,
}

impl Geometry {
    /// Checks the sizes against MS-VHDX 2.6.2.
    ///
    /// # Errors
    /// The first size that is outside its range.
    pub fn new(size: u64, block_size: u64, logical_sector: u32) -> Result<Self, GeometryError> {
        if !matches!(logical_sector, 512 | 4096) {
            return Err(GeometryError::LogicalSectorSize(logical_sector));
        }
        if !block_size.is_power_of_two() || block_size < u64::from(MIN_BLOCK_SIZE) || block_size > u64::from(MAX_BLOCK_SIZE) {
            return Err(GeometryError::BlockSize(block_size));
        }
        if size == 0 || size > MAX_VIRTUAL_SIZE || !size.is_multiple_of(u64::from(logical_sector)) {
            return Err(GeometryError::VirtualSize { size, sector: logical_sector });
        }
        let block_shift = block_size.trailing_zeros();
        let sector_shift = logical_sector.trailing_zeros();
        let blocks = u32::try_from(size.div_ceil(block_size)).expect("64 TiB is 2^26 blocks of 1 MiB");
        Ok(Self { size, block_shift, sector_shift, ratio_shift: SECTORS_PER_CHUNK_SHIFT + sector_shift - block_shift, blocks })
    }

    /// The virtual size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The payload block size in bytes.
    pub const fn block_size(&self) -> u64 {
        1 << self.block_shift
    }

    /// log2 of the payload block size.
    pub const fn block_shift(&self) -> u32 {
        self.block_shift
    }

    /// The logical sector size in bytes, 512 or 4096.
    pub const fn logical_sector(&self) -> u32 {
        1 << self.sector_shift
    }

    /// Payload blocks, the last one possibly cut by the end of the disk.
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Payload blocks per sector bitmap block (MS-VHDX 2.5).
    pub const fn chunk_ratio(&self) -> u32 {
        1 << self.ratio_shift
    }

    /// Chunks, the last one possibly incomplete.
    pub const fn chunks(&self) -> u32 {
        self.blocks.div_ceil(1 << self.ratio_shift)
    }

    /// BAT entries that a fixed or dynamic disk needs (MS-VHDX 2.5).
    pub fn bat_entries(&self) -> u64 {
        u64::from(self.blocks) + u64::from((self.blocks - 1) >> self.ratio_shift)
    }

    /// BAT entries that a differencing disk needs: whole chunks, each with its sector bitmap entry (MS-VHDX 2.5).
    pub fn bat_entries_differencing(&self) -> u64 {
        u64::from(self.chunks()) * (u64::from(self.chunk_ratio()) + 1)
    }

    /// The block that holds a byte of the disk.
    #[inline]
    pub fn block_of(&self, at: VirtualOffset) -> BlockIndex {
        // Offsets inside the disk are below 2^46 and blocks at least 2^20 bytes, so the quotient fits.
        BlockIndex::new((at.get() >> self.block_shift) as u32)
    }

    /// Where in its block a byte of the disk lies.
    #[inline]
    pub fn in_block(&self, at: VirtualOffset) -> InBlock {
        InBlock::new((at.get() & (self.block_size() - 1)) as u32)
    }

    /// The first byte of a block.
    #[inline]
    pub fn block_start(&self, block: BlockIndex) -> VirtualOffset {
        VirtualOffset::new(u64::from(block.get()) << self.block_shift)
    }

    /// How many bytes of a block lie inside the disk: the block size, less for the last block.
    #[inline]
    pub fn visible_len(&self, block: BlockIndex) -> u32 {
        (self.size - self.block_start(block).get()).min(self.block_size()) as u32
    }

    /// The chunk that a block belongs to.
    #[inline]
    pub fn chunk_of(&self, block: BlockIndex) -> ChunkIndex {
        ChunkIndex::new(block.get() >> self.ratio_shift)
    }

    /// The BAT entry of a payload block.
    #[inline]
    pub fn bat_index(&self, block: BlockIndex) -> BatIndex {
        BatIndex::new(block.get() + (block.get() >> self.ratio_shift))
    }

    /// The BAT entry of a chunk's sector bitmap block.
    #[inline]
    pub fn bitmap_bat_index(&self, chunk: ChunkIndex) -> BatIndex {
        BatIndex::new((chunk.get() << self.ratio_shift) + chunk.get() + (1 << self.ratio_shift))
    }

    /// What the entry at an index of the BAT describes; `None` for padding behind the last block.
    pub fn bat_role(&self, index: BatIndex) -> Option<BatRole> {
        let per_chunk = self.chunk_ratio() + 1;
        let (chunk, place) = (index.get() / per_chunk, index.get() % per_chunk);
        if place == self.chunk_ratio() {
            return (chunk < self.chunks()).then_some(BatRole::Bitmap(ChunkIndex::new(chunk)));
        }
        let block = u64::from(chunk) * u64::from(self.chunk_ratio()) + u64::from(place);
        (block < u64::from(self.blocks)).then(|| BatRole::Payload(BlockIndex::new(block as u32)))
    }

    /// The first block whose entry is at an index of the BAT or behind it; `None` when there is none.
    pub fn block_at_or_after(&self, index: BatIndex) -> Option<BlockIndex> {
        match self.bat_role(index)? {
            BatRole::Payload(block) => Some(block),
            // Behind a chunk's bitmap entry the next chunk begins.
            BatRole::Bitmap(_) => match self.bat_role(BatIndex::new(index.get() + 1))? {
                BatRole::Payload(block) => Some(block),
                BatRole::Bitmap(_) => None,
            },
        }
    }

    /// The first bit of a block's slice in its chunk's sector bitmap.
    #[inline]
    pub fn first_bit(&self, block: BlockIndex) -> u32 {
        (block.get() & (self.chunk_ratio() - 1)) << (self.block_shift - self.sector_shift)
    }

    /// Logical sectors in a whole block.
    #[inline]
    pub fn sectors_per_block(&self) -> u32 {
        1 << (self.block_shift - self.sector_shift)
    }

    /// log2 of the logical sector size.
    #[inline]
    pub const fn sector_shift(&self) -> u32 {
        self.sector_shift
    }

    /// MiB that one payload block occupies in the file.
    pub const fn block_mib(&self) -> u64 {
        self.block_size() / MIB
    }

    /// Cuts a range of the disk at block borders. The range must lie inside the disk.
    #[inline]
    pub fn spans(&self, at: VirtualOffset, len: u64) -> BlockSpans {
        BlockSpans { geometry: *self, at: at.get(), left: len }
    }
}

/// What a BAT entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatRole {
    /// The place of a payload block.
    Payload(BlockIndex),
    /// The place of a chunk's sector bitmap block.
    Bitmap(ChunkIndex),
}

/// A piece of a request inside one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSpan {
    /// The block.
    pub block: BlockIndex,
    /// The first byte inside it.
    pub within: InBlock,
    /// Bytes, at least 1 and at most the block size.
    pub len: u32,
}

/// Iterator over the pieces of a request; see [`Geometry::spans`].
#[derive(Clone, Debug)]
pub struct BlockSpans {
    geometry: Geometry,
    at: u64,
    left: u64,
}

impl Iterator for BlockSpans {
    type Item = BlockSpan;

    #[inline]
    fn next(&mut self) -> Option<BlockSpan> {
        if self.left == 0 {
            return None;
        }
        let at = VirtualOffset::new(self.at);
        let within = self.geometry.in_block(at);
        let len = (self.geometry.block_size() - u64::from(within.get())).min(self.left);
        self.at += len;
        self.left -= len;
        Some(BlockSpan { block: self.geometry.block_of(at), within, len: len as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_agree_with_the_table_of_the_reference() {
        // sector, block, disk, ratio, blocks, bitmap blocks, entries dynamic, entries differencing
        let rows = [
            (512, 1 << 20, 10 << 30, 4096, 10240, 3, 10242, 12291),
            (512, 1 << 20, 64 << 40, 4096, 67108864, 16384, 67125247, 67125248),
            (512, 2 << 20, 4 << 30, 2048, 2048, 1, 2048, 2049),
            (512, 2 << 20, (4 << 30) + 512, 2048, 2049, 2, 2050, 4098),
            (512, 32 << 20, 64 << 40, 128, 2097152, 16384, 2113535, 2113536),
            (512, 256 << 20, 10 << 30, 16, 40, 3, 42, 51),
            (4096, 1 << 20, 10 << 30, 32768, 10240, 1, 10240, 32769),
            (4096, 32 << 20, 10 << 30, 1024, 320, 1, 320, 1025),
            (4096, 256 << 20, 64 << 40, 128, 262144, 2048, 264191, 264192),
        ];
        for (sector, block, size, ratio, blocks, chunks, dynamic, differencing) in rows {
            let g = Geometry::new(size, block, sector).unwrap();
            assert_eq!((g.chunk_ratio(), g.blocks(), g.chunks()), (ratio, blocks, chunks));
            assert_eq!((g.bat_entries(), g.bat_entries_differencing()), (dynamic, differencing));
        }
    }

    #[test]
    fn the_worked_look_up_of_the_reference() {
        let g = Geometry::new(10 << 30, 2 << 20, 512).unwrap();
        let at = VirtualOffset::new(5_375_029_760);
        let block = g.block_of(at);
        assert_eq!(block.get(), 2563);
        assert_eq!(g.bat_index(block).get(), 2564);
        assert_eq!(g.bitmap_bat_index(g.chunk_of(block)).get(), 4097);
        assert_eq!(g.first_bit(block) / 8, 263_680);
        assert_eq!(g.first_bit(block) + (g.in_block(at).get() >> 9), 263_687 * 8 + 1);
    }

    #[test]
    fn payload_entries_skip_the_bitmap_entries() {
        let g = Geometry::new(64 << 30, 2 << 20, 512).unwrap();
        for (block, index) in [(2047, 2047), (2048, 2049), (4095, 4096), (4096, 4098)] {
            assert_eq!(g.bat_index(BlockIndex::new(block)).get(), index);
            assert_eq!(g.bat_role(BatIndex::new(index)), Some(BatRole::Payload(BlockIndex::new(block))));
        }
        for (chunk, index) in [(0, 2048), (1, 4097), (2, 6146)] {
            assert_eq!(g.bitmap_bat_index(ChunkIndex::new(chunk)).get(), index);
            assert_eq!(g.bat_role(BatIndex::new(index)), Some(BatRole::Bitmap(ChunkIndex::new(chunk))));
        }
    }

    #[test]
    fn spans_cut_at_block_borders_and_cover_the_range() {
        let g = Geometry::new(10 << 20, 1 << 20, 512).unwrap();
        let spans: Vec<_> = g.spans(VirtualOffset::new((1 << 20) - 512), (1 << 20) + 1024).collect();
        assert_eq!(spans.iter().map(|s| s.len).collect::<Vec<_>>(), [512, 1 << 20, 512]);
        assert_eq!(spans.iter().map(|s| s.block.get()).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(g.spans(VirtualOffset::new(0), 0).count(), 0);
    }

    #[test]
    fn sizes_outside_the_ranges_are_named() {
        assert_eq!(Geometry::new(1 << 30, 3 << 20, 512), Err(GeometryError::BlockSize(3 << 20)));
        assert_eq!(Geometry::new(1 << 30, 1 << 20, 1024), Err(GeometryError::LogicalSectorSize(1024)));
        for size in [0, 513, (64 << 40) + 512, u64::MAX] {
            assert_eq!(Geometry::new(size, 1 << 20, 512), Err(GeometryError::VirtualSize { size, sector: 512 }));
        }
    }
}
