//! See `tests/support/fuzz/locator.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diffdisk_fuzz::bodies::locator::run(data));
