//! Disks that descend from one another, raw files beside them, and the bytes of each.

use crate::rig::Counted;
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Content, CreateOptions, Disk, OpenOptions};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

pub fn from_env(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// The bytes with zeros up to whole sectors.
pub fn padded(bytes: &[u8], sector: u64) -> Vec<u8> {
    let mut all = bytes.to_vec();
    all.resize(all.len().next_multiple_of(sector as usize), 0);
    all
}

/// Everything, in pieces that respect nothing.
pub fn read_all(content: &Content<'_>) -> Vec<u8> {
    let mut all = vec![0xEE; content.size() as usize];
    for (at, piece) in (0..).step_by(777_777).zip(all.chunks_mut(777_777)) {
        content.read_at(piece, at).expect("it can be read");
    }
    all
}

pub struct Member {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Leaf first; one raw file.
    pub files: Vec<Arc<dyn Storage>>,
    is_raw: bool,
}

impl Member {
    pub fn content(&self) -> Content<'static> {
        self.content_on(self.files.clone())
    }

    /// The same through files that count the bytes read.
    pub fn counted(&self, read: &Arc<AtomicU64>) -> Content<'static> {
        self.content_on(self.files.iter().map(|file| Counted::on(file, read)).collect())
    }

    fn content_on(&self, mut files: Vec<Arc<dyn Storage>>) -> Content<'static> {
        if self.is_raw {
            return Content::raw_on(files.remove(0), self.name.as_str()).expect("a raw file");
        }
        let leaf = files.remove(0);
        Content::own(Disk::open_on(leaf, files, &OpenOptions::new()).expect("the chain opens"), self.name.as_str())
    }
}

/// Members: the disks (base, child, grandchild or sibling ...), then the raw files.
pub struct Family {
    pub members: Vec<Member>,
    pub disks: usize,
    pub sector: u32,
}

fn memory() -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new())
}

impl Family {
    /// A base, its child, a grandchild, a sibling of the child, an unrelated fixed disk; a raw dump of the grandchild with changes, and a
    /// raw file of no sector's length.
    pub fn new(rng: &mut Rng) -> Self {
        let sector = if rng.below(4) == 0 { 4096 } else { 512 };
        let mut size = || (1 + rng.below(6 << 20) / u64::from(sector)) * u64::from(sector);
        let sizes = [size(), size(), size(), size(), size()];
        let mut family = Self { members: Vec::new(), disks: 5, sector };
        for (n, name) in ["base", "child", "grandchild", "sibling", "stranger"].into_iter().enumerate() {
            let over = [None, Some(0), Some(1), Some(0), None][n];
            // Mostly of one size, as families are.
            let size = if over.is_some() && rng.below(3) > 0 { family.members[over.unwrap_or(0)].bytes.len() as u64 } else { sizes[n] };
            family.add(name, over, size, (1 << 20) << rng.below(3), rng);
            let writes = 1 + rng.below(8);
            family.session(n, writes, rng);
        }
        for (name, of) in [("dump", 2), ("odd", 4)] {
            let mut bytes = family.members[of].bytes.clone();
            for _ in 0..rng.below(4) {
                let at = rng.below(bytes.len() as u64) as usize;
                let end = (at + rng.below(300_000) as usize).min(bytes.len());
                bytes[at..end].fill(if rng.below(2) == 0 { 0 } else { 0x77 });
            }
            if name == "odd" {
                let odd = bytes.len() - (rng.below(500) as usize).min(bytes.len() - 1);
                bytes.truncate(odd);
            }
            family.add_raw(name, bytes);
        }
        family
    }

    /// A full base, two clones of it with a few changes each, a raw file.
    pub fn populated(size: u64) -> Self {
        let mut rng = Rng::new(5);
        let mut family = Self { members: Vec::new(), disks: 3, sector: 512 };
        family.add("base", None, size, 1 << 20, &mut rng);
        family.write(0, 0, &(0..size).map(|at| (at / 512 % 251 + 1) as u8).collect::<Vec<_>>());
        for (n, name) in [(1, "one"), (2, "two")] {
            family.add(name, Some(0), size, 2 << 20, &mut rng);
            family.write(n, size / 2 + 4096 * n as u64, &[0xA0 + n as u8; 4096]);
            family.write(n, size - 8192, &[0xB0 + n as u8; 512]);
            family.zero(n, 3 << 20, 4096);
        }
        let dump = family.members[1].bytes.clone();
        family.add_raw("dump", dump);
        family
    }

    /// As small as can be, for loops over every call: a base, a child, a grandchild, a raw file.
    pub fn small() -> Self {
        let mut rng = Rng::new(6);
        let mut family = Self { members: Vec::new(), disks: 3, sector: 512 };
        let size = 3 << 20;
        family.add("base", None, size, 1 << 20, &mut rng);
        family.write(0, 4096, &[1; 8192]);
        family.write(0, 1 << 20, &[2; 4096]);
        family.add("child", Some(0), size, 1 << 20, &mut rng);
        family.add("grandchild", Some(1), size, 1 << 20, &mut rng);
        let mut dump = family.members[0].bytes.clone();
        dump.truncate((2 << 20) + 1000);
        dump[8192..12_288].fill(3);
        dump[1 << 20..(1 << 20) + 4096].fill(0);
        dump[(2 << 20) + 500..].fill(4);
        family.add_raw("dump", dump);
        family
    }

    /// The files that a child of member `n` is made over, counting.
    pub fn counted_files(&self, n: usize, read: &Arc<AtomicU64>) -> Vec<Arc<dyn Storage>> {
        self.members[n].files.iter().map(|file| Counted::on(file, read)).collect()
    }

    fn add(&mut self, name: &str, over: Option<usize>, size: u64, block: u64, rng: &mut Rng) {
        let leaf = memory();
        let below = over.map_or_else(Vec::new, |n| self.members[n].files.clone());
        let mut bytes = over.map_or_else(Vec::new, |n| self.members[n].bytes.clone());
        bytes.resize(size as usize, 0);
        let disk = if over.is_some() {
            Disk::create_child_on(Arc::clone(&leaf), below.clone(), &CreateOptions::child().size(size).block_size(block))
        } else {
            let base = if name == "stranger" && rng.below(2) == 0 { CreateOptions::fixed(size) } else { CreateOptions::dynamic(size) };
            Disk::create_on(Arc::clone(&leaf), &base.block_size(block).logical_sector(self.sector))
        };
        disk.expect("it is created").close().expect("it closes");
        let files = std::iter::once(leaf).chain(below).collect();
        self.members.push(Member { name: name.to_owned(), bytes, files, is_raw: false });
    }

    fn add_raw(&mut self, name: &str, bytes: Vec<u8>) {
        let file = memory();
        file.set_len(bytes.len() as u64).expect("a length");
        for (at, piece) in (0..).step_by(65_536).zip(bytes.chunks(65_536)) {
            if piece.iter().any(|&byte| byte != 0) {
                file.write_at(piece, at).expect("a write");
            }
        }
        self.members.push(Member { name: name.to_owned(), bytes, files: vec![file], is_raw: true });
    }

    pub fn open(&self, n: usize) -> Disk {
        let files = &self.members[n].files;
        Disk::open_on(Arc::clone(&files[0]), files[1..].to_vec(), &OpenOptions::new().writable(true)).expect("it opens")
    }

    pub fn write(&mut self, n: usize, at: u64, bytes: &[u8]) {
        let disk = self.open(n);
        disk.write_at(bytes, at).expect("a write");
        disk.close().expect("it closes");
        self.members[n].bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        self.relink_above(n);
    }

    pub fn zero(&mut self, n: usize, at: u64, len: u64) {
        let disk = self.open(n);
        disk.write_zeroes(at, len).expect("zeros");
        disk.close().expect("it closes");
        self.members[n].bytes[at as usize..(at + len) as usize].fill(0);
        self.relink_above(n);
    }

    /// A family is built from below; nobody changes who has children.
    fn relink_above(&self, n: usize) {
        assert_eq!(n + 1, self.members.len(), "only the youngest is written to");
    }

    fn session(&mut self, n: usize, writes: u64, rng: &mut Rng) {
        let size = self.members[n].bytes.len() as u64;
        for _ in 0..writes {
            let at = rng.below(size);
            let most = [600, 10_000, 200_000, 3 << 20][rng.below(4) as usize];
            let len = (1 + rng.below(most)).min(size - at);
            match rng.below(5) {
                0 => self.zero(n, at, len),
                // Zeros that are stored, which only reading tells.
                1 => self.write(n, at, &vec![0; len as usize]),
                _ => self.write(n, at, &vec![rng.below(255) as u8 + 1; len as usize]),
            }
        }
    }
}
