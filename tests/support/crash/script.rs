//! What is done to a disk: single operations, the alphabet of telling ones, and all short words over it.

use diffdisk::storage::sim::Rng;

pub const MIB: u64 = 1 << 20;
/// Six blocks and an odd tail.
pub const SIZE: u64 = 6 * MIB + 3 * 512;

/// One call on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write { at: u64, len: u64 },
    Zeroes { at: u64, len: u64 },
    Trim { at: u64, len: u64 },
    Flush,
    Close,
    Open,
}

/// The alphabet. In the prepared disk block 0 has some sectors, block 4 is full, the others are untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Letter {
    WriteFirst,
    Rewrite,
    RewriteEdge,
    Unaligned,
    Straddle,
    OnePiece,
    WholeBlock,
    ZeroBlock,
    ZeroPart,
    TrimBlock,
    TrimWriteSame,
    TrimThenOther,
    TrimFlushOther,
    Flush,
    Reopen,
}

pub const ALPHABET: [Letter; 15] = [
    Letter::WriteFirst,
    Letter::Rewrite,
    Letter::RewriteEdge,
    Letter::Unaligned,
    Letter::Straddle,
    Letter::OnePiece,
    Letter::WholeBlock,
    Letter::ZeroBlock,
    Letter::ZeroPart,
    Letter::TrimBlock,
    Letter::TrimWriteSame,
    Letter::TrimThenOther,
    Letter::TrimFlushOther,
    Letter::Flush,
    Letter::Reopen,
];

impl Letter {
    pub fn ops(self) -> Vec<Op> {
        let trim = Op::Trim { at: 4 * MIB, len: MIB };
        let other = Op::Write { at: 3 * MIB + 8192, len: 4096 };
        match self {
            Self::WriteFirst => vec![Op::Write { at: MIB + 64 * 1024, len: 4096 }],
            Self::Rewrite => vec![Op::Write { at: 4096, len: 2048 }],
            Self::RewriteEdge => vec![Op::Write { at: 64 * 1024 - 1024, len: 2048 }],
            Self::Unaligned => vec![Op::Write { at: 64 * 1024 - 700, len: 1100 }],
            Self::Straddle => vec![Op::Write { at: 2 * MIB - 1024, len: 2048 }],
            Self::OnePiece => vec![Op::Write { at: MIB + 96 * 1024, len: 512 }],
            Self::WholeBlock => vec![Op::Write { at: 5 * MIB, len: MIB }],
            Self::ZeroBlock => vec![Op::Zeroes { at: 4 * MIB, len: MIB }],
            Self::ZeroPart => vec![Op::Zeroes { at: 32 * 1024, len: 64 * 1024 }],
            Self::TrimBlock => vec![trim],
            Self::TrimWriteSame => vec![trim, Op::Write { at: 4 * MIB + 4096, len: 2048 }],
            Self::TrimThenOther => vec![trim, other],
            Self::TrimFlushOther => vec![trim, Op::Flush, other],
            Self::Flush => vec![Op::Flush],
            Self::Reopen => vec![Op::Close, Op::Open],
        }
    }
}

/// Which disk the script runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Dynamic,
    /// Over a parent without a zero sector.
    Child,
}

/// A whole experiment.
#[derive(Clone, Debug)]
pub struct Script {
    pub kind: Kind,
    /// Small commits are made until the log's next entry would begin at most this many 4 KiB sectors before the ring's end.
    pub near_wrap: Option<u64>,
    pub name: String,
    pub ops: Vec<Op>,
    /// Crashes before this operation were tried by a shorter script.
    pub interesting: usize,
    /// Bytes that land together.
    pub piece: u64,
}

/// All words of length 1 and 2, each ended by a flush, on both kinds, fresh and with the log about to wrap.
pub fn exhaustive() -> Vec<Script> {
    let mut words: Vec<Vec<Letter>> = ALPHABET.iter().map(|&letter| vec![letter]).collect();
    for first in ALPHABET {
        words.extend(ALPHABET.iter().map(|&second| vec![first, second]));
    }
    let mut scripts = Vec::new();
    for (number, word) in words.iter().enumerate() {
        for kind in [Kind::Dynamic, Kind::Child] {
            for near_wrap in [None, Some(2 + number as u64 % 7)] {
                let mut ops: Vec<Op> = word.iter().flat_map(|letter| letter.ops()).collect();
                let interesting = if word.len() == 2 { word[0].ops().len() } else { 0 };
                if ops.last() != Some(&Op::Flush) {
                    ops.push(Op::Flush);
                }
                ops.push(Op::Close);
                let piece = if number % 5 == 4 { 4096 } else { 512 };
                let name = format!("{kind:?}{} {word:?}", near_wrap.map_or(String::new(), |n| format!(" {n} sectors before the wrap")));
                scripts.push(Script { kind, near_wrap, name, ops, interesting, piece });
            }
        }
    }
    scripts
}

/// A longer script drawn from a seed.
pub fn random(seed: u64) -> Script {
    let mut rng = Rng::new(seed);
    let kind = if rng.below(2) == 0 { Kind::Dynamic } else { Kind::Child };
    let near_wrap = (rng.below(3) == 0).then(|| rng.below(12));
    let mut ops = Vec::new();
    for _ in 0..3 + rng.below(10) {
        match rng.below(12) {
            0..5 => ops.push(Op::Write { at: rng.below(SIZE / 512 - 16) * 512, len: (1 + rng.below(16)) * 512 }),
            5 => ops.push(Op::Write { at: rng.below(SIZE - 6000), len: 1 + rng.below(5000) }),
            6 => ops.push(Op::Zeroes { at: rng.below(6) * MIB, len: MIB }),
            7 => ops.push(Op::Trim { at: rng.below(5) * MIB, len: (1 + rng.below(2)) * MIB }),
            8 => ops.extend(ALPHABET[rng.below(ALPHABET.len() as u64) as usize].ops()),
            9 => ops.extend([Op::Close, Op::Open]),
            _ => ops.push(Op::Flush),
        }
    }
    ops.extend([Op::Flush, Op::Close]);
    let piece = if rng.below(4) == 0 { 4096 } else { 512 };
    Script { kind, near_wrap, name: format!("random {seed:#x} on {kind:?}"), ops, interesting: 0, piece }
}
