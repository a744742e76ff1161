//! A leaf and its parents: which files may be parents, how they become one disk, and what that disk can do.

pub(crate) mod ancestor;
mod batch;
mod check;
mod disk;
mod error;
mod extents;
pub(crate) mod gate;
mod info;
mod live;
mod open;
mod options;
mod relink;
mod switch;
mod touched;

pub use ancestor::MAX_CHAIN_DEPTH;
pub use disk::Disk;
pub use error::{ChainError, CreateError, OpenError};
pub use extents::{Extent, ExtentKind, Extents, HostExtent, WriteToken};
pub use gate::ParentPolicy;
pub use info::{DiskInfo, DiskKind, LayerInfo, ParentInfo, Sizes};
pub use live::{LiveDisk, LiveExtents};
pub use options::{CreateOptions, OpenOptions};
pub use relink::{LinkProof, RelinkError};
pub use switch::{SwitchError, Switched};
