//! Examining a disk and the chain it stands on.

use super::disk::Disk;
use super::error::OpenError;
use crate::disk::check::{CheckReport, live};
use crate::disk::error::DiskError;
use crate::format::FormatError;

impl Disk {
    /// Examines every file of the chain: both headers and region tables, every BAT entry, overlap of anything with anything,
    /// sector bitmaps, space that nobody owns. What opening refuses never gets here.
    ///
    /// # Errors
    /// Only when a file cannot be read; what is wrong with its content is in the report.
    pub fn check(&self) -> Result<CheckReport, DiskError> {
        let mut report = CheckReport::default();
        for (number, layer) in self.layers().enumerate() {
            live::examine(layer, number, &mut report)?;
        }
        Ok(report)
    }

    /// Refuses files in which a block lies over another one or over the file's own structures.
    pub(crate) fn refuse_overlaps(&self) -> Result<(), OpenError> {
        let mut report = CheckReport::default();
        for (number, layer) in self.layers().enumerate() {
            live::examine_overlap(layer, number, &mut report)?;
        }
        match report.errors.into_iter().next() {
            None => Ok(()),
            Some(finding) => Err(FormatError::new(finding.structure, finding.at, finding.fault).into()),
        }
    }
}
