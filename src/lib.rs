//! diffdisk: a copy-on-write virtual disk engine that reads and writes real VHDX files.

mod chain;
pub mod export;
pub mod format;
pub mod geometry;
mod guid;
mod kind;
pub mod storage;
mod sync;
pub mod units;

pub use chain::{ChainError, ParentPolicy};
pub use guid::{DataWriteGuid, FileWriteGuid, Guid, GuidParseError, LogGuid};
pub use kind::{ErrorKind, Structure};
