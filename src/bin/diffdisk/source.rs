//! Raw files and disks behind one face: bytes, and where they are not holes.
//!
//! Digest, conversion and comparison all want the same: walk over what is there, in order, and skip what is not, because a disk of
//! 64 TiB is mostly not there. [`Source::data`] tells where bytes may be, from the extents of a disk or the holes of a file;
//! [`Chunks`] cuts that into aligned pieces of at most one [`CHUNK`].

use crate::args::{Format, ParentsArgs};
use crate::buffer::CHUNK;
use crate::error::{About, CliError};
use diffdisk::storage::{FileStorage, Operation, Storage, StorageError, read_zero_extended};
use diffdisk::{Disk, ExtentKind};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Chunks start and end at multiples of this (or at the end of the disk).
pub const PIECE: u64 = 64 << 10;

/// Something with content.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    size: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Raw(FileStorage),
    Disk(Box<Disk>),
}

/// Stretches that may hold something other than zeros, in order.
pub type Ranges<'a> = Box<dyn Iterator<Item = Result<Range<u64>, CliError>> + 'a>;

impl Source {
    /// Opens a file as what the caller says it is.
    pub fn open(path: &Path, format: Format, parents: &ParentsArgs) -> Result<Self, CliError> {
        let (size, bytes) = match format {
            Format::Vhdx => {
                let disk = Disk::open(path, &parents.read_only()).about(path)?;
                (disk.size(), Bytes::Disk(Box::new(disk)))
            }
            Format::Raw => {
                let file = FileStorage::open_read(path).about(path)?;
                (file.len().about(path)?, Bytes::Raw(file))
            }
        };
        Ok(Self { path: path.to_owned(), size, bytes })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The disk, if it is one.
    pub fn disk(&self) -> Option<&Disk> {
        match &self.bytes {
            Bytes::Raw(_) => None,
            Bytes::Disk(disk) => Some(disk),
        }
    }

    /// Fills `buf`; past the end there are zeros.
    pub fn read(&self, buf: &mut [u8], at: u64) -> Result<(), CliError> {
        let inside = self.size.saturating_sub(at).min(buf.len() as u64) as usize;
        let (inside, outside) = buf.split_at_mut(inside);
        outside.fill(0);
        match &self.bytes {
            Bytes::Raw(file) => read_zero_extended(file, inside, at).about(&self.path),
            Bytes::Disk(_) if inside.is_empty() => Ok(()),
            Bytes::Disk(disk) => disk.read_at(inside, at).about(&self.path),
        }
    }

    /// Where bytes may be.
    pub fn data(&self) -> Result<Ranges<'_>, CliError> {
        match &self.bytes {
            Bytes::Raw(file) => Ok(Box::new(file_ranges(file, &self.path))),
            Bytes::Disk(disk) => {
                let extents = disk.extents(0, self.size).about(&self.path)?;
                Ok(Box::new(extents.filter_map(|extent| match extent {
                    Ok(extent) => {
                        let is_data = matches!(extent.kind, ExtentKind::Data { .. });
                        is_data.then(|| Ok(extent.offset..extent.offset + extent.len))
                    }
                    Err(e) => Some(Err(e).about(&self.path)),
                })))
            }
        }
    }

    /// Everything that may hold data, cut into chunks.
    pub fn chunks(&self) -> Result<Chunks<'_>, CliError> {
        Ok(Chunks::new(self.data()?, self.size))
    }
}

fn file_ranges<'a>(file: &'a FileStorage, path: &'a Path) -> impl Iterator<Item = Result<Range<u64>, CliError>> + 'a {
    let mut at = Some(0);
    std::iter::from_fn(move || {
        let found = file.next_data(at?).map_err(|e| StorageError::new(Operation::Seek, at.unwrap_or(0), e)).about(path);
        at = match &found {
            Ok(Some((_, end))) => Some(*end),
            Ok(None) | Err(_) => None,
        };
        found.map(|range| range.map(|(start, end)| start..end)).transpose()
    })
}

/// Two lists of ranges as one, in order of their start.
pub fn union<'a>(a: Ranges<'a>, b: Ranges<'a>) -> Ranges<'a> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    Box::new(std::iter::from_fn(move || match (a.peek(), b.peek()) {
        // An error goes out at once.
        (Some(Err(_)), _) | (_, None) => a.next(),
        (_, Some(Err(_))) | (None, _) => b.next(),
        (Some(Ok(x)), Some(Ok(y))) => {
            if x.start <= y.start {
                a.next()
            } else {
                b.next()
            }
        }
    }))
}

/// Pieces of at most one [`CHUNK`] that cover a list of ranges: in order, without overlap, aligned to [`PIECE`], never across a
/// multiple of the chunk.
pub struct Chunks<'a> {
    ranges: Ranges<'a>,
    size: u64,
    current: Range<u64>,
}

impl<'a> Chunks<'a> {
    /// Cuts `ranges` of a disk of `size` bytes.
    pub fn new(ranges: Ranges<'a>, size: u64) -> Self {
        Self { ranges, size, current: 0..0 }
    }
}

impl Iterator for Chunks<'_> {
    /// Offset and length.
    type Item = Result<(u64, usize), CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.current.is_empty() {
            let range = match self.ranges.next()? {
                Ok(range) => range,
                Err(e) => return Some(Err(e)),
            };
            if range.start >= self.size {
                continue;
            }
            let start = (range.start / PIECE * PIECE).max(self.current.end);
            let end = range.end.checked_next_multiple_of(PIECE).unwrap_or(u64::MAX).min(self.size);
            self.current = start.max(self.current.end)..end.max(start);
        }
        let start = self.current.start;
        let end = (start / CHUNK as u64 + 1).saturating_mul(CHUNK as u64).min(self.current.end);
        self.current.start = end;
        Some(Ok((start, (end - start) as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &'static [(u64, u64)]) -> Ranges<'static> {
        Box::new(list.iter().map(|&(start, end)| Ok(start..end)))
    }

    fn cut(list: &'static [(u64, u64)], size: u64) -> Vec<(u64, usize)> {
        Chunks::new(ranges(list), size).collect::<Result<_, _>>().expect("no range is an error")
    }

    const K64: usize = 64 << 10;

    #[test]
    fn chunks_are_aligned_and_do_not_overlap() {
        assert_eq!(cut(&[], 1000), []);
        assert_eq!(cut(&[(5, 6)], 1000), [(0, 1000)]);
        assert_eq!(cut(&[(5, 6), (10, 70_000), (70_000, 70_001)], 1 << 20), [(0, K64), (PIECE, K64)]);
        assert_eq!(cut(&[(CHUNK as u64 - 1, CHUNK as u64 + 1)], 4 << 20), [(CHUNK as u64 - PIECE, K64), (CHUNK as u64, K64)]);
        assert_eq!(cut(&[(0, 3 << 20)], (2 << 20) + 7), [(0, CHUNK), (1 << 20, CHUNK), (2 << 20, 7)]);
        assert_eq!(cut(&[(5000, 6000)], 100), [], "nothing past the end");
    }

    #[test]
    fn a_union_is_in_order() {
        let both = union(ranges(&[(0, 1), (5, 9)]), ranges(&[(0, 4), (4, 6), (7, 8)]));
        let starts: Vec<u64> = both.map(|range| range.map(|range| range.start)).collect::<Result<_, _>>().expect("no range is an error");
        assert_eq!(starts, [0, 0, 4, 5, 7]);
    }
}
