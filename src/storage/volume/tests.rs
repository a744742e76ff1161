use super::*;
use crate::kind::ErrorKind;
use crate::storage::write_all;
use crate::sync::Mutex;

fn volume() -> (tempfile::TempDir, DirVolume) {
    let dir = tempfile::tempdir().unwrap();
    let volume = DirVolume::open(dir.path()).unwrap();
    (dir, volume)
}

fn create(volume: &dyn Volume, name: &str, replace: bool, content: &[u8]) -> Result<Arc<dyn Storage>, StorageError> {
    create_atomically(volume, name, replace, true, |file| write_all(file.as_ref(), content, 0)).map(|(file, ())| file)
}

/// A real directory that writes down what is asked of it and fails one kind of call on demand.
#[derive(Debug)]
struct Recorder {
    inner: DirVolume,
    calls: Mutex<Vec<&'static str>>,
    fail: Option<&'static str>,
}

impl Recorder {
    fn new(inner: DirVolume, fail: Option<&'static str>) -> Self {
        Self { inner, calls: Mutex::new(Vec::new()), fail }
    }

    fn note(&self, call: &'static str) -> io::Result<()> {
        self.calls.lock().push(call);
        if self.fail == Some(call) { Err(io::Error::other("made to fail")) } else { Ok(()) }
    }
}

impl Volume for Recorder {
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        self.note("create")?;
        self.inner.create_new(name)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.note("rename")?;
        self.inner.rename(from, to, replace)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.note("remove")?;
        self.inner.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.note("sync_dir")?;
        self.inner.sync_dir()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.note("list")?;
        self.inner.list()
    }
    fn exists(&self, name: &str) -> io::Result<bool> {
        self.note("exists")?;
        self.inner.exists(name)
    }
}

#[test]
fn the_final_name_appears_with_the_content_and_the_file_stays_open_and_locked() {
    let (dir, volume) = volume();
    let (file, seen) = create_atomically::<_, StorageError>(&volume, "disk", false, true, |file| {
        write_all(file.as_ref(), b"content", 0)?;
        Ok(volume.list().unwrap())
    })
    .unwrap();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with(".disk.") && seen[0].ends_with(".tmp") && seen[0].len() == ".disk..tmp".len() + 16, "{seen:?}");
    assert_eq!(volume.list().unwrap(), ["disk"]);
    assert_eq!(std::fs::read(dir.path().join("disk")).unwrap(), b"content");
    let in_use = FileStorage::open_read(&dir.path().join("disk")).unwrap_err();
    assert_eq!(in_use.kind(), ErrorKind::InUse);
    drop(file);
}

#[test]
fn a_taken_name_is_refused_before_any_work_unless_it_may_be_replaced() {
    let (dir, volume) = volume();
    create(&volume, "disk", false, b"old").unwrap();
    let early: Result<_, StorageError> = create_atomically(&volume, "disk", false, true, |_| -> Result<(), _> { panic!("filled in vain") });
    assert_eq!(early.unwrap_err().kind(), ErrorKind::AlreadyExists);
    create(&volume, "disk", true, b"new").unwrap();
    assert_eq!(std::fs::read(dir.path().join("disk")).unwrap(), b"new");
    assert_eq!(volume.list().unwrap(), ["disk"]);
}

#[test]
fn a_name_taken_during_the_work_is_refused_at_the_rename_and_left_alone() {
    let (dir, volume) = volume();
    let path = dir.path().join("disk");
    let late: Result<_, StorageError> = create_atomically(&volume, "disk", false, false, |_| {
        std::fs::write(&path, b"quicker").map_err(|e| StorageError::new(Operation::Write, 0, e))
    });
    let late = late.unwrap_err();
    assert_eq!((late.operation, late.kind()), (Operation::Rename, ErrorKind::AlreadyExists));
    assert_eq!(std::fs::read(&path).unwrap(), b"quicker");
    assert_eq!(volume.list().unwrap(), ["disk"]);
}

#[test]
fn both_ways_to_rename_without_replacing_refuse_a_taken_name() {
    let (dir, volume) = volume();
    std::fs::write(dir.path().join("taken"), b"taken").unwrap();
    type Rename = fn(&std::fs::File, &str, &str) -> io::Result<()>;
    for rename in [rename_without_replacing as Rename, link_then_unlink as Rename] {
        std::fs::write(dir.path().join("from"), b"from").unwrap();
        match rename(&volume.handle, "from", "taken").unwrap_err().kind() {
            io::ErrorKind::Unsupported => continue,
            kind => assert_eq!(kind, io::ErrorKind::AlreadyExists),
        }
        rename(&volume.handle, "from", "free").unwrap();
        assert_eq!(std::fs::read(dir.path().join("free")).unwrap(), b"from");
        assert!(!volume.exists("from").unwrap());
        volume.remove("free").unwrap();
    }
    assert_eq!(std::fs::read(dir.path().join("taken")).unwrap(), b"taken");
}

#[test]
fn a_failure_at_any_step_leaves_nothing() {
    for step in ["create", "rename", "sync_dir"] {
        let (_dir, inner) = volume();
        let volume = Recorder::new(inner, Some(step));
        create(&volume, "disk", false, b"content").unwrap_err();
        assert_eq!(volume.inner.list().unwrap(), [""; 0], "{step}");
    }
    let (_dir, volume) = volume();
    let full = || StorageError::new(Operation::Write, 9, io::ErrorKind::StorageFull.into());
    let result: Result<(_, ()), _> = create_atomically(&volume, "disk", false, true, |_| Err(full()));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(volume.list().unwrap(), [""; 0]);
}

#[test]
fn a_panic_while_filling_leaves_nothing() {
    let (_dir, volume) = volume();
    let fill = || create_atomically::<(), StorageError>(&volume, "disk", false, true, |_| panic!("in the middle"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(fill)).unwrap_err();
    assert_eq!(volume.list().unwrap(), [""; 0]);
}

#[test]
fn what_is_not_asked_to_be_durable_pays_for_no_sync() {
    let (_dir, inner) = volume();
    let volume = Recorder::new(inner, None);
    create_atomically::<_, StorageError>(&volume, "a", true, false, |_| Ok(())).unwrap();
    assert_eq!(*volume.calls.lock(), ["create", "rename"]);
    volume.calls.lock().clear();
    create(&volume, "b", false, b"x").unwrap();
    assert_eq!(*volume.calls.lock(), ["exists", "create", "rename", "sync_dir"]);
}

#[test]
fn long_names_get_a_shorter_temporary_name_and_too_long_ones_an_error() {
    let (_dir, volume) = volume();
    for name in ["n".repeat(255), "é".repeat(127)] {
        assert!(temporary_name(&name).unwrap().len() <= NAME_MAX);
        create(&volume, &name, false, b"x").unwrap();
        assert_eq!(volume.list().unwrap(), [name.as_str()]);
        volume.remove(&name).unwrap();
    }
    for replace in [false, true] {
        let error = create(&volume, &"n".repeat(256), replace, b"x").unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidFilename, "{error}");
        assert_eq!(volume.list().unwrap(), [""; 0]);
    }
}

#[test]
fn names_are_single_components() {
    let (_dir, volume) = volume();
    for name in ["", ".", "..", "a/b", "../x", "nul\0"] {
        assert_eq!(volume.create_new(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        assert_eq!(volume.remove(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
    }
}

#[test]
fn a_directory_is_followed_when_it_is_renamed() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    std::fs::create_dir(&old).unwrap();
    let volume = DirVolume::open(&old).unwrap();
    std::fs::rename(&old, &new).unwrap();
    create(&volume, "disk", false, b"content").unwrap();
    assert!(new.join("disk").exists());
    let not_a_directory = DirVolume::open(&new.join("disk")).unwrap_err();
    assert_eq!(not_a_directory.source.kind(), io::ErrorKind::NotADirectory);
}
