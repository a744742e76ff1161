//! Random operations on chains of disks, against a model that is an array of bytes per layer.
//!
//! Engine and model share nothing. After every fourth operation, and after every close and drop, a second instance opens a copy of
//! the bytes: it must open, its `check()` must be content, and each 512-byte piece must hold what was last flushed or something
//! written since. Every 128 operations, and after close and drop, that is done for the whole disk. `DIFFDISK_SEED` sets another
//! seed, `DIFFDISK_MODEL_OPS` another number of operations; a failure prints its seed and the shortest list found that still fails.

#[path = "support/cow.rs"]
mod cow;
#[path = "support/loud.rs"]
mod loud;
#[path = "model/ops.rs"]
mod ops;
#[path = "model/plain.rs"]
mod plain;
#[path = "model/world.rs"]
mod world;

use loud::loud;
use ops::{Op, Rng, script};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use world::World;

const OPERATIONS: u64 = 200_000;
const PER_CHAIN: usize = 500;

fn from_env(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Runs one chain; on failure says why and what was done up to there.
fn run(seed: u64, ops: &[Op]) -> Result<(), (String, Vec<String>)> {
    let mut slot = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let world = slot.insert(World::new(seed)?);
        ops.iter().try_for_each(|op| world.step(op))?;
        world.finish()
    }));
    let log = slot.map_or_else(Vec::new, |world| world.log);
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(text)) => Err((text, log)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err((format!("PANIC: {}", text.unwrap_or_default()), log))
        }
    }
}

/// Takes operations out, ever smaller stretches, for as long as the rest still fails.
fn shrink(seed: u64, mut ops: Vec<Op>) -> Vec<Op> {
    let until = Instant::now() + Duration::from_secs(30);
    let mut stretch = ops.len() / 2;
    while stretch > 0 && Instant::now() < until {
        let mut from = 0;
        while from < ops.len() && Instant::now() < until {
            let mut fewer = ops.clone();
            fewer.drain(from..(from + stretch).min(ops.len()));
            if run(seed, &fewer).is_err() {
                ops = fewer;
            } else {
                from += stretch;
            }
        }
        stretch /= 2;
    }
    ops
}

#[test]
fn a_disk_is_an_array_of_bytes() {
    let seed = from_env("DIFFDISK_SEED", 20_240_423);
    let wanted = from_env("DIFFDISK_MODEL_OPS", OPERATIONS);
    let chains = wanted.div_ceil(PER_CHAIN as u64);
    let mut rng = Rng::new(seed);
    // Chains have nothing to do with one another: each processor takes the next one. They are drawn in order, so a seed names the same
    // chains everywhere.
    let (drawn, failed) = (Mutex::new((0..chains).map(|chain| (chain, rng.next(), script(&mut rng, PER_CHAIN)))), Mutex::new(None));
    let next = || drawn.lock().unwrap().next().filter(|_| failed.lock().unwrap().is_none());
    let work = || {
        while let Some((chain, chain_seed, ops)) = next() {
            if run(chain_seed, &ops).is_err() {
                failed.lock().unwrap().get_or_insert((chain, chain_seed, ops));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(work);
        }
    });
    if let Some((chain, chain_seed, ops)) = failed.into_inner().unwrap() {
        loud(&format!("model: seed {seed}, chain {chain} fails; shrinking"));
        let ops = shrink(chain_seed, ops);
        let (text, log) = run(chain_seed, &ops).expect_err("it failed before");
        panic!("{text}\nseed {seed}, chain {chain} (seed {chain_seed}), {} operations:\n{}", ops.len(), log.join("\n"));
    }
    loud(&format!("model: {} operations over {chains} chains, seed {seed}", chains * PER_CHAIN as u64));
}
