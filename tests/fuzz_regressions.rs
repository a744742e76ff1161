//! Every input that ever made a fuzz target fail, and every seed, on stable Rust.
//!
//! The bodies are those of `fuzz/` (see `docs/fuzzing.md`). Finds are files in `fuzz/regressions/TARGET/`; seeds come from code. Each
//! seed is also replayed with single bytes changed, a fixed few hundred ways, so that a machine without a nightly compiler fuzzes a
//! little too. `cargo test --test fuzz_regressions -- --ignored write_seeds` writes the seeds where the fuzzer looks for them.

#[expect(dead_code, reason = "of the builders only what the bodies need is used")]
#[path = "support/fuzz/mod.rs"]
mod fuzz;
#[path = "support/loud.rs"]
mod loud;
#[cfg(feature = "nbd")]
#[path = "support/nbd_frames.rs"]
mod nbd_frames;

use fuzz::TARGETS;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Changed seeds per target, and the time after which no more are tried.
const CHANGED: usize = 600;
const TIME: Duration = Duration::from_secs(8);

fn fuzz_dir(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

/// The committed finds of a target, by name.
fn finds(target: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(dir) = fs::read_dir(fuzz_dir("regressions", target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = dir.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let name = |path: &Path| path.file_name().expect("a file").to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), fs::read(path).expect("a readable find"))).collect()
}

fn run(target: &str, name: &str, body: &dyn Fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(input))) {
        eprintln!("{target}/{name}: {input:?}");
        std::panic::resume_unwind(panic);
    }
}

/// One or two bytes of a seed, another way each time.
fn change(seed: &[u8], state: &mut u64) -> Vec<u8> {
    let mut roll = || {
        *state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (*state >> 33) as usize
    };
    let mut input = seed.to_vec();
    for _ in 0..1 + roll() % 2 {
        let (at, byte) = (roll() % (input.len() + 1), roll() as u8);
        if at == input.len() { input.push(byte) } else { input[at] = byte }
    }
    input
}

fn replay(target: &str, body: &dyn Fn(&[u8]), seeds: &[(String, Vec<u8>)]) {
    replay_for(target, body, seeds, TIME);
}

fn replay_for(target: &str, body: &dyn Fn(&[u8]), seeds: &[(String, Vec<u8>)], time: Duration) {
    let finds = finds(target);
    for (name, input) in finds.iter().chain(seeds) {
        run(target, name, body, input);
    }
    let (until, mut state, mut changed) = (Instant::now() + time, 0xD15C, 0);
    for (name, seed) in seeds.iter().cycle().take(CHANGED) {
        if Instant::now() > until {
            break;
        }
        run(target, name, body, &change(seed, &mut state));
        changed += 1;
    }
    loud::loud(&format!("fuzz regressions: {target}: {} finds, {} seeds, {changed} changed seeds", finds.len(), seeds.len()));
    assert!(!seeds.is_empty());
}

fn replay_target(name: &str) {
    let (_, body, seeds) = TARGETS.into_iter().find(|target| target.0 == name).expect("a target");
    replay(name, &body, &seeds());
}

#[test]
fn open() {
    replay_target("open");
}

#[test]
fn replayed_logs() {
    replay_target("replay");
}

#[test]
fn locator() {
    replay_target("locator");
    fuzz::locator::clean_up();
}

#[test]
fn ops() {
    replay_target("ops");
}

#[test]
fn chain() {
    replay_target("chain");
}

/// Some tens of inputs a second, because they start processes: less time than the others.
#[test]
fn diff() {
    use std::cell::Cell;
    let asked = Cell::new(0);
    let body = |input: &[u8]| asked.set(asked.get() + fuzz::diff::compare_all(input));
    replay_for("diff", &body, &fuzz::seeds::diff(), Duration::from_secs(3));
    let names = fuzz::readers::readers().names();
    loud::loud(&format!("fuzz regressions: diff: {} times a foreign reader said the same; {names}", asked.get()));
    assert!(names.starts_with("skipped") || asked.get() > 0);
}

/// Frames come from noise: the body makes sense of any bytes.
#[cfg(feature = "nbd")]
fn nbd_seeds() -> Vec<(String, Vec<u8>)> {
    let mut state = 7_u64;
    let mut noise = |len: usize| {
        let step = |_| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            (state >> 56) as u8
        };
        (0..len).map(step).collect::<Vec<u8>>()
    };
    (0..16).map(|n| (format!("noise-{n}"), noise(40 * n + 8))).collect()
}

#[cfg(feature = "nbd")]
#[test]
fn nbd() {
    let body = |input: &[u8]| nbd_frames::run(input, &mut nbd_frames::Tally::default());
    replay("nbd", &body, &nbd_seeds());
}

#[test]
#[ignore = "writes files: the seeds, into fuzz/seeds/"]
fn write_seeds() {
    let mut all: Vec<_> = TARGETS.into_iter().map(|(name, _, seeds)| (name, seeds())).collect();
    #[cfg(feature = "nbd")]
    all.push(("nbd", nbd_seeds()));
    for (target, seeds) in all {
        let dir = fuzz_dir("seeds", target);
        fs::create_dir_all(&dir).expect("a directory");
        for (name, seed) in seeds {
            fs::write(dir.join(name), seed).expect("a seed");
        }
    }
}
