//! One VHDX file: opening, creating, writing, trimming, flushing, checking, relinking. Parents are the next floor's business.

pub(crate) mod backing;
pub(crate) mod check;
pub(crate) mod create;
pub(crate) mod error;
#[cfg_attr(not(test), expect(dead_code, reason = "merging and flattening use the rest of it"))]
pub(crate) mod flush;
pub(crate) mod host_io;
#[expect(dead_code, reason = "compacting, resizing, merging and flattening use the rest of it")]
pub(crate) mod items;
pub(crate) mod layer;
pub(crate) mod trim;
pub(crate) mod write;
mod write_batch;
#[expect(dead_code, reason = "compacting, resizing, merging and flattening use the rest of it")]
pub(crate) mod writer;
