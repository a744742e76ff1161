//! Merging files: siblings, runs of layers, new files, what is removed and what is linked anew.

use diffdisk::{
    Cancel, CreateOptions, Disk, ErrorKind, MergeOptions, NoProgress, OpenOptions, ParentPolicy, ToolError, merge_into, merge_to,
};
use std::path::{Path, PathBuf};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn base(&self, name: &str, byte: u8) {
        let disk = Disk::create(self.path(name), &CreateOptions::dynamic(8 << 20)).expect("a base");
        disk.write_at(&vec![byte; 2 << 20], 0).expect("a write");
        disk.close().expect("a close");
    }

    fn child(&self, name: &str, parent: &str, at: u64, byte: u8) {
        let disk = Disk::create_child(self.path(name), self.path(parent), &CreateOptions::child()).expect("a child");
        disk.write_at(&[byte; 4096], at).expect("a write");
        disk.close().expect("a close");
    }

    fn content(&self, name: &str) -> Vec<u8> {
        let disk = Disk::open(self.path(name), &OpenOptions::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        super::chain::content(&disk)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.0.path())
            .expect("a directory")
            .map(|e| e.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        names
    }
}

fn merge(child: &Path, options: &MergeOptions) -> Result<diffdisk::Merged, ToolError> {
    merge_into(child, None, options, &NoProgress, &Cancel::new())
}

#[test]
fn siblings_are_spared_unless_they_are_given_up() {
    let dir = Dir::new();
    dir.base("base.vhdx", 1);
    dir.child("a.vhdx", "base.vhdx", 0, 2);
    dir.child("b.AVHDX", "base.vhdx", 4096, 3);
    let (base, child, shown) = (dir.bytes("base.vhdx"), dir.bytes("a.vhdx"), dir.content("a.vhdx"));
    let refused = merge(&dir.path("a.vhdx"), &MergeOptions::new()).expect_err("a sibling");
    assert_eq!(refused.kind(), ErrorKind::InUse);
    let ToolError::Children { children, .. } = refused else { panic!("{refused}") };
    assert_eq!(children.iter().filter_map(|path| path.file_name()).collect::<Vec<_>>(), ["b.AVHDX"]);
    assert!(dir.bytes("base.vhdx") == base && dir.bytes("a.vhdx") == child, "nothing was written");

    let merged = merge(&dir.path("a.vhdx"), &MergeOptions::new().sacrifice_siblings(true)).expect("a merge");
    assert_eq!((merged.lost.len(), merged.layers), (1, 1));
    assert!(dir.content("base.vhdx") == shown && dir.content("a.vhdx") == shown, "the child stays, on its equal");
    let dead = Disk::open(dir.path("b.AVHDX"), &OpenOptions::new()).expect_err("it is dead, and says so");
    assert_eq!(dead.kind(), ErrorKind::Damaged, "{dead}");
    // The child that stayed is an ordinary one.
    let disk = Disk::open(dir.path("a.vhdx"), &OpenOptions::new().writable(true)).expect("the child");
    disk.write_at(&[9; 512], 0).expect("a write");
    disk.close().expect("a close");
    assert_eq!((dir.content("a.vhdx")[0], dir.content("base.vhdx")[0]), (9, 2));
}

#[test]
fn a_sibling_that_only_the_caller_knows_counts() {
    let (dir, elsewhere) = (Dir::new(), Dir::new());
    dir.base("base.vhdx", 1);
    dir.child("a.vhdx", "base.vhdx", 0, 2);
    let far = elsewhere.path("far.vhdx");
    Disk::create_child(&far, dir.path("base.vhdx"), &CreateOptions::child()).expect("a child").close().expect("a close");
    let told = MergeOptions::new().known_children(vec![far, dir.path("a.vhdx"), dir.path("gone.vhdx")]);
    let refused = merge(&dir.path("a.vhdx"), &told).expect_err("a sibling");
    assert!(matches!(&refused, ToolError::Children { children, .. } if children.len() == 1), "{refused}");
}

#[test]
fn grandchildren_are_linked_to_the_ancestor_when_the_child_goes() {
    let dir = Dir::new();
    dir.base("base.vhdx", 1);
    dir.child("a.vhdx", "base.vhdx", 0, 2);
    dir.child("grandchild.vhdx", "a.vhdx", 8192, 3);
    let (shown, above) = (dir.content("a.vhdx"), dir.content("grandchild.vhdx"));
    let merged = merge(&dir.path("a.vhdx"), &MergeOptions::new().delete(true)).expect("a merge");
    assert_eq!((merged.removed.len(), merged.relinked.len()), (1, 1));
    assert_eq!(dir.names(), ["base.vhdx", "grandchild.vhdx"]);
    assert!(dir.content("base.vhdx") == shown && dir.content("grandchild.vhdx") == above);
}

#[test]
fn a_run_of_layers_goes_into_the_base() {
    let dir = Dir::new();
    dir.base("base.vhdx", 1);
    for (name, parent, at, byte) in [("1.vhdx", "base.vhdx", 0, 2), ("2.vhdx", "1.vhdx", 4096, 3), ("3.vhdx", "2.vhdx", 3 << 20, 4)] {
        dir.child(name, parent, at, byte);
    }
    let shown = dir.content("3.vhdx");
    let into = |options: &MergeOptions| merge_into(&dir.path("3.vhdx"), Some(&dir.path("base.vhdx")), options, &NoProgress, &Cancel::new());
    assert_eq!(into(&MergeOptions::new()).expect_err("layers between").kind(), ErrorKind::InvalidInput);
    let merged = into(&MergeOptions::new().delete(true)).expect("a merge");
    assert_eq!((merged.layers, merged.removed.len()), (3, 3));
    assert_eq!(dir.names(), ["base.vhdx"]);
    assert!(dir.content("base.vhdx") == shown);
}

#[test]
fn an_ancestor_in_use_is_left_alone() {
    let dir = Dir::new();
    dir.base("base.vhdx", 1);
    dir.child("a.vhdx", "base.vhdx", 0, 2);
    let shown = dir.content("a.vhdx");
    let reader = Disk::open(dir.path("base.vhdx"), &OpenOptions::new()).expect("a reader");
    assert_eq!(merge(&dir.path("a.vhdx"), &MergeOptions::new()).expect_err("in use").kind(), ErrorKind::InUse);
    drop(reader);
    assert!(dir.content("a.vhdx") == shown);
    merge(&dir.path("a.vhdx"), &MergeOptions::new()).expect("a merge");
}

#[test]
fn a_new_generation_leaves_everything_else_as_it_is() {
    let dir = Dir::new();
    dir.base("base.vhdx", 1);
    dir.child("mid.vhdx", "base.vhdx", 0, 2);
    dir.child("leaf.vhdx", "mid.vhdx", 4096, 3);
    dir.child("sibling.vhdx", "mid.vhdx", 8192, 4);
    let disk = Disk::open(dir.path("leaf.vhdx"), &OpenOptions::new().writable(true)).expect("the leaf");
    disk.write_zeroes(1 << 20, 1 << 20).expect("zeros");
    disk.close().expect("a close");
    let shown = dir.content("leaf.vhdx");
    let before: Vec<_> = ["base.vhdx", "mid.vhdx", "leaf.vhdx", "sibling.vhdx"].map(|name| dir.bytes(name)).into();
    let to = |ancestor: &str, new: &str, options: &MergeOptions| {
        merge_to(&dir.path("leaf.vhdx"), Some(&dir.path(ancestor)), &dir.path(new), options, &NoProgress, &Cancel::new())
    };
    to("mid.vhdx", "mid-2.vhdx", &MergeOptions::new()).expect("a new file");
    let flat = to("base.vhdx", "base-2.vhdx", &MergeOptions::new().keep_identity(true)).expect("a new file");
    assert!(dir.content("mid-2.vhdx") == shown && dir.content("base-2.vhdx") == shown);
    let after: Vec<_> = ["base.vhdx", "mid.vhdx", "leaf.vhdx", "sibling.vhdx"].map(|name| dir.bytes(name)).into();
    assert!(before == after, "no other file changed");
    let info = |name: &str| Disk::open(dir.path(name), &OpenOptions::new()).expect("a disk").info().expect("an info");
    let (leaf, mid, base) = (info("leaf.vhdx"), info("mid-2.vhdx"), info("base-2.vhdx"));
    assert_eq!(mid.chain.len(), 2, "it stands on what its model stands on");
    assert!(base.parent.is_none() && base.disk_id == leaf.disk_id && mid.disk_id == leaf.disk_id);
    assert_eq!((base.data_write_guid, flat.data_write_guid), (leaf.data_write_guid, leaf.data_write_guid));
    assert_ne!(mid.data_write_guid, leaf.data_write_guid);
    assert_eq!(to("base.vhdx", "mid.vhdx", &MergeOptions::new()).expect_err("taken").kind(), ErrorKind::AlreadyExists);
    let cancel = Cancel::new();
    cancel.cancel();
    let stopped = merge_to(&dir.path("leaf.vhdx"), None, &dir.path("no.vhdx"), &MergeOptions::new(), &NoProgress, &cancel);
    assert_eq!(stopped.expect_err("a stop").kind(), ErrorKind::Cancelled);
    assert_eq!(dir.names().len(), 6, "{:?}", dir.names());
}

#[test]
fn what_a_shorter_layer_hides_stays_hidden_in_a_new_file() {
    let dir = Dir::new();
    dir.base("base.vhdx", 1);
    let short = CreateOptions::child().size(1 << 20);
    Disk::create_child(dir.path("short.vhdx"), dir.path("base.vhdx"), &short).expect("a child").close().expect("a close");
    let long = CreateOptions::child().size(6 << 20);
    let disk = Disk::create_child(dir.path("long.vhdx"), dir.path("short.vhdx"), &long).expect("a child");
    disk.write_at(&[5; 512], 5 << 20).expect("a write");
    disk.close().expect("a close");
    let shown = dir.content("long.vhdx");
    assert!(shown[1 << 20..5 << 20].iter().all(|&byte| byte == 0));
    merge_to(&dir.path("long.vhdx"), None, &dir.path("new.vhdx"), &MergeOptions::new(), &NoProgress, &Cancel::new()).expect("a new file");
    assert!(dir.content("new.vhdx") == shown);
    let refused = merge(&dir.path("long.vhdx"), &MergeOptions::new()).expect_err("growing would show what was hidden");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    assert!(dir.content("long.vhdx") == shown);
}

#[test]
fn a_huge_clone_with_few_changes_is_flattened_and_merged_at_once() {
    let dir = Dir::new();
    let size = 64_u64 << 40;
    let base = Disk::create(dir.path("base.vhdx"), &CreateOptions::dynamic(size)).expect("a base");
    base.write_at(&[1; 4096], 40 << 40).expect("a write");
    base.close().expect("a close");
    let started = std::time::Instant::now();
    for name in ["flat.vhdx", "merged.vhdx"] {
        let disk = Disk::create_child(dir.path(name), dir.path("base.vhdx"), &CreateOptions::child()).expect("a child");
        disk.write_at(&[2; 4096], size - 4096).expect("a write");
        if name == "flat.vhdx" {
            let done = disk.flatten(&NoProgress, &Cancel::new()).expect("a cut");
            assert!(done.is_cut && done.blocks <= 2, "{done:?}");
        }
        disk.close().expect("a close");
    }
    merge(&dir.path("merged.vhdx"), &MergeOptions::new().delete(true)).expect("a merge");
    let alone = OpenOptions::new().parents(ParentPolicy::Deny);
    for name in ["flat.vhdx", "base.vhdx"] {
        let disk = Disk::open(dir.path(name), &alone).expect("it needs nobody");
        for (at, byte) in [(40 << 40, 1), (size - 4096, 2), (20 << 40, 0)] {
            let mut bytes = [9; 4096];
            disk.read_at(&mut bytes, at).expect("a read");
            assert_eq!(bytes, [byte; 4096], "{name} at {at}");
        }
        let info = disk.info().expect("an info");
        // Blocks of that disk are 64 MiB long, and holes but for what was written.
        assert!(info.sizes.allocated < 16 << 20, "{name}: {:?}", info.sizes);
    }
    println!("64 TiB: flattened and merged in {:?}", started.elapsed());
}
