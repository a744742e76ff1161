//! One VHDX file: opening, creating, writing, trimming, flushing, checking, repairing, relinking. Parents are the next floor's business.

pub(crate) mod backing;
pub(crate) mod check;
pub(crate) mod compact;
pub(crate) mod create;
pub(crate) mod error;
pub(crate) mod flush;
pub(crate) mod host_io;
pub(crate) mod hydrate;
pub(crate) mod items;
pub(crate) mod layer;
pub(crate) mod repair;
pub(crate) mod resize;
pub(crate) mod riding;
pub(crate) mod trim;
pub(crate) mod write;
mod write_batch;
pub(crate) mod writer;
