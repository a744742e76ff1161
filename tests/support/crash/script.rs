//! What is done to a disk: single operations, the alphabet of telling ones, and all short words over it.

use diffdisk::storage::sim::Rng;

pub const MIB: u64 = 1 << 20;
/// Six blocks and an odd tail.
pub const SIZE: u64 = 6 * MIB + 3 * 512;

/// One call on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write {
        at: u64,
        len: u64,
    },
    /// One piece at each of `count` places.
    Scatter {
        at: u64,
        stride: u64,
        count: u64,
    },
    Zeroes {
        at: u64,
        len: u64,
    },
    Trim {
        at: u64,
        len: u64,
    },
    Flush,
    Close,
    Open,
    /// The handle goes away as if its process had been killed; what was written stays in the kernel.
    Drop,
    /// Moves blocks to the front of the file, which no guest sees.
    Compact,
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
    /// Without a parent and so wide that entries of hundreds of sectors can be made.
    Wide,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Dynamic, Self::Child, Self::Wide];

    pub fn size(self) -> u64 {
        match self {
            Self::Dynamic | Self::Child => SIZE,
            Self::Wide => 90 << 30,
        }
    }
}

/// 4 KiB sectors of the logs, all 1 MiB long.
const LOG_SECTORS: u64 = 256;

/// A whole experiment.
#[derive(Clone, Debug)]
pub struct Script {
    pub kind: Kind,
    /// In which 4 KiB sector the logs of all sessions begin.
    pub log_start: u64,
    pub name: String,
    pub ops: Vec<Op>,
    /// Crashes before this operation were tried by a shorter script.
    pub interesting: usize,
    /// Bytes that land together.
    pub piece: u64,
    /// Whether the storage offers durable writes, so that the engine lays its log down in advance.
    pub durable: bool,
    /// Whether payload may ride in the log.
    pub rides: bool,
}

/// All words of length 1 and 2, each ended by a flush, on both small disks, with the log at its beginning and about to wrap.
pub fn exhaustive() -> Vec<Script> {
    let mut words: Vec<Vec<Letter>> = ALPHABET.iter().map(|&letter| vec![letter]).collect();
    for first in ALPHABET {
        words.extend(ALPHABET.iter().map(|&second| vec![first, second]));
    }
    let mut scripts = Vec::new();
    for (number, word) in words.iter().enumerate() {
        for kind in [Kind::Dynamic, Kind::Child] {
            // Words with one first letter share a place, so that the crashes in it are those of the short word.
            let wraps = word.len() == 1 || number % 3 > 0;
            let before_end = 1 + word[0] as u64 % 7;
            for log_start in [0, if wraps { LOG_SECTORS - before_end } else { LOG_SECTORS - 8 - number as u64 % 5 }] {
                let mut ops: Vec<Op> = word.iter().flat_map(|letter| letter.ops()).collect();
                let interesting = if word.len() == 2 && (log_start == 0 || wraps) { word[0].ops().len() } else { 0 };
                if ops.last() != Some(&Op::Flush) {
                    ops.push(Op::Flush);
                }
                ops.push(Op::Close);
                let piece = if number % 5 == 4 { 4096 } else { 512 };
                let name = format!("{kind:?}{} {word:?}", if log_start == 0 { String::new() } else { format!(", log from {log_start}") });
                // As the place, the same for all words with one first letter.
                let durable = !(word[0] as u64 + kind as u64).is_multiple_of(4);
                scripts.push(Script { kind, log_start, name, ops, interesting, piece, durable, rides: false });
            }
        }
    }
    scripts
}

/// All words of length 3, each ended by a flush, on both small disks, with the log at its beginning and about to wrap: what may only
/// go wrong when three things happen. Crashes before the third letter are those of a shorter word.
pub fn length_three() -> Vec<Script> {
    let letters = || ALPHABET.into_iter();
    let words = letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| [a, b, c])));
    let mut scripts = Vec::new();
    for (number, word) in words.enumerate() {
        for kind in [Kind::Dynamic, Kind::Child] {
            for log_start in [0, LOG_SECTORS - 1 - number as u64 % 11] {
                let mut ops: Vec<Op> = word.iter().flat_map(|letter| letter.ops()).collect();
                let interesting = word[..2].iter().map(|letter| letter.ops().len()).sum();
                if ops.last() != Some(&Op::Flush) {
                    ops.push(Op::Flush);
                }
                ops.push(Op::Close);
                let piece = if number % 5 == 4 { 4096 } else { 512 };
                let name = format!("{kind:?}{} {word:?}", if log_start == 0 { String::new() } else { format!(", log from {log_start}") });
                let durable = !(word[0] as u64 + kind as u64).is_multiple_of(4);
                scripts.push(Script { kind, log_start, name, ops, interesting, piece, durable, rides: false });
            }
        }
    }
    scripts
}

/// What the alphabet has no letter for: handles that are dropped, sessions in which nothing that a user can read changes.
pub fn odd() -> Vec<Script> {
    let first = Op::Write { at: MIB + 64 * 1024, len: 4096 };
    let old = Op::Write { at: 4096, len: 2048 };
    let words: [(&str, &[Op]); 7] = [
        ("a flush after a drop", &[first, Op::Flush, old, Op::Drop, Op::Open, Op::Flush]),
        ("nothing but a flush after a drop", &[old, Op::Drop, Op::Open, Op::Flush]),
        ("a rewrite after a drop", &[old, Op::Drop, Op::Open, old, Op::Flush]),
        ("nothing to compact", &[Op::Compact]),
        ("a write after nothing was compacted", &[Op::Compact, first, Op::Flush]),
        ("a rewrite after nothing was compacted", &[Op::Compact, old, Op::Flush]),
        ("a compaction between writes", &[first, Op::Trim { at: 4 * MIB, len: MIB }, Op::Flush, Op::Compact, old, Op::Flush]),
    ];
    let scripts = words.into_iter().flat_map(|(name, word)| {
        let ops: Vec<Op> = word.iter().copied().chain([Op::Close]).collect();
        [(Kind::Dynamic, 0, true), (Kind::Child, LOG_SECTORS - 4, false)].map(|(kind, log_start, durable)| {
            let name = format!("{kind:?}, log from {log_start}: {name}");
            Script { kind, log_start, name, ops: ops.clone(), interesting: 0, piece: 512, durable, rides: false }
        })
    });
    scripts.collect()
}

/// Logs that fill up: entries too large to wait for each other, so that the ring must be emptied before it is half full, and when it
/// is, and is written over at once.
pub fn crowded() -> Vec<Script> {
    // One entry of a BAT page covers 512 MiB; strides of 520 MiB are a page each.
    let scatter = |first: u64, count| Op::Scatter { at: first * MIB, stride: 520 * MIB, count };
    let words = [
        ("must empty the log", vec![scatter(0, 100), Op::Flush, scatter(1, 160), Op::Flush, scatter(2, 3), Op::Flush]),
        ("finds the log crowded", vec![scatter(0, 135), Op::Flush, scatter(1, 135), Op::Flush, scatter(2, 3), Op::Flush]),
        ("trims in a full log", vec![scatter(0, 120), Op::Flush, Op::Trim { at: 0, len: MIB }, Op::Flush, scatter(1, 130), Op::Flush]),
    ];
    let scripts = words.into_iter().flat_map(|(name, mut ops)| {
        ops.push(Op::Close);
        [(0, true), (0, false), (LOG_SECTORS - 50, true)].map(|(log_start, durable)| {
            let name = format!("Wide, log from {log_start}{}: {name}", if durable { "" } else { ", plain" });
            Script { kind: Kind::Wide, log_start, name, ops: ops.clone(), interesting: 0, piece: 512, durable, rides: false }
        })
    });
    scripts.collect()
}

/// Payload in the log: pages that ride, change while an entry that holds them lives, lose their block, or meet writes that cannot ride.
pub fn riding() -> Vec<Script> {
    let page = |at| Op::Write { at, len: 4096 };
    let (f, g, far, new) = (page(MIB + 64 * 1024), page(MIB + 128 * 1024), page(2 * MIB + 8192), page(3 * MIB));
    let part = Op::Write { at: MIB + 64 * 1024 + 512, len: 1024 };
    let ragged = Op::Write { at: MIB + 64 * 1024 - 300, len: 700 };
    let wide = Op::Write { at: MIB + 60 * 1024, len: 16 * 1024 };
    let sector = Op::Write { at: MIB + 200 * 1024, len: 512 };
    let old = Op::Write { at: 4096, len: 2048 };
    let zeros = Op::Zeroes { at: MIB + 64 * 1024 + 1024, len: 2048 };
    let (zero_block, trim) = (Op::Zeroes { at: MIB, len: MIB }, Op::Trim { at: MIB, len: MIB });
    let words: [(&str, &[Op]); 15] = [
        ("a part of a page again", &[f, Op::Flush, part, Op::Flush]),
        ("twice again", &[f, Op::Flush, part, Op::Flush, f, Op::Flush]),
        ("again before it is flushed", &[f, part, g, Op::Flush, part, Op::Flush]),
        ("zeros over a part", &[f, Op::Flush, zeros, Op::Flush]),
        ("two pages, one again", &[f, g, Op::Flush, g, far, Op::Flush, f, Op::Flush]),
        ("a ragged write over the edge", &[f, Op::Flush, ragged, Op::Flush]),
        ("a write over old and new pages", &[f, Op::Flush, wide, Op::Flush, part, Op::Flush]),
        ("with a write that cannot ride", &[f, Op::Flush, old, part, Op::Flush]),
        ("with a sector that cannot ride", &[f, Op::Flush, part, sector, Op::Flush, part, Op::Flush]),
        ("a rewrite elsewhere alone", &[f, Op::Flush, old, Op::Flush, part, Op::Flush]),
        ("its block is trimmed and the space used again", &[f, Op::Flush, trim, Op::Flush, new, Op::Flush, f, Op::Flush]),
        ("its block is trimmed at once", &[f, trim, Op::Flush, new, Op::Flush]),
        ("its block is zeroed and written again", &[f, Op::Flush, zero_block, f, Op::Flush, part, Op::Flush]),
        ("a whole block beside it", &[f, Op::Flush, part, Op::Write { at: 5 * MIB, len: MIB }, Op::Flush]),
        ("closed and opened", &[f, Op::Flush, part, Op::Flush, Op::Close, Op::Open, part, g, Op::Flush, part, Op::Flush]),
    ];
    let mut scripts = Vec::new();
    for (name, word) in words {
        for (log_start, durable) in [(0, true), (0, false), (LOG_SECTORS - 9, true), (LOG_SECTORS - 5, false)] {
            // The first flush of a session cannot ride, because no header names the log yet.
            let mut ops = vec![page(2 * MIB), Op::Flush];
            let interesting = ops.len();
            ops.extend(word);
            ops.push(Op::Close);
            let name = format!("riding, log from {log_start}{}: {name}", if durable { "" } else { ", plain" });
            scripts.push(Script { kind: Kind::Child, log_start, name, ops, interesting, piece: 512, durable, rides: true });
        }
    }
    // So many flushes that the ring is half full, and beyond.
    for log_start in [0, LOG_SECTORS - 40] {
        let mut ops = vec![page(2 * MIB), Op::Flush];
        for i in 0..40 {
            ops.extend([page(MIB + (i % 30) * 4096), Op::Flush]);
        }
        let interesting = ops.len() - 12;
        ops.extend([part, Op::Flush, Op::Close]);
        let name = format!("riding, log from {log_start}: until the ring is half full");
        scripts.push(Script { kind: Kind::Child, log_start, name, ops, interesting, piece: 512, durable: true, rides: true });
    }
    scripts
}

/// A longer script drawn from a seed.
pub fn random(seed: u64) -> Script {
    let mut rng = Rng::new(seed);
    let kind = if rng.below(2) == 0 { Kind::Dynamic } else { Kind::Child };
    let log_start = if rng.below(3) == 0 { LOG_SECTORS - 1 - rng.below(40) } else { 0 };
    let mut ops = Vec::new();
    for _ in 0..3 + rng.below(10) {
        match rng.below(12) {
            0..3 => ops.push(Op::Write { at: rng.below(SIZE / 512 - 16) * 512, len: (1 + rng.below(16)) * 512 }),
            // Near each other, so that they meet again.
            3..5 => ops.push(Op::Write { at: MIB + rng.below(6) * 4096, len: 4096 }),
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
    Script {
        kind,
        log_start,
        name: format!("random {seed:#x} on {kind:?}"),
        ops,
        interesting: 0,
        piece,
        durable: rng.below(4) > 0,
        rides: kind == Kind::Child && rng.below(2) == 0,
    }
}
