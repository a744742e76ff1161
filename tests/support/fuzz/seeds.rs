//! Where fuzzing starts: one input for each base and for each row of the hostile-input checklist (§10 of the format's description), and a
//! few for each shape of the others. A seed is a handful of bytes, written with the words of the decisions it stands for.

use super::forge::{MIB, utf16};
use super::images::BASES;
use super::source::Tape;

/// Seeds by name.
pub type Seeds = Vec<(String, Vec<u8>)>;

const BOTH: u8 = 0;
/// Only the first of two copies.
const ONE: u8 = 0x80;
/// Without signing.
const RAW: u8 = 0x70;

/// A lie about `what` in the base `base`, opened read-only and then for writing.
fn lie(base: u8, what: &[u8]) -> Tape {
    Tape::of(&[base, 1]).then(what)
}

impl Tape {
    fn then(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// Numbers of fields and structures as `open` picks them.
pub fn open() -> Seeds {
    let mut seeds: Seeds = (0..BASES as u8).map(|base| (format!("base-{base}"), vec![base, 1])).collect();
    for base in 0..BASES as u8 {
        seeds.push((format!("base-{base}-untrusted"), vec![base, 2]));
    }
    let header = |field: u8, value: u64| lie(0, &[BOTH, field]).number(value);
    let region = |n: u8, field: u8, value: u64| lie(0, &[3, n, field]).number(value);
    let item = |at: u8, len: u8, value: u64| lie(0, &[7, at, len]).number(value);
    let bat = |word: u64| lie(0, &[9]).number(1).number(1).then(&[0, 1]).number(word);
    let log = |fields: &[u8]| lie(0, &[13]).number(1).number(0).then(&[0]).then(fields);
    let log_field = |field: u8, value: u64| log(&[1, field]).number(value).number(0);
    let change = |how: &[u8]| lie(0, &[13]).number(1).number(0).then(&[1]).then(how);
    let rows: Vec<(u32, Tape)> = vec![
        (1, lie(0, &[12]).number(MIB - 1)),
        (1, lie(0, &[12]).number(3 * MIB)),
        (2, lie(0, &[ONE, 2]).number(u64::MAX)),
        (3, lie(0, &[ONE, 2]).number(1).then(&[BOTH, 2]).number(1)),
        (3, lie(0, &[RAW, 10]).number(7)),
        (4, header(7, 2)),
        (4, header(6, 1)),
        (5, header(8, 0).then(&[BOTH, 5, 8])),
        (5, header(8, 0xFFF0_0000)),
        (6, header(9, 64 * MIB)),
        (6, header(9, MIB / 2)),
        (6, header(9, 3 * MIB)),
        (7, lie(0, &[BOTH, 5, 8])),
        (8, log_field(1, 0)),
        (8, log_field(1, 4095)),
        (9, log_field(4, 0xFFFF_FFFF)),
        (10, log_field(1, MIB)),
        (11, log_field(2, 4096)),
        (12, log_field(3, u64::MAX)),
        (13, change(&[1]).number(u64::MAX - 4095).then(&[1, 0x5A, 0]).number(0)),
        (13, change(&[1]).number(0x1_0000).then(&[1, 0x5A, 0]).number(0)),
        (14, change(&[0, 5, 0]).number(1 << 44).then(&[0]).number(0)),
        (15, log_field(8, 1 << 60)),
        (16, log_field(7, 1 << 40)),
        (17, lie(0, &[2, 2]).number(2048)),
        (18, lie(0, &[3, 1, 0, 1])),
        (19, region(0, 1, MIB / 2)),
        (19, region(0, 2, 0)),
        (19, region(0, 1, u64::MAX - (MIB - 1))),
        (20, region(0, 2, 0xFFF0_0000)),
        (21, lie(0, &[3, 0, 0, 8])),
        (22, lie(0, &[5, 2]).number(2048)),
        (23, lie(0, &[6, 2, 0, 3])),
        (24, lie(0, &[6, 1, 1]).number(0x8000)),
        (25, lie(0, &[6, 1, 2]).number(3)),
        (26, item(0, 2, 0)),
        (26, item(0, 2, 3 * MIB)),
        (27, item(16, 2, 520)),
        (28, item(8, 3, 0)),
        (28, item(8, 3, u64::MAX - 511)),
        (29, item(8, 3, 64 << 40)),
        (30, bat(5)),
        (30, bat(7 | (4 * MIB))),
        (31, bat(6 | (3 * MIB))),
        (31, bat(6 | (5 * MIB))),
        (31, bat(6 | u64::MAX << 20)),
        (32, lie(1, &[9]).number(4096).number(4096).then(&[0, 1]).number(0)),
        (33, item(4, 2, 2)),
        (33, lie(1, &[7, 4, 2]).number(0)),
        (34, lie(1, &[15, 2, 0, 0, 0, 0, 2, 2, 0, 1, 18, 0xFF, 0])),
        (35, lie(1, &[15, 2, 0, 0, 0, 0, 0, 0, 0])),
        (36, lie(1, &[15, 2, 0, 0, 0, 0, 2, 3]).bytes(&[0x00, 0xD8]).then(&[0])),
        (37, lie(1, &[15, 2, 0, 0, 0, 0, 2, 3]).bytes(&utf16(r"..\..\etc\shadow")).then(&[0])),
        (38, lie(1, &[BOTH, 4, 9])),
        (39, lie(1, &[7, 16, 2]).number(4096)),
        (40, lie(1, &[7, 8, 3]).number(3 * MIB)),
        (41, Tape::of(&[5, 1])),
        (42, lie(0, &[11]).number(8).bytes(&[0xFF; 64])),
        (43, header(10, 0xFF)),
        (44, lie(2, &[12]).number(7 * MIB + 513)),
    ];
    for (i, (row, tape)) in rows.into_iter().enumerate() {
        seeds.push((format!("row-{row:02}-{i:02}"), tape.0));
    }
    seeds
}

/// disk, kind, k, cut, position, sequence, count, then entries.
pub fn replay() -> Seeds {
    let head = |position: u8, entries: u8| Tape::of(&[0, 0, 3, 1, position, 0, 8, entries - 1]);
    let entry = |tape: Tape, how: u8, changes: &[u8]| tape.byte(how).then(changes);
    // One change: a home, a kind, what it holds.
    let bat = [1, 0, 0, 3, 0, 0, 1, 0, 2, 2];
    let zero = [1, 5, 3, 0, 0, 2];
    let page = [1, 5, 3, 1, 0xEE];
    let grow = [1, 7, 40, 1, 0xEE];
    let seeds = [
        ("empty", entry(head(0, 1), 0, &[0])),
        ("one", entry(head(0, 1), 0, &bat)),
        ("three", entry(entry(entry(head(0, 3), 0, &bat), 0, &zero), 0, &grow)),
        ("zeros-over-a-page", entry(entry(head(0, 2), 0, &page), 0, &zero)),
        ("a-page-over-zeros", entry(entry(head(0, 2), 0, &zero), 0, &page)),
        ("wraps", entry(entry(head(254, 2), 0, &bat), 0, &zero)),
        ("inside-an-entry-wraps", entry(entry(head(255, 2), 0, &bat), 0, &bat)),
        ("tail-is-the-head", entry(entry(head(9, 2), 0, &bat), 4, &zero)),
        ("wild-tail", entry(entry(head(9, 2), 0, &bat), 6, &[9]).then(&[0])),
        ("another-log", entry(entry(head(9, 2), 0, &bat), 0x38, &zero)),
        ("torn", entry(entry(head(9, 2), 0, &bat), 0x80, &zero).then(&[1, 40, 1, 0])),
        ("signed-lie", entry(entry(head(9, 2), 0, &bat), 0x80, &zero).then(&[1, 24, 1, 1])),
        ("lengths", entry(head(9, 1), 7, &bat).number(6 * MIB).number(9 * MIB)),
        ("many-descriptors", entry(head(200, 1), 0x40, &[255])),
        ("two-sequences", entry(entry(entry(head(0, 3), 0, &bat), 0x18, &zero).then(&[99, 40]), 0, &grow)),
    ];
    let mut all: Seeds = seeds.iter().map(|(name, tape)| ((*name).to_owned(), tape.0.clone())).collect();
    for kind in 0..4 {
        let mut tape = entry(entry(head(254, 2), 0, &bat), 0, &grow).0;
        (tape[0], tape[1], tape[2]) = (1, kind, 2 + kind);
        all.push((format!("fails-{kind}"), tape));
    }
    all
}

/// policy, how, then paths: mode, prefix, count, parts with separators between.
pub fn locator() -> Seeds {
    let path = |policy: u8, prefix: u8, parts: &[u8]| {
        let mut tape = Tape::of(&[policy, 0x08, 0, prefix, parts.len() as u8]);
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                tape = tape.byte(0);
            }
            tape = tape.byte(*part);
        }
        tape.byte(0)
    };
    let seeds = [
        ("parent", path(0, 0, &[3])),
        ("dot-parent", path(0, 1, &[3])),
        ("sub", path(8, 0, &[7, 3])),
        ("up", path(0, 0, &[1, 4])),
        ("up-and-down", path(0, 0, &[1, 6, 3])),
        ("self", path(8, 0, &[5])),
        ("link", path(0, 0, &[8])),
        ("dir-link", path(0, 0, &[9, 4])),
        ("loop", path(0, 0, &[10])),
        ("pipe", path(0, 0, &[11])),
        ("raw", path(0, 0, &[12])),
        ("absolute", path(0, 7, &[4])),
        ("absolute-inside", path(0, 7, &[6, 3])),
        ("unc", path(0, 4, &[17, 7, 4])),
        ("verbatim-unc", path(0, 5, &[16, 17, 7, 4])),
        ("volume", path(0, 5, &[18, 4])),
        ("drive", path(1, 6, &[3])),
        ("drive-up", path(1, 6, &[1, 1, 4])),
        ("stream", path(0, 0, &[19])),
        ("nul", path(0, 0, &[3, 20])),
        ("not-in-the-list", path(6, 0, &[3])),
        ("mapped", path(16, 0, &[3])),
        ("no-text", Tape::of(&[0, 8, 7]).bytes(&[0x00, 0xD8])),
        ("any-pairs", Tape::of(&[0, 7, 2, 0, 0, 0, 0, 2, 2])),
        ("broken-item", Tape::of(&[0, 0xC8, 0, 0, 1, 3, 0, 1, 18, 9])),
    ];
    seeds.iter().map(|(name, tape)| ((*name).to_owned(), tape.0.clone())).collect()
}

/// geometry, then operations: what, and for changes border, nudge, side, length.
pub fn ops() -> Seeds {
    let write = [0, 1, 1, 0, 2];
    let across = [0, 1, 2, 1, 4];
    let zero = [5, 0, 0, 0, 6];
    let trim = [7, 1, 0, 0, 6];
    let (flush, close, drop) = ([9], [12], [13]);
    let crash = |op: &[u8], rest: &[u8]| [&[op[0] | 0xC0], &op[1..], rest].concat();
    let mut all = Seeds::new();
    for geometry in 0..6_u8 {
        let mut push =
            |name: &str, ops: &[&[u8]]| all.push((format!("{name}-{geometry}"), [&[geometry], ops.concat().as_slice()].concat()));
        push("session", &[&write, &flush, &across, &zero, &flush, &trim, &close, &write, &flush]);
        push("drop", &[&write, &flush, &across, &drop, &zero, &drop]);
        push("crash", &[&write, &flush, &crash(&across, &[3, 2, 7, 7, 0]), &crash(&flush, &[2, 2, 1, 2, 1]), &write, &flush]);
        push("reuse", &[&write, &flush, &trim, &flush, &across, &crash(&flush, &[1, 3, 5, 5, 0]), &zero]);
        push("no-space", &[&write, &[15, 0, 1, 0, 1, 0], &across, &flush, &write]);
        push("failed-sync", &[&write, &[15, 1, 0, 0, 0, 0], &flush, &flush, &write, &close]);
    }
    all
}

/// how, then for each file: bits, block, size, tail?, ids, parent, blocks.
pub fn chain() -> Seeds {
    let file = |how: u8, parent: u8, blocks: &[u8]| {
        // bits, block, size, parent, number of blocks, (state, index)
        [&[how, 0, 3, parent, blocks.len() as u8 / 2], blocks].concat()
    };
    let plain = |n: usize| (0..n).flat_map(|i| file(0, 0, &[0x10 * i as u8, i as u8, 0x33, 1, 0x06, 2])).collect::<Vec<u8>>();
    let with = |how: u8, files: &[u8]| [&[how], files].concat();
    let mut all: Seeds = (0..6).map(|n| (format!("depth-{}", n + 1), with(n as u8, &plain(n + 1)))).collect();
    all.push(("deep".to_owned(), vec![0xFF, 1]));
    all.push(("sectors".to_owned(), with(1, &[file(7, 0, &[]), file(0, 0, &[])].concat())));
    all.push(("wrong-linkage".to_owned(), with(1, &[&[0xC0, 0, 3, 1, 0, 0][..], &file(0, 0, &[])].concat())));
    all.push(("no-end".to_owned(), with(1, &[file(0, 0, &[]), file(0, 15, &[])].concat())));
    all.push(("twice".to_owned(), with(0x80 | 1, &[plain(2), vec![1, 0]].concat())));
    all.push(("lie".to_owned(), with(0x40 | 1, &[plain(2), vec![1, 0, 5, 8]].concat())));
    all
}

/// how, then for each layer: bits, block, [tail,] [size,] blocks (state, [bitmap,] places, runs); then each file's layout, then writes.
pub fn diff() -> Seeds {
    // A block: state, its bitmap's byte where it has one, a place by number, another, which of five, runs, (place, length, fill).
    let block = |state: &[u8], index: u8| [state, &[index, 0, 0, 2, 0, 0, 0, 9, 0x31, 1, 3, 0, 90, 0x52]].concat();
    let layer = |how: u8, block_size: u8, size: &[u8], blocks: &[Vec<u8>]| {
        [&[how, block_size], size, &[blocks.len() as u8], blocks.concat().as_slice()].concat()
    };
    let base = |how: u8| layer(how, 0, &[7], &[block(&[0], 0), block(&[12], 2), block(&[0], 5), block(&[11], 6)]);
    let child = || layer(0, 0, &[], &[block(&[5, 0x35], 0), block(&[0], 1), block(&[6, 0x0F], 5)]);
    let blank = || layer(0, 0, &[], &[block(&[12], 0), block(&[10], 5), block(&[11], 1)]);
    let top = || layer(0, 0, &[7], &[block(&[5, 0x35], 0), block(&[0], 1), block(&[6, 0x0F], 5)]);
    let laid = |n: u8| [n % 4, n / 2 % 4, n % 3, n % 2];
    let writes = [3, 0, 1, 100, 0x41, 90, 0, 4, 20, 2, 2, 2, 80, 3, 1, 0, 3, 70];
    let all: Vec<(&str, Vec<u8>)> = vec![
        ("plain", [&[0], base(0).as_slice(), &laid(0)].concat()),
        ("plain-written", [&[0x10], base(0).as_slice(), &laid(1), &writes].concat()),
        ("fixed", [&[0], base(0x80).as_slice(), &laid(2)].concat()),
        ("fixed-written", [&[0x10], base(0x80).as_slice(), &laid(2), &writes].concat()),
        ("large-sectors", [&[0], base(0x18).as_slice(), &laid(3)].concat()),
        ("odd-tail", [&[0], layer(0x20, 2, &[4, 3], &[block(&[0], 3)]).as_slice(), &laid(3)].concat()),
        ("tall", [&[0, 7], &[9, 2][..], &block(&[0], 63), &block(&[0], 65), &laid(1)].concat()),
        ("chain", [&[1], top().as_slice(), &base(0), &laid(0), &laid(3)].concat()),
        ("chain-written", [&[0x11], top().as_slice(), &base(0), &laid(0), &laid(3), &writes].concat()),
        ("chain-of-three", [&[2], top().as_slice(), &child(), &base(0), &laid(0), &laid(1), &laid(2)].concat()),
        ("chain-of-zeros", [&[2], top().as_slice(), &blank(), &base(0), &laid(0), &laid(1), &laid(2)].concat()),
        ("chain-shorter-parent", [&[1], top().as_slice(), &layer(0x40, 0, &[3], &[block(&[0], 2)]), &laid(0), &laid(3)].concat()),
    ];
    all.into_iter().map(|(name, seed)| (name.to_owned(), seed)).collect()
}
