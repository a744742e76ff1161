//! What a power cut decides: which of the pending atoms landed, and how what did not land whole reads.

use std::fmt;

/// What sort of bytes an atom touches. All-or-nothing choices are made for each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the words of the format")]
pub enum Class {
    HeaderA,
    HeaderB,
    Log,
    Bat,
    Bitmap,
    Metadata,
    Payload,
    Length,
    Directory,
}

/// What happens to a piece that landed beyond the end of a file whose lengthening was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BeyondEnd {
    /// It is gone.
    #[default]
    Vanish,
    /// It lengthens the file; the gap reads as fresh space does.
    Extend,
}

/// How space reads that lengthened a file and was never synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FreshSpace {
    /// As zeros.
    #[default]
    Zeros,
    /// As something else.
    Junk,
}

/// What became of the one piece that was being written when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flight {
    /// It reads as junk.
    Junk,
    /// It does not read at all.
    Unreadable,
}

/// What was being written when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Torn {
    /// The atom in flight.
    pub atom: usize,
    /// A second one: both headers may be under way at once, and then both may be torn.
    pub twin: Option<usize>,
    /// What became of them.
    pub how: Flight,
}

/// One legal outcome of a power cut.
#[derive(Clone, PartialEq, Eq)]
pub struct Choice {
    /// For each atom pending at the cut, whether it landed.
    pub kept: Vec<bool>,
    /// Where pieces beyond a lost end go.
    pub beyond: BeyondEnd,
    /// How unsynced new space reads.
    pub space: FreshSpace,
    /// What was in flight, if this choice tears anything.
    pub flight: Option<Torn>,
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.iter().filter(|&&kept| kept).count();
        write!(f, "{kept} of {} atoms landed [", self.kept.len())?;
        let bits: String = self.kept.iter().map(|&kept| if kept { '1' } else { '.' }).collect();
        write!(f, "{bits}], beyond the end: {:?}, fresh space: {:?}, in flight: {:?}", self.beyond, self.space, self.flight)
    }
}
