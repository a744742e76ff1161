//! The bodies of the targets, from the main crate's tests: `tests/fuzz_regressions.rs` runs the same ones on stable Rust.

#[path = "../../tests/support/fuzz/mod.rs"]
pub mod bodies;
#[path = "../../tests/support/nbd_frames.rs"]
pub mod nbd_frames;
