//! Two contents side by side: where they may differ.
//!
//! Three things are known to be the same without reading a byte: zeros on both sides, the same place of the same file, and whatever lies
//! outside of the files that two disks of one family do not share. So two clones of one image are compared in a time that follows their
//! changes, and two unrelated files in a time that follows their data.

use super::buffer::Buffer;
use super::chunks::Chunks;
use super::content::{Content, Place, Stretch, Stretches};
use super::error::{About, ToolError};
use crate::chain::Disk;
use std::iter::Peekable;
use std::ops::{ControlFlow, Range};

/// A stretch that is not known to be the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) range: Range<u64>,
    /// Whether the second one has bytes there; otherwise it is zeros.
    pub(crate) second_has_data: bool,
}

pub(crate) type Pairs<'a> = Box<dyn Iterator<Item = Result<Pair, ToolError>> + Send + 'a>;

/// The stretches below `size` in which `a` and `b` may differ, in order. The shorter one counts as filled up with zeros.
pub(crate) fn pairs<'a>(a: &'a Content<'_>, b: &'a Content<'_>, size: u64) -> Result<Pairs<'a>, ToolError> {
    let family = a.disk().zip(b.disk()).and_then(|(x, y)| x.unshared(y).map(|counts| (x, y, counts)));
    let Some((x, y, (of_x, of_y))) = family else { return Zip::over(a, b, 0..size) };
    // Behind the end of the shorter one there is nothing to share.
    let both = size.min(a.size()).min(b.size());
    let windows = Windows { x: touched(x, of_x, both, a), y: touched(y, of_y, both, b), tail: Some(both..size).filter(|r| !r.is_empty()) };
    Ok(Box::new(windows.flat_map(move |window| -> Pairs<'a> {
        match window.and_then(|window| Zip::over(a, b, window)) {
            Ok(pairs) => pairs,
            Err(e) => Box::new(std::iter::once(Err(e))),
        }
    })))
}

/// The same as [`Chunks`] with edges at multiples of `align`.
pub(crate) fn chunks<'a>(a: &'a Content<'_>, b: &'a Content<'_>, size: u64, align: u64) -> Result<Chunks<'a>, ToolError> {
    let ranges = pairs(a, b, size)?.map(|pair| pair.map(|pair| pair.range));
    Ok(Chunks::new(Box::new(ranges), size, align))
}

type Touches<'a> = Peekable<Box<dyn Iterator<Item = Result<Range<u64>, ToolError>> + Send + 'a>>;

fn touched<'a>(disk: &'a Disk, layers: usize, end: u64, content: &'a Content<'_>) -> Touches<'a> {
    let ranges: Box<dyn Iterator<Item = _> + Send> = Box::new(disk.touched(layers, 0..end).map(|range| range.about(content.path())));
    ranges.peekable()
}

/// What either of two disks touched, in order, without overlap; then the tail.
struct Windows<'a> {
    x: Touches<'a>,
    y: Touches<'a>,
    tail: Option<Range<u64>>,
}

impl Windows<'_> {
    fn pop(&mut self) -> Option<Result<Range<u64>, ToolError>> {
        match (self.x.peek(), self.y.peek()) {
            (Some(Err(_)), _) | (_, None) => self.x.next(),
            (_, Some(Err(_))) | (None, _) => self.y.next(),
            (Some(Ok(x)), Some(Ok(y))) => {
                if x.start <= y.start {
                    self.x.next()
                } else {
                    self.y.next()
                }
            }
        }
    }

    /// Whether the next one begins before `end`, or at it.
    fn reaches(&mut self, end: u64) -> bool {
        let begins = |next: Option<&Result<Range<u64>, ToolError>>| next.is_some_and(|r| r.as_ref().is_ok_and(|r| r.start <= end));
        begins(self.x.peek()) || begins(self.y.peek())
    }
}

impl Iterator for Windows<'_> {
    type Item = Result<Range<u64>, ToolError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut window = match self.pop() {
            Some(Ok(window)) => window,
            Some(Err(e)) => return Some(Err(e)),
            None => return self.tail.take().map(Ok),
        };
        while self.reaches(window.end) {
            match self.pop() {
                Some(Ok(next)) => window.end = window.end.max(next.end),
                // `reaches` looked at a range, and an error goes before it: what is known is less than was promised, so the error it is.
                Some(Err(e)) => return Some(Err(e)),
                None => break,
            }
        }
        Some(Ok(window))
    }
}

/// Two lists of stretches, walked over together.
struct Zip<'a> {
    a: Peekable<Stretches<'a>>,
    b: Peekable<Stretches<'a>>,
    at: u64,
    end: u64,
}

impl<'a> Zip<'a> {
    fn over(a: &'a Content<'_>, b: &'a Content<'_>, range: Range<u64>) -> Result<Pairs<'a>, ToolError> {
        let (left, right) = (a.stretches(range.clone())?, b.stretches(range.clone())?);
        Ok(Box::new(Self { a: left.peekable(), b: right.peekable(), at: range.start, end: range.end }))
    }
}

/// Where the byte at `at` is (`None`: nowhere, it is a zero), and up to where that answer holds.
fn look(list: &mut Peekable<Stretches<'_>>, at: u64, end: u64) -> Result<(Option<Place>, u64), ToolError> {
    while let Some(next) = list.next_if(|next| next.as_ref().map_or(true, |stretch| stretch.range.end <= at)) {
        next?;
    }
    match list.peek() {
        Some(Ok(Stretch { range, place })) if range.start <= at => Ok((Some(place.after(at - range.start)), range.end.min(end))),
        Some(Ok(Stretch { range, .. })) => Ok((None, range.start.min(end))),
        Some(Err(_)) | None => Ok((None, end)),
    }
}

impl Iterator for Zip<'_> {
    type Item = Result<Pair, ToolError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.end {
            let start = self.at;
            let looked = look(&mut self.a, start, self.end).and_then(|a| Ok((a, look(&mut self.b, start, self.end)?)));
            let ((a, a_end), (b, b_end)) = match looked {
                Ok(both) => both,
                Err(e) => {
                    self.at = self.end;
                    return Some(Err(e));
                }
            };
            self.at = a_end.min(b_end);
            if a != b {
                return Some(Ok(Pair { range: start..self.at, second_has_data: b.is_some() }));
            }
        }
        None
    }
}

/// Two contents are read this many bytes at a time, so that both sides are still in the processor's nearest cache of a megabyte or two
/// when they are compared; a whole chunk of each does not fit (figures in `docs/bench/2026-11-26.md`).
const SIDE: usize = 256 << 10;

/// Room for both sides of a comparison.
#[derive(Debug)]
pub(crate) struct Sides {
    a: Buffer,
    b: Buffer,
}

impl Sides {
    pub(crate) fn new() -> Self {
        Self { a: Buffer::new(), b: Buffer::new() }
    }

    /// Reads both sides of a chunk, whole `unit`s at a time, and shows them to `look` with their offset until that has found enough.
    pub(crate) fn read<B>(
        &mut self,
        (a, b): (&Content<'_>, &Content<'_>),
        (offset, len): (u64, usize),
        unit: usize,
        mut look: impl FnMut(u64, &[u8], &[u8]) -> Result<ControlFlow<B>, ToolError>,
    ) -> Result<ControlFlow<B>, ToolError> {
        let step = SIDE.max(unit);
        for from in (0..len).step_by(step) {
            let (at, part) = (offset + from as u64, step.min(len - from));
            let (left, right) = (self.a.first(part), self.b.first(part));
            a.read_at(left, at)?;
            b.read_at(right, at)?;
            if let ControlFlow::Break(enough) = look(at, left, right)? {
                return Ok(ControlFlow::Break(enough));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
