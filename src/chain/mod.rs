//! A leaf and its parents: which files may be parents, how they become one disk, and what that disk can do.

pub(crate) mod ancestor;
mod batch;
mod check;
mod disk;
mod error;
pub(crate) mod examine;
mod extents;
pub(crate) mod gate;
mod info;
mod live;
pub(crate) mod merge;
mod open;
mod options;
mod relink;
mod switch;
mod touched;

pub use ancestor::MAX_CHAIN_DEPTH;
pub use disk::Disk;
pub(crate) use disk::Parents;
pub use error::{ChainError, CreateError, OpenError};
pub use extents::{Extent, ExtentKind, Extents, HostExtent, WriteToken};
pub use gate::ParentPolicy;
pub use info::{DiskInfo, DiskKind, LayerInfo, ParentInfo, Sizes};
pub use live::{LiveDisk, LiveExtents};
pub(crate) use open::locator;
pub use options::{CreateOptions, FlushMode, OpenOptions};
pub use relink::{LinkProof, RelinkError};
pub use switch::{SwitchError, Switched};
