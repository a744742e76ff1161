//! What a server offers: disks under names.

use super::error::NbdError;
use super::proto::MAX_STRING;
use crate::export::BlockDevice;
use crate::sync::Arc;
use std::fmt;

/// A disk under a name.
#[derive(Clone)]
pub struct Export {
    name: String,
    about: String,
    read_only: bool,
    device: Arc<dyn BlockDevice>,
}

impl Export {
    /// Offers a disk. The empty name is the default export, what clients get that do not ask for a name.
    pub fn new(name: impl Into<String>, device: Arc<dyn BlockDevice>) -> Self {
        Self { name: name.into(), about: String::new(), read_only: false, device }
    }

    /// A line for people who list the exports.
    #[must_use]
    pub fn description(mut self, about: impl Into<String>) -> Self {
        self.about = about.into();
        self
    }

    /// Refuses every change, even if the device would take it.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn about(&self) -> &str {
        &self.about
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device)
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("name", &self.name).field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// Exports with different names.
#[derive(Debug, Default)]
pub(super) struct ExportList(Vec<Export>);

impl ExportList {
    pub(super) fn add(&mut self, export: Export) {
        self.0.push(export);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Export> {
        self.0.iter()
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<&Export> {
        self.0.iter().find(|export| export.name.as_bytes() == name)
    }

    pub(super) fn check(&self) -> Result<(), NbdError> {
        if self.0.is_empty() {
            return Err(NbdError::NoExport);
        }
        for (at, export) in self.0.iter().enumerate() {
            if !is_good_name(&export.name) || !is_good_name(&export.about) {
                return Err(NbdError::BadName);
            }
            if self.0[..at].iter().any(|other| other.name == export.name) {
                return Err(NbdError::DuplicateExport(export.name.clone()));
            }
        }
        Ok(())
    }
}

/// Whether a string may be the name of an export.
fn is_good_name(name: &str) -> bool {
    name.len() <= MAX_STRING && !name.contains('\0')
}
