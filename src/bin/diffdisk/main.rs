//! The command line of diffdisk.

fn main() {}
