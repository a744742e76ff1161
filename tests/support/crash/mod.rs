//! What the crash tests share: scripts, a ledger of what each piece may hold, and the check of one crash image.
//!
//! Nothing here knows how the engine works. A [`run::Run`] performs operations on a disk in a simulated world and writes down when
//! each was issued and done; [`check`] takes an image that a power cut may have left and holds it against that ledger.

pub mod campaign;
pub mod check;
pub mod edited;
pub mod fixture;
pub mod ledger;
pub mod run;
pub mod script;
pub mod value;
