//! What is known of a clone: its sidecar beside it, and the store's record of it.
//!
//! Both files hold the same [`Record`]. The sidecar counts: it moves with the clone. The store's copy is how the store finds its
//! clones and lists them without touching ten thousand directories. What even the sidecar says about savepoints is checked against
//! the identities in the VHDX files (`open.rs`), because a crash may come between the two.

use super::StoreError;
use super::clock::Timestamp;
use super::files::{guid_text, guid_text_if_any};
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
    /// The identity of what it stands on: another savepoint or the image; `None` when it stands alone, in a clone that was flattened.
    #[serde(default, with = "guid_text_if_any", skip_serializing_if = "Option::is_none")]
    pub parent: Option<Guid>,
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
    /// What it stands on below its savepoints.
    #[serde(flatten)]
    pub(super) ground: Ground,
    /// Set while somebody cuts the link to the image (`flatten.rs`): the file knows whether that is done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) flattening: bool,
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

/// What a clone stands on below its savepoints. A clone that was flattened stands on nothing, so there is no image that it could name as
/// its own; which one it came from is only told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "GroundWire", into = "GroundWire")]
pub(super) enum Ground {
    Image(ImageNote),
    Alone {
        /// Where its content came from.
        from: ImageNote,
        /// When the link was cut.
        since: Timestamp,
    },
}

/// An image as a record names it. The identity counts; name and generation are where it was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageNote {
    pub(super) name: String,
    pub(super) generation: u32,
    pub(super) guid: Guid,
}

impl ImageNote {
    pub(super) fn reference(&self) -> String {
        format!("{}@{}", self.name, self.generation)
    }
}

impl Ground {
    /// The identity of the image that the clone needs.
    pub(super) fn image(&self) -> Option<Guid> {
        match self {
            Self::Image(note) => Some(note.guid),
            Self::Alone { .. } => None,
        }
    }

    /// The image that the clone stands on or came from.
    pub(super) fn note(&self) -> &ImageNote {
        match self {
            Self::Image(note) | Self::Alone { from: note, .. } => note,
        }
    }

    /// The same without the image, if there is one.
    pub(super) fn cut(&self) -> Self {
        match self {
            Self::Image(note) => Self::Alone { from: note.clone(), since: Timestamp::now() },
            Self::Alone { .. } => self.clone(),
        }
    }
}

/// [`Ground`] as JSON has it: the three keys of an image, or one that tells of the flattening.
#[derive(Serialize, Deserialize)]
struct GroundWire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    #[serde(default, with = "guid_text_if_any", skip_serializing_if = "Option::is_none")]
    image_guid: Option<Guid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flattened: Option<FlattenedWire>,
}

#[derive(Serialize, Deserialize)]
struct FlattenedWire {
    image: String,
    generation: u32,
    #[serde(with = "guid_text")]
    image_guid: Guid,
    at: Timestamp,
}

impl TryFrom<GroundWire> for Ground {
    type Error = &'static str;

    fn try_from(wire: GroundWire) -> Result<Self, Self::Error> {
        match wire {
            GroundWire { image: Some(name), generation: Some(generation), image_guid: Some(guid), flattened: None } => {
                Ok(Self::Image(ImageNote { name, generation, guid }))
            }
            GroundWire { image: None, generation: None, image_guid: None, flattened: Some(was) } => {
                let from = ImageNote { name: was.image, generation: was.generation, guid: was.image_guid };
                Ok(Self::Alone { from, since: was.at })
            }
            GroundWire { flattened: Some(_), .. } => Err("it names an image and says that the clone was flattened"),
            GroundWire { flattened: None, .. } => Err("it does not say which image the clone stands on"),
        }
    }
}

impl From<Ground> for GroundWire {
    fn from(ground: Ground) -> Self {
        let none = Self { image: None, generation: None, image_guid: None, flattened: None };
        match ground {
            Ground::Image(ImageNote { name, generation, guid }) => {
                Self { image: Some(name), generation: Some(generation), image_guid: Some(guid), ..none }
            }
            Ground::Alone { from, since } => {
                let was = FlattenedWire { image: from.name, generation: from.generation, image_guid: from.guid, at: since };
                Self { flattened: Some(was), ..none }
            }
        }
    }
}

impl Record {
    /// Whether the clone keeps this image from being removed.
    pub(super) fn needs(&self, image: Guid) -> bool {
        self.ground.image() == Some(image) || self.next_image.as_ref().is_some_and(|next| next.guid == image)
    }

    pub(super) fn savepoint(&self, name: &str) -> Option<&Savepoint> {
        self.savepoints.iter().find(|savepoint| savepoint.name == name)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ground: &str) -> String {
        format!(
            r#"{{"format":1,"id":"00112233-4455-6677-8899-aabbccddeeff","store":"00112233-4455-6677-8899-aabbccddeeff",
            "store_path":"/s","path":"/a.vhdx",{ground}"virtual_size":1048576,"created":"2026-03-01T12:00:00Z","created_by":"tess",
            "savepoints":[{{"name":"s","file":"a.s.avhdx","data_write_guid":"00112233-4455-6677-8899-aabbccddee00",
            "parent":"00112233-4455-6677-8899-aabbccddeeff","created":"2026-03-01T12:00:00Z"}}]}}"#
        )
    }

    const IMAGE: &str = r#""image":"app","generation":3,"image_guid":"00112233-4455-6677-8899-aabbccddeeff","#;
    const ALONE: &str =
        r#""flattened":{"image":"app","generation":3,"image_guid":"00112233-4455-6677-8899-aabbccddeeff","at":"2026-03-02T12:00:00Z"},"#;

    #[test]
    fn records_of_older_versions_are_read() {
        let record: Record = serde_json::from_str(&sample(IMAGE)).unwrap();
        assert_eq!((record.ground.note().reference().as_str(), record.flattening), ("app@3", false));
        let guid = record.ground.image().unwrap();
        assert!(record.needs(guid));
        assert_eq!(record.savepoints[0].parent, Some(guid));
    }

    #[test]
    fn what_is_written_is_read_and_says_one_thing() {
        for ground in [IMAGE, ALONE] {
            let record: Record = serde_json::from_str(&sample(ground)).unwrap();
            let text = serde_json::to_string(&record).unwrap();
            assert!(text.contains("\"generation\":3,\"image_guid\""), "{text}");
            assert_eq!(text.contains("flattened"), ground == ALONE, "{text}");
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        }
        let alone: Record = serde_json::from_str(&sample(ALONE)).unwrap();
        assert!(!alone.needs(alone.ground.note().guid), "it needs no image");
        for (lie, why) in [(format!("{IMAGE}{ALONE}"), "names an image and says"), (String::new(), "does not say which image")] {
            let e = serde_json::from_str::<Record>(&sample(&lie)).unwrap_err();
            assert!(e.to_string().contains(why), "{e}");
        }
    }
}
