//! diffdisk: a copy-on-write virtual disk engine that reads and writes real VHDX files.

mod chain;
mod disk;
pub mod export;
pub mod format;
pub mod geometry;
mod guid;
mod kind;
mod log;
mod mapping;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod storage;
mod sync;
pub mod units;

pub use chain::{
    ChainError, CreateError, CreateOptions, Disk, DiskInfo, DiskKind, Extent, ExtentKind, Extents, HostExtent, LayerInfo, MAX_CHAIN_DEPTH,
    OpenError, OpenOptions, ParentInfo, ParentPolicy, Sizes, WriteToken,
};
pub use disk::check::{CheckReport, Finding};
pub use disk::error::DiskError;
pub use guid::{DataWriteGuid, FileWriteGuid, Guid, GuidParseError, LogGuid};
pub use kind::{ErrorKind, Structure};
