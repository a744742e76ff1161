//! Sector bitmaps in memory (MS-VHDX 2.4): which sectors of a partially present block this file holds.
//!
//! One bit per logical sector, least significant bit first, so a little-endian word of 64 bits is 64 consecutive sectors. A
//! page of 512 words covers 16 MiB of a disk with 512-byte sectors. Pages are numbered through all chunks, 256 to a chunk.

use super::bat::MapError;
use super::dirty::DirtyFlag;
use super::pages::PageMap;
use super::words::Words;
use crate::storage::{self, Storage};
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::units::{BlockHome, ChunkIndex, FileOffset, MIB, PAGE, PAGE_LEN};

/// Bits in a page.
const PAGE_BITS: u32 = 32768;
/// Pages in a sector bitmap block.
pub(crate) const PAGES_PER_CHUNK: u64 = MIB / PAGE;

/// 32,768 bits.
pub(crate) struct BitmapPage {
    words: Words,
    pub(crate) dirty: DirtyFlag,
    /// No block over this page was ever committed as partially present while this page was in memory, so nothing durable
    /// consults its bits and it may be written to its home before the commit instead of through the log.
    pub(crate) unconsulted: AtomicBool,
}

impl BitmapPage {
    /// The bytes as they go to the file.
    pub(crate) fn image(&self) -> Box<[u8; PAGE_LEN]> {
        self.words.image()
    }
}

/// A stretch of sectors with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitRun {
    pub(crate) present: bool,
    pub(crate) len: u32,
}

/// Where a page that is not in memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageSource {
    /// From the sector bitmap block there.
    File(BlockHome),
    /// From nowhere: its sector bitmap block was allocated in this session and holds zeros wherever no page is in memory.
    Fresh,
}

/// See the module.
pub(crate) struct BitmapTable {
    pages: PageMap<BitmapPage>,
    /// How often a sector bitmap block moved or went away. A page stays in memory for good once it is loaded, so whoever loads one looks
    /// here before asking for the block's home and again after reading: the space of the old home is handed on only after this
    /// counted, so unless it did, what was read was the page.
    moves: AtomicU64,
}

/// The bits of a word that belong to `len` bits from `first` on.
fn mask(first: u32, len: u32) -> u64 {
    (u64::MAX >> (64 - len)) << first
}

/// Whether `len` bits from `bit` on end where a word does, so that the run may go on in the next one.
fn ends_word(bit: u32, len: u32) -> bool {
    (bit + len).is_multiple_of(64)
}

impl BitmapTable {
    /// The bitmaps of `chunks` chunks, nothing loaded.
    pub(crate) fn new(chunks: u32) -> Self {
        Self { pages: PageMap::new(u64::from(chunks) * PAGES_PER_CHUNK), moves: AtomicU64::new(0) }
    }

    /// A sector bitmap block has a new entry now; its old place is still untouched.
    pub(crate) fn count_move(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
    }

    /// The number of the page that a bit of a chunk is in.
    pub(crate) fn page_of(chunk: ChunkIndex, bit: u32) -> u64 {
        u64::from(chunk.get()) * PAGES_PER_CHUNK + u64::from(bit / PAGE_BITS)
    }

    /// The chunk of a page and the byte of the sector bitmap block at which the page starts.
    pub(crate) fn place_of(page: u64) -> (ChunkIndex, u64) {
        (ChunkIndex::new((page / PAGES_PER_CHUNK) as u32), page % PAGES_PER_CHUNK * PAGE)
    }

    /// The page; if it is not in memory, from where `source` says.
    #[inline]
    pub(crate) fn page(
        &self,
        page: u64,
        file: &dyn Storage,
        source: impl Fn() -> Result<PageSource, MapError>,
    ) -> Result<&BitmapPage, MapError> {
        self.pages.get_or_load(page, || {
            loop {
                let moves = self.moves.load(Ordering::SeqCst);
                let source = source()?;
                let mut image = Box::new([0; PAGE_LEN]);
                if let PageSource::File(home) = source {
                    let (_, within) = Self::place_of(page);
                    storage::read_zero_extended(file, &mut image[..], home.start().get() + within)?;
                }
                if self.moves.load(Ordering::SeqCst) == moves {
                    let unconsulted = AtomicBool::new(source == PageSource::Fresh);
                    return Ok(BitmapPage { words: Words::new(&image), dirty: DirtyFlag::new(), unconsulted });
                }
            }
        })
    }

    /// A page that was loaded before.
    pub(crate) fn loaded_page(&self, page: u64) -> Option<&BitmapPage> {
        self.pages.get(page)
    }

    /// The longest run of equal bits that starts at `bit`, at most `max` bits long. Loads the pages it looks at; `home` is only
    /// asked where the sector bitmap block is when one has to be read.
    #[inline]
    pub(crate) fn run(
        &self,
        chunk: ChunkIndex,
        bit: u32,
        max: u32,
        file: &dyn Storage,
        home: impl Fn() -> Result<BlockHome, MapError>,
    ) -> Result<BitRun, MapError> {
        let run = self.run_in_word(chunk, bit, file, &home)?;
        // Nearly always: a page of the disk is eight sectors of one word.
        if run.len >= max || !ends_word(bit, run.len) {
            return Ok(BitRun { present: run.present, len: run.len.min(max) });
        }
        self.run_on(chunk, bit, run, max, file, &home)
    }

    /// Continues a run that reached the end of its word.
    fn run_on(
        &self,
        chunk: ChunkIndex,
        bit: u32,
        mut run: BitRun,
        max: u32,
        file: &dyn Storage,
        home: &dyn Fn() -> Result<BlockHome, MapError>,
    ) -> Result<BitRun, MapError> {
        while run.len < max {
            let next = self.run_in_word(chunk, bit + run.len, file, home)?;
            if next.present != run.present {
                return Ok(run);
            }
            run.len += next.len;
            if !ends_word(bit, run.len) {
                break;
            }
        }
        Ok(BitRun { present: run.present, len: run.len.min(max) })
    }

    /// The run that starts at `bit`, as far as its word of 64 bits tells.
    #[inline]
    fn run_in_word(
        &self,
        chunk: ChunkIndex,
        bit: u32,
        file: &dyn Storage,
        home: impl Fn() -> Result<BlockHome, MapError>,
    ) -> Result<BitRun, MapError> {
        let page = self.page(Self::page_of(chunk, bit), file, || home().map(PageSource::File))?;
        // Acquire pairs with the Release of `fill`: a set bit promises that the sector's bytes are in the file.
        let word = page.words.load((bit % PAGE_BITS / 64) as usize, Ordering::Acquire) >> (bit % 64);
        let present = word & 1 == 1;
        let same = if present { word.trailing_ones() } else { word.trailing_zeros() };
        Ok(BitRun { present, len: same.min(64 - bit % 64) })
    }

    /// Whether all of `len` bits are set.
    #[inline]
    pub(crate) fn all_set(
        &self,
        chunk: ChunkIndex,
        bit: u32,
        len: u32,
        file: &dyn Storage,
        home: impl Fn() -> Result<BlockHome, MapError>,
    ) -> Result<bool, MapError> {
        let run = self.run_in_word(chunk, bit, file, &home)?;
        if !run.present {
            // A run of clear bits is not followed to its end.
            return Ok(false);
        }
        if run.len >= len || !ends_word(bit, run.len) {
            return Ok(run.len >= len);
        }
        Ok(self.run_on(chunk, bit, run, len, file, &home)?.len == len)
    }

    /// Sets or clears bits in pages that are loaded; calls `touched` for each page that changed. The caller holds the gate
    /// and the block's stripe.
    pub(crate) fn fill(&self, chunk: ChunkIndex, bit: u32, len: u32, value: bool, mut touched: impl FnMut(u64, &BitmapPage)) {
        let mut at = bit;
        let end = bit + len;
        while at < end {
            let number = Self::page_of(chunk, at);
            let page = self.pages.get(number).expect("a bitmap page is loaded before it is changed");
            let stop = end.min((at / PAGE_BITS + 1) * PAGE_BITS);
            let mut changed = false;
            while at < stop {
                let part = (64 - at % 64).min(stop - at);
                let bits = mask(at % 64, part);
                let word = (at % PAGE_BITS / 64) as usize;
                // Release pairs with the Acquire of `run_in_word`. Neighbouring blocks share words when their slices are short, so
                // this must not be a plain store.
                let before = match value {
                    true => page.words.set_bits(word, bits, Ordering::Release),
                    false => page.words.clear_bits(word, bits, Ordering::Release),
                };
                changed |= if value { before & bits != bits } else { before & bits != 0 };
                at += part;
            }
            if changed {
                touched(number, page);
            }
        }
    }

    /// Where a page stands in the file, given the home of its sector bitmap block.
    pub(crate) fn page_home(page: u64, home: BlockHome) -> FileOffset {
        FileOffset::new(home.start().get() + Self::place_of(page).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn table_with(bits: &[(u32, u32)]) -> (BitmapTable, MemoryStorage, BlockHome) {
        let (table, file, home) = (BitmapTable::new(1), MemoryStorage::new(), BlockHome::from_mib(1).unwrap());
        for page in 0..3 {
            table.page(page, &file, || Ok(PageSource::Fresh)).unwrap();
        }
        for &(bit, len) in bits {
            table.fill(ChunkIndex::new(0), bit, len, true, |_, _| {});
        }
        (table, file, home)
    }

    #[test]
    fn runs_agree_with_a_bit_by_bit_walk() {
        let set = [(3, 1), (60, 10), (128, 64), (32_700, 200), (65_535, 2)];
        let (table, file, home) = table_with(&set);
        let is_set = |bit: u32| set.iter().any(|&(from, len)| (from..from + len).contains(&bit));
        for start in (0..300).chain(32_600..33_000).chain(65_500..65_600) {
            for max in [1, 2, 63, 64, 65, 400] {
                let run = table.run(ChunkIndex::new(0), start, max, &file, || Ok(home)).unwrap();
                let naive = (start..start + max).take_while(|&b| is_set(b) == is_set(start)).count() as u32;
                assert_eq!((run.present, run.len), (is_set(start), naive), "start {start} max {max}");
            }
        }
    }

    #[test]
    fn only_pages_that_change_are_reported() {
        let (table, ..) = table_with(&[(0, 64)]);
        let mut seen = Vec::new();
        table.fill(ChunkIndex::new(0), 0, 32_769, true, |page, _| seen.push(page));
        assert_eq!(seen, [0, 1]);
        seen.clear();
        table.fill(ChunkIndex::new(0), 0, 64, true, |page, _| seen.push(page));
        assert!(seen.is_empty());
    }
}
