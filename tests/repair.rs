//! Examining files that need not open, and repairing them.
//!
//! The damaged files are those of the hostile table (`hostile/`, forged by a second VHDX writer that shares no code with the engine), the
//! corpus, and some more that hold several faults at once. Over all of them: every file has its expected findings, word for word; a repair
//! never makes a readable disk unreadable nor changes what it reads, is done when it has been done once, and what it says is repaired is
//! gone. Crashes and faults in the middle of a repair are enumerated.

#[path = "support/alloc.rs"]
mod alloc;
#[path = "hostile/blocks.rs"]
mod blocks;
#[path = "support/cases.rs"]
mod cases;
#[path = "repair/content.rs"]
mod content;
#[path = "repair/corpus.rs"]
mod corpus;
#[path = "repair/crash.rs"]
mod crash;
#[path = "repair/damage.rs"]
mod damage;
#[expect(dead_code, reason = "the corpus test needs the digests, this one the sparse one")]
#[path = "support/digest.rs"]
mod digest;
#[path = "repair/faults.rs"]
mod faults;
#[path = "repair/findings.rs"]
mod findings;
#[expect(dead_code, reason = "files are built in memory here")]
#[path = "support/forge.rs"]
mod forge;
#[path = "hostile/head.rs"]
mod head;
#[path = "hostile/journal.rs"]
mod journal;
#[path = "support/loud.rs"]
mod loud;
#[path = "repair/mend.rs"]
mod mend;
#[path = "hostile/meta.rs"]
mod meta;
#[path = "repair/shared.rs"]
mod shared;
#[path = "repair/single.rs"]
mod single;
#[expect(dead_code, reason = "the rows are used here, and judged by other laws")]
#[path = "hostile/table.rs"]
mod table;
#[path = "support/unpack.rs"]
mod unpack;
#[path = "hostile/vectors.rs"]
mod vectors;
