//! The metadata log (MS-VHDX 2.3) and the two headers that name it.
//!
//! `headers.rs` rewrites the header pair in an order that always leaves one good header; `ring.rs` is the arithmetic of the
//! ring buffer; `writer.rs` appends batches and brings pages home; `replay.rs` reads a log that somebody left behind,
//! through `window.rs`, and brings it to disk or lays it over the file (`overlay.rs`).

pub(crate) mod headers;
pub(crate) mod overlay;
pub(crate) mod replay;
pub(crate) mod ring;
pub(crate) mod window;
pub(crate) mod writer;
