//! diffdisk: a copy-on-write virtual disk engine that reads and writes real VHDX files.

pub mod format;
pub mod geometry;
mod guid;
mod kind;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod storage;
mod sync;
pub mod units;

pub use guid::{DataWriteGuid, FileWriteGuid, Guid, GuidParseError, LogGuid};
pub use kind::{ErrorKind, Structure};
