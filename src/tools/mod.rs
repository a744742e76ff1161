//! Work on whole disks that takes its time: each verb can be watched ([`Progress`](crate::Progress)) and stopped
//! ([`Cancel`](crate::Cancel)), and leaves either what was there before or the finished result.
//!
//! What touches one open file, block by block, lives on the floors below (`disk/`, `chain/`); here stands what walks over a disk from
//! beginning to end, opens and creates files by name, and knows what to do when it is interrupted.

mod check;
mod error;

pub use check::{RepairOptions, RepairReport};
pub use error::ToolError;
