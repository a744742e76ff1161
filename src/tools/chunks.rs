//! Ranges of a disk, cut into pieces of a size that is worth a request.

use super::buffer::CHUNK;
use super::error::ToolError;
use std::ops::Range;

/// Ranges in order of their start.
pub(crate) type Ranges<'a> = Box<dyn Iterator<Item = Result<Range<u64>, ToolError>> + Send + 'a>;

/// Holes up to this many bytes are read over: two requests cost more than the zeros between them.
const GAP: u64 = 32 << 10;

/// Pieces of at most one [`CHUNK`] that cover a list of ranges: in order, without overlap, their edges multiples of `align` (or the end
/// of the disk), never across a multiple of the chunk.
pub(crate) struct Chunks<'a> {
    ranges: Ranges<'a>,
    size: u64,
    align: u64,
    /// What is left of the ranges that were looked at.
    current: Range<u64>,
    /// The range, or the error, after them.
    ahead: Option<Result<Range<u64>, ToolError>>,
}

impl<'a> Chunks<'a> {
    /// Cuts `ranges` of a disk of `size` bytes. `align` is a power of two, at most the chunk.
    pub(crate) fn new(ranges: Ranges<'a>, size: u64, align: u64) -> Self {
        debug_assert!(align.is_power_of_two() && align <= CHUNK as u64);
        Self { ranges, size, align, current: 0..0, ahead: None }
    }

    /// The next range with its edges put right; `None` when there is none inside the disk.
    fn pull(&mut self) -> Option<Result<Range<u64>, ToolError>> {
        loop {
            let range = match self.ahead.take().or_else(|| self.ranges.next())? {
                Ok(range) => range,
                Err(e) => return Some(Err(e)),
            };
            let start = (range.start / self.align * self.align).max(self.current.end);
            let end = range.end.checked_next_multiple_of(self.align).unwrap_or(u64::MAX).min(self.size);
            if range.start < self.size && start < end {
                return Some(Ok(start..end));
            }
        }
    }

    /// Takes in the ranges that begin where this one ends, or nearly.
    fn join(&mut self) {
        while self.current.end - self.current.start < CHUNK as u64 {
            match self.pull() {
                Some(Ok(next)) if next.start - self.current.end <= GAP => self.current.end = next.end,
                other => {
                    self.ahead = other;
                    return;
                }
            }
        }
    }
}

impl Iterator for Chunks<'_> {
    /// Offset and length.
    type Item = Result<(u64, usize), ToolError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.current.is_empty() {
            match self.pull()? {
                Ok(range) => self.current = range,
                Err(e) => return Some(Err(e)),
            }
        }
        self.join();
        let start = self.current.start;
        let end = (start / CHUNK as u64 + 1).saturating_mul(CHUNK as u64).min(self.current.end);
        self.current.start = end;
        Some(Ok((start, (end - start) as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(list: &'static [(u64, u64)], size: u64) -> Vec<(u64, usize)> {
        let ranges = Box::new(list.iter().map(|&(start, end)| Ok(start..end)));
        Chunks::new(ranges, size, PIECE).collect::<Result<_, _>>().expect("no range is an error")
    }

    const PIECE: u64 = 64 << 10;
    const K64: usize = 64 << 10;

    #[test]
    fn chunks_are_aligned_and_do_not_overlap() {
        assert_eq!(cut(&[], 1000), []);
        assert_eq!(cut(&[(5, 6)], 1000), [(0, 1000)]);
        assert_eq!(cut(&[(5, 6), (10, 70_000), (70_000, 70_001)], 1 << 20), [(0, 2 * K64)]);
        assert_eq!(cut(&[(0, 1), (4 * PIECE, 4 * PIECE + 1)], 1 << 20), [(0, K64), (4 * PIECE, K64)], "a gap worth skipping");
        assert_eq!(cut(&[(CHUNK as u64 - 1, CHUNK as u64 + 1)], 4 << 20), [(CHUNK as u64 - PIECE, K64), (CHUNK as u64, K64)]);
        assert_eq!(cut(&[(0, 3 << 20)], (2 << 20) + 7), [(0, CHUNK), (1 << 20, CHUNK), (2 << 20, 7)]);
        assert_eq!(cut(&[(0, 1 << 20), (1 << 20, 3 << 20)], 4 << 20), [(0, CHUNK), (1 << 20, CHUNK), (2 << 20, CHUNK)]);
        assert_eq!(cut(&[(5000, 6000)], 100), [], "nothing past the end");
        assert_eq!(cut(&[(0, 100), (50, 60), (20, 30)], 1 << 20), [(0, K64)], "ranges inside of others");
    }

    #[test]
    fn an_error_comes_after_what_lies_before_it() {
        let ranges = Box::new([Ok(0..1), Err(ToolError::Cancelled), Ok(1 << 20..(1 << 20) + 1)].into_iter());
        let got: Vec<_> = Chunks::new(ranges, 4 << 20, PIECE).map(Result::ok).collect();
        assert_eq!(got, [Some((0, K64)), None, Some((1 << 20, K64))]);
    }
}
