//! Sector bitmap bits: who has a sector of a partially present block (MS-VHDX 2.4).
//!
//! One bit per logical sector, the lowest bit of a byte first; 1 means this file, 0 means the parent. A request over a
//! partially present block is cut into [`runs`] of equal bits, each served by one side. Bits mean something only while the BAT
//! entry of their block is partially present.

use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;

/// Neighbouring sectors that are all in this file or all in the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whether this file has them.
    pub present: bool,
    /// The first one, counted from the start of the bits that were given.
    pub start: u32,
    /// How many, at least 1.
    pub len: u32,
}

/// The longest runs of equal bits, in order, covering all bits.
///
/// ```
/// use bitvec::{order::Lsb0, view::BitView};
/// use diffdisk::format::{Run, runs};
/// let bits = [0b0000_0110_u8];
/// let all: Vec<Run> = runs(&bits.view_bits::<Lsb0>()[..4]).collect();
/// assert_eq!(all.iter().map(|run| (run.present, run.len)).collect::<Vec<_>>(), [(false, 1), (true, 2), (false, 1)]);
/// ```
///
/// # Panics
/// With 2^32 bits or more; a whole sector bitmap block has 2^23.
pub fn runs(bits: &BitSlice<u8, Lsb0>) -> impl Iterator<Item = Run> {
    let mut start = 0_usize;
    std::iter::from_fn(move || {
        let rest = bits.get(start..)?;
        let present = *rest.first()?;
        let len = if present { rest.leading_ones() } else { rest.leading_zeros() };
        let run = Run { present, start: sectors(start), len: sectors(len) };
        start = start.saturating_add(len);
        Some(run)
    })
}

fn sectors(bits: usize) -> u32 {
    u32::try_from(bits).expect("a sector bitmap block has 2^23 bits")
}

/// Marks `len` sectors from `start` on as being in this file.
///
/// # Panics
/// When the range is not inside `bits`.
pub fn set_range(bits: &mut BitSlice<u8, Lsb0>, start: u32, len: u32) {
    let range = usize::try_from(start).ok().zip(usize::try_from(len).ok());
    let range = range.and_then(|(start, len)| Some(start..start.checked_add(len)?));
    range.and_then(|range| bits.get_mut(range)).expect("the range lies inside the bits").fill(true);
}

#[cfg(test)]
mod tests {
    use bitvec::view::BitView;
    use proptest::prelude::*;

    use super::*;

    /// The same, one bit at a time.
    fn naive_runs(bytes: &[u8], from: usize, to: usize) -> Vec<Run> {
        let mut all: Vec<Run> = Vec::new();
        for bit in from..to {
            let present = bytes[bit / 8] >> (bit % 8) & 1 == 1;
            match all.last_mut() {
                Some(run) if run.present == present => run.len += 1,
                _ => all.push(Run { present, start: (bit - from) as u32, len: 1 }),
            }
        }
        all
    }

    #[test]
    fn the_lowest_bit_is_the_first_sector() {
        // The bitmap slice of the reference's child: sectors 0, 9 and 4095 of a 2 MiB block.
        let mut bytes = [0_u8; 512];
        for sector in [0, 9, 4095] {
            set_range(bytes.view_bits_mut(), sector, 1);
        }
        assert_eq!((bytes[0], bytes[1], bytes[511]), (0x01, 0x02, 0x80));
        let present: Vec<_> = runs(bytes.view_bits()).filter(|r| r.present).map(|r| (r.start, r.len)).collect();
        assert_eq!(present, [(0, 1), (9, 1), (4095, 1)]);
    }

    #[test]
    fn no_bits_have_no_runs_and_equal_bits_have_one() {
        assert_eq!(runs(BitSlice::empty()).count(), 0);
        let full = vec![0xFF_u8; 1 << 20];
        assert_eq!(runs(full.view_bits()).collect::<Vec<_>>(), [Run { present: true, start: 0, len: 1 << 23 }]);
    }

    #[test]
    #[should_panic(expected = "the range lies inside the bits")]
    fn setting_outside_is_a_bug() {
        set_range([0_u8].view_bits_mut(), 7, 2);
    }

    proptest! {
        #[test]
        fn runs_agree_with_single_bits(
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(0xFF), any::<u8>()], 0..40), a: prop::sample::Index, b: prop::sample::Index,
        ) {
            let bits = bytes.len() * 8;
            let (a, b) = (a.index(bits + 1), b.index(bits + 1));
            let (from, to) = (a.min(b), a.max(b));
            let got: Vec<_> = runs(&bytes.view_bits::<Lsb0>()[from..to]).collect();
            prop_assert_eq!(got, naive_runs(&bytes, from, to));
        }

        #[test]
        fn setting_a_range_sets_exactly_it(mut bytes in prop::collection::vec(any::<u8>(), 1..40), a: prop::sample::Index, b: prop::sample::Index) {
            let bits = bytes.len() * 8;
            let (a, b) = (a.index(bits + 1), b.index(bits + 1));
            let (from, to) = (a.min(b), a.max(b));
            let mut expected = bytes.clone();
            for bit in from..to {
                expected[bit / 8] |= 1 << (bit % 8);
            }
            set_range(bytes.view_bits_mut(), from as u32, (to - from) as u32);
            prop_assert_eq!(bytes, expected);
        }
    }
}
