//! The block allocation table in memory (MS-VHDX 2.5).
//!
//! Entries are kept as they stand on disk, state and place in one word, so that one atomic load answers a look-up. A page is
//! checked when it is loaded: an entry that points outside the file, onto the header section, the log or a region, or has a
//! state that its type of disk does not know, makes the page *suspect*, and every look-up in a suspect page checks its entry
//! again. That way one bad entry spoils one block and not its 511 neighbours, and good pages pay nothing.
//!
//! **Marks.** A block that is about to move carries a mark in its word, in memory only: a reserved bit, which no good page has. The usual
//! look-up fails to decode a marked word and goes the careful way, which strips the mark for readers and tells writers
//! ([`BatTable::settled`]); so marks cost the usual look-up nothing. Suspect pages, where reserved bits come from the file, are never marked.

use super::dirty::DirtyFlag;
use super::pages::PageMap;
use super::words::{WORDS, Words};
use crate::format::{BitmapState, Fault, FormatError, Neighbour, PayloadState};
use crate::geometry::{BatRole, Geometry};
use crate::kind::Structure;
use crate::storage::{self, Operation, Storage, StorageError};
use crate::sync::{AtomicU64, Ordering};
use crate::units::{BatIndex, BlockIndex, ChunkIndex, FileOffset, MIB, PAGE, PAGE_LEN};

/// Set in the word of a block that is about to move (`disk/compact`). A reserved bit: it is 0 in every entry of a good page.
const MARK: u64 = 1 << 3;
/// Pages that a walk reads at a time.
const WALK_PAGES: u64 = 32;
/// Entries in a page.
pub(crate) const ENTRIES: u32 = WORDS as u32;

/// Looking up a mapping failed: the file lies, or does not answer.
///
/// Boxed, because a look-up that may fail with a large error hands its answer back through memory, and look-ups are what a hot
/// read consists of.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error(transparent)]
    Format(Box<FormatError>),
    #[error(transparent)]
    Storage(Box<StorageError>),
}

impl From<FormatError> for MapError {
    fn from(e: FormatError) -> Self {
        Self::Format(Box::new(e))
    }
}

impl From<StorageError> for MapError {
    fn from(e: StorageError) -> Self {
        Self::Storage(Box::new(e))
    }
}

/// 512 entries.
pub(crate) struct BatPage {
    words: Words,
    suspect: bool,
    pub(crate) dirty: DirtyFlag,
}

impl BatPage {
    /// The bytes as they go to the file: without marks.
    pub(crate) fn image(&self) -> Box<[u8; PAGE_LEN]> {
        let mut image = self.words.image();
        if !self.suspect {
            for word in image.chunks_exact_mut(8) {
                // Bit 3 of a little-endian word.
                word[0] &= !(MARK as u8);
            }
        }
        image
    }

    /// A word as the file would have it.
    fn stripped(&self, word: u64) -> u64 {
        if self.suspect { word } else { word & !MARK }
    }
}

/// Which parts of the file blocks must keep off, and how long the file is: what an entry is checked against.
#[derive(Clone, Debug)]
pub(crate) struct Fences {
    /// Start, end and owner of every structure at a fixed place.
    pub(crate) taken: Vec<(u64, u64, Structure)>,
}

impl Fences {
    /// Checks a block of `len` bytes at `start` in a file of `file_len` bytes. The block may be cut by the end of the file
    /// (qemu writes such fixed disks) but must start inside.
    pub(crate) fn check(&self, start: u64, len: u64, file_len: u64) -> Result<(), Fault> {
        let end = start.checked_add(len).ok_or(Fault::BeyondFile { end: u64::MAX, len: file_len })?;
        if start >= file_len {
            return Err(Fault::BeyondFile { end, len: file_len });
        }
        match self.taken.iter().find(|(from, to, _)| start < *to && *from < end) {
            Some(&(from, _, owner)) => Err(Fault::Overlap { start, other: Neighbour::fixed(owner, FileOffset::new(from)) }),
            None => Ok(()),
        }
    }
}

/// See the module.
pub(crate) struct BatTable {
    at: u64,
    entries: u64,
    geometry: Geometry,
    has_parent: bool,
    fences: Fences,
    file_len: AtomicU64,
    pages: PageMap<BatPage>,
}

impl BatTable {
    /// The table at `at`, nothing of it loaded.
    pub(crate) fn new(at: FileOffset, geometry: Geometry, has_parent: bool, fences: Fences, file_len: u64) -> Self {
        let entries = if has_parent { geometry.bat_entries_differencing() } else { geometry.bat_entries() };
        let pages = PageMap::new(entries.div_ceil(u64::from(ENTRIES)));
        Self { at: at.get(), entries, geometry, has_parent, fences, file_len: AtomicU64::new(file_len), pages }
    }

    /// The file is longer now; entries loaded from here on may point further.
    pub(crate) fn set_file_len(&self, len: u64) {
        self.file_len.store(len, Ordering::Release);
    }

    /// The structures that no block may lie over, as (start, end, owner).
    pub(crate) fn taken(&self) -> &[(u64, u64, Structure)] {
        &self.fences.taken
    }

    /// What entries are checked against.
    pub(crate) fn fences(&self) -> &Fences {
        &self.fences
    }

    /// Where the entry stands in the file.
    pub(crate) fn entry_at(&self, index: BatIndex) -> FileOffset {
        FileOffset::new(self.at + u64::from(index.get()) * 8)
    }

    /// Where a page stands in the file.
    pub(crate) fn page_home(&self, page: u64) -> FileOffset {
        FileOffset::new(self.at + page * PAGE)
    }

    /// The page that an entry is in.
    pub(crate) fn page_of(index: BatIndex) -> u64 {
        u64::from(index.get() / ENTRIES)
    }

    /// The page, loaded and checked.
    #[inline]
    pub(crate) fn page(&self, page: u64, file: &dyn Storage) -> Result<&BatPage, MapError> {
        self.pages.get_or_load(page, || {
            let mut image = Box::new([0; PAGE_LEN]);
            storage::read_zero_extended(file, &mut image[..], self.page_home(page).get())?;
            let words = Words::new(&image);
            let first = page * u64::from(ENTRIES);
            let suspect = words
                .iter(Ordering::Relaxed)
                .zip(first..)
                .any(|(word, index)| word != 0 && index < self.entries && self.fault(BatIndex::new(index as u32), word).is_some());
            Ok(BatPage { words, suspect, dirty: DirtyFlag::new() })
        })
    }

    /// What is wrong with an entry of this value, if anything.
    pub(crate) fn fault(&self, index: BatIndex, word: u64) -> Option<Fault> {
        let file_len = self.file_len.load(Ordering::Acquire);
        let (home, len) = match self.geometry.bat_role(index)? {
            BatRole::Payload(_) => match PayloadState::decode(word) {
                Ok(PayloadState::FullyPresent(home)) => (home, self.geometry.block_size()),
                Ok(PayloadState::PartiallyPresent(home)) if self.has_parent => (home, self.geometry.block_size()),
                Ok(PayloadState::PartiallyPresent(_)) => return Some(Fault::State(7)),
                Ok(PayloadState::NotPresent | PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped) => return None,
                Err(fault) => return Some(fault),
            },
            // Files without a parent must not have sector bitmaps but some do; nobody consults them.
            BatRole::Bitmap(_) if !self.has_parent => return None,
            BatRole::Bitmap(_) => match BitmapState::decode(word) {
                Ok(BitmapState::Present(home)) => (home, MIB),
                Ok(BitmapState::NotPresent) => return None,
                Err(fault) => return Some(fault),
            },
        };
        self.fences.check(home.start().get(), len, file_len).err()
    }

    /// The entry as it stands, checked.
    #[inline]
    pub(crate) fn load(&self, index: BatIndex, file: &dyn Storage) -> Result<u64, MapError> {
        let page = self.page(Self::page_of(index), file)?;
        // Acquire pairs with the Release of `store`: whoever sees an entry sees the payload and the bits behind it.
        let word = page.words.load((index.get() % ENTRIES) as usize, Ordering::Acquire);
        if page.suspect {
            self.refuse_bad(index, word)?;
        }
        Ok(page.stripped(word))
    }

    #[cold]
    fn refuse_bad(&self, index: BatIndex, word: u64) -> Result<(), FormatError> {
        match self.fault(index, word) {
            Some(fault) => Err(FormatError::new(Structure::BatEntry, self.entry_at(index), fault)),
            None => Ok(()),
        }
    }

    /// The state of a payload block.
    #[inline]
    pub(crate) fn payload(&self, block: BlockIndex, file: &dyn Storage) -> Result<PayloadState, MapError> {
        let index = self.geometry.bat_index(block);
        // What every hot read and write asks, so the usual answer stands here alone, small enough to be inlined.
        if let Some(page) = self.pages.get(Self::page_of(index))
            && !page.suspect
            // Acquire as in `load`.
            && let Some(state) = PayloadState::decode_sound(page.words.load((index.get() % ENTRIES) as usize, Ordering::Acquire))
        {
            return Ok(state);
        }
        self.payload_with_care(index, file)
    }

    /// The same where the page must be loaded first, or is suspect.
    #[cold]
    fn payload_with_care(&self, index: BatIndex, file: &dyn Storage) -> Result<PayloadState, MapError> {
        let word = self.load(index, file)?;
        PayloadState::decode(word).map_err(|fault| self.entry_error(index, fault))
    }

    /// The state of a payload block for somebody who is going to write into it without a lock: `None` when the block carries a mark,
    /// and the writer must take its stripe first.
    #[inline]
    pub(crate) fn settled(&self, block: BlockIndex, file: &dyn Storage) -> Result<Option<PayloadState>, MapError> {
        let index = self.geometry.bat_index(block);
        // As in `payload`: a mark is one of the reserved bits, so a marked word does not decode.
        if let Some(page) = self.pages.get(Self::page_of(index))
            && !page.suspect
            && let Some(state) = PayloadState::decode_sound(page.words.load((index.get() % ENTRIES) as usize, Ordering::Acquire))
        {
            return Ok(Some(state));
        }
        self.settled_with_care(index, file)
    }

    #[cold]
    fn settled_with_care(&self, index: BatIndex, file: &dyn Storage) -> Result<Option<PayloadState>, MapError> {
        let page = self.page(Self::page_of(index), file)?;
        let word = page.words.load((index.get() % ENTRIES) as usize, Ordering::Acquire);
        if page.stripped(word) != word { Ok(None) } else { self.payload_with_care(index, file).map(Some) }
    }

    /// Marks a block that is about to move. The caller holds its stripe. `false` when its page is suspect: nothing moves there.
    pub(crate) fn mark(&self, block: BlockIndex, file: &dyn Storage) -> Result<bool, MapError> {
        let index = self.geometry.bat_index(block);
        let page = self.page(Self::page_of(index), file)?;
        if !page.suspect {
            page.words.set_bits((index.get() % ENTRIES) as usize, MARK, Ordering::SeqCst);
        }
        Ok(!page.suspect)
    }

    /// Whether the block carries a mark. The caller holds its stripe.
    pub(crate) fn is_marked(&self, block: BlockIndex) -> bool {
        let index = self.geometry.bat_index(block);
        self.pages.get(Self::page_of(index)).is_some_and(|page| {
            let word = page.words.load((index.get() % ENTRIES) as usize, Ordering::Acquire);
            page.stripped(word) != word
        })
    }

    /// Takes a block's mark away. The caller holds its stripe.
    pub(crate) fn unmark(&self, block: BlockIndex) {
        let index = self.geometry.bat_index(block);
        if let Some(page) = self.pages.get(Self::page_of(index))
            && !page.suspect
            // Looked at first, because there hardly ever is one. Marks come and go under the stripe.
            && page.words.load((index.get() % ENTRIES) as usize, Ordering::Relaxed) & MARK != 0
        {
            page.words.clear_bits((index.get() % ENTRIES) as usize, MARK, Ordering::Release);
        }
    }

    /// The state of a chunk's sector bitmap block.
    #[inline]
    pub(crate) fn bitmap(&self, chunk: ChunkIndex, file: &dyn Storage) -> Result<BitmapState, MapError> {
        let index = self.geometry.bitmap_bat_index(chunk);
        let word = self.load(index, file)?;
        BitmapState::decode(word).map_err(|fault| self.entry_error(index, fault))
    }

    #[cold]
    fn entry_error(&self, index: BatIndex, fault: Fault) -> MapError {
        FormatError::new(Structure::BatEntry, self.entry_at(index), fault).into()
    }

    /// Publishes an entry. The caller holds the gate, the block's stripe, and has written what the entry points at; it marks
    /// the page dirty afterwards. The page must have been loaded by a look-up before.
    pub(crate) fn store(&self, index: BatIndex, word: u64) -> &BatPage {
        let page = self.pages.get(Self::page_of(index)).expect("an entry is looked up before it is changed");
        page.words.store((index.get() % ENTRIES) as usize, word, Ordering::Release);
        page
    }

    /// Pages of the table.
    pub(crate) fn pages(&self) -> u64 {
        self.entries.div_ceil(u64::from(ENTRIES))
    }

    /// Calls `each` for every entry that is not zero, in order, without keeping what it reads: pages in memory are taken from
    /// there, holes of the file are skipped, the rest is read. Returns `false` when more than `limit` bytes would have to be read.
    pub(crate) fn walk<E: From<StorageError>>(
        &self,
        file: &dyn Storage,
        limit: u64,
        each: impl FnMut(BatIndex, u64) -> Result<(), E>,
    ) -> Result<bool, E> {
        self.walk_pages(file, 0..self.pages(), limit, each)
    }

    /// The same for some of the pages.
    pub(crate) fn walk_pages<E: From<StorageError>>(
        &self,
        file: &dyn Storage,
        range: std::ops::Range<u64>,
        limit: u64,
        mut each: impl FnMut(BatIndex, u64) -> Result<(), E>,
    ) -> Result<bool, E> {
        let pages = range.end;
        let (mut page, mut read) = (range.start, 0);
        let mut buffer = vec![0; WALK_PAGES as usize * PAGE_LEN];
        let mut each_word = |page: u64, place: usize, word: u64| {
            let index = page * u64::from(ENTRIES) + place as u64;
            if word != 0 && index < self.entries { each(BatIndex::new(index as u32), word) } else { Ok(()) }
        };
        while page < pages {
            if let Some(loaded) = self.pages.get(page) {
                for (place, word) in loaded.words.iter(Ordering::Acquire).enumerate() {
                    each_word(page, place, loaded.stripped(word))?;
                }
                page += 1;
                continue;
            }
            let next_loaded = self.pages.next_loaded(page).unwrap_or(pages);
            let at = self.page_home(page).get();
            let data = file.next_data(at).map_err(|e| StorageError::new(Operation::Seek, at, e))?;
            let first = data.map_or(pages, |(start, _)| (start.saturating_sub(self.at)) / PAGE).max(page);
            if first >= next_loaded {
                page = next_loaded;
                continue;
            }
            let data_end = data.map_or(pages, |(_, end)| end.saturating_sub(self.at).div_ceil(PAGE));
            let end = data_end.min(next_loaded).min(first + WALK_PAGES).min(pages).max(first + 1);
            let part = &mut buffer[..(end - first) as usize * PAGE_LEN];
            read += part.len() as u64;
            if read > limit {
                return Ok(false);
            }
            storage::read_zero_extended(file, part, self.page_home(first).get())?;
            for (number, image) in (first..).zip(part.chunks_exact(PAGE_LEN)) {
                for (place, bytes) in image.chunks_exact(8).enumerate() {
                    each_word(number, place, u64::from_le_bytes(bytes.try_into().expect("eight bytes")))?;
                }
            }
            page = end;
        }
        Ok(true)
    }

    /// How many entries from `index` on are certainly zero, as far as holes of the file tell: nothing is read or kept. 0 when the
    /// entry's page is in memory or may hold something.
    pub(crate) fn blank(&self, index: BatIndex, file: &dyn Storage) -> Result<u64, StorageError> {
        let pages = self.entries.div_ceil(u64::from(ENTRIES));
        let page = Self::page_of(index);
        // Asked before the file: a page is loaded before an entry in it changes, so what is not in memory now is as the file has it.
        let next_loaded = self.pages.next_loaded(page).unwrap_or(pages);
        if next_loaded <= page {
            return Ok(0);
        }
        let at = self.page_home(page).get();
        let data = file.next_data(at).map_err(|e| StorageError::new(Operation::Seek, at, e))?;
        let next_data = data.map_or(pages, |(start, _)| start.saturating_sub(self.at) / PAGE);
        let end = next_loaded.min(next_data).min(pages) * u64::from(ENTRIES);
        Ok(end.min(self.entries).saturating_sub(u64::from(index.get())))
    }

    /// A page that was loaded before.
    pub(crate) fn loaded_page(&self, page: u64) -> Option<&BatPage> {
        self.pages.get(page)
    }
}
