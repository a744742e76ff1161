//! See `tests/support/fuzz/diff.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diffdisk_fuzz::bodies::diff::run(data));
