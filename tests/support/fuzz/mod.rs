//! Bodies of the fuzz targets, shared by `fuzz/` (nightly, libFuzzer) and `tests/fuzz_regressions.rs` (stable, in every `cargo test`).
//!
//! A body takes bytes, turns them into decisions ([`source::Source`]) and those into files built by `support/forge.rs`, which shares no code
//! with the engine. What it decides is checked inside of it, so a find is a panic wherever the body runs: a wrong answer, a byte
//! written where none may be, a read outside of a file, more than 64 MiB of memory, more than two seconds of CPU.

#[path = "../alloc.rs"]
mod alloc;
pub mod chain;
#[path = "../cow.rs"]
pub mod cow;
pub mod diff;
#[path = "../forge.rs"]
pub mod forge;
pub mod guard;
pub mod images;
pub mod locator;
pub mod naive;
pub mod open;
pub mod ops;
pub mod readers;
pub mod replay;
pub mod seeds;
pub mod source;

/// A target: its name, its body, its seeds by name.
pub type Target = (&'static str, fn(&[u8]), fn() -> seeds::Seeds);

/// All targets but `nbd`, whose body is `support/nbd_frames.rs`.
pub const TARGETS: [Target; 6] = [
    ("open", open::run, seeds::open),
    ("replay", replay::run, seeds::replay),
    ("locator", locator::run, seeds::locator),
    ("ops", ops::run, seeds::ops),
    ("chain", chain::run, seeds::chain),
    ("diff", diff::run, seeds::diff),
];
