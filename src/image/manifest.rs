//! The manifest of a sealed image: what it holds, where that came from, and how to tell whether it still does.

use super::clock::Timestamp;
use super::files::guid_text;
use super::record::StepCost;
use crate::guid::Guid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The manifest format that this version writes. Higher ones are not read.
pub(super) const FORMAT: u32 = 1;

/// `STORE/NAME/GENERATION.json`. Its presence is what makes the generation an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// The image's name when it was sealed. The directory's name counts.
    pub name: String,
    /// The generation.
    pub generation: u32,
    /// The identity of the content; clones link to it.
    #[serde(with = "guid_text")]
    pub data_write_guid: Guid,
    /// What a guest sees, in bytes.
    pub virtual_size: u64,
    /// Payload block size in bytes; also the unit of the digests.
    pub block_size: u64,
    /// 512 or 4096.
    pub logical_sector_size: u32,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// What the file system gave to it when it was sealed, in bytes.
    pub allocated: u64,
    /// Blocks that are not all zeros.
    pub data_blocks: u64,
    /// BLAKE3 of `GENERATION.blake3`, which has the BLAKE3 of each of those blocks.
    pub digest: String,
    /// When making it began.
    pub created: Timestamp,
    /// When it was sealed.
    pub sealed: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Where the content came from.
    pub source: SourceInfo,
    /// What was done to it between loading and sealing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modified_by: Vec<StepCost>,
    /// Whatever the maker wants to remember.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Manifest {
    /// `NAME@GENERATION`.
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.generation)
    }
}

/// Where an image's content came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SourceInfo {
    /// `raw`, `block_device`, `vhdx`, `directory` or `stream`.
    pub kind: String,
    /// The path, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Bytes of the source. The disk may be longer, being whole sectors.
    pub size: u64,
    /// When the source was last changed, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<Timestamp>,
}
