//! Every legal power cut in every short script: the disk opens, and each piece is old or new.
//!
//! The simulator (`storage::sim`) builds the images; `support/crash` runs the scripts and holds the images against a ledger of what
//! each piece may hold. Three knobs, all in the environment: `DIFFDISK_CRASH_STATES` is the number of distinct states below which
//! the run fails (CI says 300,000), `DIFFDISK_CRASH_SECONDS` the time box, `DIFFDISK_CRASH_SEED` the seed. Without any of them the
//! campaign is one round: a share of the crashes of every script, the same ones every time.

#[path = "support/crash/mod.rs"]
mod crash;

use crash::campaign::Campaign;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The tests use both cores themselves, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn knob(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn every_crash_leaves_old_or_new() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let floor = knob("DIFFDISK_CRASH_STATES");
    let seconds = knob("DIFFDISK_CRASH_SECONDS").or(floor.map(|_| 200));
    let campaign = Campaign::new(knob("DIFFDISK_CRASH_SEED").unwrap_or(7));
    let began = Instant::now();
    let (round, wanted) = (campaign.round(), floor.unwrap_or(20_000));
    let outcome = campaign.run(&|attempt, states| match seconds.map(Duration::from_secs) {
        None => attempt < round,
        // A busy machine gets three times the box before the run counts as too small.
        Some(time) => began.elapsed() < time || (began.elapsed() < 3 * time && (states < wanted || attempt < round)),
    });
    let tally = outcome.tally;
    println!(
        "crash: {} distinct states, {} violations, seed {} ({} of a second crash, {} unreadable pieces reported, {} of {} short scripts, {:.1} rounds, {:.0} s)",
        tally.states,
        outcome.violations.len(),
        campaign.seed,
        tally.second,
        tally.refused,
        outcome.attempts.min(campaign.short),
        campaign.short,
        outcome.attempts as f64 / round as f64,
        began.elapsed().as_secs_f64(),
    );
    assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n\n"));
    assert!(tally.states >= wanted, "only {} distinct states, {wanted} were wanted", tally.states);
    assert!(outcome.attempts >= round, "the box ended before every script had a share");
}
