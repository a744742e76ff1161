//! Why entries of a log do not count: for examinations of files whose log has no valid sequence.

use super::{
    ActiveSequence, CHECKSUM_AT, Candidates, Descriptor, ENTRY_SIGNATURE, EntryHeader, Extent, Fault, FileOffset, FormatError, LogGuid,
    LogRing, PAGE, REGION_TABLES, Structure, WireHeader, crc32c_append, crc32c_with_field_zeroed, descriptors, descriptors_end,
    is_data_sector_of, len64, sector_of,
};
use crate::format::Neighbour;
use zerocopy::FromBytes;

/// Entries whose fault is told one by one.
const MOST_FAULTS: usize = 16;

/// What stands in a log, seen entry by entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogDiagnosis {
    /// Entries of this log that are whole.
    pub whole: usize,
    /// What is wrong with the first few that are not.
    pub faults: Vec<FormatError>,
}

/// Looks at every entry that carries `guid` in `ring`, the log that stands at `log_at`.
///
/// # Errors
/// When a sector cannot be read.
pub fn diagnose<R: LogRing>(ring: &mut R, log_at: FileOffset, guid: LogGuid) -> Result<LogDiagnosis, R::Error> {
    let whole = Candidates::find(ring, log_at, guid)?.valid().count();
    let mut faults = Vec::new();
    for first in 0..ring.sectors() {
        if let Some(fault) = entry_fault(ring, first, log_at, guid)? {
            let at = FileOffset::new(log_at.get().saturating_add(len64(first).saturating_mul(PAGE)));
            faults.push(FormatError::new(Structure::LogEntry, at, fault));
        }
        if faults.len() >= MOST_FAULTS {
            break;
        }
    }
    Ok(LogDiagnosis { whole, faults })
}

impl ActiveSequence {
    /// Fields of the newest entry that break a rule without spoiling the replay (MS-VHDX 2.3.1.1).
    pub fn oddities(&self, log_at: FileOffset) -> Vec<FormatError> {
        let Some((offset, head)) = self.entries.last() else { return Vec::new() };
        let at = FileOffset::new(log_at.get().saturating_add((*offset).into()));
        let fields = [("FlushedFileOffset", head.flushed_file_offset), ("LastFileOffset", head.last_file_offset)];
        let odd = fields.into_iter().filter(|(_, value)| !value.is_multiple_of(crate::units::MIB));
        odd.map(|(field, value)| FormatError::new(Structure::LogEntry, at, Fault::Field { field, value, rule: "not a multiple of 1 MiB" }))
            .collect()
    }
}

/// The first rule of MS-VHDX 2.3.1 that the entry at a sector breaks; the checksum comes last, because it covers what the others look at.
/// `None` for sound entries and for sectors that begin none of this log.
fn entry_fault<R: LogRing>(ring: &mut R, first: usize, log_at: FileOffset, guid: LogGuid) -> Result<Option<Fault>, R::Error> {
    let count = ring.sectors();
    let page = ring.sector(first)?;
    let Ok((wire, _)) = WireHeader::ref_from_prefix(page) else { return Ok(None) };
    if wire.signature != ENTRY_SIGNATURE || wire.log_guid != guid.get().to_bytes() {
        return Ok(None);
    }
    let (header, stored) = (EntryHeader::from_wire(wire), wire.checksum.get());
    let (entry, first_data) = match shape(&header, wire.reserved.get(), first, count) {
        Ok(shape) => shape,
        Err(fault) => return Ok(Some(fault)),
    };
    let log_end = len64(count).saturating_mul(PAGE).saturating_add(log_at.get());
    let mut computed = crc32c_with_field_zeroed(page, CHECKSUM_AT);
    let (mut left, mut pages) = (header.descriptor_count, 0_usize);
    for n in 0..entry.count {
        let Some(place) = entry.place(n) else { return Ok(None) };
        let page = ring.sector(place)?;
        if n > 0 {
            computed = crc32c_append(computed, page);
        }
        if n >= first_data {
            if !is_data_sector_of(page, header.sequence) {
                return Ok(Some(Fault::Text("a data sector has no signature, or is of another entry")));
            }
            continue;
        }
        for descriptor in descriptors(page, n == 0, &mut left, header.sequence) {
            let Some(descriptor) = descriptor else {
                return Ok(Some(Fault::Text("a descriptor is of no known kind, or of another entry")));
            };
            if let Some(fault) = target_fault(&descriptor, log_at.get(), log_end) {
                return Ok(Some(fault));
            }
            pages = pages.saturating_add(usize::from(matches!(descriptor, Descriptor::Data { .. })));
        }
    }
    if first_data.checked_add(pages) != Some(entry.count) {
        return Ok(Some(Fault::Field { field: "EntryLength", value: header.length.into(), rule: "not what its descriptors need" }));
    }
    Ok((stored != computed).then_some(Fault::Checksum { stored, computed }))
}

/// The sectors that an entry claims, and the number of its first data sector.
fn shape(header: &EntryHeader, reserved: u32, first: usize, count: usize) -> Result<(Extent, usize), Fault> {
    let field = |field, value: u64, rule| Err(Fault::Field { field, value, rule });
    if reserved != 0 {
        return Err(Fault::ReservedBits(reserved.into()));
    }
    if header.sequence == 0 {
        return field("SequenceNumber", 0, "but sequence numbers begin at 1");
    }
    if sector_of(header.tail).is_none_or(|tail| tail >= count) {
        return field("Tail", header.tail.into(), "no sector of the log");
    }
    let Some(entry) = Extent::at(count, first, header.length) else {
        return field("EntryLength", header.length.into(), "no whole number of sectors inside the log");
    };
    let Some(first_data) = descriptors_end(header).filter(|&end| end <= entry.count) else {
        return field("DescriptorCount", header.descriptor_count.into(), "more than the entry has room for");
    };
    Ok((entry, first_data))
}

/// Why a descriptor may not change what it names.
fn target_fault(descriptor: &Descriptor, log_at: u64, log_end: u64) -> Option<Fault> {
    let (home, length) = match *descriptor {
        Descriptor::Data { home, .. } => (home.get(), PAGE),
        Descriptor::Zero { home, length } => (home.get(), length),
    };
    let [tables, _] = REGION_TABLES;
    if !home.is_multiple_of(PAGE) || home < tables.get() || home.checked_add(length).is_none() {
        return Some(Fault::Field { field: "FileOffset", value: home, rule: "not where a log may write" });
    }
    if !length.is_multiple_of(PAGE) {
        return Some(Fault::Field { field: "ZeroLength", value: length, rule: "not a multiple of 4096" });
    }
    let other = Neighbour::fixed(Structure::Log, FileOffset::new(log_at));
    (home < log_end && log_at < home.saturating_add(length)).then_some(Fault::Overlap { start: home, other })
}
