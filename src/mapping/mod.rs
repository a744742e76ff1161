//! Where each block lives: the BAT and the sector bitmaps in memory, the space in the file, and who may still be using it.
//!
//! BAT entries and bitmap bits are atomic words in 4 KiB pages, loaded from the file the first time somebody asks. Reading a
//! mapping is a few loads; changing one is the writer's business (floor 5), which holds the gate while it does.

pub(crate) mod bat;
pub(crate) mod bitmap;
pub(crate) mod dirty;
#[cfg(all(test, loom))]
mod loom_tests;
pub(crate) mod pages;
pub(crate) mod quarantine;
pub(crate) mod space;
mod twin;
pub(crate) mod words;
