//! See `tests/support/fuzz/open.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diffdisk_fuzz::bodies::open::run(data));
