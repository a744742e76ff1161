//! Disks for others to use: what a disk looks like from the outside, and the servers that show it.
//!
//! [`BlockDevice`] is the narrow waist. Below it stands whatever keeps the bytes, an open VHDX chain in the first place; above
//! it stand servers that know a wire protocol and nothing of VHDX: `nbd` and, on Linux, `fuse`, each a feature of its name. A server gets an
//! `Arc<dyn BlockDevice>` and calls it from as many threads as it likes; the device does its own locking. Everything that a
//! protocol can ask and a device may be unable to do has a default that is right for a plain array of bytes, so that a test
//! double is four functions.

mod device;
mod disk;
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub mod fuse;
#[cfg(feature = "nbd")]
pub mod nbd;
mod storage;

pub use device::{BlockDevice, BlockSizes, DEPTH_NONE, DeviceExtent, ExtentClass};
pub use storage::StorageDevice;
