//! What is done to a disk while its storage fails.

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Six blocks and an odd tail.
pub const SIZE: u64 = 6 * MIB + 3 * 512;
/// So wide that one flush can dirty more pages of the BAT than half the log takes.
pub const WIDE: u64 = 256 << 30;
/// The part of a wide disk that one page of the BAT maps.
const PER_PAGE: u64 = 512 * MIB;

/// One step of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write {
        at: u64,
        len: u64,
    },
    Zeroes {
        at: u64,
        len: u64,
    },
    Trim {
        at: u64,
        len: u64,
    },
    Read {
        at: u64,
        len: u64,
    },
    Flush,
    Close,
    /// Drops the handle, if there is one, and opens the disk again.
    Open,
    /// Drops the handle, and what no sync has hardened is gone.
    PowerCut,
    /// Drops the handle and gives the file a length that is no whole number of MiB.
    Ragged,
}

/// Which disk the script runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Dynamic,
    /// Over a parent without a zero sector.
    Child,
    /// Dynamic and [`WIDE`].
    Wide,
}

/// How flushes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Payload, sync, entry, sync.
    TwoSyncs,
    /// The entry is one durable write.
    DurableLog,
    /// Small payload too, in the same write (`FlushMode::PayloadInLog`).
    PayloadInLog,
}

/// A whole experiment. Faults begin after the setup.
#[derive(Clone, Debug)]
pub struct Script {
    pub kind: Kind,
    pub name: &'static str,
    pub setup: Vec<Op>,
    pub ops: Vec<Op>,
    pub way: Way,
    /// Whether half of each write ends between pieces, so that a write which fails half-way still leaves whole pieces.
    pub halves: bool,
}

fn write(at: u64, len: u64) -> Op {
    Op::Write { at, len }
}

/// The scripts for both kinds of small disk. In the prepared disk block 0 has its first 64 KiB and block 4 is present, with
/// 16 KiB of data.
fn small(kind: Kind) -> Vec<Script> {
    use Op::{Close, Flush, Open, PowerCut, Ragged};
    let (first, rewrite, other) = (write(MIB + 64 * KIB, 4 * KIB), write(4 * KIB, 2 * KIB), write(3 * MIB + 8 * KIB, 4 * KIB));
    let look = Op::Read { at: 60 * KIB, len: 8 * KIB };
    let trim = Op::Trim { at: 4 * MIB, len: MIB };
    let rows: Vec<(&'static str, Vec<Op>, Vec<Op>)> = vec![
        ("first touch, rewritten", vec![], vec![first, Flush, first, Flush]),
        ("rewrite", vec![], vec![rewrite, Flush, rewrite]),
        ("straddle", vec![], vec![write(2 * MIB - KIB, 2 * KIB), Flush, write(MIB - KIB, 2 * KIB), Flush]),
        ("unaligned", vec![], vec![write(64 * KIB - 700, 1100), look, Flush, write(2 * MIB + 100, 40), Flush]),
        ("zero a block", vec![], vec![Op::Zeroes { at: 4 * MIB, len: MIB }, Flush, write(4 * MIB + 4 * KIB, 2 * KIB), Flush]),
        ("zero a part", vec![], vec![Op::Zeroes { at: 32 * KIB, len: 64 * KIB }, Flush, look]),
        ("zero and write present sectors", vec![], vec![Op::Zeroes { at: 4 * MIB, len: 128 * KIB }, rewrite, Flush]),
        ("trim, then another block", vec![], vec![trim, Flush, other, Flush, first, Flush]),
        ("trim and write the same block", vec![], vec![trim, write(4 * MIB + 4 * KIB, 2 * KIB), Flush, other, Flush]),
        ("trim and close", vec![], vec![trim, other, Close, Open, look]),
        ("a whole block", vec![], vec![write(5 * MIB, MIB), Flush]),
        ("the odd tail", vec![], vec![write(6 * MIB, KIB), Flush, write(6 * MIB - KIB, 2 * KIB), Close]),
        ("flush after flush", vec![first, Flush], vec![other, Flush, write(3 * MIB, KIB), Flush, rewrite, Flush]),
        ("close and go on", vec![first], vec![Close, Open, look, other, Flush]),
        ("reopen with replay", vec![first, Flush, other, Flush], vec![Open, look, rewrite, write(2 * MIB, KIB), Flush]),
        ("reopen after a power cut", vec![first, Flush, PowerCut], vec![Open, Op::Read { at: MIB + 64 * KIB, len: 4 * KIB }, other, Flush]),
        ("a ragged end", vec![Close, Ragged, Open], vec![other, first, Flush]),
        ("close what was never flushed", vec![first, other], vec![Close, Open, look]),
        ("nothing but a replay", vec![first, Flush, trim, other, Flush, PowerCut], vec![Open, Close]),
        ("a crash while a fault is dealt with", vec![first, Flush], vec![other, Flush, PowerCut, Open, look, first, Flush]),
        (
            "two crashes",
            vec![first, Flush, PowerCut, Open, other, Flush],
            vec![rewrite, Flush, PowerCut, Open, trim, Flush, PowerCut, Open],
        ),
        ("a touch of every block", vec![], vec![first, other, write(2 * MIB, KIB), write(5 * MIB, KIB), write(6 * MIB, KIB), Flush, Close]),
        ("trim all, write again", vec![first, Flush], vec![Op::Trim { at: 0, len: SIZE }, Flush, first, rewrite, Flush, Close]),
        ("flush of nothing", vec![first, Flush], vec![Flush, look, Flush, rewrite, Flush, Close, Open, Flush]),
        ("zero, trim, write, all unflushed", vec![], vec![Op::Zeroes { at: 0, len: MIB }, trim, write(4 * MIB, 8 * KIB), rewrite, Close]),
    ];
    rows.into_iter().map(|(name, setup, ops)| Script { kind, name, setup, ops, way: Way::TwoSyncs, halves: name != "unaligned" }).collect()
}

/// A log in which the next entry does not fit behind the last, so that room is made for it.
fn crowded() -> Script {
    let touch = |pages: std::ops::Range<u64>, block: u64| pages.map(move |page| write(page * PER_PAGE + block * MIB, KIB));
    let mut setup: Vec<Op> = touch(0..118, 0).collect();
    setup.push(Op::Flush);
    setup.extend(touch(0..135, 1));
    let (more, again) = (write(140 * PER_PAGE, 2 * KIB), write(140 * PER_PAGE + KIB, KIB));
    Script {
        kind: Kind::Wide,
        name: "a crowded log",
        setup,
        ops: vec![more, Op::Flush, again, Op::Flush],
        way: Way::TwoSyncs,
        halves: true,
    }
}

/// All scripts.
pub fn all() -> Vec<Script> {
    // The longest first, so that two threads finish together.
    let mut scripts = vec![crowded()];
    scripts.extend(small(Kind::Dynamic));
    scripts.extend(small(Kind::Child));
    // The other ways to flush. Their log is laid down in advance, which makes a run ten times as long.
    let again: &[&str] = if std::env::var_os("DIFFDISK_FAULT_WAYS").is_some() {
        &["flush after flush", "first touch, rewritten", "straddle", "trim and write the same block", "reopen with replay", "two crashes"]
    } else {
        &["flush after flush"]
    };
    for way in [Way::DurableLog, Way::PayloadInLog] {
        for kind in [Kind::Dynamic, Kind::Child] {
            scripts.extend(small(kind).into_iter().filter(|script| again.contains(&script.name)).map(|script| Script { way, ..script }));
        }
    }
    scripts
}
