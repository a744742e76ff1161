//! From what a device says about a range to what the wire carries of it.
//!
//! A device may describe a range in any number of extents, stop early, or lie. What comes out of here always fits the range.

use crate::export::{BlockDevice, DeviceExtent, ExtentClass};
use std::io;
use std::ops::ControlFlow;

/// Smaller holes are sent as zeros: a chunk costs more than they do.
const HOLE_FROM: u64 = 4096;
/// Runs of one piece of a read; the rest of it is data.
const MAX_RUNS: usize = 16;

/// Splits a range into data and holes worth a chunk; adds up to the range whatever the device says.
pub(super) fn runs(device: &dyn BlockDevice, start: u64, stop: u64) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = start;
    device.extents(start, stop - start, &mut |extent| {
        let Some(len) = clamp(&extent, at, stop) else { return ControlFlow::Break(()) };
        push_run(&mut runs, len, extent.class != ExtentClass::Data);
        at += len;
        if at < stop && runs.len() < MAX_RUNS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    push_run(&mut runs, stop - at, false);
    runs.retain(|run| run.len > 0);
    Ok(runs)
}

/// A stretch of a read that travels as one chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) is_hole: bool,
    pub(super) len: u64,
}

/// Appends to a list of runs, of which neighbours differ and only the last may be a hole too small for a chunk.
fn push_run(runs: &mut Vec<Run>, mut len: u64, is_hole: bool) {
    if !is_hole {
        len += runs.pop_if(|last| last.is_hole && last.len < HOLE_FROM).map_or(0, |small| small.len);
    }
    match runs.last_mut() {
        Some(run) if run.is_hole == is_hole => run.len += len,
        _ => runs.push(Run { is_hole, len }),
    }
}

/// The part of an extent that continues a range at `at`; `None` if it does not, or has nothing.
pub(super) fn clamp(extent: &DeviceExtent, at: u64, stop: u64) -> Option<u64> {
    let end = extent.offset.checked_add(extent.len)?.min(stop);
    (extent.offset <= at && end > at).then(|| end - at)
}

/// The extents of one context, growing.
pub(super) struct Status {
    pub(super) extents: Vec<(u32, u32)>,
    most: usize,
    is_open: bool,
}

impl Status {
    pub(super) fn new(wanted: bool, most: usize) -> Self {
        Self { extents: Vec::new(), most, is_open: wanted }
    }

    /// Returns whether it wants more. The lengths of one reply add up to the length of its request, so they fit 32 bits.
    pub(super) fn add(&mut self, len: u32, flags: u32) -> bool {
        let full = self.extents.len() == self.most;
        match self.extents.last_mut() {
            _ if !self.is_open => {}
            Some(last) if last.1 == flags => last.0 += len,
            _ if full => self.is_open = false,
            _ => self.extents.push((len, flags)),
        }
        self.is_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_holes_are_data_and_neighbours_differ() {
        let mut runs = Vec::new();
        for (len, is_hole) in [(512, true), (512, false), (2048, true), (2048, true), (512, true), (100, false), (512, true)] {
            push_run(&mut runs, len, is_hole);
        }
        push_run(&mut runs, 0, false);
        let expected = [(1024, false), (4608, true), (612, false)];
        assert_eq!(runs.iter().map(|run| (run.len, run.is_hole)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_context_that_is_full_still_takes_more_of_the_same() {
        let mut status = Status::new(true, 1);
        assert!(status.add(5, 3) && status.add(6, 3));
        assert!(!status.add(7, 0) && !status.add(8, 3), "what follows a gap does not count");
        assert_eq!(status.extents, [(11, 3)]);
    }
}
