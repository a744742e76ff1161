//! A leaf and its parents: which files may be parents, and what goes wrong while finding them.

mod error;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "called by the code that opens chains, which comes next"))]
pub(crate) mod gate;

pub use error::ChainError;
pub use gate::ParentPolicy;
