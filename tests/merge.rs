//! Merging, hydrating and flattening: against byte arrays, through every crash, with every call failing, and while being written to.
//!
//! `DIFFDISK_MERGE_ROUNDS` makes the random run longer, `DIFFDISK_MERGE_CRASHES` the number of crash images that are looked at.

#[path = "merge/chain.rs"]
mod chain;
#[path = "merge/crash.rs"]
mod crash;
#[path = "merge/faults.rs"]
mod faults;
#[path = "merge/files.rs"]
mod files;
#[path = "merge/killed.rs"]
mod killed;
#[path = "merge/live.rs"]
mod live;
#[path = "merge/model.rs"]
mod model;

use diffdisk::storage::sim::{CrashImage, CrashOptions, CrashWalk, Limits, Share, Trace};
use std::collections::HashSet;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Hands about `most` different crash images of a trace to `look`; returns how many there were.
fn each_crash(trace: &Trace, most: u64, mut look: impl FnMut(u64, &CrashImage)) -> u64 {
    // A first walk counts, so that the second takes an even share.
    let limits = Limits { exhaustive: 8, payload: 8, random: 4, share: Share::ALL };
    let all = |share| CrashOptions { limits: Limits { share, ..limits }, ..CrashOptions::default() };
    let mut total = 0_u64;
    let mut walk = CrashWalk::new(trace, all(Share::ALL));
    loop {
        walk.for_each_choice(&mut |_, _| {
            total += 1;
            true
        });
        if walk.step().is_none() {
            break;
        }
    }
    let share = Share { of: (total / most.max(1)).max(1), nth: 0 };
    let mut walk = CrashWalk::new(trace, all(share));
    let (mut states, mut number) = (HashSet::new(), 0);
    loop {
        walk.for_each_choice(&mut |_, image| {
            if states.insert(image.hash()) {
                look(number, &image);
                number += 1;
            }
            true
        });
        if walk.step().is_none() {
            return number;
        }
    }
}
