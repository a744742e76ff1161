//! The body of the fuzz target `nbd` with inputs from a fixed seed.
#![cfg(feature = "nbd")]

#[path = "support/nbd_frames.rs"]
mod frames;

use std::time::{Duration, Instant};

#[test]
fn no_frames_upset_the_server() {
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut roll = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let until = Instant::now() + Duration::from_secs(10);
    let mut runs = 0;
    let mut tally = frames::Tally::default();
    while runs < 3000 && (runs < 100 || Instant::now() < until) {
        let len = (roll() % 900) as usize;
        let input: Vec<u8> = (0..len).map(|_| roll() as u8).collect();
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| frames::run(&input, &mut tally))) {
            eprintln!("run {runs}, input {input:?}");
            std::panic::resume_unwind(panic);
        }
        runs += 1;
    }
    println!("nbd frames: {runs} inputs, {} clean sessions, {} replies", tally.clean_sessions, tally.replies);
    assert!(tally.clean_sessions > runs / 4 && tally.replies > runs, "hardly anything was checked");
}
