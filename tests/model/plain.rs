//! The model: what a disk is, without any cleverness. Arrays of bytes, and a note for each sector of whose it is.

use std::collections::HashMap;

/// What media keep whole; crash promises are made for pieces of this size.
pub const PIECE: usize = 512;

/// Whether a sector belongs to this layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Own {
    No,
    Yes,
    /// The engine may or may not have kept it: zeros, which it need not write where nobody below has anything else, or what a drop
    /// forgot.
    Maybe,
}

/// One disk of a chain. Offsets are those of the virtual disk; everything before `start` is zeros and stays so.
pub struct Layer {
    pub start: u64,
    pub size: u64,
    pub block: u64,
    pub sector: u64,
    pub is_base: bool,
    /// What a read returns now, from `start` on.
    pub bytes: Vec<u8>,
    /// What each piece held when the last flush began.
    floor: Vec<u8>,
    /// Pieces changed since.
    dirty: Vec<bool>,
    dirty_list: Vec<u32>,
    /// Hashes of what such pieces held in between.
    between: HashMap<u32, Vec<u64>>,
    pub own: Vec<Own>,
    /// Where the last write ended.
    pub last_end: u64,
}

fn hash(piece: &[u8]) -> u64 {
    piece.chunks(8).fold(0x51_7c_c1_b7_27_22_0a_95, |h: u64, word| {
        let value = word.iter().rev().fold(0_u64, |v, &b| v << 8 | u64::from(b));
        (h.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    })
}

impl Layer {
    pub fn base(start: u64, size: u64, block: u64, sector: u64) -> Self {
        Self::with(start, size, block, sector, true, Vec::new())
    }

    /// A child starts as its parent, cut or continued with zeros.
    pub fn child(parent: &Self, size: u64, block: u64) -> Self {
        Self::with(parent.start, size, block, parent.sector, false, parent.bytes.clone())
    }

    fn with(start: u64, size: u64, block: u64, sector: u64, is_base: bool, mut bytes: Vec<u8>) -> Self {
        let len = (size - start) as usize;
        bytes.resize(len, 0);
        Self {
            floor: bytes.clone(),
            dirty: vec![false; len.div_ceil(PIECE)],
            dirty_list: Vec::new(),
            between: HashMap::new(),
            own: vec![Own::No; len / sector as usize],
            bytes,
            last_end: start,
            start,
            size,
            block,
            sector,
            is_base,
        }
    }

    fn index(&self, at: u64) -> usize {
        (at - self.start) as usize
    }

    fn piece(&self, p: usize) -> std::ops::Range<usize> {
        p * PIECE..((p + 1) * PIECE).min(self.bytes.len())
    }

    /// Remembers what the pieces of a range hold, before they change.
    fn touch(&mut self, at: u64, len: u64, own: Own) {
        if len == 0 {
            return;
        }
        let (from, to) = (self.index(at), self.index(at + len));
        for p in from / PIECE..to.div_ceil(PIECE) {
            if self.dirty[p] {
                let old = hash(&self.bytes[self.piece(p)]);
                self.between.entry(p as u32).or_default().push(old);
            } else {
                self.dirty[p] = true;
                self.dirty_list.push(p as u32);
            }
        }
        let sector = self.sector as usize;
        self.own[from / sector..to.div_ceil(sector)].fill(own);
    }

    pub fn write(&mut self, at: u64, data: &[u8]) {
        self.touch(at, data.len() as u64, Own::Yes);
        self.last_end = at + data.len() as u64;
        let from = self.index(at);
        self.bytes[from..from + data.len()].copy_from_slice(data);
    }

    pub fn write_zeroes(&mut self, at: u64, len: u64) {
        self.zero(at, len);
    }

    fn zero(&mut self, at: u64, len: u64) {
        self.touch(at, len, Own::Maybe);
        let (from, to) = (self.index(at), self.index(at + len));
        self.bytes[from..to].fill(0);
    }

    /// Whole blocks become zeros; the last one counts as whole when the range reaches the end.
    pub fn trim(&mut self, at: u64, len: u64) {
        let first = at.div_ceil(self.block) * self.block;
        let end = if at + len == self.size { self.size } else { (at + len) / self.block * self.block };
        if len > 0 && first < end {
            self.zero(first, end - first);
        }
    }

    /// Compacted over what `below` shows: sectors that are zeros, or the same there, may have any owner now.
    pub fn compact(&mut self, below: Option<&Self>) {
        self.settle();
        let sector = self.sector as usize;
        for (i, own) in self.own.iter_mut().enumerate() {
            let bytes = &self.bytes[i * sector..(i + 1) * sector];
            let same = below.and_then(|below| below.bytes.get(i * sector..(i + 1) * sector)).is_some_and(|under| under == bytes);
            if same || bytes.iter().all(|&b| b == 0) {
                *own = Own::Maybe;
            }
        }
    }

    /// A flush is done: what is, is durable.
    pub fn settle(&mut self) {
        for p in std::mem::take(&mut self.dirty_list) {
            let range = self.piece(p as usize);
            self.floor[range.clone()].copy_from_slice(&self.bytes[range]);
            self.dirty[p as usize] = false;
        }
        self.between.clear();
    }

    /// What a live read of the range must return, exactly.
    pub fn expect(&self, at: u64, len: u64) -> &[u8] {
        &self.bytes[self.index(at)..self.index(at + len)]
    }

    /// Whether bytes read from a copy of the file (whole pieces) are allowed: what was durable, or anything written since.
    pub fn allows(&self, at: u64, got: &[u8]) -> Result<(), String> {
        let from = self.index(at);
        if got == &self.bytes[from..from + got.len()] {
            return Ok(());
        }
        for (i, piece) in got.chunks(PIECE).enumerate() {
            let p = from / PIECE + i;
            let range = self.piece(p);
            if piece == &self.bytes[range.clone()] {
                continue;
            }
            let place = self.start + range.start as u64;
            if !self.dirty[p] {
                return Err(format!("piece {place:#x} is not what was flushed: {}", differ(piece, &self.bytes[range])));
            }
            let between = self.between.get(&(p as u32)).is_some_and(|all| all.contains(&hash(piece)));
            if piece != &self.floor[range.clone()] && !between {
                return Err(format!("piece {place:#x} holds nothing that was ever written to it: {}", differ(piece, &self.bytes[range])));
            }
        }
        Ok(())
    }

    /// The handle was dropped; this is what the file remembered. Everything else is forgotten.
    pub fn forget(&mut self, remembered: Vec<u8>) {
        self.bytes = remembered;
        let per_sector = self.sector as usize / PIECE;
        for &p in &self.dirty_list {
            self.own[p as usize / per_sector] = Own::Maybe;
        }
        self.settle();
    }
}

/// Says where two stretches differ first, and what stands there.
pub fn differ(got: &[u8], want: &[u8]) -> String {
    let i = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(0);
    let show = |s: &[u8]| s[i..].iter().take(16).map(|b| format!("{b:02x}")).collect::<String>();
    format!("at +{i:#x} it has {} and not {}", show(got), show(want))
}
