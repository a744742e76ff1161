//! Bytes of one simulated file, as a persistent tree: cloning it costs a few pointers.
//!
//! A crash image differs from its neighbours in a handful of pages. Files are therefore trees of shared pages that are copied
//! when written to, so thousands of images of a file of many MiB share nearly all of their memory, and comparing two images
//! skips whatever they share. Hashes are made the same way: pages and the chunks above them remember their digest until they are
//! written to, so the hash of an image costs what the image does not share with those before it.

use crate::sync::Arc;
use crate::sync::process::OnceLock;
use std::collections::BTreeMap;

/// Bytes in a page, the unit of sharing.
pub(super) const PAGE: usize = 4096;
/// Pages in a chunk, the second level of the tree.
const FAN: u64 = 64;
/// Bytes in a chunk.
const CHUNK: u64 = FAN * PAGE as u64;

/// A page and, once somebody asked, its digest.
#[derive(Debug)]
pub(super) struct Page {
    bytes: [u8; PAGE],
    digest: OnceLock<u128>,
}

impl Page {
    pub fn new(bytes: [u8; PAGE]) -> Self {
        Self { bytes, digest: OnceLock::new() }
    }

    pub fn bytes(&self) -> &[u8; PAGE] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8; PAGE] {
        self.digest = OnceLock::new();
        &mut self.bytes
    }

    fn digest(&self) -> u128 {
        *self.digest.get_or_init(|| digest_of(&self.bytes))
    }
}

impl Clone for Page {
    /// A page is copied in order to be changed, so its digest stays behind.
    fn clone(&self) -> Self {
        Self::new(self.bytes)
    }
}

/// The pages of a stretch and, once somebody asked, their digest.
#[derive(Debug)]
struct Chunk {
    pages: [Option<Arc<Page>>; FAN as usize],
    digest: OnceLock<u128>,
}

impl Chunk {
    fn of(pages: [Option<Arc<Page>>; FAN as usize]) -> Self {
        Self { pages, digest: OnceLock::new() }
    }

    fn empty() -> Self {
        Self::of([const { None }; FAN as usize])
    }

    fn slot(&mut self, within: usize) -> &mut Option<Arc<Page>> {
        self.digest = OnceLock::new();
        &mut self.pages[within]
    }

    fn digest(&self) -> u128 {
        *self.digest.get_or_init(|| {
            let pages = self.pages.iter().zip(0..).filter_map(|(page, i)| Some((page.as_ref()?.digest(), i)));
            pages.fold(0, |sum: u128, (digest, i)| sum.wrapping_add(in_place(digest, i)))
        })
    }
}

impl Clone for Chunk {
    fn clone(&self) -> Self {
        Self::of(self.pages.clone())
    }
}

/// A sparse file whose clones share memory.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseFile {
    len: u64,
    chunks: BTreeMap<u64, Arc<Chunk>>,
    /// Ranges that fail to read, as a torn piece on a medium may.
    unreadable: Vec<(u64, u64)>,
}

impl SparseFile {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether a read of this range hits an unreadable piece.
    pub fn fails_in(&self, at: u64, len: u64) -> bool {
        self.unreadable.iter().any(|&(start, end)| start < at.saturating_add(len) && at < end)
    }

    /// Makes a range fail to read. It has space, as what was written there once has.
    pub fn spoil(&mut self, at: u64, len: u64) {
        for index in at / PAGE as u64..(at + len).div_ceil(PAGE as u64) {
            self.page_mut(index);
        }
        self.unreadable.push((at, at + len));
    }

    pub fn read(&self, buf: &mut [u8], at: u64) -> usize {
        let n = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < n {
            let pos = at + done as u64;
            let part = ((CHUNK - pos % CHUNK) as usize).min(n - done);
            match self.chunks.get(&(pos / CHUNK)) {
                Some(chunk) => read_chunk(chunk, &mut buf[done..done + part], pos % CHUNK),
                None => buf[done..done + part].fill(0),
            }
            done += part;
        }
        n
    }

    pub fn write(&mut self, buf: &[u8], at: u64) {
        let mut done = 0;
        while done < buf.len() {
            let pos = at + done as u64;
            let within = (pos % PAGE as u64) as usize;
            let part = (PAGE - within).min(buf.len() - done);
            let page = self.page_mut(pos / PAGE as u64);
            page[within..within + part].copy_from_slice(&buf[done..done + part]);
            done += part;
        }
        let end = at + buf.len() as u64;
        self.len = self.len.max(end);
        self.heal(at, end);
    }

    /// Writes whole pages, sharing them. `at` is the start of a page.
    pub fn share(&mut self, pages: &[Arc<Page>], at: u64) {
        debug_assert!(at.is_multiple_of(PAGE as u64), "only whole pages are shared");
        for (page, index) in pages.iter().zip(at / PAGE as u64..) {
            *self.slot(index) = Some(Arc::clone(page));
        }
        let end = at + (pages.len() * PAGE) as u64;
        self.len = self.len.max(end);
        self.heal(at, end);
    }

    /// Zeros in a range; what lies past the end stays nothing.
    pub fn zero(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len);
        self.heal(at, end);
        let (first, last) = (at / PAGE as u64, end.div_ceil(PAGE as u64));
        let touched: Vec<u64> = self.present(first, last).collect();
        for index in touched {
            let (start, stop) = (index * PAGE as u64, (index + 1) * PAGE as u64);
            if at <= start && end >= stop {
                self.set_page(index, None);
            } else {
                let (from, to) = ((at.max(start) - start) as usize, (end.min(stop) - start) as usize);
                self.page_mut(index)[from..to].fill(0);
            }
        }
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.len = len;
    }

    /// Fills a range with a repeated page, shared wherever whole pages are covered. The length stays.
    pub fn fill(&mut self, at: u64, end: u64, with: &Arc<Page>) {
        let mut whole: Option<Arc<Chunk>> = None;
        let mut pos = at;
        while pos < end {
            let within = (pos % PAGE as u64) as usize;
            if pos.is_multiple_of(CHUNK) && end - pos >= CHUNK {
                let chunk = whole.get_or_insert_with(|| Arc::new(Chunk::of(std::array::from_fn(|_| Some(Arc::clone(with))))));
                self.chunks.insert(pos / CHUNK, Arc::clone(chunk));
                pos += CHUNK;
                continue;
            }
            let part = ((PAGE - within) as u64).min(end - pos);
            if part == PAGE as u64 {
                self.set_page(pos / PAGE as u64, Some(Arc::clone(with)));
            } else {
                let to = within + part as usize;
                self.page_mut(pos / PAGE as u64)[within..to].copy_from_slice(&with.bytes[within..to]);
            }
            pos += part;
        }
    }

    pub fn allocated(&self) -> u64 {
        self.present(0, u64::MAX).count() as u64 * PAGE as u64
    }

    pub fn next_data(&self, at: u64) -> Option<(u64, u64)> {
        let mut pages = self.present(at / PAGE as u64, u64::MAX);
        let first = pages.next()?;
        let last = pages.zip(first + 1..).take_while(|(have, want)| have == want).last().map_or(first, |(index, _)| index);
        let (start, end) = (at.max(first * PAGE as u64), ((last + 1) * PAGE as u64).min(self.len));
        (start < end).then_some((start, end))
    }

    /// Whether any byte between two places differs from the other file's; past an end there are zeros. Shared pages cost nothing.
    pub fn differs(&self, other: &Self, from: u64, to: u64) -> bool {
        let zeros = [0; PAGE];
        let numbers = self.chunks.keys().chain(other.chunks.keys().filter(|number| !self.chunks.contains_key(number)));
        numbers.filter(|&&number| number < to.div_ceil(CHUNK) && from < (number + 1).saturating_mul(CHUNK)).any(|number| {
            let (mine, theirs) = (self.chunks.get(number), other.chunks.get(number));
            if same(mine, theirs) {
                return false;
            }
            (0..FAN as usize).any(|i| {
                let page = |chunk: Option<&Arc<Chunk>>| chunk.and_then(|chunk| chunk.pages[i].clone());
                let (mine, theirs) = (page(mine), page(theirs));
                let start = number * CHUNK + (i * PAGE) as u64;
                let range = from.clamp(start, start + PAGE as u64) - start..to.clamp(start, start + PAGE as u64) - start;
                let range = range.start as usize..range.end as usize;
                let bytes = |page: &Option<Arc<Page>>| page.as_ref().map_or(zeros, |page| page.bytes)[range.clone()].to_vec();
                !same(mine.as_ref(), theirs.as_ref()) && bytes(&mine) != bytes(&theirs)
            })
        })
    }

    fn heal(&mut self, at: u64, end: u64) {
        if !self.unreadable.is_empty() {
            self.unreadable.retain(|&(start, stop)| !(at <= start && stop <= end));
        }
    }

    fn page(&self, index: u64) -> Option<&Arc<Page>> {
        self.chunks.get(&(index / FAN))?.pages[(index % FAN) as usize].as_ref()
    }

    fn slot(&mut self, index: u64) -> &mut Option<Arc<Page>> {
        let chunk = self.chunks.entry(index / FAN).or_insert_with(|| Arc::new(Chunk::empty()));
        Arc::make_mut(chunk).slot((index % FAN) as usize)
    }

    fn page_mut(&mut self, index: u64) -> &mut [u8; PAGE] {
        let page = self.slot(index).get_or_insert_with(|| Arc::new(Page::new([0; PAGE])));
        Arc::make_mut(page).bytes_mut()
    }

    fn set_page(&mut self, index: u64, page: Option<Arc<Page>>) {
        if page.is_some() || self.page(index).is_some() {
            *self.slot(index) = page;
        }
    }

    /// Indices of the pages that have memory, from `first` up to but not including `last`.
    fn present(&self, first: u64, last: u64) -> impl Iterator<Item = u64> + '_ {
        let chunks = if first < last { first / FAN..last.div_ceil(FAN) } else { 0..0 };
        self.chunks
            .range(chunks)
            .flat_map(move |(&number, chunk)| {
                chunk.pages.iter().enumerate().filter(|(_, page)| page.is_some()).map(move |(i, _)| number * FAN + i as u64)
            })
            .filter(move |&index| first <= index && index < last)
    }

    /// The hash of the whole content, length and unreadable places included. Costs what nobody hashed before.
    pub fn hash(&self) -> u128 {
        let chunks = self.chunks.iter().map(|(&number, chunk)| in_place(chunk.digest(), number));
        chunks.fold(self.shape_hash(), u128::wrapping_add)
    }

    fn shape_hash(&self) -> u128 {
        self.unreadable.iter().fold(spread(self.len, 0x6C65_6E67), |hash, &(start, end)| hash.wrapping_add(spread(start, !end)))
    }
}

/// Whether two shared things are one, or both are missing.
fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Copies from a chunk; what it lacks is zeros.
fn read_chunk(chunk: &Chunk, buf: &mut [u8], at: u64) {
    let mut done = 0;
    while done < buf.len() {
        let pos = at as usize + done;
        let part = (PAGE - pos % PAGE).min(buf.len() - done);
        match &chunk.pages[pos / PAGE] {
            Some(page) => buf[done..done + part].copy_from_slice(&page.bytes[pos % PAGE..pos % PAGE + part]),
            None => buf[done..done + part].fill(0),
        }
        done += part;
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

/// Two words to 128 well-mixed bits.
pub(super) fn spread(a: u64, b: u64) -> u128 {
    let low = fold(a ^ 0xA076_1D64_78BD_642F, b ^ 0xE703_7ED1_A0B4_28DB);
    let high = fold(low ^ 0x8EBC_6AF0_9C88_C6E3, a.rotate_left(32) ^ b ^ 0x5899_65CC_7537_4CC3);
    (u128::from(fold(high ^ b, low ^ 0x1D8E_4E27_C47D_124F)) << 64) | u128::from(high)
}

/// A digest bound to its place; nothing stays nothing, wherever it is.
fn in_place(digest: u128, place: u64) -> u128 {
    if digest == 0 { 0 } else { spread(digest as u64 ^ place, (digest >> 64) as u64 ^ place.rotate_left(17)) }
}

/// The digest of a page; that of zeros is zero.
fn digest_of(page: &[u8; PAGE]) -> u128 {
    let mut lanes = [1_u64, 2, 3, 4];
    let mut any = 0;
    for group in page.as_chunks::<64>().0 {
        for (lane, pair) in lanes.iter_mut().zip(group.as_chunks::<16>().0) {
            let both = u128::from_le_bytes(*pair);
            let (a, b) = (both as u64, (both >> 64) as u64);
            any |= a | b;
            *lane = fold(a ^ *lane ^ 0x9E37_79B9_7F4A_7C15, b ^ lane.rotate_left(23) ^ 0xC2B2_AE3D_27D4_EB4F);
        }
    }
    if any == 0 {
        return 0;
    }
    let [a, b, c, d] = lanes;
    spread(fold(a, b ^ 0x1656_67B1_9E37_79F9) ^ d, fold(c, d ^ 0x2545_F491_4F6C_DD1D) ^ a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_until_written_and_the_hash_follows_the_content() {
        let mut base = SparseFile::default();
        base.write(&[7; 300_000], 10);
        let base_hash = base.hash();
        let mut other = base.clone();
        other.write(&[9; 5000], 100_000);
        other.zero(4096, 8192);
        other.set_len(250_001);
        assert_ne!(other.hash(), base_hash);
        let mut byte = [0];
        base.read(&mut byte, 5000);
        assert_eq!(byte, [7], "the base is not changed through its clone");
        other.set_len(300_010);
        other.write(&[7; 300_000], 10);
        assert_eq!(other.hash(), base_hash, "the same content hashes the same whatever its history");
    }

    #[test]
    fn zero_pages_and_holes_hash_alike() {
        let mut holes = SparseFile::default();
        holes.set_len(100_000);
        let mut zeros = holes.clone();
        zeros.write(&[0; 100_000], 0);
        assert_eq!(holes.hash(), zeros.hash());
    }

    #[test]
    fn differences_are_seen_inside_the_range_only() {
        let mut one = SparseFile::default();
        one.write(&[1; 10_000], 0);
        let mut two = one.clone();
        assert!(!one.differs(&two, 0, u64::MAX));
        two.write(&[2], 5000);
        assert!(one.differs(&two, 0, 10_000) && one.differs(&two, 5000, 5001));
        assert!(!one.differs(&two, 0, 5000) && !one.differs(&two, 5001, 10_000));
        two.write(&[1], 5000);
        two.set_len(20_000);
        assert!(!one.differs(&two, 0, u64::MAX), "zeros past an end are no difference");
    }

    #[test]
    fn a_fill_leaves_bytes_around_it_alone() {
        let mut file = SparseFile::default();
        file.write(&[1; 20_000], 0);
        file.fill(5000, 15_000, &Arc::new(Page::new([8; PAGE])));
        let mut all = [0; 20_000];
        file.read(&mut all, 0);
        assert!(all[..5000].iter().chain(&all[15_000..]).all(|&b| b == 1));
        assert!(all[5000..15_000].iter().all(|&b| b == 8));
    }

    #[test]
    fn a_fill_over_many_chunks_is_read_and_hashed_like_writes() {
        let (end, page) = (3 * CHUNK + 5000, Arc::new(Page::new(std::array::from_fn(|i| i as u8))));
        let mut filled = SparseFile::default();
        filled.set_len(end);
        filled.fill(PAGE as u64, end, &page);
        let mut written = SparseFile::default();
        for at in (PAGE as u64..end).step_by(PAGE) {
            written.write(&page.bytes()[..(end - at).min(PAGE as u64) as usize], at);
        }
        assert!(!filled.differs(&written, 0, u64::MAX));
        assert_eq!(filled.hash(), written.hash());
        filled.write(&[1], 2 * CHUNK);
        assert_ne!(filled.hash(), written.hash(), "a written chunk forgets its digest");
        let mut byte = [9];
        filled.read(&mut byte, CHUNK);
        assert_eq!(byte, [0], "and does not take its neighbours along");
    }
}
