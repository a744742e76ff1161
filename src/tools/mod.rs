//! Work on whole disks that takes its time: each verb can be watched ([`Progress`](crate::Progress)) and stopped
//! ([`Cancel`](crate::Cancel)), and leaves either what was there before or the finished result.
//!
//! What touches one open file, block by block, lives on the floors below (`disk/`, `chain/`); here stands what walks over a disk from
//! beginning to end, opens and creates files by name, and knows what to do when it is interrupted.

mod apply;
mod buffer;
mod check;
mod chunks;
mod compact;
mod compare;
mod content;
mod convert;
mod crew;
mod diff;
mod error;
mod hydrate;
mod make;
mod merge;
mod pairs;
mod rebase;
mod resize;
mod walk;

pub use buffer::is_zero;
pub use check::{RepairOptions, RepairReport};
pub use compare::{CompareOptions, compare};
pub use content::Content;
pub use convert::{ConvertOptions, Converted, convert, convert_on};
pub use diff::{Change, ChangeKind, DiffOptions, diff};
pub use error::ToolError;
pub use hydrate::Hydrated;
pub use merge::{MergeOptions, Merged, merge_into, merge_into_on, merge_to};
pub use rebase::{RebaseOptions, Rebased, rebase, rebase_on};
pub use resize::{ResizeOptions, Resized};
pub use walk::{copy_out, walk};
