//! Single repairs, each for what it is about.

use crate::alloc::measured;
use crate::content::{File, content, examine, repair};
use crate::damage::nonsense;
use crate::forge::*;
use crate::head::small;
use diffdisk::storage::{MemoryStorage, Storage, StorageId, SyncSite};
use diffdisk::{Consent, CreateOptions, Disk, Repair, RepairStep, Severity, Structure};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn everything_at_once_is_repaired_and_said() {
    let file: File = nonsense().build().flip(0x10010).flip(0x40020).storage();
    let report = repair(&file, &[]).unwrap();
    let length = RepairStep::Length { from: DATA_AT + 4 * MIB + 513, to: DATA_AT + MIB };
    assert_eq!(report.steps, [RepairStep::Headers, RepairStep::RegionTable { copy: 2 }, RepairStep::Entries { count: 4 }, length]);
    assert_eq!(report.left.findings().count(), 0, "{:?}", report.left);
    assert_eq!(report.repaired.len(), 8, "{:?}", report.repaired);
}

/// A disk that was made smaller by a wrong virtual size must not lose the rest of its table.
#[test]
fn entries_behind_the_last_block_that_name_good_places_stay() {
    let mut disk = small();
    disk.bat.insert(9, present(DATA_AT + MIB));
    disk.len = DATA_AT + 2 * MIB;
    let file: File = disk.build().storage();
    let report = repair(&file, &[]).unwrap();
    assert_eq!(report.steps, []);
    assert_eq!((report.left.warnings.len(), report.left.warnings[0].repair), (1, Repair::Not));
    assert_eq!(file.len().unwrap(), DATA_AT + 2 * MIB);
}

/// Writing a log entry would overwrite what may be a guest's data.
#[test]
fn nothing_is_logged_where_a_block_claims_the_log() {
    let image = nonsense().build().edit_headers(72, &DATA_AT.to_le_bytes()).flip(0x40020);
    let storage = image.storage();
    let file: File = storage.clone();
    let mut before = vec![0; MIB as usize];
    file.read_at(&mut before, DATA_AT).unwrap();
    let report = repair(&file, &[]).unwrap();
    assert_eq!(report.steps, []);
    assert!(report.left.findings().all(|f| f.repair != Repair::Repairable), "{:?}", report.left);
    let mut after = vec![0; MIB as usize];
    file.read_at(&mut after, DATA_AT).unwrap();
    assert!(before == after);
}

/// A file whose second header gives an I/O error until somebody writes to it.
#[derive(Debug)]
struct BadSector {
    inner: Arc<MemoryStorage>,
    at: u64,
    is_bad: AtomicBool,
}

impl Storage for BadSector {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let touches = at < self.at + 512 && self.at < at + buf.len() as u64;
        if touches && self.is_bad.load(Ordering::SeqCst) {
            return Err(io::Error::other("a bad sector"));
        }
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        if at <= self.at && self.at + 512 <= at + buf.len() as u64 {
            self.is_bad.store(false, Ordering::SeqCst);
        }
        self.inner.write_at(buf, at)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self, site: SyncSite) -> io::Result<()> {
        self.inner.sync(site)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.punch(at, len)
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        self.inner.next_data(at)
    }

    fn id(&self) -> StorageId {
        self.inner.id()
    }
}

fn bad_sector(image: &Image, at: u64) -> File {
    Arc::new(BadSector { inner: image.storage(), at, is_bad: AtomicBool::new(true) })
}

#[test]
fn an_unreadable_header_beside_one_without_a_log_is_repaired_with_consent_only() {
    let image = small().build();
    let whole = content(&[image.storage() as File]);
    let file = bad_sector(&image, 0x2_0000);
    assert!(content(std::slice::from_ref(&file)).is_none(), "it does not open");
    let refused = repair(&file, &[]).unwrap();
    assert_eq!((refused.steps.len(), &refused.needs[..]), (0, &[Consent::OlderHeader][..]));
    assert_eq!(refused.left.errors[0].repair, Repair::WithConsent(Consent::OlderHeader));
    let report = repair(&file, &[Consent::OlderHeader]).unwrap();
    assert_eq!(report.steps, [RepairStep::OlderHeader, RepairStep::Headers]);
    assert!(report.left.is_sound() && content(&[file]) == whole);
}

#[test]
fn an_unreadable_header_beside_one_that_names_a_log_needs_no_consent() {
    let dirty = small().dirty(&Entry::new(1, 0, 5 * MIB, Vec::new())).build();
    let file = bad_sector(&dirty, 0x1_0000);
    let report = repair(&file, &[]).unwrap();
    assert_eq!(report.steps, [RepairStep::Replayed { entries: 1 }, RepairStep::Headers]);
    assert!(report.left.findings().next().is_none());
}

#[test]
fn an_unreadable_page_of_the_table_does_not_hide_the_others() {
    let mut disk = small();
    disk.bat.extend([(600, (77 * MIB) | 2), (1, 4)]);
    disk.item(ITEM_SIZE).data = (1000 * MIB).to_le_bytes().to_vec();
    let file = bad_sector(&disk.build(), BAT_AT);
    let report = examine(&[file]).unwrap();
    let found: Vec<_> = report.findings().map(|f| (f.severity, f.structure, f.fault.key())).collect();
    assert_eq!(found, [(Severity::Error, Structure::Bat, "unreadable"), (Severity::Warning, Structure::BatEntry, "needless_place")]);
}

/// Every item that is wrong is told about, not the first one only.
#[test]
fn one_bad_item_does_not_hide_the_others() {
    let image = small().build().edit(Place::Metadata(0x10014), &7_u32.to_le_bytes()).edit(Place::File(BAT_AT + 8), &4_u64.to_le_bytes());
    let file: File = image.flip(0x10010).storage();
    let report = examine(&[file]).unwrap();
    let found: Vec<_> = report.findings().map(|f| (f.structure, f.fault.key())).collect();
    let all = [(Structure::MetadataItem, "field"), (Structure::BatEntry, "state"), (Structure::Header, "checksum")];
    assert_eq!(found, all);
}

/// A qemu crash between the header and the first entry leaves this. Anything else that is wrong forbids to believe it.
#[test]
fn an_empty_log_is_emptied_only_in_a_file_that_is_sound_otherwise() {
    let empty = || small().build().edit_headers(48, &LOG_GUID);
    let file: File = empty().storage();
    assert_eq!(repair(&file, &[]).unwrap().needs, [Consent::EmptyLog]);
    assert_eq!(repair(&file, &[Consent::EmptyLog]).unwrap().steps, [RepairStep::EmptiedLog]);
    assert_eq!(content(&[file]), content(&[small().build().storage() as File]));
    let broken: File = empty().edit(Place::File(BAT_AT + 8), &4_u64.to_le_bytes()).storage();
    let report = repair(&broken, &[Consent::EmptyLog]).unwrap();
    assert!(report.steps.is_empty() && report.needs.is_empty(), "{report:?}");
    // An entry of this log, torn: something was written once.
    let mut torn = Entry::new(1, 0, 5 * MIB, Vec::new()).encode();
    torn[100] ^= 1;
    let mut disk = small();
    (disk.log_guid, disk.log) = (LOG_GUID, vec![(0, torn)]);
    let report = repair(&(disk.build().storage() as File), &[Consent::EmptyLog]).unwrap();
    assert!(report.steps.is_empty() && report.left.notes.iter().any(|f| f.structure == Structure::LogEntry), "{report:?}");
}

/// More nonsense than one log entry holds: several follow one another.
#[test]
fn a_table_full_of_nonsense_is_repaired_in_several_entries() {
    let mut disk = Vhdx::dynamic(130_000 * MIB, MIB as u32);
    disk.bat.extend((0..130_000).map(|index| (index, (5 * MIB) | 2)));
    let mut cut = 0;
    // Entries of sector bitmaps, which a file without a parent does not have, lie between; they are cleared, too.
    for chunk in 0..130_000 / 4097 {
        cut += u64::from(disk.bat.contains_key(&(chunk * 4097 + 4096)));
    }
    let file: File = disk.build().storage();
    let report = repair(&file, &[]).unwrap();
    assert_eq!(report.steps, [RepairStep::Entries { count: 130_000 }]);
    assert_eq!(cut, 31);
    assert!(report.left.findings().next().is_none(), "{:?}", report.left.findings().next());
}

/// 64 TiB of blocks, all present, made up on the fly.
#[derive(Debug)]
struct Endless {
    inner: MemoryStorage,
    bat_at: u64,
    entries: u64,
    first_mib: u64,
}

impl Storage for Endless {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let end = self.bat_at + self.entries * 8;
        if at < self.bat_at || at >= end {
            let n = buf.len().min((self.bat_at.saturating_sub(at)).max(u64::from(at >= end) * buf.len() as u64) as usize);
            return self.inner.read_at(&mut buf[..n], at);
        }
        let n = buf.len().min((end - at) as usize) / 8 * 8;
        for (index, word) in (((at - self.bat_at) / 8)..).zip(buf[..n].chunks_exact_mut(8)) {
            // One entry in 4097 is that of a sector bitmap block, which a disk without a parent does not have.
            let block = index - index / 4097;
            let entry = if index % 4097 == 4096 { 0 } else { ((self.first_mib + block) << 20) | 6 };
            word.copy_from_slice(&entry.to_le_bytes());
        }
        Ok(n)
    }

    fn write_at(&self, _buf: &[u8], _at: u64) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self, _site: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, _at: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        Ok((at < self.len()?).then_some((at, self.len()?)))
    }

    fn id(&self) -> StorageId {
        self.inner.id()
    }
}

#[test]
fn sixty_four_tib_of_blocks_are_examined_in_a_few_mib() {
    let inner = MemoryStorage::new();
    let (entries, first_mib) = ((64 << 20) + (64 << 20) / 4096 - 1, 600);
    let made: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    Disk::create_on(Arc::clone(&made), &CreateOptions::dynamic(64 << 40).block_size(MIB)).unwrap().close().unwrap();
    let mut head = vec![0; 3 << 20];
    made.read_at(&mut head, 0).unwrap();
    inner.write_at(&head, 0).unwrap();
    inner.set_len((first_mib << 20) + (64 << 40)).unwrap();
    let file: File = Arc::new(Endless { inner, bat_at: 3 << 20, entries, first_mib });
    let (report, _, memory) = measured(|| examine(&[file]).unwrap());
    assert!(report.is_sound(), "{:?}", report.errors.first());
    assert_eq!(report.notes.len(), 1, "the gap between the table and the first block: {:?}", report.notes);
    assert!(memory < 40 << 20, "{} KiB", memory >> 10);
    crate::loud::loud(&format!("examining 64 TiB of present blocks: {} KiB of memory", memory >> 10));
}
