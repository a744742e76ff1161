//! See `tests/support/fuzz/chain.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diffdisk_fuzz::bodies::chain::run(data));
