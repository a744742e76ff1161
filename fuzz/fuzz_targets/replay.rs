//! See `tests/support/fuzz/replay.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diffdisk_fuzz::bodies::replay::run(data));
