//! Contents of a piece that name their origin, so that a wrong byte says where it came from.

use std::sync::Arc;

/// Bytes in a piece: the smallest unit that media keep whole.
pub const PIECE: usize = 512;

/// What a piece holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Zero,
    /// What the parent has here.
    Parent,
    /// The pattern of one write.
    Tag(u64),
    /// A write that covered part of a piece left this.
    Bytes(Arc<[u8; PIECE]>),
}

/// The tag under which the parent's pattern is made.
const PARENT: u64 = 0x7A_7A7A;
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The first word of a pattern; each further one is a step away, so that patterns are made and compared many words at a time.
fn first_word(tag: u64, piece: u64) -> u64 {
    let mixed = (tag << 40 | piece).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed ^ mixed >> 29).wrapping_mul(0x94D0_49BB_1331_11EB) | 1
}

impl Value {
    fn tag(&self) -> Option<u64> {
        match self {
            Self::Zero | Self::Bytes(_) => None,
            Self::Parent => Some(PARENT),
            Self::Tag(tag) => Some(*tag),
        }
    }

    pub fn bytes(&self, piece: u64) -> [u8; PIECE] {
        let mut out = [0; PIECE];
        if let Self::Bytes(bytes) = self {
            return **bytes;
        }
        let Some(tag) = self.tag() else { return out };
        let mut word = first_word(tag, piece);
        for part in out.as_chunks_mut::<8>().0 {
            *part = word.to_le_bytes();
            word = word.wrapping_add(STEP);
        }
        out
    }

    /// Whether a piece that begins with these bytes may be of this pattern.
    pub fn begins(&self, piece: u64, bytes: &[u8]) -> bool {
        self.tag().is_some_and(|tag| bytes[..8] == first_word(tag, piece).to_le_bytes())
    }

    pub fn matches(&self, piece: u64, bytes: &[u8]) -> bool {
        match self {
            Self::Zero => return bytes == [0; PIECE],
            Self::Bytes(have) => return bytes == have.as_slice(),
            Self::Parent | Self::Tag(_) => {}
        }
        let first = first_word(self.tag().expect("patterns have tags"), piece);
        let difference = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .zip(0_u64..)
            .fold(0, |difference, (part, i)| difference | (u64::from_le_bytes(*part) ^ first.wrapping_add(i.wrapping_mul(STEP))));
        difference == 0
    }
}
