//! What the speed measurements stand on: one populated plain file, one populated image with the same bytes, chains of empty
//! children over it, and buffers that start on a page.
//!
//! Buffers are page-aligned because a copy whose target lies 16 bytes past a page start, which is where a large `Vec` begins, is
//! several times slower on common processors: unaligned buffers would drown every other effect. Everything lies on a memory file
//! system where there is one, so that what is measured is the engine's own work and not a device.

mod ground;
mod positioned;

pub use ground::{Buffer, PAGE};
pub use positioned::Positioned;

use diffdisk::{CreateOptions, Disk, OpenOptions};
use ground::scratch_dir;
use std::fs::File;
use std::path::PathBuf;
use tempfile::TempDir;

/// Size of the populated disk: well beyond what a processor caches.
pub const SIZE: u64 = 256 << 20;
/// The deepest chain.
pub const MAX_DEPTH: usize = 32;
/// Positions in a stream before it repeats, and pages that the warm child holds itself.
const STREAM: usize = 8192;

/// Positions in random order, drawn before the clock starts. No page comes twice before all of the stream was handed out.
pub struct Places {
    offsets: Vec<u64>,
    next: usize,
}

impl Places {
    /// Pages anywhere on the disk.
    pub fn new() -> Self {
        let pages = SIZE / PAGE as u64;
        // An odd multiplier permutes the residues of a power of two.
        Self { offsets: (0..STREAM as u64).map(|i| (i * 0x9E37_79B1 + 12345) % pages * PAGE as u64).collect(), next: 0 }
    }

    #[inline]
    pub fn next(&mut self) -> u64 {
        let offset = self.offsets[self.next];
        self.next = (self.next + 1) % STREAM;
        offset
    }

    /// Whether the next position starts the stream over.
    pub fn is_at_start(&self) -> bool {
        self.next == 0
    }
}

/// Files to measure on.
pub struct Lab {
    dir: TempDir,
    /// The yardstick: a plain file with the image's content.
    pub raw: File,
}

impl Lab {
    pub fn new() -> Self {
        let dir = scratch_dir();
        let raw = new_file(dir.path().join("plain"));
        let base = Disk::create(dir.path().join("0.vhdx"), &CreateOptions::dynamic(SIZE).durable(false)).expect("the base is created");
        let content = Buffer::new(1 << 20);
        for at in (0..SIZE).step_by(1 << 20) {
            raw.write_all_at(content.get(), at).expect("the plain file is written");
            base.write_at(content.get(), at).expect("the base is written");
        }
        base.close().expect("the base is closed");
        let lab = Self { dir, raw };
        for depth in 1..=MAX_DEPTH {
            lab.child(&format!("{depth}"), &format!("{}", depth - 1)).close().expect("an empty child is closed");
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.vhdx"))
    }

    fn child(&self, name: &str, parent: &str) -> Disk {
        let options = CreateOptions::child().durable(false).overwrite(true);
        Disk::create_child(self.path(name), self.path(parent), &options).expect("a child is created")
    }

    /// The populated image through `depth` empty children, for reading.
    pub fn chain(&self, depth: usize, mapped: bool) -> Disk {
        Disk::open(self.path(&format!("{depth}")), &OpenOptions::new().map_ancestors(mapped)).expect("the chain opens")
    }

    /// A writable child that holds every page of [`Places`] itself.
    pub fn warm(&self, name: &str, mapped: bool) -> Disk {
        let disk = self.child(name, "0");
        let (content, mut places) = (Buffer::new(PAGE), Places::new());
        for _ in 0..STREAM {
            disk.write_at(content.get(), places.next()).expect("the child is written");
        }
        disk.close().expect("the child is closed");
        Disk::open(self.path(name), &OpenOptions::new().writable(true).map_ancestors(mapped)).expect("the child opens")
    }

    /// A writable child that holds nothing, in place of the one this gave before. One write has begun its session.
    pub fn fresh(&self) -> Disk {
        let disk = self.child("fresh", "0");
        disk.write_zeroes(SIZE - 512, 512).expect("the session begins");
        disk
    }

    /// A plain file that holds nothing, in place of the one this gave before.
    pub fn fresh_raw(&self) -> File {
        new_file(self.dir.path().join("fresh"))
    }
}

fn new_file(path: PathBuf) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).expect("a plain file is created");
    file.set_len(SIZE).expect("a plain file is sized");
    file
}
