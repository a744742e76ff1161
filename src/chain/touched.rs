//! What the upper files of a chain say themselves: where a disk may differ from one of its own ancestors.
//!
//! Two points of one family, an image and its clone, or two clones, differ at most where one of the files that they do not share holds
//! something. Finding those places costs what the files hold, not what the disk could: holes of a BAT are skipped unread.

use super::disk::{Disk, Parents};
use crate::disk::error::DiskError;
use crate::disk::layer::{Answer, Layer};
use crate::sync::Arc;
use crate::units::VirtualOffset;
use std::ops::Range;

/// Blocks that one page of a BAT maps, about: the least that a blank stretch is worth asking for.
const BLANK_BLOCKS: u64 = 512;

/// See [`Disk::touched`].
pub(crate) struct Touched<'a> {
    layers: Vec<&'a Layer>,
    at: u64,
    end: u64,
    /// Up to where every layer reaches. A layer that ends here hides what lies below it.
    common: u64,
    /// From where on it is worth asking for a blank stretch again.
    probe_at: u64,
}

impl Disk {
    /// Stretches of a range in which one of the first `layers` files of the chain (1: the leaf) says something itself, in order: it holds
    /// bytes, it says zero, or it ends and hides what lies below. Elsewhere the disk shows what the next file shows.
    pub(crate) fn touched(&self, layers: usize, range: Range<u64>) -> Touched<'_> {
        let layers: Vec<&Layer> = self.layers().take(layers).collect();
        let common = layers.iter().map(|layer| layer.geometry.size()).min().unwrap_or(u64::MAX);
        let end = range.end.min(self.size());
        Touched { at: if layers.is_empty() { end } else { range.start }, layers, end, common, probe_at: 0 }
    }

    /// How many of the upper files of each disk the other one does not share. `None` when they have nothing in common.
    pub(crate) fn unshared(&self, other: &Self) -> Option<(usize, usize)> {
        let (a, b): (Vec<&Layer>, Vec<&Layer>) = (self.layers().collect(), other.layers().collect());
        // The header as well: whoever ignores locks may have changed the file between the two openings.
        let same = |x: &Layer, y: &Layer| x.original.id() == y.original.id() && x.header == y.header;
        let shared = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| same(x, y)).count();
        (shared > 0).then_some((a.len() - shared, b.len() - shared))
    }

    /// The disk that this one stands on, read-only, on the same open files. `None` without an open parent.
    pub(crate) fn parent_view(&self) -> Option<Self> {
        match &self.parents {
            Parents::None | Parents::NotOpened => None,
            Parents::Line(line) => Some(Self { leaf: Arc::clone(&line.layer), parents: line.below().into(), writer: None }),
        }
    }
}

impl Touched<'_> {
    /// Whether the bytes from here on are touched, and for how many that holds.
    fn step(&mut self) -> Result<(bool, u64), DiskError> {
        let (at, left) = (VirtualOffset::new(self.at), self.end - self.at);
        if self.at >= self.common {
            return Ok((true, left));
        }
        if let Some(len) = self.blank(left)? {
            return Ok((false, len));
        }
        let (mut touched, mut len) = (false, left.min(self.common - self.at));
        for layer in &self.layers {
            let (answer, answered) = layer.answer(at, len)?;
            len = answered;
            if answer != Answer::Parent {
                touched = true;
                break;
            }
        }
        Ok((touched, len))
    }

    fn blank(&mut self, left: u64) -> Result<Option<u64>, DiskError> {
        let reach = BLANK_BLOCKS << self.layers.iter().map(|layer| layer.geometry.block_shift()).min().unwrap_or(0);
        if self.at < self.probe_at || left <= reach {
            return Ok(None);
        }
        let mut len = left.min(self.common - self.at);
        for layer in &self.layers {
            len = len.min(layer.blank(VirtualOffset::new(self.at))?);
            if len == 0 {
                self.probe_at = self.at.saturating_add(reach);
                return Ok(None);
            }
        }
        Ok(Some(len))
    }
}

impl Iterator for Touched<'_> {
    type Item = Result<Range<u64>, DiskError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut found: Option<Range<u64>> = None;
        while self.at < self.end {
            match (self.step(), &mut found) {
                (Ok((true, len)), Some(range)) => {
                    range.end += len;
                    self.at += len;
                }
                (Ok((true, len)), none) => {
                    *none = Some(self.at..self.at + len);
                    self.at += len;
                }
                (Ok((false, len)), None) => self.at += len,
                // What is known goes out first; an error comes with the next call, from the same place.
                (Ok((false, _)) | Err(_), Some(_)) => break,
                (Err(e), None) => {
                    self.at = self.end;
                    return Some(Err(e));
                }
            }
        }
        found.map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, Storage};
    use crate::{CreateOptions, OpenOptions};

    const MIB: u64 = 1 << 20;

    fn ranges(disk: &Disk, layers: usize) -> Vec<Range<u64>> {
        disk.touched(layers, 0..disk.size()).map(|range| range.expect("a sound disk")).collect()
    }

    fn memory() -> Arc<dyn Storage> {
        Arc::new(MemoryStorage::default())
    }

    #[test]
    fn upper_files_say_where_they_hold_something() {
        let files: Vec<Arc<dyn Storage>> = (0..3).map(|_| memory()).collect();
        let below = |n: usize| files[n + 1..].to_vec();
        let base = Disk::create_on(files[2].clone(), &CreateOptions::dynamic(64 << 30)).expect("a base");
        base.write_at(&[1; 4096], 10 * MIB).expect("a write");
        base.close().expect("a close");
        let middle = Disk::create_child_on(files[1].clone(), below(1), &CreateOptions::child().size(40 << 30)).expect("a child");
        middle.write_at(&[2; 512], 20 * MIB + 1024).expect("a write");
        middle.close().expect("a close");
        let leaf = Disk::create_child_on(files[0].clone(), below(0), &CreateOptions::child().size(64 << 30)).expect("a child");
        leaf.write_at(&[3; 1024], 30 * MIB).expect("a write");
        leaf.write_zeroes(10 * MIB, MIB).expect("zeros");
        leaf.write_at(&[3; 1024], 50 << 30).expect("a write");
        leaf.close().expect("a close");
        let leaf = Disk::open_on(files[0].clone(), below(0), &OpenOptions::new()).expect("the chain");
        let own = [10 * MIB..11 * MIB, 30 * MIB..30 * MIB + 1024, 50 << 30..(50 << 30) + 1024];
        assert_eq!(ranges(&leaf, 0), []);
        assert_eq!(ranges(&leaf, 1), own);
        let both = [own[0].clone(), 20 * MIB + 1024..20 * MIB + 1536, own[1].clone(), 40 << 30..64 << 30];
        assert_eq!(ranges(&leaf, 2), both, "the shorter middle hides the base from its end on");

        let middle = leaf.parent_view().expect("it has a parent");
        assert_eq!(leaf.unshared(&middle), Some((1, 0)));
        assert_eq!(middle.unshared(&leaf), Some((0, 1)));
        let mut bytes = [0; 512];
        middle.read_at(&mut bytes, 20 * MIB + 1024).expect("a read");
        assert_eq!((middle.size(), bytes), (40 << 30, [2; 512]));
        assert!(middle.parent_view().expect("it has a parent").parent_view().is_none());
    }
}
