//! What each piece of a disk may hold, from the calls that were made and what they returned.

use super::script::{MIB, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Bytes in a piece: the smallest unit that media keep whole.
pub const PIECE: u64 = 512;
/// The tag of the parent's content.
pub const PARENT: u64 = 0x7A_7A7A;

/// The content of one piece.
pub type Bytes = [u8; PIECE as usize];

/// A pattern that names its write and its piece, and is never zero.
pub fn pattern(tag: u64, piece: u64) -> Bytes {
    let mut out = [0; PIECE as usize];
    for (i, part) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *part = ((tag << 40 | piece << 8 | i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1).to_le_bytes();
    }
    out
}

/// What one request was to leave in a piece: one value, or several where it was uncertain what its other bytes were.
#[derive(Clone, Debug)]
struct Version {
    op: usize,
    done: bool,
    values: Vec<Bytes>,
}

/// See the module. Only pieces that are tracked are in it.
#[derive(Clone, Debug)]
pub struct Ledger {
    size: u64,
    pieces: BTreeMap<u64, Vec<Version>>,
    /// Requests before this one that are done are flushed.
    floor: usize,
}

impl Ledger {
    /// Tracks some pieces of a disk of `size` bytes, whose content now is `base`.
    pub fn new(size: u64, tracked: &BTreeSet<u64>, base: impl Fn(u64) -> Bytes) -> Self {
        let first = |piece| vec![Version { op: 0, done: true, values: vec![base(piece)] }];
        Self { size, pieces: tracked.iter().map(|&piece| (piece, first(piece))).collect(), floor: 1 }
    }

    /// The tracked pieces in stretches, so that few reads fetch them all.
    pub fn stretches(&self) -> Vec<Range<u64>> {
        let mut out: Vec<Range<u64>> = Vec::new();
        for &piece in self.pieces.keys() {
            match out.last_mut() {
                Some(last) if last.end == piece => last.end += 1,
                _ => out.push(piece..piece + 1),
            }
        }
        out
    }

    /// A request is about to be made; `tag` names what it writes.
    pub fn issue(&mut self, op: usize, request: Op) {
        match request {
            Op::Write { at, len } => {
                for piece in at / PIECE..(at + len).div_ceil(PIECE) {
                    let (start, end) = (at.max(piece * PIECE) - piece * PIECE, (at + len).min((piece + 1) * PIECE) - piece * PIECE);
                    let part = start as usize..end as usize;
                    self.add(piece, op, &|old| {
                        let mut new = *old;
                        new[part.clone()].copy_from_slice(&pattern(op as u64, piece)[part.clone()]);
                        new
                    });
                }
            }
            Op::Zeroes { at, len } => self.zero(op, at, at + len),
            Op::Trim { at, len } => {
                let end = if at + len == self.size { at + len } else { (at + len) / MIB * MIB };
                self.zero(op, at.next_multiple_of(MIB), end);
            }
            _ => {}
        }
    }

    fn zero(&mut self, op: usize, start: u64, end: u64) {
        for piece in start / PIECE..end / PIECE {
            self.add(piece, op, &|_| [0; PIECE as usize]);
        }
    }

    fn add(&mut self, piece: u64, op: usize, change: &dyn Fn(&Bytes) -> Bytes) {
        if !self.pieces.contains_key(&piece) {
            return;
        }
        let mut values: Vec<Bytes> = self.now(piece).iter().map(change).collect();
        values.sort_unstable();
        values.dedup();
        self.pieces.get_mut(&piece).unwrap().push(Version { op, done: false, values });
    }

    /// The request returned success.
    pub fn done(&mut self, op: usize) {
        for versions in self.pieces.values_mut() {
            versions.iter_mut().filter(|version| version.op == op).for_each(|version| version.done = true);
        }
    }

    /// A flush that was called as request `op` returned success.
    pub fn flushed(&mut self, op: usize) {
        self.floor = op;
    }

    /// What a read may return now: what the last request that is done left, or a later one that failed.
    pub fn now(&self, piece: u64) -> Vec<Bytes> {
        self.since(piece, usize::MAX)
    }

    /// What a piece may hold after the handle is gone: its floor, or any later value.
    pub fn durable(&self, piece: u64) -> Vec<Bytes> {
        self.since(piece, self.floor)
    }

    /// Whether anything in the piece's block was asked for since the last flush.
    pub fn is_unsettled(&self, piece: u64) -> bool {
        let block = piece * PIECE / MIB * MIB / PIECE;
        let mut around = self.pieces.range(block..block + MIB / PIECE);
        around.any(|(_, versions)| versions.iter().any(|version| version.op >= self.floor))
    }

    fn since(&self, piece: u64, floor: usize) -> Vec<Bytes> {
        let versions = &self.pieces[&piece];
        let first = versions.iter().rposition(|version| version.done && version.op < floor).expect("the first version is done");
        versions[first..].iter().flat_map(|version| version.values.iter().copied()).collect()
    }

    /// The disk was found to hold this.
    pub fn observed(&mut self, piece: u64, bytes: Bytes) {
        self.pieces.insert(piece, vec![Version { op: 0, done: true, values: vec![bytes] }]);
    }
}

/// The pieces to look at for a script: all of short requests, the edges and a few of the middle of long ones, neighbours.
pub fn tracked<'a>(size: u64, ops: impl Iterator<Item = &'a Op>) -> BTreeSet<u64> {
    let mut out = BTreeSet::from([0, 1, 127, 128, 8192, 8193]);
    for &op in ops {
        let (Op::Write { at, len } | Op::Zeroes { at, len } | Op::Trim { at, len } | Op::Read { at, len }) = op else { continue };
        let (first, last) = (at / PIECE, (at + len - 1) / PIECE);
        let near = |edge: u64| edge.saturating_sub(8)..=edge + 8;
        out.extend(near(first).chain(near(last)).filter(|piece| (first.saturating_sub(1)..=last + 1).contains(piece)));
        out.extend((first..last).step_by(97));
    }
    out.retain(|&piece| (piece + 1) * PIECE <= size);
    out
}
