//! Examining a disk that is open, as it is in memory.

use super::entries::Entries;
use super::table::TableExam;
use super::{CheckReport, CheckStop, Collector, Repair, Severity};
use crate::disk::error::DiskError;
use crate::disk::layer::Layer;
use crate::format::{Fault, Header, HeaderSlot, REGION_TABLES, RegionTable, TABLE_LEN};
use crate::kind::Structure;
use crate::storage;
use crate::units::BatIndex;

/// Everything about one layer.
pub(crate) fn examine(layer: &Layer, number: usize, report: &mut CheckReport) -> Result<(), DiskError> {
    let mut out = Collector::new(report, number);
    headers(layer, &mut out);
    region_tables(layer, &mut out);
    let file_len = storage::len(&*layer.file)?;
    let mut exam = TableExam::new(&layer.bat, layer.geometry, layer.has_parent(), file_len);
    exam.entries(&LayerEntries(layer), &mut out).map_err(stopped)?;
    exam.space(layer.is_fixed(), &mut out);
    Ok(())
}

/// Only what a guest could turn against the host: blocks that lie over anything.
pub(crate) fn examine_overlap(layer: &Layer, number: usize, report: &mut CheckReport) -> Result<(), DiskError> {
    let file_len = storage::len(&*layer.file)?;
    let mut exam = TableExam::new(&layer.bat, layer.geometry, layer.has_parent(), file_len);
    exam.entries(&LayerEntries(layer), &mut Collector::new(report, number)).map_err(stopped)
}

fn stopped(stop: CheckStop) -> DiskError {
    match stop {
        CheckStop::Storage(e) => e.into(),
        CheckStop::Cancelled => unreachable!("nobody can ask for a stop"),
    }
}

/// The table of an open layer: what is in memory counts, not what the file has.
struct LayerEntries<'a>(&'a Layer);

impl Entries for LayerEntries<'_> {
    fn each(&self, _out: &mut Collector<'_>, each: &mut dyn FnMut(BatIndex, u64, &mut Collector<'_>)) -> Result<(), CheckStop> {
        let out = _out;
        self.0.bat.walk(&*self.0.file, u64::MAX, |index, word| -> Result<(), CheckStop> {
            each(index, word, out);
            Ok(())
        })?;
        Ok(())
    }

    fn word(&self, index: BatIndex) -> Option<u64> {
        // An entry that is refused is told about where it stands.
        self.0.bat.load(index, &*self.0.file).ok()
    }
}

fn headers(layer: &Layer, out: &mut Collector<'_>) {
    for slot in [HeaderSlot::One, HeaderSlot::Two] {
        let mut bytes = [0; 4096];
        // One good header is enough, so one that cannot be read is no worse than one that is torn.
        let fault = match storage::read_exact(&*layer.original, &mut bytes, slot.offset().get()) {
            Ok(()) => Header::parse(slot, &bytes).err().map(|e| e.fault),
            Err(e) => Some(Fault::Unreadable(e.source.to_string())),
        };
        if let Some(fault) = fault {
            out.add(Severity::Warning, Repair::Repairable, Structure::Header, slot.offset(), fault);
        }
    }
}

fn region_tables(layer: &Layer, out: &mut Collector<'_>) {
    let mut good = Vec::new();
    for at in REGION_TABLES {
        let mut bytes = vec![0; TABLE_LEN];
        let table = storage::read_exact(&*layer.file, &mut bytes, at.get())
            .map_err(|e| Fault::Unreadable(e.source.to_string()))
            .and_then(|()| RegionTable::parse(at, &bytes).map_err(|e| e.fault));
        match table {
            Ok(table) => good.push(table),
            Err(fault) => out.add(Severity::Warning, Repair::Repairable, Structure::RegionTable, at, fault),
        }
    }
    if let [one, two] = &good[..]
        && one.entries != two.entries
    {
        out.add(Severity::Warning, Repair::Repairable, Structure::RegionTable, REGION_TABLES[1], Fault::CopiesDiffer);
    }
}
