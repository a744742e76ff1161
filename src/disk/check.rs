//! Examining one file: every invariant of MS-VHDX that opening does not have to verify.
//!
//! Opening has checked the current header, one region table, the log, the metadata, and checks each BAT entry when it is
//! used. What is left needs the whole table: overlap of blocks, entries that nobody used yet, bitmaps of partially present
//! blocks, space that nobody owns; and the copies that opening did not need: the other header, the other region table.
//! Examining writes nothing.

use super::error::DiskError;
use super::layer::Layer;
use crate::format::{BitmapState, Header, HeaderSlot, PayloadState, REGION_TABLES, RegionTable, TABLE_LEN};
use crate::geometry::BatRole;
use crate::kind::Structure;
use crate::mapping::space::{Claim, UsedMap};
use crate::storage;
use crate::units::{BatIndex, BlockIndex, FileOffset, MIB};

/// Findings of one kind are listed up to this many; the rest is counted.
const MOST_FINDINGS: usize = 1000;

/// One thing that is not as MS-VHDX wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file of the chain: 0 is the leaf.
    pub layer: usize,
    /// What it is about.
    pub structure: Structure,
    /// Where that structure starts in the file.
    pub at: FileOffset,
    /// What is wrong, in words.
    pub message: String,
}

/// What examining a disk found; see [`Disk::check`](crate::Disk::check).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Contradictions of MS-VHDX: content is lost, or could be.
    pub errors: Vec<Finding>,
    /// Oddities that do no harm: unowned space, a damaged spare copy.
    pub warnings: Vec<Finding>,
}

impl CheckReport {
    /// Whether there is no error.
    pub fn is_sound(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Collects findings about one layer.
pub(crate) struct Examiner<'a> {
    layer: &'a Layer,
    number: usize,
    report: &'a mut CheckReport,
    used: UsedMap,
}

impl<'a> Examiner<'a> {
    pub(crate) fn new(layer: &'a Layer, number: usize, report: &'a mut CheckReport) -> Self {
        Self { layer, number, report, used: UsedMap::default() }
    }

    fn error(&mut self, structure: Structure, at: FileOffset, message: String) {
        if self.report.errors.len() < MOST_FINDINGS {
            self.report.errors.push(Finding { layer: self.number, structure, at, message });
        }
    }

    fn warning(&mut self, structure: Structure, at: FileOffset, message: String) {
        if self.report.warnings.len() < MOST_FINDINGS {
            self.report.warnings.push(Finding { layer: self.number, structure, at, message });
        }
    }

    /// Everything.
    pub(crate) fn examine(mut self) -> Result<(), DiskError> {
        self.headers();
        self.region_tables();
        self.table()?;
        self.space()
    }

    /// Only what a guest could turn against the host: blocks that lie over anything.
    pub(crate) fn examine_overlap(mut self) -> Result<(), DiskError> {
        self.table()
    }

    fn headers(&mut self) {
        for slot in [HeaderSlot::One, HeaderSlot::Two] {
            let mut bytes = [0; 4096];
            // One good header is enough, so one that cannot be read is no worse than one that is torn.
            let fault = match storage::read_exact(&*self.layer.original, &mut bytes, slot.offset().get()) {
                Ok(()) => Header::parse(slot, &bytes).err().map(|e| e.fault.to_string()),
                Err(e) => Some(e.to_string()),
            };
            if let Some(fault) = fault {
                self.warning(Structure::Header, slot.offset(), format!("the spare header is damaged: {fault}"));
            }
        }
    }

    fn region_tables(&mut self) {
        let mut good = Vec::new();
        for at in REGION_TABLES {
            let mut bytes = vec![0; TABLE_LEN];
            let table = storage::read_exact(&*self.layer.file, &mut bytes, at.get())
                .map_err(|e| e.to_string())
                .and_then(|()| RegionTable::parse(at, &bytes).map_err(|e| e.fault.to_string()));
            match table {
                Ok(table) => good.push(table),
                Err(fault) => self.warning(Structure::RegionTable, at, format!("this copy of the region table is damaged: {fault}")),
            }
        }
        if let [one, two] = &good[..]
            && one.entries != two.entries
        {
            self.warning(Structure::RegionTable, REGION_TABLES[1], "the two region tables differ; the first one counts".to_owned());
        }
    }

    /// Every entry of the BAT, and every stretch of the file against every other.
    fn table(&mut self) -> Result<(), DiskError> {
        let layer = self.layer;
        for &(start, end, _) in layer.bat.taken() {
            let _ = self.used.claim(start / MIB, (end - start).div_ceil(MIB));
        }
        let file_len = storage::len(&*layer.file)?;
        layer.bat.walk(&*layer.file, u64::MAX, |index, word| -> Result<(), DiskError> {
            self.entry(index, word, file_len);
            Ok(())
        })?;
        Ok(())
    }

    fn entry(&mut self, index: BatIndex, word: u64, file_len: u64) {
        let layer = self.layer;
        let at = layer.bat.entry_at(index);
        let Some(role) = layer.geometry.bat_role(index) else {
            return self.warning(Structure::BatEntry, at, format!("the entry is behind the last block and holds {word:#x}"));
        };
        if let Some(fault) = layer.bat.fault(index, word) {
            self.error(Structure::BatEntry, at, format!("{}: {fault}", name(role)));
            return;
        }
        if let Some(placed) = layer.placed(index, word) {
            let end = (placed.home.mib() + placed.mib) * MIB;
            match self.used.claim(placed.home.mib(), placed.mib) {
                Claim::Free => {}
                claim if placed.is_anchor => {
                    self.warning(Structure::BatEntry, at, format!("{} keeps space that is not its own ({claim:?})", name(role)));
                }
                Claim::Taken => self.error(Structure::BatEntry, at, format!("{} lies over another block", name(role))),
                Claim::OutOfReach => self.error(Structure::BatEntry, at, format!("{} lies beyond what a file can hold", name(role))),
            }
            if end > file_len && !placed.is_anchor {
                self.warning(Structure::BatEntry, at, format!("{} is cut by the end of the file; the rest reads as zeros", name(role)));
            }
        }
        match role {
            BatRole::Payload(block) => self.payload_entry(block, at, word),
            BatRole::Bitmap(_) if !layer.has_parent() => {
                self.warning(Structure::BatEntry, at, "a sector bitmap entry in a file without a parent".to_owned());
            }
            BatRole::Bitmap(_) => {}
        }
    }

    fn payload_entry(&mut self, block: BlockIndex, at: FileOffset, word: u64) {
        match PayloadState::decode(word) {
            Ok(PayloadState::PartiallyPresent(_)) => {
                let chunk = self.layer.geometry.chunk_of(block);
                if let Ok(BitmapState::NotPresent) = self.layer.bat.bitmap(chunk, &*self.layer.file) {
                    let message = format!("block {} is partially present but its chunk has no sector bitmap block", block.get());
                    self.error(Structure::BatEntry, at, message);
                }
            }
            // Hyper-V is said to refuse these.
            Ok(PayloadState::NotPresent | PayloadState::Zero) if word >> 20 != 0 => {
                self.warning(Structure::BatEntry, at, format!("block {} has no place but its entry names one", block.get()));
            }
            _ => {}
        }
    }

    /// Space that nobody owns.
    fn space(&mut self) -> Result<(), DiskError> {
        let file_mib = storage::len(&*self.layer.file)? / MIB;
        let leaked: u64 = self.used.gaps(file_mib).iter().map(|(_, len)| len).sum();
        if leaked > 0 {
            let message = format!("{leaked} MiB of the file belong to nothing; writing or compacting the disk reuses them");
            self.warning(Structure::File, FileOffset::new(0), message);
        }
        Ok(())
    }
}

fn name(role: BatRole) -> String {
    match role {
        BatRole::Payload(block) => format!("block {}", block.get()),
        BatRole::Bitmap(chunk) => format!("the sector bitmap block of chunk {}", chunk.get()),
    }
}
