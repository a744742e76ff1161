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

fn word(tag: u64, piece: u64, i: u64) -> u64 {
    (tag << 40 | piece << 8 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

/// The tag under which the parent's pattern is made.
const PARENT: u64 = 0x7A_7A7A;

impl Value {
    pub fn bytes(&self, piece: u64) -> [u8; PIECE] {
        let mut out = [0; PIECE];
        let tag = match self {
            Self::Zero => return out,
            Self::Bytes(bytes) => return **bytes,
            Self::Parent => PARENT,
            Self::Tag(tag) => *tag,
        };
        for (i, part) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *part = word(tag, piece, i as u64).to_le_bytes();
        }
        out
    }

    /// The first eight bytes of a pattern.
    pub fn first_word(&self, piece: u64) -> [u8; 8] {
        match self {
            Self::Parent => word(PARENT, piece, 0),
            Self::Tag(tag) => word(*tag, piece, 0),
            Self::Zero | Self::Bytes(_) => 0,
        }
        .to_le_bytes()
    }

    pub fn matches(&self, piece: u64, bytes: &[u8]) -> bool {
        let tag = match self {
            Self::Zero => return bytes == [0; PIECE],
            Self::Bytes(have) => return bytes == have.as_slice(),
            Self::Parent => PARENT,
            Self::Tag(tag) => *tag,
        };
        bytes.as_chunks::<8>().0.iter().zip(0..).all(|(part, i)| *part == word(tag, piece, i).to_le_bytes())
    }
}
