//! Making a new child show what another content shows, by writing what differs from its parent and nothing else.

use super::buffer::{Buffer, CHUNK, GRAIN};
use super::content::Content;
use super::crew::Crew;
use super::diff::{ChangeKind, changes};
use super::error::{About, ToolError};
use super::pairs;
use crate::chain::Disk;
use crate::progress::Phase;
use std::ops::{ControlFlow, Range};
use std::path::Path;

/// What was put into a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) written: u64,
    pub(crate) zeroed: u64,
}

struct State {
    shown: Buffer,
    wanted: Buffer,
    put: Put,
    /// Whole chunks that become zeros in a disk of larger blocks: done at the end, when it is known which blocks they fill.
    zeros: Vec<Range<u64>>,
}

/// Writes to `disk`, a child that holds nothing yet and that nobody else writes to, what makes it show `wanted`. Where that is longer it is
/// cut off, where it is shorter it counts as filled up with zeros. `path` stands in errors.
pub(crate) fn show(disk: &Disk, wanted: &Content<'_>, path: &Path, crew: Crew<'_>) -> Result<Put, ToolError> {
    // What the parent shows, and not the child: that changes under the workers.
    let parent = disk.parent_view().expect("a child stands on an open parent");
    let parent = Content::own(parent, path);
    let block = disk.leaf.geometry.block_size();
    let state = || State { shown: Buffer::new(), wanted: Buffer::new(), put: Put::default(), zeros: Vec::new() };
    let each = |state: &mut State, offset: u64, len: usize| {
        let (old, new) = (state.shown.first(len), state.wanted.first(len));
        parent.read_at(old, offset)?;
        wanted.read_at(new, offset)?;
        for (range, kind) in changes(old, new, GRAIN) {
            let (at, len) = (offset + range.start as u64, range.len() as u64);
            match kind {
                ChangeKind::Data => {
                    state.put.written += len;
                    disk.write_at(&new[range], at).about(path)?;
                }
                ChangeKind::Zero => {
                    state.put.zeroed += len;
                    zero(disk, wanted, at..at + len, block, &mut state.zeros, path)?;
                }
            }
        }
        Ok(ControlFlow::<()>::Continue(()))
    };
    let chunks = pairs::chunks(&parent, wanted, disk.size(), GRAIN as u64)?;
    let (states, _) = crew.work(Phase::Diff, disk.size(), chunks, state, each)?;
    let mut put = Put::default();
    let mut zeros = Vec::new();
    for state in states {
        put.written += state.put.written;
        put.zeroed += state.put.zeroed;
        zeros.extend(state.zeros);
    }
    zeros.sort_unstable_by_key(|range| range.start);
    for run in zeros.chunk_by(|a, b| a.end == b.start) {
        crew.check()?;
        let (start, end) = (run[0].start, run[run.len() - 1].end);
        disk.write_zeroes(start, end - start).about(path)?;
    }
    Ok(put)
}

/// Makes a range zeros: its whole block where the wanted content has nothing there at all, which costs no space.
fn zero(
    disk: &Disk,
    wanted: &Content<'_>,
    range: Range<u64>,
    block: u64,
    later: &mut Vec<Range<u64>>,
    path: &Path,
) -> Result<(), ToolError> {
    let whole = range.start / block * block..range.end.next_multiple_of(block).min(disk.size());
    if wanted.stretches(whole.clone())?.next().is_none() {
        return disk.write_zeroes(whole.start, whole.end - whole.start).about(path);
    }
    if range.end - range.start == CHUNK as u64 && block > CHUNK as u64 {
        later.push(range);
        return Ok(());
    }
    disk.write_zeroes(range.start, range.end - range.start).about(path)
}
