//! Power cuts at file-system level: the real system calls of one act, and the directories that a cut may leave.

pub mod files;
pub mod trace;
pub mod walk;
