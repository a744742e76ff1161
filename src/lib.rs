//! diffdisk: a copy-on-write virtual disk engine that reads and writes real VHDX files.
//!
//! One big *image* of a database can be handed out as any number of writable *clones*: differencing VHDX files that appear in
//! milliseconds, hold only the sectors that changed, never see each other and never touch the image.
//!
//! ```
//! use diffdisk::{CreateOptions, Disk};
//! # let dir = tempfile::tempdir()?;
//! # let at = |name: &str| dir.path().join(name);
//! let image = Disk::create(at("app.vhdx"), &CreateOptions::dynamic(1 << 30))?;
//! image.write_at(b"the golden content", 0)?;
//! image.close()?;
//!
//! let clone = Disk::create_child(at("alice.vhdx"), at("app.vhdx"), &CreateOptions::child())?;
//! clone.write_at(b"my", 0)?;
//! clone.flush()?;
//! let mut seen = [0; 18];
//! clone.read_at(&mut seen, 0)?;
//! assert_eq!(&seen, b"mye golden content");
//! clone.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * [`Disk`] is a leaf with its whole chain: [`Disk::open`], [`Disk::create`], [`Disk::create_child`].
//! * [`storage`] is the door to the outside: bring your own files, or use the crash simulator (feature `sim`).
//! * [`format`](mod@format) turns bytes into checked values and back, without I/O.
//!
//! What survives a crash, and how that is tested, stands in `docs/guarantees.md`; how the source is laid out in
//! `docs/architecture.md`; how to embed it in `docs/agents-guide.md`.

mod chain;
mod disk;
pub mod export;
pub mod format;
pub mod geometry;
mod guid;
#[cfg(feature = "store")]
mod image;
mod kind;
mod log;
mod mapping;
mod progress;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod storage;
mod sync;
mod tools;
pub mod units;

pub use chain::{
    ChainError, CreateError, CreateOptions, Disk, DiskInfo, DiskKind, Extent, ExtentKind, Extents, FlushMode, HostExtent, LayerInfo,
    LinkProof, LiveDisk, LiveExtents, MAX_CHAIN_DEPTH, OpenError, OpenOptions, ParentInfo, ParentPolicy, RelinkError, Sizes, SwitchError,
    Switched, WriteToken,
};
pub use disk::check::{CheckReport, Consent, Finding, Repair, Severity, Subject};
pub use disk::compact::{CompactOptions, CompactReport};
pub use disk::error::DiskError;
pub use disk::repair::RepairStep;
pub use guid::{DataWriteGuid, FileWriteGuid, Guid, GuidParseError, LogGuid};
#[cfg(feature = "store")]
pub use image::{
    BookFault, BookFinding, Catalog, CloneBase, CloneDisk, CloneId, CloneOptions, CloneState, CloneSummary, Dropped, ExaminedFiles,
    IfExists, Image, ImageOptions, ImageRef, LiveClone, Manifest, Origin, Problem, Pruned, Repaired, ResetOptions, Saved, Savepoint,
    Source, SourceInfo, Step, StepCost, Store, StoreError, StoreReport, Sweep, Swept, Timestamp, Verified, relink_proven,
};
#[cfg(all(feature = "store", unix))]
pub use image::{Control, ControlStopper};
pub use kind::{ErrorKind, Structure};
pub use progress::{Cancel, NoProgress, Phase, Progress};
pub use tools::{
    Change, ChangeKind, CompareOptions, Content, ConvertOptions, Converted, DiffOptions, Hydrated, MergeOptions, Merged, RebaseOptions,
    Rebased, RepairOptions, RepairReport, ResizeOptions, Resized, ToolError, compare, convert, convert_on, copy_out, diff, is_zero,
    merge_into, merge_into_on, merge_to, rebase, rebase_on, walk,
};

/// The examples of the agents' guide are compiled and run with the others.
#[cfg(doctest)]
#[doc = include_str!("../docs/agents-guide.md")]
struct AgentsGuide;
