//! Why entries of a log do not count: for examinations of files whose log has no valid sequence.

use super::{
    ActiveSequence, Candidates, DATA_SECTOR, Descriptor, ENTRY_SIGNATURE, EntryHeader, Fault, FileOffset, FormatError, LogGuid, PAGE,
    PAGE_LEN, Page, REGION_TABLES, Sectors, Structure, WireDataSector, WireHeader, descriptors, descriptors_end, halves, len64, sector_of,
};
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

/// Looks at every entry that carries `guid` in the ring `log`, which stands at `log_at`.
pub fn diagnose(log: &[u8], log_at: FileOffset, guid: LogGuid) -> LogDiagnosis {
    let (ring, _) = log.as_chunks::<PAGE_LEN>();
    let whole = Candidates::find(ring, log_at, guid).valid().count();
    let mut faults = Vec::new();
    for (first, page) in ring.iter().enumerate() {
        let Ok((wire, _)) = WireHeader::ref_from_prefix(page) else { continue };
        if wire.signature != ENTRY_SIGNATURE || wire.log_guid != guid.get().to_bytes() {
            continue;
        }
        if let Some(fault) = entry_fault(ring, first, log_at, wire) {
            let at = FileOffset::new(log_at.get().saturating_add(len64(first).saturating_mul(PAGE)));
            faults.push(FormatError::new(Structure::LogEntry, at, fault));
        }
        if faults.len() >= MOST_FAULTS {
            break;
        }
    }
    LogDiagnosis { whole, faults }
}

impl ActiveSequence {
    /// Fields of the newest entry that break a rule without spoiling the replay (MS-VHDX 2.3.1.1).
    pub fn oddities(&self, log_at: FileOffset) -> Vec<FormatError> {
        let Some((offset, head)) = self.entries.last() else { return Vec::new() };
        let at = FileOffset::new(log_at.get().saturating_add((*offset).into()));
        let fields = [("FlushedFileOffset", head.flushed_file_offset), ("LastFileOffset", head.last_file_offset)];
        let odd = fields.into_iter().filter(|(_, value)| !value.is_multiple_of(crate::units::MIB));
        odd.map(|(field, value)| {
            FormatError::new(Structure::LogEntry, at, Fault::Field { field, value, rule: "not a multiple of 1 MiB" })
        })
        .collect()
    }
}

/// The first rule of MS-VHDX 2.3.1 that an entry breaks; the checksum comes last, because it covers what the others look at.
fn entry_fault(ring: &[Page], first: usize, log_at: FileOffset, wire: &WireHeader) -> Option<Fault> {
    let field = |field, value: u64, rule| Some(Fault::Field { field, value, rule });
    let header = EntryHeader::from_wire(wire);
    if wire.reserved.get() != 0 {
        return Some(Fault::ReservedBits(wire.reserved.get().into()));
    }
    if header.sequence == 0 {
        return field("SequenceNumber", 0, "but sequence numbers begin at 1");
    }
    if sector_of(header.tail).is_none_or(|tail| tail >= ring.len()) {
        return field("Tail", header.tail.into(), "no sector of the log");
    }
    let Some(sectors) = Sectors::of(ring, first, header.length) else {
        return field("EntryLength", header.length.into(), "no whole number of sectors inside the log");
    };
    let Some(first_data) = descriptors_end(&header).filter(|&end| end <= sectors.count) else {
        return field("DescriptorCount", header.descriptor_count.into(), "more than the entry has room for");
    };
    let log_end = log_at.get().saturating_add(len64(ring.len()).saturating_mul(PAGE));
    let mut pages = 0_usize;
    for descriptor in descriptors(sectors, header) {
        let Some(descriptor) = descriptor else {
            return Some(Fault::Text("a descriptor is of no known kind, or of another entry"));
        };
        let (home, length) = match descriptor {
            Descriptor::Data { home, .. } => {
                pages = pages.saturating_add(1);
                (home.get(), PAGE)
            }
            Descriptor::Zero { home, length } => (home.get(), length),
        };
        let [tables, _] = REGION_TABLES;
        if !home.is_multiple_of(PAGE) || home < tables.get() || home.checked_add(length).is_none() {
            return field("FileOffset", home, "not where a log may write");
        }
        if !length.is_multiple_of(PAGE) {
            return field("ZeroLength", length, "not a multiple of 4096");
        }
        if home < log_end && log_at.get() < home.saturating_add(length) {
            return Some(Fault::Overlap(Structure::Log));
        }
    }
    if first_data.checked_add(pages) != Some(sectors.count) {
        return field("EntryLength", header.length.into(), "not what its descriptors need");
    }
    let [low, high] = halves(header.sequence);
    for n in first_data..sectors.count {
        let sector: &WireDataSector = zerocopy::transmute_ref!(sectors.get(n)?);
        if sector.signature != DATA_SECTOR {
            return Some(Fault::Signature);
        }
        if sector.sequence_high != high || sector.sequence_low != low {
            return Some(Fault::Text("a data sector is of another entry"));
        }
    }
    let (stored, computed) = (wire.checksum.get(), sectors.checksum());
    (stored != computed).then_some(Fault::Checksum { stored, computed })
}
