//! See `tests/support/fuzz/ops.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diffdisk_fuzz::bodies::ops::run(data));
