//! One VHDX file: opening, creating, writing, trimming, flushing, checking, repairing, relinking. Parents are the next floor's business.

pub(crate) mod backing;
pub(crate) mod check;
pub(crate) mod create;
pub(crate) mod error;
pub(crate) mod flush;
pub(crate) mod host_io;
pub(crate) mod layer;
pub(crate) mod relink;
pub(crate) mod repair;
pub(crate) mod trim;
pub(crate) mod write;
pub(crate) mod writer;
