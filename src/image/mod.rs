//! Images and clones: what a data owner, a developer and a clone agent do all day.
//!
//! A [`Store`] is a directory, and the directory is the catalogue. There is no database beside it: what a listing says is what
//! the files say, and a file that was copied in or removed by hand is noticed rather than contradicted.
//!
//! ```text
//! STORE/.diffdisk-store          makes the directory a store; holds its identity
//! STORE/app/3.vhdx               generation 3 of image app, sealed, read-only
//! STORE/app/3.blake3             digest of each of its blocks
//! STORE/app/3.json               its manifest. Written last: without it there is no generation 3
//! STORE/app/3.disabled           there while no new clones may be made of it
//! STORE/.clones/ID.json          one record for each clone, wherever the clone is
//! STORE/.work/                   images that are being made
//! STORE/.index                   cache for listings; may be deleted at any time
//!
//! anywhere/alice.vhdx            a clone: a differencing disk, usable by any VHDX software
//! anywhere/alice.vhdx.json       its sidecar: whose clone it is, savepoints, protection, expiry
//! anywhere/alice.NAME.avhdx      a savepoint of it
//! anywhere/alice.vhdx.control    there while somebody serves it: takes requests to save it
//! ```
//!
//! # How twenty processes share a store without a lock of the store
//!
//! Nothing is shared that two processes would have to write. A clone has one record, named by a random number, and one sidecar;
//! creating one touches no file of another. What must exclude each other does so pairwise:
//!
//! - *Two creations of one clone* meet at the sidecar: it appears under its name once, by a rename that refuses to replace.
//! - *Two changes of one clone* meet at the lock of its sidecar, which every change holds from beginning to end (`files.rs`).
//! - *Creating a clone and removing its image* meet because each first says what it is about to do and then looks whether the
//!   other has spoken: a creation writes its record and then opens the image, a removal takes the image away and then reads the
//!   records. Whatever the order, at least one of them sees the other.
//! - *Two makers of one generation* meet at a lock file in `.work`.
//!
//! # What a crash leaves
//!
//! Every act has one step that makes it true, always a rename or an unlink of one file: the manifest for an image, the leaf for a
//! clone. What comes before leaves files that nobody takes for an image or a clone, what comes after is tidying; both are finished by
//! [`Store::sweep`]. A lock that somebody holds tells a creation in progress from one that died.

mod catalog;
mod check;
mod clock;
mod clone;
#[cfg(unix)]
mod control;
mod create;
mod digest;
mod error;
mod files;
mod flatten;
mod fold;
#[expect(clippy::module_inception, reason = "the floor and the noun in it have one name: house style")]
mod image;
mod live;
mod load;
mod manifest;
mod names;
mod onto;
mod open;
mod prove;
mod record;
mod registry;
mod remove;
mod repair;
mod savepoint;
mod seal;
mod source;
mod steps;
mod sweep;

pub use catalog::{Catalog, Problem, Store};
pub use check::{BookFault, BookFinding, ExaminedFiles, StoreReport};
pub use clock::Timestamp;
pub use clone::{CloneDisk, Origin, ResetOptions};
#[cfg(unix)]
pub use control::{Control, ControlStopper};
pub use create::{CloneOptions, IfExists};
pub use error::StoreError;
pub use fold::Dropped;
pub use image::{Image, ImageOptions};
pub use live::{LiveClone, Saved};
pub use manifest::{Manifest, SourceInfo};
pub use names::ImageRef;
pub use prove::relink_proven;
pub use record::{CloneId, Savepoint, StepCost};
pub use registry::{CloneBase, CloneState, CloneSummary};
pub use remove::Pruned;
pub use repair::Repaired;
pub use seal::Verified;
pub use source::Source;
pub use steps::Step;
pub use sweep::{Sweep, Swept};
