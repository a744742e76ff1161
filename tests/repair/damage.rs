//! Files with several faults at once, for crashes and faults in the middle of a repair.

use crate::content::File;
use crate::forge::*;
use crate::head::small;
use diffdisk::Consent;
use diffdisk::storage::{MemoryStorage, Storage};

pub struct Damage {
    pub name: &'static str,
    /// Leaf first.
    pub chain: Vec<Image>,
    pub consents: Vec<Consent>,
}

fn damage(name: &'static str, image: Image) -> Damage {
    Damage { name, chain: vec![image], consents: Vec::new() }
}

/// A file whose BAT holds every sort of nonsense that nobody reads, and a free end.
pub fn nonsense() -> Vhdx {
    let mut disk = small();
    // A place in a state that has none; an unmapped block that keeps block 0's place; an entry behind the last block.
    disk.bat.extend([(1, (77 * MIB) | 2), (2, DATA_AT | 3), (3, (1 << 30) | 1), (9, 5)]);
    disk.len = DATA_AT + 4 * MIB + 513;
    disk
}

pub fn all() -> Vec<Damage> {
    let dirty = || {
        let change = Change::Data { at: BAT_AT, sector: bat_sector(&[present(DATA_AT), 2, present(DATA_AT + MIB)]) };
        let mut disk = small();
        disk.fill(DATA_AT + MIB, MIB, 0xC2);
        disk.len = DATA_AT + 2 * MIB;
        disk.dirty(&Entry::new(1, 0, DATA_AT + 2 * MIB, vec![change]))
    };
    let mut cut = Vhdx::fixed(4 * MIB, MIB as u32);
    cut.fill(DATA_AT, 4 * MIB, 0xA0);
    let base = small();
    let mut child = Vhdx::child_of(&base, "base.vhdx");
    // Nobody needs the bitmap of this chunk any more, and its entry lies.
    child.bat.extend([(0, present(DATA_AT)), (1, 2), (4096, (6 * MIB) | 3)]);
    child.fill(DATA_AT, MIB, 0xC0);
    child.len = DATA_AT + MIB;
    let over = |leaf: Image| vec![leaf, base.build()];
    vec![
        damage("the spare header is torn", small().build().flip(0x10010)),
        damage("the current header is torn", small().build().flip(0x20010)),
        damage("region table 1 is torn", small().build().flip(0x30020)),
        damage("region table 2 is torn", small().build().flip(0x40020)),
        damage("nonsense in the table", nonsense().build()),
        damage("everything at once", nonsense().build().flip(0x10010).flip(0x40020)),
        damage("a dirty log", dirty().build()),
        damage("a dirty log beside torn copies", dirty().build().flip(0x10010).flip(0x30020)),
        damage("a cut end", cut.build().with_len(DATA_AT + 3 * MIB + 1000).flip(0x10010)),
        Damage { name: "a needless bitmap", chain: over(child.build().flip(0x40020)), consents: Vec::new() },
        Damage { name: "an empty log", chain: vec![small().build().edit_headers(48, &LOG_GUID)], consents: vec![Consent::EmptyLog] },
    ]
}

/// Copies a file into another storage.
pub fn pour(from: &MemoryStorage, to: &dyn Storage) {
    let (mut at, mut buf) = (0, vec![0; 1 << 20]);
    while let Some((start, end)) = from.next_data(at).expect("memory can be searched") {
        let part = (end - start).min(buf.len() as u64) as usize;
        let n = from.read_at(&mut buf[..part], start).expect("memory can be read");
        to.write_at(&buf[..n], start).expect("it takes it");
        at = start + n as u64;
    }
    to.set_len(from.len().expect("memory has a length")).expect("it takes it");
}

/// The parents of a chain, in memory.
pub fn parents(damage: &Damage) -> Vec<File> {
    damage.chain[1..].iter().map(|image| image.storage() as File).collect()
}
