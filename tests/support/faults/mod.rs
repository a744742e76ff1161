//! What the fault tests share: short scripts, a ledger of what each piece may hold, and a rig that performs a script on storage
//! that fails at a chosen call.
//!
//! Nothing here knows how the engine works, save which bytes of a file are its headers.

pub mod ledger;
pub mod rig;
pub mod script;
