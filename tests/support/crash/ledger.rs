//! What each piece of a disk may hold: the changes asked for, in order, over what was found or given.
//!
//! Kept in runs of pieces with one value, never piece by piece: a request of a MiB is one line here, and what an image must show
//! is worked out once for a cut and then held against thousands of images.

use super::value::{PIECE, Value};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Values of stretches, in order and apart.
pub type Runs = Vec<(Range<u64>, Value)>;

/// Adds a stretch behind the others.
pub fn append(runs: &mut Runs, pieces: Range<u64>, value: &Value) {
    match runs.last_mut() {
        Some((last, same)) if last.end == pieces.start && same == value => last.end = pieces.end,
        _ => runs.push((pieces, value.clone())),
    }
}

fn find(runs: &Runs, piece: u64) -> Option<&Value> {
    let (pieces, value) = runs.get(runs.partition_point(|(pieces, _)| pieces.end <= piece))?;
    pieces.contains(&piece).then_some(value)
}

/// One value given to a stretch by one operation.
#[derive(Debug)]
pub struct Change {
    pub op: usize,
    pub pieces: Range<u64>,
    pub value: Value,
}

/// A stretch and the values that each of its pieces may hold, the oldest first.
#[derive(Debug)]
pub struct Expected {
    pub pieces: Range<u64>,
    pub values: Vec<Value>,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    /// Covers the disk.
    pub initial: Arc<Runs>,
    /// Content that was found rather than written: a recovered disk is what it is.
    pub observed: Runs,
    pub changes: Vec<Change>,
}

impl Ledger {
    pub fn new(initial: Arc<Runs>) -> Self {
        Self { initial, observed: Vec::new(), changes: Vec::new() }
    }

    /// Pieces of the disk.
    pub fn pieces(&self) -> u64 {
        self.initial.last().map_or(0, |(pieces, _)| pieces.end)
    }

    pub fn note(&mut self, op: usize, pieces: Range<u64>, value: Value) {
        if !pieces.is_empty() {
            self.changes.push(Change { op, pieces, value });
        }
    }

    fn changes_of(&self, piece: u64) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.pieces.contains(&piece))
    }

    /// What a piece holds after all operations before `op`.
    pub fn value(&self, piece: u64, op: usize) -> &Value {
        let newest = self.changes_of(piece).rev().find(|change| change.op < op).map(|change| &change.value);
        newest.or_else(|| find(&self.observed, piece)).or_else(|| find(&self.initial, piece)).expect("the ledger covers the disk")
    }

    /// The values that pieces of these stretches may hold: the one before the operation `floor`, and those of the operations from there
    /// on that `issued` names.
    pub fn expect(&self, stretches: &[Range<u64>], floor: usize, issued: impl Fn(usize) -> bool) -> Vec<Expected> {
        let known = self.initial.iter().chain(&self.observed).map(|(pieces, _)| pieces);
        let known = known.chain(self.changes.iter().map(|change| &change.pieces));
        let mut all: Vec<u64> = known.flat_map(|pieces| [pieces.start, pieces.end]).collect();
        all.sort_unstable();
        all.dedup();
        let mut out = Vec::new();
        for stretch in stretches {
            let inside = all.partition_point(|&at| at <= stretch.start)..all.partition_point(|&at| at < stretch.end);
            let mut borders = vec![stretch.start];
            borders.extend(&all[inside]);
            borders.push(stretch.end);
            for pair in borders.windows(2) {
                let mut values = vec![self.value(pair[0], floor).clone()];
                let later = self.changes_of(pair[0]).filter(|change| change.op >= floor && issued(change.op));
                values.extend(later.map(|change| change.value.clone()));
                out.push(Expected { pieces: pair[0]..pair[1], values });
            }
        }
        out
    }

    /// What the disk holds now.
    pub fn latest(&self) -> Runs {
        let mut runs = Runs::new();
        for Expected { pieces, values } in self.expect(std::slice::from_ref(&(0..self.pieces())), usize::MAX, |_| false) {
            append(&mut runs, pieces, &values[0]);
        }
        runs
    }

    /// The stretches to read: those touched with their neighbours, and the borders of the blocks they are in; on a small disk the
    /// borders of all blocks and a few pieces that nobody touches.
    pub fn stretches(&self, block: u64) -> Vec<Range<u64>> {
        let (end, per_block) = (self.pieces(), block / PIECE as u64);
        let mut all: Vec<Range<u64>> = Vec::new();
        let mut blocks: BTreeSet<u64> = if end <= 64 * per_block { (0..=end / per_block).collect() } else { BTreeSet::from([0]) };
        for Change { pieces, .. } in &self.changes {
            all.push(pieces.start.saturating_sub(1)..pieces.end + 1);
            blocks.extend([pieces.start / per_block, (pieces.end - 1) / per_block]);
        }
        for block in blocks {
            let first = block * per_block;
            all.extend(
                [first, first + 5, first + 1000, first + per_block - 1].map(|piece| piece.min(end - 1)).map(|piece| piece..piece + 1),
            );
        }
        join(all, end)
    }
}

/// Sorts stretches, joins what touches, and cuts off what lies past the end.
pub fn join(mut all: Vec<Range<u64>>, end: u64) -> Vec<Range<u64>> {
    all.sort_unstable_by_key(|stretch| stretch.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for stretch in all {
        let stretch = stretch.start..stretch.end.min(end);
        match out.last_mut() {
            Some(last) if last.end >= stretch.start => last.end = last.end.max(stretch.end),
            _ if stretch.is_empty() => {}
            _ => out.push(stretch),
        }
    }
    out
}
