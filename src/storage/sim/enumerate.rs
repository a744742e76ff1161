//! Which subsets of the pending atoms to try.
//!
//! All of them while they are few. Beyond that the ones that have broken storage software before: nothing, everything, one
//! atom alone, all but one, every beginning, every end, whole classes (a header but not the log), and random ones of three
//! densities. Payload atoms beyond a cap are sampled evenly: a write of a MiB has two thousand of them, all alike.

use super::choice::{Class, Flight, Torn};

/// How many subsets to build where all would be too many.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Up to this many atoms all subsets are built.
    pub exhaustive: usize,
    /// At most this many payload atoms are singled out.
    pub payload: usize,
    /// Random subsets of each density.
    pub random: usize,
    /// Which of them to build.
    pub share: Share,
}

/// One share of all choices along a trace. The shares of one divisor are disjoint and together everything, so a campaign can give
/// each of its traces one share before it gives any a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Of this many choices one is taken.
    pub of: u64,
    /// Which one: counted from zero.
    pub nth: u64,
}

impl Share {
    /// Everything.
    pub const ALL: Self = Self { of: 1, nth: 0 };

    pub(super) fn takes(self, ordinal: u64) -> bool {
        ordinal % self.of == self.nth % self.of
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { exhaustive: 12, payload: 64, random: 16, share: Share::ALL }
    }
}

/// A small deterministic generator (splitmix64): the seed names the run.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

type Visit<'a> = &'a mut dyn FnMut(&[bool], Option<Torn>) -> bool;

/// Calls `visit` with subsets of the atoms until it returns false. `torn` are the atoms that may be the one in flight.
pub(super) fn for_each(classes: &[Class], torn: &[usize], limits: &Limits, rng: &mut Rng, visit: Visit<'_>) {
    let done = if classes.len() <= limits.exhaustive { all_subsets(classes.len(), visit) } else { telling(classes, limits, rng, visit) };
    if done {
        flights(classes, torn, visit);
    }
}

fn all_subsets(n: usize, visit: Visit<'_>) -> bool {
    let mut kept = vec![false; n];
    (0..1_u64 << n).all(|mask| {
        for (i, kept) in kept.iter_mut().enumerate() {
            *kept = mask >> i & 1 == 1;
        }
        visit(&kept, None)
    })
}

fn telling(classes: &[Class], limits: &Limits, rng: &mut Rng, visit: Visit<'_>) -> bool {
    let n = classes.len();
    if !visit(&vec![false; n], None) || !visit(&vec![true; n], None) {
        return false;
    }
    let singled = singled_out(classes, limits.payload);
    for &i in &singled {
        let mut kept = vec![false; n];
        kept[i] = true;
        let mut others = vec![true; n];
        others[i] = false;
        let prefix: Vec<bool> = (0..n).map(|k| k < i).collect();
        let suffix: Vec<bool> = (0..n).map(|k| k >= i).collect();
        if ![kept, others, prefix, suffix].iter().all(|kept| visit(kept, None)) {
            return false;
        }
    }
    let mut present: Vec<Class> = classes.to_vec();
    present.sort_unstable();
    present.dedup();
    for mask in 1..(1_u32 << present.len()) - 1 {
        let chosen = |class: &Class| present.iter().position(|have| have == class).is_some_and(|bit| mask >> bit & 1 == 1);
        let kept: Vec<bool> = classes.iter().map(chosen).collect();
        if !visit(&kept, None) {
            return false;
        }
    }
    for eighths in [1, 4, 7] {
        for _ in 0..limits.random {
            let kept: Vec<bool> = (0..n).map(|_| rng.below(8) < eighths).collect();
            if !visit(&kept, None) {
                return false;
            }
        }
    }
    true
}

/// The atoms tried one by one: all but payload, and payload evenly sampled.
fn singled_out(classes: &[Class], payload_cap: usize) -> Vec<usize> {
    let payload = classes.iter().filter(|&&class| class == Class::Payload).count();
    let mut seen = 0;
    let mut chosen = Vec::new();
    for (i, &class) in classes.iter().enumerate() {
        if class == Class::Payload && payload > payload_cap {
            // Rounding up picks the first of each of `payload_cap` equal stretches.
            let stretch = |k: usize| (k * payload_cap).div_ceil(payload);
            seen += 1;
            if seen > 1 && seen < payload && stretch(seen) == stretch(seen - 1) {
                continue;
            }
        }
        chosen.push(i);
    }
    chosen
}

/// One atom in flight, or one of each header, with nothing else, everything before it, and everything.
fn flights(classes: &[Class], torn: &[usize], visit: Visit<'_>) {
    let header_b: Vec<usize> = torn.iter().copied().filter(|&i| classes[i] == Class::HeaderB).collect();
    for &atom in torn {
        // The fields of a header lie in its first piece; the last one stands for the rest.
        let twins = [header_b.first(), header_b.last()].into_iter().flatten().filter(|_| classes[atom] == Class::HeaderA);
        for twin in std::iter::once(None).chain(twins.map(|&twin| Some(twin))) {
            for others in [|_, _| false, |k, i| k < i, |_, _| true] as [fn(usize, usize) -> bool; 3] {
                let kept: Vec<bool> = (0..classes.len()).map(|k| k != atom && twin != Some(k) && others(k, atom)).collect();
                for how in [Flight::Junk, Flight::Unreadable] {
                    if !visit(&kept, Some(Torn { atom, twin, how })) {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn subsets(classes: &[Class]) -> HashSet<Vec<bool>> {
        let mut seen = HashSet::new();
        for_each(classes, &[], &Limits::default(), &mut Rng::new(1), &mut |kept, _| {
            seen.insert(kept.to_vec());
            true
        });
        seen
    }

    #[test]
    fn few_atoms_are_tried_in_every_combination() {
        assert_eq!(subsets(&[Class::Log; 10]).len(), 1024);
        assert_eq!(subsets(&[]).len(), 1);
    }

    #[test]
    fn many_atoms_are_tried_alone_without_and_by_class() {
        let classes: Vec<Class> = (0..40).map(|i| if i < 20 { Class::Log } else { Class::Bat }).collect();
        let seen = subsets(&classes);
        for i in 0..40 {
            assert!(seen.contains(&(0..40).map(|k| k == i).collect::<Vec<_>>()));
            assert!(seen.contains(&(0..40).map(|k| k != i).collect::<Vec<_>>()));
            assert!(seen.contains(&(0..40).map(|k| k < i).collect::<Vec<_>>()));
        }
        assert!(seen.contains(&(0..40).map(|k| k >= 20).collect::<Vec<_>>()));
    }

    #[test]
    fn where_both_headers_are_under_way_both_may_be_torn() {
        let torn_together = |classes: &[Class]| {
            let (all, mut pairs) = ((0..classes.len()).collect::<Vec<_>>(), 0);
            for_each(classes, &all, &Limits::default(), &mut Rng::new(1), &mut |kept, torn| {
                let twin = torn.and_then(|torn| torn.twin);
                pairs += usize::from(twin.is_some_and(|twin| !kept[twin]));
                true
            });
            pairs
        };
        assert_eq!(torn_together(&[Class::HeaderA, Class::Log]), 0);
        assert!(torn_together(&[Class::HeaderA, Class::HeaderB]) > 0);
    }

    #[test]
    fn the_shares_of_a_divisor_are_everything_once() {
        let taken = |nth| (0..100).filter(move |&i| Share { of: 7, nth }.takes(i));
        let mut all: Vec<u64> = (0..7).flat_map(taken).collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_eq!(taken(9).count(), taken(2).count());
    }

    #[test]
    fn payload_is_sampled_and_metadata_is_not() {
        let mut classes = vec![Class::Payload; 2048];
        classes.extend([Class::Log; 16]);
        let chosen = singled_out(&classes, 64);
        assert!((64..=67).contains(&chosen.iter().filter(|&&i| i < 2048).count()), "{}", chosen.len());
        assert_eq!(chosen.iter().filter(|&&i| i >= 2048).count(), 16);
        assert!(chosen.contains(&0) && chosen.contains(&2047));
    }
}
