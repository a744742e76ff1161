//! Examining a file as bytes, whether or not it opens.
//!
//! ```text
//! identifier ─ headers ─ log ─ region tables ─ metadata ─ BAT ─ space
//!                 │        └ replayed into memory; what follows is read through that
//!                 └ none that counts: only the region tables are left, which carry their own checksums
//! ```
//!
//! Each step tells what is wrong with its structure and goes on where the next one can still be trusted. A dirty log that cannot be
//! replayed leaves the structures as they stand in the file; they are examined all the same, because whether they make sense without the
//! log is what decides if the file can be saved. Beside the findings an examination yields the [`Plan`]: what a repair would do. Nothing
//! is written, and no more is held in memory than one bit for each MiB of the file, a log of 64 MiB at most, and the list of fixes.

use super::entries::Entries;
use super::table::{EntryFix, TableExam};
use super::{CheckReport, CheckStop, Collector, Consent, Repair, Severity, Watch, metadata};
use crate::format::{
    self, Fault, FormatError, HEADER_SECTION, Header, HeaderSlot, METADATA_REGION, Metadata, REGION_TABLES, Region, RegionTable, TABLE_LEN,
    choose_header,
};
use crate::format::{BAT_REGION, parse_identifier};
use crate::geometry::Geometry;
use crate::kind::Structure;
use crate::log::headers::{HeaderError, Spare};
use crate::log::overlay::{Outcome, Overlay};
use crate::log::window::Window;
use crate::mapping::bat::{BatTable, Fences};
use crate::storage::{self, Operation, Storage, StorageError};
use crate::units::{BatIndex, FileOffset, PAGE_LEN};
use std::sync::Arc;

/// Entries that are looked at: as many as the largest disk needs (MS-VHDX 2.5). A region may have room for more than its own disk needs,
/// and what stands there counts when it comes to cutting off the end of the file.
const MOST_ENTRIES: u64 = 67_125_248;
/// Bytes of the BAT that are read at a time.
const PIECE: usize = 128 << 10;

/// What a repair would do, in the order in which it does it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// What the caller has to accept first.
    pub(crate) consents: Vec<Consent>,
    /// The headers are written anew: the spare one is torn, or says something else.
    pub(crate) headers: bool,
    /// The log holds changes that have to go home.
    pub(crate) replay: bool,
    /// The headers name a log that holds nothing.
    pub(crate) empty_log: bool,
    /// This copy of the region table is overwritten with the other one.
    pub(crate) table: Option<usize>,
    /// BAT entries that get another value.
    pub(crate) entries: Vec<EntryFix>,
    /// The length that the file should have.
    pub(crate) len: Option<u64>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { consents: _, headers, replay, empty_log, table, entries, len } = self;
        !headers && !replay && !empty_log && table.is_none() && entries.is_empty() && len.is_none()
    }
}

/// The header that counts, and what is in the other slot.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub(crate) header: Header,
    pub(crate) slot: HeaderSlot,
    pub(crate) spare: Spare,
}

/// What an examination learned about the file, beside what is wrong with it.
pub(crate) struct Exam {
    /// The file as it reads with its log replayed.
    pub(crate) view: Arc<dyn Storage>,
    /// The replayed log, if there is one.
    pub(crate) overlay: Option<Arc<Overlay>>,
    pub(crate) current: Option<Current>,
    pub(crate) metadata: Option<Metadata>,
    /// Where the metadata region starts.
    pub(crate) metadata_at: Option<FileOffset>,
    /// Where the BAT stands.
    pub(crate) bat: Option<Region>,
    pub(crate) plan: Plan,
    /// Why nothing can be written through the log; `None` when it can.
    pub(crate) no_log: Option<Fault>,
    /// Whether headers can be changed at all.
    pub(crate) headers_can_change: bool,
    /// Errors found.
    pub(crate) errors: u64,
}

/// Examines one file; findings go to `report` as those of layer `number`.
pub(crate) fn examine(file: &Arc<dyn Storage>, number: usize, report: &mut CheckReport, watch: Watch<'_>) -> Result<Exam, CheckStop> {
    let file_len = storage::len(&**file)?;
    let mut inspector = Inspector { out: Collector::new(report, number), watch, file_len, exam: Exam::new(Arc::clone(file)) };
    inspector.run()?;
    inspector.settle();
    inspector.exam.errors = inspector.out.errors();
    Ok(inspector.exam)
}

impl Exam {
    fn new(file: Arc<dyn Storage>) -> Self {
        Self {
            view: file,
            overlay: None,
            current: None,
            metadata: None,
            metadata_at: None,
            bat: None,
            plan: Plan::default(),
            no_log: Some(Fault::NoLog),
            headers_can_change: true,
            errors: 0,
        }
    }

    /// The shape of the disk, where it is known.
    pub(crate) fn geometry(&self) -> Option<Geometry> {
        self.metadata.as_ref().map(Metadata::geometry)
    }
}

/// One slot, as far as it can be read.
enum Slot {
    Whole(Header),
    Torn(Fault),
    Unreadable(Fault),
}

struct Inspector<'a> {
    out: Collector<'a>,
    watch: Watch<'a>,
    /// Of the view, once the log is known.
    file_len: u64,
    exam: Exam,
}

impl Inspector<'_> {
    fn run(&mut self) -> Result<(), CheckStop> {
        let at = FileOffset::new(0);
        if self.file_len < HEADER_SECTION {
            self.out.error(Structure::File, at, Fault::Truncated { needed: HEADER_SECTION, available: self.file_len });
        }
        self.identifier();
        if self.file_len < HEADER_SECTION {
            return Ok(());
        }
        let log = match self.headers() {
            Some(current) => {
                let log = self.log_place(&current);
                self.exam.current = Some(current);
                self.watch.pause()?;
                self.log(log);
                log
            }
            None => None,
        };
        self.watch.pause()?;
        let Some(regions) = self.regions(log) else { return Ok(()) };
        if self.exam.current.is_none() {
            // The tables carry their own checksums. What they lead to does not, and nobody knows whether a log changes it.
            return Ok(());
        }
        let inside = |region: Option<Region>, file_len| region.filter(|region: &Region| region.end() <= file_len);
        let Some(metadata_region) = inside(regions.find(METADATA_REGION), self.file_len) else { return Ok(()) };
        self.exam.metadata_at = Some(metadata_region.offset);
        self.exam.metadata = metadata::examine(&*self.exam.view, metadata_region, &mut self.out);
        self.watch.pause()?;
        // A table that shares bytes with another region is made of that region's bytes as much as of its own.
        let is_shared = |fault: &Fault| matches!(fault, Fault::Collision { one, other } if [one.0, other.0].contains(&BAT_REGION));
        let is_doubtful = regions.placement_faults(self.file_len, log).iter().any(is_shared);
        if let Some(bat) = inside(regions.find(BAT_REGION), self.file_len).filter(|_| !is_doubtful) {
            self.table(bat, &regions, log)?;
        }
        Ok(())
    }

    /// Takes out of the plan what cannot be done in this file, and says so of the findings.
    fn settle(&mut self) {
        let exam = &mut self.exam;
        let log_is_named = exam.current.as_ref().is_some_and(|current| !current.header.log.get().is_zero());
        // A log that is named and cannot be replayed keeps everything behind the headers as it is.
        let is_stuck = log_is_named && !exam.plan.replay && !exam.plan.empty_log;
        // A file that needs something unknown is not written to (MS-VHDX 2.2), and one whose header makes no sense not either.
        if exam.current.is_none() || !exam.headers_can_change || self.out.needs_the_unknown() {
            exam.plan = Plan::default();
            self.out.give_up(|_| true);
            return;
        }
        if is_stuck || exam.no_log.is_some() {
            (exam.plan.table, exam.plan.entries) = (None, Vec::new());
            self.out.give_up(|finding| matches!(finding.structure, Structure::RegionTable | Structure::BatEntry));
        }
        if is_stuck {
            exam.plan.len = None;
            self.out.give_up(|finding| finding.structure == Structure::File);
        }
        // Emptying the log gives up what it may have held; only a file in which everything else makes sense shows that it held nothing.
        if exam.plan.empty_log && self.out.incurable() > 0 {
            exam.plan = Plan::default();
            self.out.give_up(|_| true);
        }
    }

    fn identifier(&mut self) {
        let mut bytes = [0; 520];
        let at = FileOffset::new(0);
        match storage::read_exact(&*self.exam.view, &mut bytes, 0) {
            Ok(()) => {
                if let Err(e) = parse_identifier(&bytes) {
                    self.out.refuse(e);
                }
            }
            // Told about as a file that is too short.
            Err(_) if self.file_len < HEADER_SECTION => {}
            Err(e) => self.out.error(Structure::FileIdentifier, at, Fault::Unreadable(e.source.to_string())),
        }
    }

    fn slot(&self, slot: HeaderSlot) -> Slot {
        let mut bytes = [0; PAGE_LEN];
        match storage::read_exact(&*self.exam.view, &mut bytes, slot.offset().get()) {
            Ok(()) => match Header::parse(slot, &bytes) {
                Ok(header) => Slot::Whole(header),
                Err(e) => Slot::Torn(e.fault),
            },
            Err(e) => Slot::Unreadable(Fault::Unreadable(e.source.to_string())),
        }
    }

    /// Both slots; the header that counts, if one does.
    fn headers(&mut self) -> Option<Current> {
        let (one, two) = (HeaderSlot::One, HeaderSlot::Two);
        match (self.slot(one), self.slot(two)) {
            (Slot::Whole(first), Slot::Whole(second)) => match choose_header(Ok(first), Ok(second)) {
                Ok(chosen) => {
                    let spare = Spare::found(&chosen.header, chosen.other.as_ref().ok());
                    let current = Current { header: chosen.header, slot: chosen.slot, spare };
                    if let Ok(other) = chosen.other {
                        self.spare_differs(&current, &other);
                    }
                    Some(current)
                }
                Err(e) => {
                    self.out.refuse(e);
                    None
                }
            },
            (Slot::Whole(header), Slot::Torn(fault)) => Some(self.beside(header, one, fault)),
            (Slot::Torn(fault), Slot::Whole(header)) => Some(self.beside(header, two, fault)),
            (Slot::Whole(header), Slot::Unreadable(fault)) => Some(self.beside_unreadable(header, one, fault)),
            (Slot::Unreadable(fault), Slot::Whole(header)) => Some(self.beside_unreadable(header, two, fault)),
            (Slot::Torn(first) | Slot::Unreadable(first), Slot::Torn(second) | Slot::Unreadable(second)) => {
                self.out.error(Structure::Header, one.offset(), first);
                self.out.error(Structure::Header, two.offset(), second);
                None
            }
        }
    }

    /// A crash between two header writes leaves this, and so do writers that give each header an identity of its own.
    fn spare_differs(&mut self, current: &Current, other: &Header) {
        let header = &current.header;
        let field = if header.log != other.log {
            "LogGuid"
        } else if header.data_write != other.data_write {
            "DataWriteGuid"
        } else if (header.log_offset, header.log_length) != (other.log_offset, other.log_length) {
            "log"
        } else {
            return;
        };
        let at = current.slot.other().offset();
        self.out.add(Severity::Note, Repair::Repairable, Structure::Header, at, Fault::SpareDiffers(field));
        self.exam.plan.headers = true;
    }

    fn beside(&mut self, header: Header, slot: HeaderSlot, fault: Fault) -> Current {
        self.out.add(Severity::Warning, Repair::Repairable, Structure::Header, slot.other().offset(), fault);
        self.exam.plan.headers = true;
        Current { header, slot, spare: Spare::Bad }
    }

    /// Why this is told apart from a torn one stands at `only_header` in `disk/layer.rs`.
    fn beside_unreadable(&mut self, header: Header, slot: HeaderSlot, fault: Fault) -> Current {
        if !header.log.get().is_zero() {
            return self.beside(header, slot, fault);
        }
        let repair = Repair::WithConsent(Consent::OlderHeader);
        self.out.add(Severity::Error, repair, Structure::Header, slot.other().offset(), fault);
        self.exam.plan.headers = true;
        self.exam.plan.consents.push(Consent::OlderHeader);
        Current { header, slot, spare: Spare::Bad }
    }

    /// The fields of the current header, and where its log is, if it has one that can be used.
    fn log_place(&mut self, current: &Current) -> Option<(u64, u64)> {
        let header = &current.header;
        if let Err(e) = header.next_sequence(current.slot).and_then(|_| self.room_for_changes(current)) {
            self.out.add(Severity::Warning, Repair::Not, e.structure, e.at, e.fault);
            self.exam.headers_can_change = false;
        }
        if let Err(e) = header.check_fields(current.slot, self.file_len) {
            self.exam.no_log = Some(e.fault.clone());
            self.exam.headers_can_change = false;
            self.out.refuse(e);
            return None;
        }
        if header.log_length == 0 {
            self.out.add(Severity::Note, Repair::Not, Structure::Header, current.slot.offset(), Fault::NoLog);
            return None;
        }
        self.exam.no_log = None;
        Some((header.log_offset, u64::from(header.log_length)))
    }

    /// A repair takes a handful of header updates; a sequence number that leaves no room for them is somebody's trick.
    fn room_for_changes(&self, current: &Current) -> Result<(), FormatError> {
        const CHANGES: u64 = 16;
        let sequence = current.header.sequence;
        let fault = || FormatError::new(Structure::Header, current.slot.offset(), Fault::SequenceExhausted(sequence));
        sequence.checked_add(CHANGES).map(|_| ()).ok_or_else(fault)
    }

    /// A dirty log is replayed into memory, if it can be.
    fn log(&mut self, place: Option<(u64, u64)>) {
        let Some(current) = self.exam.current.clone() else { return };
        let header = &current.header;
        let (Some((log_at, log_len)), false) = (place, header.log.get().is_zero()) else { return };
        let at = FileOffset::new(log_at);
        let file = Arc::clone(&self.exam.view);
        let mut log = Window::new(&*file, log_at, log_len as usize / PAGE_LEN);
        let found = format::scan(&mut log, at, header.log, self.file_len);
        let unread = log.unread();
        let sequence = match (found, &unread) {
            (Ok(sequence), _) => sequence,
            // What could not be read may be what is missing.
            (Err(_), Some((_, e))) => return self.unreadable_log(at, e.clone()),
            (Err(HeaderError::Storage(e)), None) => return self.unreadable_log(at, e),
            (Err(HeaderError::Format(e)), None) => return self.no_sequence(&mut log, header, e),
        };
        if let Some((sectors, e)) = unread
            && sequence.may_go_on(&mut log, &sectors).unwrap_or(true)
        {
            return self.unreadable_log(at, e);
        }
        let outcome = match Outcome::of(&mut log, log_at, &sequence) {
            Ok(outcome) => outcome,
            Err(HeaderError::Format(e)) => return self.out.refuse(e),
            Err(HeaderError::Storage(e)) => return self.unreadable_log(at, e),
        };
        let fault = Fault::LogNotEmpty { entries: sequence.entries.len() as u64 };
        self.out.add(Severity::Note, Repair::Repairable, Structure::Log, at, fault);
        for e in sequence.oddities(at) {
            self.out.add(Severity::Note, Repair::Not, e.structure, e.at, e.fault);
        }
        self.exam.plan.replay = true;
        let view = Arc::new(Overlay::new(Arc::clone(&file), self.file_len, outcome));
        self.exam.overlay = Some(Arc::clone(&view));
        self.file_len = view.outcome().len;
        self.exam.view = view;
    }

    fn unreadable_log(&mut self, at: FileOffset, e: StorageError) {
        self.out.error(Structure::Log, at, Fault::Unreadable(e.source.to_string()));
    }

    /// No entry of this log is whole: either nothing was ever written into it, or what was is gone. Some are, and they do not make a
    /// sequence: then changes that were durable once are partly home and partly not, and nobody can tell which.
    fn no_sequence(&mut self, log: &mut Window<'_>, header: &Header, e: FormatError) {
        let Ok(diagnosis) = format::diagnose(log, FileOffset::new(header.log_offset), header.log) else { return self.out.refuse(e) };
        let is_empty = e.fault == Fault::NoActiveSequence && diagnosis.whole == 0 && diagnosis.faults.is_empty();
        let repair = if is_empty { Repair::WithConsent(Consent::EmptyLog) } else { Repair::Not };
        if is_empty {
            self.exam.plan.empty_log = true;
            self.exam.plan.consents.push(Consent::EmptyLog);
        }
        self.out.add(Severity::Error, repair, e.structure, e.at, e.fault);
        for e in diagnosis.faults {
            self.out.add(Severity::Note, Repair::Not, e.structure, e.at, e.fault);
        }
    }

    /// Both region tables; the one that counts, as far as its entries make sense.
    fn regions(&mut self, log: Option<(u64, u64)>) -> Option<RegionTable> {
        let [(one, one_faults), (two, two_faults)] = REGION_TABLES.map(|at| {
            let mut bytes = vec![0; TABLE_LEN];
            match storage::read_exact(&*self.exam.view, &mut bytes, at.get()) {
                Ok(()) => RegionTable::examine(at, &bytes),
                Err(e) => (None, vec![Fault::Unreadable(e.source.to_string())]),
            }
        });
        let [at_one, at_two] = REGION_TABLES;
        let (table, at, faults) = match (one, two) {
            (Some(one), Some(two)) => {
                if !two_faults.is_empty() || one.entries != two.entries {
                    let fault = two_faults.into_iter().next().unwrap_or(Fault::CopiesDiffer);
                    self.spare_table(1, at_two, fault, one_faults.is_empty());
                }
                (one, at_one, one_faults)
            }
            (Some(one), None) => {
                for fault in two_faults {
                    self.spare_table(1, at_two, fault, one_faults.is_empty());
                }
                (one, at_one, one_faults)
            }
            (None, Some(two)) => {
                for fault in one_faults {
                    self.spare_table(0, at_one, fault, two_faults.is_empty());
                }
                (two, at_two, two_faults)
            }
            (None, None) => {
                for (at, faults) in [(at_one, one_faults), (at_two, two_faults)] {
                    for fault in faults {
                        self.out.error(Structure::RegionTable, at, fault);
                    }
                }
                return None;
            }
        };
        for fault in faults {
            self.out.error(Structure::RegionTable, at, fault);
        }
        for fault in table.placement_faults(self.file_len, log) {
            if fault.other().is_some_and(|other| other.structure == Structure::Log) {
                self.exam.no_log = Some(fault.clone());
            }
            self.out.error(Structure::RegionTable, at, fault);
        }
        Some(table)
    }

    /// The copy that does not count is damaged; with a good one to copy it can be put right.
    fn spare_table(&mut self, copy: usize, at: FileOffset, fault: Fault, other_is_good: bool) {
        let repair = if other_is_good { Repair::Repairable } else { Repair::Not };
        self.out.add(Severity::Warning, repair, Structure::RegionTable, at, fault);
        if other_is_good {
            self.exam.plan.table = Some(copy);
        }
    }

    fn table(&mut self, region: Region, regions: &RegionTable, log: Option<(u64, u64)>) -> Result<(), CheckStop> {
        let Some(metadata) = &self.exam.metadata else { return Ok(()) };
        let (geometry, has_parent) = (metadata.geometry(), metadata.has_parent);
        let is_fixed = metadata.leave_blocks_allocated && !has_parent;
        let entries = if has_parent { geometry.bat_entries_differencing() } else { geometry.bat_entries() };
        let there = u64::from(region.length) / 8;
        if there < entries {
            let fault = Fault::Truncated { needed: entries * 8, available: u64::from(region.length) };
            self.out.error(Structure::Bat, region.offset, fault);
        }
        let bat = BatTable::new(region.offset, geometry, has_parent, fences(regions, log), self.file_len);
        let raw = RawEntries { file: &*self.exam.view, at: region.offset.get(), entries: there.min(MOST_ENTRIES), watch: self.watch };
        let mut exam = TableExam::new(&bat, geometry, has_parent, self.file_len);
        exam.entries(&raw, &mut self.out)?;
        if let Some(fault) = exam.over_log.take() {
            self.exam.no_log = Some(fault);
        }
        // With an entry that cannot be understood nobody knows what is free.
        let len = if self.out.incurable() == 0 { exam.space(is_fixed, &mut self.out) } else { None };
        self.exam.plan.entries = exam.fixes;
        self.exam.plan.len = len;
        self.exam.bat = Some(region);
        Ok(())
    }
}

/// The structures that no block may lie over, as far as they are known.
fn fences(regions: &RegionTable, log: Option<(u64, u64)>) -> Fences {
    let mut taken = vec![(0, HEADER_SECTION, Structure::Header)];
    taken.extend(log.map(|(start, len)| (start, start + len, Structure::Log)));
    taken.extend(regions.entries.iter().map(|region| {
        let owner = match region.guid {
            BAT_REGION => Structure::Bat,
            METADATA_REGION => Structure::MetadataTable,
            _ => Structure::RegionTable,
        };
        (region.offset.get(), region.end(), owner)
    }));
    Fences { taken }
}

/// The table as it stands in the file.
struct RawEntries<'a> {
    file: &'a dyn Storage,
    at: u64,
    entries: u64,
    watch: Watch<'a>,
}

impl RawEntries<'_> {
    /// Where the next bytes that are no hole start and end, both inside the table; `None` when only holes follow.
    fn next(&self, at: u64, end: u64) -> Result<Option<(u64, u64)>, StorageError> {
        let data = self.file.next_data(at).map_err(|e| StorageError::new(Operation::Seek, at, e))?;
        let whole = |at: u64| at - (at - self.at) % PAGE_LEN as u64;
        Ok(data.filter(|&(start, _)| start < end).map(|(start, stop)| (whole(start.max(at)), stop.min(end))))
    }
}

impl Entries for RawEntries<'_> {
    fn each(&self, out: &mut Collector<'_>, each: &mut dyn FnMut(BatIndex, u64, &mut Collector<'_>)) -> Result<(), CheckStop> {
        let end = self.at + self.entries * 8;
        let mut buffer = vec![0; PIECE];
        let mut at = self.at;
        while let Some((start, stop)) = self.next(at, end)? {
            self.watch.pause()?;
            let len = (stop - start).next_multiple_of(8).min(PIECE as u64).min(end - start) as usize;
            let part = &mut buffer[..len];
            if storage::read_zero_extended(self.file, part, start).is_err() {
                self.read_what_reads(part, start, out);
            }
            let first = (start - self.at) / 8;
            for (index, bytes) in (first..).zip(part.chunks_exact(8)) {
                let word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                if word != 0 {
                    each(BatIndex::new(u32::try_from(index).expect("a table has at most 2^27 entries")), word, out);
                }
            }
            at = start + len as u64;
            self.watch.progress.advance(at - self.at);
        }
        Ok(())
    }

    fn word(&self, index: BatIndex) -> Option<u64> {
        let mut bytes = [0; 8];
        let at = self.at + u64::from(index.get()) * 8;
        storage::read_zero_extended(self.file, &mut bytes, at).ok().map(|()| u64::from_le_bytes(bytes))
    }
}

impl RawEntries<'_> {
    /// Page by page. What cannot be read says nothing.
    #[cold]
    fn read_what_reads(&self, part: &mut [u8], start: u64, out: &mut Collector<'_>) {
        for (page, at) in part.chunks_mut(PAGE_LEN).zip((start..).step_by(PAGE_LEN)) {
            if let Err(e) = storage::read_zero_extended(self.file, page, at) {
                page.fill(0);
                out.error(Structure::Bat, FileOffset::new(at), Fault::Unreadable(e.source.to_string()));
            }
        }
    }
}
