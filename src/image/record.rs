//! What is known of a clone: its sidecar beside it, and the store's record of it.
//!
//! Both files hold the same [`Record`]. The sidecar counts: it moves with the clone. The store's copy is how the store finds its
//! clones and lists them without touching ten thousand directories. What even the sidecar says about savepoints is checked against
//! the identities in the VHDX files (`open.rs`), because a crash may come between the two.

use super::StoreError;
use super::clock::Timestamp;
use super::files::guid_text;
use crate::guid::Guid;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The record format that this version writes. Higher ones are not read.
pub(super) const FORMAT: u32 = 1;

/// Names a clone for ever, whatever its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CloneId(#[serde(with = "guid_text")] Guid);

impl CloneId {
    pub(super) fn random() -> Self {
        Self(Guid::random())
    }
}

impl fmt::Display for CloneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CloneId {
    type Err = crate::guid::GuidParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A frozen state of a clone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Savepoint {
    /// Its name.
    pub name: String,
    /// Its file, beside the clone.
    pub file: String,
    /// The identity of its content.
    #[serde(with = "guid_text")]
    pub data_write_guid: Guid,
    /// The identity of what it stands on: another savepoint or the image.
    #[serde(with = "guid_text")]
    pub parent: Guid,
    /// When it was made.
    pub created: Timestamp,
    /// Set until the clone stands on it: a crash before that undoes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) pending: bool,
}

/// What one step cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepCost {
    /// The command.
    pub step: String,
    /// How long it took.
    pub milliseconds: u64,
    /// Bytes that the file system gave to the disk meanwhile.
    pub allocated: i64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) format: u32,
    pub(super) id: CloneId,
    /// The store that knows the clone.
    #[serde(with = "guid_text")]
    pub(super) store: Guid,
    /// Where that store was, for people.
    pub(super) store_path: PathBuf,
    /// Where the clone was when this was written.
    pub(super) path: PathBuf,
    /// The image under it.
    pub(super) image: String,
    pub(super) generation: u32,
    #[serde(with = "guid_text")]
    pub(super) image_guid: Guid,
    /// The image that a reset is about to put under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next_image: Option<NextImage>,
    /// The image's when the clone was put on it. What the clone has, which may have been resized since, its file says.
    pub(super) virtual_size: u64,
    pub(super) created: Timestamp,
    pub(super) created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires: Option<Timestamp>,
    #[serde(default)]
    pub(super) protected: bool,
    /// Set when a removal has begun, so that whoever comes after a crash knows that the savepoints are to go too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) removing: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) savepoints: Vec<Savepoint>,
    /// Savepoints that somebody has begun to drop: what stands on them changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) dropping: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) steps: Vec<StepCost>,
}

/// See [`Record::next_image`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NextImage {
    #[serde(with = "guid_text")]
    pub(super) guid: Guid,
}

impl Record {
    /// Whether the clone keeps this image from being removed.
    pub(super) fn needs(&self, image: Guid) -> bool {
        self.image_guid == image || self.next_image.as_ref().is_some_and(|next| next.guid == image)
    }

    pub(super) fn savepoint(&self, name: &str) -> Option<&Savepoint> {
        self.savepoints.iter().find(|savepoint| savepoint.name == name)
    }

    pub(super) fn image_reference(&self) -> String {
        format!("{}@{}", self.image, self.generation)
    }

    /// Refuses records of versions to come.
    pub(super) fn check_format(&self, path: &Path) -> Result<(), StoreError> {
        if self.format == FORMAT {
            return Ok(());
        }
        let what = format!("it is of format {}, and this version knows {FORMAT}", self.format);
        Err(StoreError::Damaged { path: path.to_path_buf(), what, next: "use a newer diffdisk" })
    }
}
