//! The other one, where two structures claim the same bytes.

use crate::kind::Structure;
use crate::units::FileOffset;
use std::fmt;

/// What lies where something else lies, too: enough to find it in the file.
///
/// ```
/// use diffdisk::Structure;
/// use diffdisk::format::Neighbour;
/// use diffdisk::units::FileOffset;
///
/// let region = Neighbour::fixed(Structure::Log, FileOffset::new(1 << 20));
/// assert_eq!(region.to_string(), "the log at 0x100000");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// What it is.
    pub structure: Structure,
    /// Where its bytes start in the file.
    pub at: FileOffset,
    /// Of a payload block its number, of a sector bitmap block its chunk's.
    pub number: Option<u32>,
    /// The BAT entry that says so; `None` for what lies at a fixed place.
    pub entry: Option<FileOffset>,
}

impl Neighbour {
    /// A region, the log, or the header section.
    pub fn fixed(structure: Structure, at: FileOffset) -> Self {
        Self { structure, at, number: None, entry: None }
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.structure, self.number) {
            (Structure::PayloadBlock, Some(block)) => write!(f, "payload block {block}")?,
            (Structure::SectorBitmap, Some(chunk)) => write!(f, "the sector bitmap block of chunk {chunk}")?,
            (structure, _) => write!(f, "the {structure}")?,
        }
        write!(f, " at {}", self.at)?;
        self.entry.map_or(Ok(()), |entry| write!(f, " (BAT entry at {entry})"))
    }
}
