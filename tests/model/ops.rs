//! The alphabet, and how a seed becomes a list of operations.
//!
//! An operation holds only raw numbers; they become a range when it runs, against the disk as it then is. So a list stays
//! meaningful when operations are taken out of it, which is all that shrinking does.

use crate::plain::Layer;

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write,
    Zero,
    Trim,
    Read,
    Flush,
    Close,
    Drop,
    Extents,
    Child,
    /// Requests over the end of the disk.
    Beyond,
    /// A look at a copy of the bytes, now.
    Look,
    Compact,
}

#[derive(Clone, Copy, Debug)]
pub struct Op {
    pub kind: Kind,
    pub a: u64,
    pub b: u64,
}

/// Out of 1000.
const WEIGHTS: [(Kind, u64); 12] = [
    (Kind::Write, 566),
    (Kind::Compact, 4),
    (Kind::Zero, 70),
    (Kind::Trim, 45),
    (Kind::Read, 150),
    (Kind::Flush, 80),
    (Kind::Close, 9),
    (Kind::Drop, 11),
    (Kind::Extents, 30),
    (Kind::Child, 10),
    (Kind::Beyond, 5),
    (Kind::Look, 20),
];

pub fn script(rng: &mut Rng, len: usize) -> Vec<Op> {
    let pick = |rng: &mut Rng| {
        let mut dice = rng.below(WEIGHTS.iter().map(|w| w.1).sum());
        for (kind, weight) in WEIGHTS {
            if dice < weight {
                return kind;
            }
            dice -= weight;
        }
        unreachable!("the dice is below the sum")
    };
    (0..len).map(|_| Op { kind: pick(rng), a: rng.next(), b: rng.next() }).collect()
}

impl Op {
    /// Edges first: borders of sectors, pages, blocks, bitmap pages, chunks and the disk, give or take a little.
    pub fn range(&self, disk: &Layer) -> (u64, u64) {
        let mut rng = Rng::new(self.a ^ self.b.rotate_left(17));
        let (start, size, sector, block) = (disk.start, disk.size, disk.sector, disk.block);
        let window = size - start;
        let somewhere = start + rng.below(window);
        let at = if rng.below(6) == 0 {
            // Where the last write ended: sequential writers fill blocks up.
            disk.last_end
        } else if rng.below(3) > 0 {
            let step = [sector, 4096, block, block, sector << 15, sector << 23, window][rng.below(7) as usize];
            let border = match rng.below(8) {
                0 => size,
                1 => start,
                _ => (somewhere + step / 2) / step * step,
            };
            let nudge = [0, 0, 0, 1, 511, 512, sector, sector * 3, 4096][rng.below(9) as usize];
            if rng.below(2) == 0 { border.saturating_add(nudge) } else { border.saturating_sub(nudge) }
        } else {
            match rng.below(3) {
                0 => somewhere,
                1 => somewhere / 512 * 512,
                _ => somewhere / sector * sector,
            }
        };
        let at = at.clamp(start, size);
        let to_border = (at / block + 1) * block - at;
        let blocks = block * (1 + rng.below(3));
        let len = match rng.below(if matches!(self.kind, Kind::Trim | Kind::Zero | Kind::Extents) { 20 } else { 120 }) {
            0 => rng.below(4),
            90..100 => (to_border + [0, sector][rng.below(2) as usize]).saturating_sub([0, 1, sector, 2 * sector][rng.below(4) as usize]),
            1..4 => blocks,
            4 => blocks + sector,
            5 => blocks - 1,
            6 => size - at,
            7..11 => 64 << 10,
            11..15 => rng.below(32 << 10),
            15..45 => sector,
            45..70 => sector * (1 + rng.below(8)),
            70..90 => 1 + rng.below(sector * 2),
            _ => 4096,
        };
        (at, len.min(size - at))
    }
}
