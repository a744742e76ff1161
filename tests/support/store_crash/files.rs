//! A small file system in memory: inodes, names, sparse content. Loaded from a real directory and laid out as one.

use super::trace::Event;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub type Ino = usize;
/// The directory that is watched.
pub const ROOT: Ino = 0;
const PAGE: u64 = 4096;

#[derive(Clone, Debug, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

impl Content {
    fn write(&mut self, bytes: &[u8], at: u64) {
        let mut done = 0;
        while done < bytes.len() {
            let pos = at + done as u64;
            let (page, within) = (pos / PAGE, (pos % PAGE) as usize);
            let part = (PAGE as usize - within).min(bytes.len() - done);
            let whole = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(whole)[within..within + part].copy_from_slice(&bytes[done..done + part]);
            done += part;
        }
        self.len = self.len.max(at + bytes.len() as u64);
    }

    fn zero(&mut self, at: u64, len: u64) {
        let end = (at + len).min(self.len.next_multiple_of(PAGE));
        let zeros = vec![0; PAGE as usize];
        let touched: Vec<u64> = self.pages.range(at / PAGE..end.div_ceil(PAGE)).map(|(&page, _)| page).collect();
        let len_before = self.len;
        for page in touched {
            let (from, to) = (at.max(page * PAGE), end.min((page + 1) * PAGE));
            self.write(&zeros[..(to - from) as usize], from);
        }
        self.len = len_before;
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
            self.pages.retain(|page, _| page * PAGE < len);
        }
        self.len = len;
    }
}

#[derive(Clone, Debug)]
enum Node {
    File(Content),
    Dir(BTreeMap<String, Ino>),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Files(Vec<Node>);

impl Files {
    /// What is below a directory now. Hard links stay links.
    pub fn load(root: &Path) -> Self {
        let mut files = Self(vec![Node::Dir(BTreeMap::new())]);
        let mut known = BTreeMap::new();
        files.load_dir(root, ROOT, &mut known);
        files
    }

    fn load_dir(&mut self, path: &Path, dir: Ino, known: &mut BTreeMap<u64, Ino>) {
        for entry in std::fs::read_dir(path).expect("a directory") {
            let entry = entry.expect("an entry");
            let metadata = entry.metadata().expect("metadata");
            let ino = *known.entry(metadata.ino()).or_insert_with(|| {
                if metadata.is_dir() {
                    return self.new_dir();
                }
                let ino = self.new_file();
                let mut content = Content::default();
                let bytes = std::fs::read(entry.path()).expect("a readable file");
                for (page, part) in bytes.chunks(PAGE as usize).enumerate().filter(|(_, part)| part.iter().any(|&byte| byte != 0)) {
                    content.write(part, page as u64 * PAGE);
                }
                content.len = bytes.len() as u64;
                self.0[ino] = Node::File(content);
                ino
            });
            self.entries_mut(dir).insert(entry.file_name().into_string().expect("a plain name"), ino);
            if metadata.is_dir() {
                self.load_dir(&entry.path(), ino, known);
            }
        }
    }

    pub fn new_file(&mut self) -> Ino {
        self.0.push(Node::File(Content::default()));
        self.0.len() - 1
    }

    pub fn new_dir(&mut self) -> Ino {
        self.0.push(Node::Dir(BTreeMap::new()));
        self.0.len() - 1
    }

    /// Inodes that another one has and this one does not: nothing leads to them yet.
    pub fn know_all_of(&mut self, other: &Self) {
        for node in other.0.iter().skip(self.0.len()) {
            self.0.push(match node {
                Node::File(_) => Node::File(Content::default()),
                Node::Dir(_) => Node::Dir(BTreeMap::new()),
            });
        }
    }

    pub fn entry(&self, dir: Ino, name: &str) -> Option<Ino> {
        match &self.0[dir] {
            Node::Dir(entries) => entries.get(name).copied(),
            Node::File(_) => None,
        }
    }

    fn entries_mut(&mut self, dir: Ino) -> &mut BTreeMap<String, Ino> {
        match &mut self.0[dir] {
            Node::Dir(entries) => entries,
            Node::File(_) => panic!("a directory was wanted"),
        }
    }

    fn content(&mut self, file: Ino) -> &mut Content {
        match &mut self.0[file] {
            Node::File(content) => content,
            Node::Dir(_) => panic!("a file was wanted"),
        }
    }

    /// Makes one change.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Write { file, at, bytes, .. } => self.content(*file).write(bytes, *at),
            Event::SetLen { file, len } => self.content(*file).set_len(*len),
            Event::Punch { file, at, len } => self.content(*file).zero(*at, *len),
            Event::Link { dir, name, what } => drop(self.entries_mut(*dir).insert(name.clone(), *what)),
            Event::Unlink { dir, name } => drop(self.entries_mut(*dir).remove(name)),
            Event::Rename { dir, from, to, what } => {
                let entries = self.entries_mut(*dir);
                if entries.get(from) == Some(what) {
                    entries.remove(from);
                }
                entries.insert(to.clone(), *what);
            }
            Event::Sync { .. } | Event::Done => {}
        }
    }

    /// The same for all states that look alike from outside.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_dir(ROOT, &mut hasher);
        hasher.finish()
    }

    /// The same where the same names lead to files of the same lengths.
    pub fn hash_of_names(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_names(ROOT, &mut hasher);
        hasher.finish()
    }

    fn hash_names(&self, dir: Ino, hasher: &mut DefaultHasher) {
        let Node::Dir(entries) = &self.0[dir] else { return };
        for (name, &ino) in entries {
            name.hash(hasher);
            match &self.0[ino] {
                Node::Dir(_) => self.hash_names(ino, hasher),
                Node::File(content) => content.len.hash(hasher),
            }
        }
        "end".hash(hasher);
    }

    fn hash_dir(&self, dir: Ino, hasher: &mut DefaultHasher) {
        let Node::Dir(entries) = &self.0[dir] else { return };
        for (name, &ino) in entries {
            name.hash(hasher);
            match &self.0[ino] {
                Node::Dir(_) => self.hash_dir(ino, hasher),
                Node::File(content) => {
                    (ino, content.len).hash(hasher);
                    content.pages.iter().filter(|(_, page)| page.iter().any(|&byte| byte != 0)).for_each(|page| page.hash(hasher));
                }
            }
        }
        "end".hash(hasher);
    }

    /// Lays everything out in a directory, in place of what is there. The files are an hour old: nobody is in the middle of making them.
    pub fn lay_out(&self, root: &Path) {
        if root.exists() {
            std::fs::remove_dir_all(root).expect("the last state goes");
        }
        std::fs::create_dir(root).expect("a directory");
        self.lay_out_dir(root, ROOT, &mut BTreeMap::new());
    }

    fn lay_out_dir(&self, path: &Path, dir: Ino, made: &mut BTreeMap<Ino, std::path::PathBuf>) {
        let Node::Dir(entries) = &self.0[dir] else { return };
        for (name, &ino) in entries {
            let path = path.join(name);
            match &self.0[ino] {
                Node::Dir(_) => {
                    std::fs::create_dir(&path).expect("a directory");
                    self.lay_out_dir(&path, ino, made);
                }
                Node::File(content) => match made.get(&ino) {
                    Some(first) => std::fs::hard_link(first, &path).expect("a link"),
                    None => {
                        let file = std::fs::File::create_new(&path).expect("a file");
                        file.set_len(content.len).expect("its length");
                        for (page, bytes) in &content.pages {
                            let at = page * PAGE;
                            let part = content.len.saturating_sub(at).min(PAGE) as usize;
                            file.write_all_at(&bytes[..part], at).expect("its bytes");
                        }
                        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("its time");
                        file.set_permissions(std::fs::Permissions::from_mode(0o644)).expect("its mode");
                        made.insert(ino, path);
                    }
                },
            }
        }
    }
}
