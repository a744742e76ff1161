//! What the tests of the store share.

use diffdisk::{Cancel, CloneDisk, CloneOptions, Image, ImageOptions, NoProgress, Source, Store};
use std::path::{Path, PathBuf};

pub const MIB: u64 = 1 << 20;
/// The raw source: a little more than 8 MiB and no whole number of anything.
pub const RAW_LEN: u64 = 8 * MIB + 700;

/// A store, a source, and a place for clones.
pub struct World {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A raw file with data at both ends, a hole and written zeros in between.
    pub fn raw(&self) -> PathBuf {
        let path = self.path("db.img");
        std::fs::write(&path, content(1)).unwrap();
        path
    }

    pub fn image(&self, name: &str) -> Image {
        make(&self.store, name, &self.raw())
    }

    /// Files that were being made, except those that are empty: a sweep leaves them alone for some seconds, because their maker may be about
    /// to lock them.
    pub fn leftovers(&self) -> Vec<String> {
        let has_content = |name: &String| std::fs::metadata(self.path(name)).is_ok_and(|metadata| metadata.len() > 0);
        self.files().into_iter().filter(|name| name.contains(".tmp")).filter(has_content).collect()
    }

    /// What is in the world's directory and the store, without directories, sorted.
    pub fn files(&self) -> Vec<String> {
        files_below(self.dir.path())
    }
}

pub fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; RAW_LEN as usize];
    bytes[..5000].fill(seed);
    bytes[(3 * MIB) as usize..(3 * MIB) as usize + 70_000].fill(seed.wrapping_add(1));
    let len = bytes.len();
    bytes[len - 300..].fill(seed.wrapping_add(2));
    bytes
}

pub fn make(store: &Store, name: &str, raw: &Path) -> Image {
    store.create_image(name, Source::raw(raw), &ImageOptions::default(), &NoProgress, &Cancel::new()).unwrap()
}

/// Clones without syncs: the tests do not cut the power.
pub fn quick() -> CloneOptions {
    CloneOptions::default().durable(false)
}

pub fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The first bytes that a clone shows.
pub fn first(clone: &CloneDisk, len: usize) -> Vec<u8> {
    let disk = clone.open_with(&diffdisk::OpenOptions::new()).unwrap();
    let mut bytes = vec![0xEE; len];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}
