//! See `tests/support/nbd_frames.rs`.
#![no_main]

use diffdisk_fuzz::nbd_frames::{Tally, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(data, &mut Tally::default()));
