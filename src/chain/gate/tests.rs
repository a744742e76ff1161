use super::*;
use crate::kind::ErrorKind;
use crate::storage::{Storage, read_up_to};
use proptest::prelude::*;
use std::os::unix::fs::symlink;

/// `top/clones/child.vhdx` is the leaf; `top/images/p.vhdx` and `top/secret` lie outside its directory.
struct World {
    _dir: tempfile::TempDir,
    top: PathBuf,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let top = std::fs::canonicalize(dir.path()).unwrap();
        for (path, content) in
            [("clones/child.vhdx", "child"), ("clones/sub/p.vhdx", "sub"), ("images/p.vhdx", "image"), ("secret", "secret")]
        {
            std::fs::create_dir_all(top.join(path).parent().unwrap()).unwrap();
            std::fs::write(top.join(path), content).unwrap();
        }
        Self { _dir: dir, top }
    }

    fn clones(&self) -> PathBuf {
        self.top.join("clones")
    }

    fn gate(&self, policy: &ParentPolicy) -> Gate {
        self.gate_with(policy, &[])
    }

    fn gate_with(&self, policy: &ParentPolicy, windows: &[(String, PathBuf)]) -> Gate {
        Gate::new(policy, &self.clones(), windows)
    }

    /// What opening a child with this one locator path comes to: the parent's content, or the error.
    fn follow(&self, gate: &Gate, key: &str, written: &str) -> Result<String, ChainError> {
        self.follow_all(gate, &[(key, written)])
    }

    fn follow_all(&self, gate: &Gate, paths: &[(&str, &str)]) -> Result<String, ChainError> {
        let mut refusals = Vec::new();
        for candidate in gate.candidates(&self.clones(), paths) {
            match gate.open(&candidate) {
                Ok((file, found)) => {
                    assert_eq!(FileStorage::open_read(&found).unwrap().id(), file.id(), "the path that is told leads to the file");
                    return Ok(content(&file));
                }
                Err(refusal) => refusals.push(refusal),
            }
        }
        Err(ChainError::from_refusals(&refusals))
    }

    fn beneath(&self, dirs: &[&str]) -> Gate {
        self.gate(&ParentPolicy::Beneath(dirs.iter().map(|dir| self.top.join(dir)).collect()))
    }
}

fn content(file: &FileStorage) -> String {
    let mut buf = [0; 100];
    let n = read_up_to(file, &mut buf, 0).unwrap();
    String::from_utf8(buf[..n].to_vec()).unwrap()
}

#[track_caller]
fn refused(result: Result<String, ChainError>, kind: ErrorKind) -> String {
    let error = result.expect_err("must be refused");
    assert_eq!(error.kind(), kind, "{error}");
    error.to_string()
}

#[test]
fn by_default_parents_come_from_the_leafs_directory_at_any_depth() {
    let world = World::new();
    let gate = world.gate(&ParentPolicy::default());
    for written in [r".\sub\p.vhdx", r"sub\p.vhdx", "sub/p.vhdx", r".\sub\..\sub\.\p.vhdx", r"..\clones\sub\p.vhdx"] {
        assert_eq!(world.follow(&gate, "relative_path", written).unwrap(), "sub", "{written}");
    }
    let absolute = world.clones().join("sub/p.vhdx");
    assert_eq!(world.follow(&gate, "absolute_win32_path", absolute.to_str().unwrap()).unwrap(), "sub");
}

#[test]
fn what_is_outside_is_denied_with_the_flag_that_would_allow_it() {
    let world = World::new();
    let gate = world.gate(&ParentPolicy::default());
    let images = world.top.join("images");
    let absolute = images.join("p.vhdx").display().to_string();
    for written in [r"..\images\p.vhdx", absolute.as_str()] {
        let text = refused(world.follow(&gate, "relative_path", written), ErrorKind::Denied);
        assert!(text.contains(written), "{text}");
        assert!(text.contains(&format!("`--parents {images:?}`")) && text.contains("`--parents anywhere`"), "{text}");
        assert_eq!(world.follow(&world.beneath(&["images"]), "relative_path", written).unwrap(), "image");
    }
}

#[test]
fn a_refusal_does_not_tell_whether_the_file_exists() {
    let world = World::new();
    let gate = world.gate(&ParentPolicy::default());
    for (there, not_there) in [
        (r"..\secret", r"..\sacred"),
        ("/etc/passwd", "/etc/passwx"),
        (r"..\images\p.vhdx", r"..\images\q.vhdx"),
        ("/dev/null", "/dev/nill"),
    ] {
        let texts = [there, not_there].map(|written| refused(world.follow(&gate, "relative_path", written), ErrorKind::Denied));
        assert_eq!(texts[0].replace(there, "X"), texts[1].replace(not_there, "X"));
    }
}

#[test]
fn what_is_allowed_and_not_there_is_missing_with_every_path_tried() {
    let world = World::new();
    let gate = world.gate(&ParentPolicy::default());
    let paths = [("absolute_win32_path", r"C:\images\p.vhdx"), ("parent_linkage", "{x}"), ("relative_path", r".\none.vhdx")];
    let text = refused(world.follow_all(&gate, &paths), ErrorKind::NotFound);
    assert!(text.contains(r#"(tried ".\none.vhdx", "C:\images\p.vhdx")"#) && text.contains("relink"), "{text}");
    assert_eq!(ChainError::from_refusals(&[]).kind(), ErrorKind::Damaged);
}

#[test]
fn links_are_not_followed_except_anywhere() {
    let world = World::new();
    symlink("../secret", world.clones().join("filelink")).unwrap();
    symlink("../images", world.clones().join("dirlink")).unwrap();
    symlink("../nothing", world.clones().join("dangling")).unwrap();
    for written in ["filelink", r"dirlink\p.vhdx", "dangling"] {
        let text = refused(world.follow(&world.gate(&ParentPolicy::default()), "relative_path", written), ErrorKind::Denied);
        assert!(text.contains("symbolic link"), "{text}");
    }
    assert_eq!(world.follow(&world.gate(&ParentPolicy::Anywhere), "relative_path", r"dirlink\p.vhdx").unwrap(), "image");
}

#[test]
fn an_allowed_directory_may_itself_be_given_through_a_link() {
    let world = World::new();
    symlink("images", world.top.join("golden")).unwrap();
    let gate = world.beneath(&["golden"]);
    for dir in ["golden", "images"] {
        let written = world.top.join(dir).join("p.vhdx").display().to_string();
        assert_eq!(world.follow(&gate, "absolute_win32_path", &written).unwrap(), "image", "{written}");
    }
}

#[test]
fn a_leaf_behind_a_link_has_the_directory_it_is_really_in() {
    let world = World::new();
    symlink("clones/child.vhdx", world.top.join("shortcut")).unwrap();
    assert_eq!(directory_of(&world.top.join("shortcut")), world.clones());
    assert_eq!(directory_of(&world.clones().join("not yet")), world.clones());
    let gate = Gate::new(&ParentPolicy::default(), &directory_of(&world.top.join("shortcut")), &[]);
    assert_eq!(world.follow(&gate, "relative_path", r"sub\p.vhdx").unwrap(), "sub");
    refused(world.follow(&gate, "relative_path", r"..\secret"), ErrorKind::Denied);
}

#[test]
fn only_regular_files_are_parents_and_nothing_blocks() {
    let world = World::new();
    let fifo = world.clones().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.clones().join("socket")).unwrap();
    let devices = ParentPolicy::Beneath(vec!["/dev".into()]);
    for policy in [devices, ParentPolicy::Anywhere] {
        for written in ["fifo", "socket", "sub", ".", "/dev/null"] {
            let text = refused(world.follow(&world.gate(&policy), "relative_path", written), ErrorKind::Denied);
            assert!(text.contains("not a regular file"), "{policy:?} {written}: {text}");
        }
    }
}

#[test]
fn windows_forms_and_malformed_paths_are_refused_under_every_policy() {
    let world = World::new();
    let forms = [
        "",
        "sub/p.vhdx\0",
        "sub/p.vhdx:stream",
        r"sub:x\p.vhdx",
        r"C:\images\p.vhdx",
        "C:p.vhdx",
        r"\\server\share\p.vhdx",
        "//server/share/p.vhdx",
        r"\/server\share\p.vhdx",
        r"\\?\C:\images\p.vhdx",
        r"\\?\UNC\server\share\p.vhdx",
        r"\\?\Volume{5f5d1c4e-0000-0000-0000-100000000000}\p.vhdx",
        r"\\.\PhysicalDrive0",
        r"\??\C:\p.vhdx",
        "/../p.vhdx",
    ];
    for policy in [ParentPolicy::default(), ParentPolicy::Anywhere] {
        for form in forms {
            for key in PATH_KEYS {
                refused(world.follow(&world.gate(&policy), key, form), ErrorKind::Denied);
            }
        }
    }
}

#[test]
fn the_windows_table_maps_whole_components_in_any_case_and_the_policy_still_holds() {
    let world = World::new();
    let images = world.top.join("images");
    let table = [
        (r"D:\VM\Images".to_owned(), images.clone()),
        (r"\\Server\Share".to_owned(), images.clone()),
        (r"\\?\Volume{AAAA}\".to_owned(), images.clone()),
        ("Volume{bbbb}".to_owned(), images.clone()),
        ("E:".to_owned(), world.top.clone()),
        (r"E:\images".to_owned(), world.clones()),
    ];
    let allowed = ParentPolicy::Beneath(vec![images]);
    let gate = world.gate_with(&allowed, &table);
    for written in [
        r"D:\VM\Images\p.vhdx",
        r"d:\vm\IMAGES\p.vhdx",
        r"\\?\D:\VM\images\p.vhdx",
        "D:/vm/images/x/../p.vhdx",
        r"\\server\share\p.vhdx",
        r"\\?\unc\SERVER\share\p.vhdx",
        r"\\?\Volume{aaaa}\p.vhdx",
        r"\\?\Volume{BBBB}\p.vhdx",
    ] {
        assert_eq!(world.follow(&gate, "absolute_win32_path", written).unwrap(), "image", "{written}");
    }
    // The longest prefix wins.
    assert_eq!(world.follow(&gate, "volume_path", r"E:\Images\sub\p.vhdx").unwrap(), "sub");
    for written in [
        r"D:\VM\Images2\p.vhdx",
        r"D:\VM\Images\..\p.vhdx",
        r"D:\VM\Images",
        r"D:\VM\Images\p.vhdx:s",
        r"\\server\share\..\..\..\p.vhdx",
        r"\\server2\share\p.vhdx",
        r"E:\secret",
    ] {
        refused(world.follow(&gate, "absolute_win32_path", written), ErrorKind::Denied);
    }
    refused(world.follow(&world.gate_with(&ParentPolicy::default(), &table), "volume_path", r"D:\VM\Images\p.vhdx"), ErrorKind::Denied);
}

#[test]
fn anywhere_opens_what_the_file_names_and_deny_nothing() {
    let world = World::new();
    let absolute = world.top.join("secret").display().to_string();
    let (anywhere, deny) = (world.gate(&ParentPolicy::Anywhere), world.gate(&ParentPolicy::Deny));
    for (key, written) in [("absolute_win32_path", absolute.as_str()), ("relative_path", r"..\secret")] {
        assert_eq!(world.follow(&anywhere, key, written).unwrap(), "secret");
        let text = refused(world.follow(&deny, key, written), ErrorKind::Denied);
        assert!(text.contains(written) && text.contains("--parents"), "{text}");
    }
    refused(world.follow(&deny, "relative_path", r"sub\p.vhdx"), ErrorKind::Denied);
    refused(world.follow(&anywhere, "relative_path", r"..\none"), ErrorKind::NotFound);
}

#[test]
fn given_paths_replace_the_locators() {
    let world = World::new();
    let gate = world.gate(&ParentPolicy::Paths(vec![world.top.join("images/p.vhdx")]));
    assert!(gate.ignores_locators());
    assert_eq!(gate.candidates(&world.clones(), &[("relative_path", r"sub\p.vhdx")]), []);
    let (file, found) = gate.open(&gate.given(0).unwrap()).unwrap();
    assert_eq!((content(&file).as_str(), found), ("image", world.top.join("images/p.vhdx")));
    assert_eq!(gate.given(1), None);
    assert_eq!(world.gate(&ParentPolicy::Anywhere).given(0), None);
}

#[test]
fn candidates_come_in_the_formats_order_without_repetition() {
    let world = World::new();
    let absolute = world.clones().join("sub/p.vhdx").display().to_string();
    let paths = [("absolute_win32_path", absolute.as_str()), ("volume_path", r"\\?\Volume{x}\p.vhdx"), ("relative_path", r".\sub\p.vhdx")];
    let candidates = world.gate(&ParentPolicy::Anywhere).candidates(&world.clones(), &paths);
    let written: Vec<&str> = candidates.iter().map(|candidate| candidate.written.as_str()).collect();
    assert_eq!(written, [r".\sub\p.vhdx", r"\\?\Volume{x}\p.vhdx"]);
}

#[test]
fn a_parent_is_locked_and_cannot_be_written_through_the_gate() {
    let world = World::new();
    let gate = world.gate(&ParentPolicy::default());
    let candidate = &gate.candidates(&world.clones(), &[("relative_path", r"sub\p.vhdx")])[0];
    let (parent, found) = gate.open(candidate).unwrap();
    assert_eq!(FileStorage::open_write(&found).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(rustix::io::write(parent.file(), b"x").unwrap_err(), rustix::io::Errno::BADF);
    drop(parent);
    let writer = FileStorage::open_write(&found).unwrap();
    refused(world.follow(&gate, "relative_path", r"sub\p.vhdx"), ErrorKind::InUse);
    let Err(GateError::Cycle { at: 1 }) = gate.open_in_chain(candidate, &[StorageId { device: 0, object: 0 }, writer.id()]) else {
        panic!("a layer of the chain was taken for somebody else's file");
    };
}

#[test]
fn a_directory_that_cannot_be_allowed_is_named() {
    let world = World::new();
    let text = refused(world.follow(&world.beneath(&["imagse"]), "relative_path", r"..\images\p.vhdx"), ErrorKind::Denied);
    assert!(text.contains("imagse cannot be opened"), "{text}");
}

#[test]
fn locator_paths_lead_back_to_the_parent() {
    let world = World::new();
    for (name, relative) in [
        ("clones/p.vhdx", Some(r".\p.vhdx")),
        ("clones/deep er/élève 中.vhdx", Some(r".\deep er\élève 中.vhdx")),
        ("images/p.vhdx", Some(r"..\images\p.vhdx")),
        ("other/back\\slash.vhdx", None),
        ("other/12:30/p.vhdx", None),
    ] {
        let parent = world.top.join(name);
        std::fs::create_dir_all(parent.parent().unwrap()).unwrap();
        std::fs::write(&parent, name).unwrap();
        let written = relative_locator_path(&world.clones(), &parent);
        assert_eq!(written.as_deref(), relative, "{name}");
        assert_eq!(absolute_locator_path(&parent).is_some(), relative.is_some(), "{name}");
        let gate = world.gate(&ParentPolicy::Anywhere);
        for (key, written) in [("relative_path", written), ("absolute_win32_path", absolute_locator_path(&parent))] {
            if let Some(written) = written {
                assert_eq!(world.follow(&gate, key, &written).unwrap(), name, "{written}");
            }
        }
    }
    assert_eq!(relative_locator_path(&world.clones(), &world.top), None, "a directory above is no parent");
}

#[test]
fn names_that_are_not_unicode_have_no_locator_path() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new();
    let parent = world.top.join(std::ffi::OsStr::from_bytes(b"\xFF.vhdx"));
    // Some file systems take only Unicode names: then there is nothing to refuse.
    if std::fs::write(&parent, b"x").is_ok() {
        assert_eq!((relative_locator_path(&world.clones(), &parent), absolute_locator_path(&parent)), (None, None));
    }
}

proptest! {
    /// Whatever a locator says, beneath the default directory nothing from outside it is ever opened.
    #[test]
    fn no_text_leads_outside(parts in prop::collection::vec(prop_oneof![
        Just("..".to_owned()), Just(".".to_owned()), Just("".to_owned()), Just("clones".to_owned()), Just("images".to_owned()),
        Just("secret".to_owned()), Just("out".to_owned()), Just("p.vhdx".to_owned()), Just("sub".to_owned()), Just("?".to_owned()), Just("C:".to_owned()),
        Just("etc".to_owned()), Just("passwd".to_owned()), "\\PC{0,3}",
    ], 0..7), backslash in any::<bool>(), from_top in any::<bool>()) {
        let world = World::new();
        symlink("../images", world.clones().join("out")).unwrap();
        let mut written = parts.join(if backslash { r"\" } else { "/" });
        if from_top {
            written = format!("{}/{written}", world.top.display());
        }
        let gate = world.gate(&ParentPolicy::default());
        for key in PATH_KEYS {
            if let Ok(content) = world.follow(&gate, key, &written) {
                prop_assert!(content == "child" || content == "sub", "{written} led to {content}");
            }
        }
    }
}
