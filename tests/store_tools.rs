//! The toolbox on clones: what is found wrong and put right, and that a clone shows the same bytes before and after.

#![cfg(unix)]

#[path = "support/store.rs"]
mod support;

use diffdisk::{
    BookFault, Cancel, CloneBase, CloneDisk, Disk, ErrorKind, IfExists, NoProgress, OpenOptions, ParentPolicy, Progress, ResetOptions,
    ResizeOptions, Severity, StoreReport, Structure,
};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use support::{MIB, RAW_LEN, World, content, first, quick};

fn size() -> usize {
    RAW_LEN.next_multiple_of(512) as usize
}

/// What the image shows.
fn golden() -> Vec<u8> {
    let mut bytes = content(1);
    bytes.resize(size(), 0);
    bytes
}

fn whole(clone: &CloneDisk) -> Vec<u8> {
    let disk = clone.open_with(&OpenOptions::new()).unwrap();
    let mut bytes = vec![0xEE; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn write(clone: &CloneDisk, model: &mut [u8], at: u64, byte: u8, len: usize) {
    let disk = clone.open().unwrap();
    disk.write_at(&vec![byte; len], at).unwrap();
    disk.close().unwrap();
    model[at as usize..at as usize + len].fill(byte);
}

fn check(clone: &CloneDisk) -> StoreReport {
    clone.check(&NoProgress, &Cancel::new()).unwrap()
}

fn in_order(clone: &CloneDisk) {
    let report = check(clone);
    let findings = report.count(Severity::Error) + report.count(Severity::Warning);
    assert_eq!(findings, 0, "{report:?}");
}

fn faults(report: &StoreReport) -> Vec<&'static str> {
    report.books.iter().map(|finding| finding.fault.key()).collect()
}

/// A clone with two savepoints on two branches, in plain bytes: its content, and that of the branch it does not stand on.
fn branched(world: &World) -> (CloneDisk, Vec<u8>) {
    let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
    let mut model = golden();
    write(&clone, &mut model, 0, 7, 5000);
    clone.save("s1").unwrap();
    let mut aside = model.clone();
    write(&clone, &mut aside, MIB, 8, 70_000);
    clone.save("s2").unwrap();
    clone.revert("s1").unwrap();
    write(&clone, &mut model, 2 * MIB, 9, 300);
    (clone, model)
}

fn set_writable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

/// Destroys the first header, the first region table, or whatever stands there.
fn spoil(path: &Path, at: u64) {
    set_writable(path);
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = [0; 64];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&bytes.map(|byte| byte ^ 0x5A)).unwrap();
}

#[test]
fn a_check_examines_every_file_of_a_clone_once() {
    let world = World::new();
    let (clone, _) = branched(&world);
    let report = check(&clone);
    let names = |layers: &[std::path::PathBuf]| -> Vec<String> {
        layers.iter().map(|path| path.strip_prefix(world.dir.path().canonicalize().unwrap()).unwrap().display().to_string()).collect()
    };
    let files: Vec<Vec<String>> = report.files.iter().map(|files| names(&files.layers)).collect();
    assert_eq!(files, [vec!["alice.vhdx", "alice.s1.avhdx", "images/app/1.vhdx"], vec!["alice.s2.avhdx"]]);
    in_order(&clone);
    let disk = clone.open().unwrap();
    assert_eq!(clone.check(&NoProgress, &Cancel::new()).unwrap_err().kind(), ErrorKind::InUse);
    disk.close().unwrap();
    assert_eq!(first(&clone, 2), [7, 7]);
    assert!(world.leftovers().is_empty());
    let cancel = Cancel::new();
    cancel.cancel();
    assert_eq!(clone.check(&NoProgress, &cancel).unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn what_is_wrong_in_the_books_is_found_and_put_right() {
    let world = World::new();
    let (clone, model) = branched(&world);
    let sidecar = world.path("alice.vhdx.json");
    let record = || world.path(&world.files().into_iter().find(|name| name.starts_with("images/.clones/")).unwrap());
    let id = clone.id().unwrap();
    let spoil_books: [(&str, &dyn Fn()); 5] = [
        ("no_sidecar", &|| std::fs::remove_file(&sidecar).unwrap()),
        ("spoiled_sidecar", &|| std::fs::write(&sidecar, "{").unwrap()),
        ("no_record", &|| std::fs::remove_file(record()).unwrap()),
        ("record_differs", &|| {
            let text = std::fs::read_to_string(record()).unwrap();
            std::fs::write(record(), text.replace("\"protected\": false", "\"protected\": true")).unwrap();
        }),
        ("writable", &|| set_writable(&world.path("alice.s2.avhdx"))),
    ];
    for (key, damage) in spoil_books {
        damage();
        let before = std::fs::metadata(world.path("alice.vhdx")).unwrap().modified().unwrap();
        let report = check(&clone);
        assert_eq!(faults(&report), [key]);
        assert!(report.books[0].is_repairable, "{key}");
        assert_eq!(report.is_sound(), key != "no_record", "{key}");
        assert_eq!(std::fs::metadata(world.path("alice.vhdx")).unwrap().modified().unwrap(), before, "a check writes nothing");
        clone.repair().unwrap();
        in_order(&clone);
        assert_eq!(clone.id().unwrap(), id);
    }
    assert!(whole(&clone) == model);

    // An image by another name, and with it the paths in two files.
    std::fs::rename(world.path("images/app"), world.path("images/base")).unwrap();
    let mut found = faults(&check(&clone));
    found.sort_unstable();
    assert_eq!(found, ["other_image", "wrong_paths"], "alice.s1.avhdx names the image");
    clone.repair().unwrap();
    in_order(&clone);

    // What no repair brings back.
    std::fs::rename(world.path("images/base"), world.path("elsewhere")).unwrap();
    let report = check(&clone);
    assert!(!report.is_sound() && faults(&report) == ["no_image"], "{report:?}");
    assert_eq!(clone.repair().unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::rename(world.path("elsewhere"), world.path("images/base")).unwrap();
    std::fs::rename(world.path("alice.s2.avhdx"), world.path("away")).unwrap();
    // Nothing stands on it, so a change of the clone forgets it; a check only tells.
    assert_eq!(faults(&check(&clone)), ["no_savepoint"]);
    std::fs::copy(world.path("alice.s1.avhdx"), world.path("alice.s2.avhdx")).unwrap();
    let report = check(&clone);
    assert!(matches!(report.books[0].fault, BookFault::OtherSavepoint { .. }), "{report:?}");
    assert!(faults(&report).contains(&"savepoint_moved"));
    std::fs::remove_file(world.path("alice.vhdx")).unwrap();
    assert!(faults(&check(&clone)).contains(&"no_file"));
}

#[test]
fn what_is_damaged_inside_a_clones_files_is_found_and_mended() {
    let world = World::new();
    let (clone, model) = branched(&world);
    clone.revert("s2").unwrap();
    let aside = whole(&clone);
    clone.revert("s1").unwrap();
    let mut model = model;
    model[2 * MIB as usize..2 * MIB as usize + 300].fill(0);
    let places = [(0x1_0010, Structure::Header), (0x3_0010, Structure::RegionTable)];
    for file in ["alice.vhdx", "alice.s1.avhdx", "alice.s2.avhdx"] {
        for (at, structure) in places {
            spoil(&world.path(file), at);
            let report = check(&clone);
            let warnings: Vec<_> = report.files.iter().flat_map(|files| &files.report.warnings).collect();
            assert_eq!((warnings.len(), warnings[0].structure), (1, structure), "{file} {at:#x}: {report:?}");
            let done = clone.repair().unwrap().done;
            assert!(done.iter().any(|what| what.contains(file)), "{file}: {done:?}");
            in_order(&clone);
        }
    }
    assert!(whole(&clone) == model);
    clone.revert("s2").unwrap();
    assert!(whole(&clone) == aside);

    // Both headers: nobody knows which log is meant, and nothing is invented.
    spoil(&world.path("alice.vhdx"), 0x1_0010);
    spoil(&world.path("alice.vhdx"), 0x2_0010);
    let report = check(&clone);
    assert!(!report.is_sound() && report.files[0].layers.len() == 1, "{report:?}");
    let before = std::fs::read(world.path("alice.vhdx")).unwrap();
    assert_eq!(clone.repair().unwrap_err().kind(), ErrorKind::Damaged);
    assert!(std::fs::read(world.path("alice.vhdx")).unwrap() == before);
}

#[test]
fn an_image_is_held_against_its_manifest() {
    let world = World::new();
    let image = world.image("app");
    let check = || image.check(&NoProgress, &Cancel::new()).unwrap();
    let report = check();
    assert!(report.is_sound() && report.books.is_empty() && report.files.len() == 1, "{report:?}");
    let good = std::fs::read(image.path()).unwrap();

    spoil(&image.path(), 0x1_0010);
    let report = check();
    assert_eq!((report.count(Severity::Error), faults(&report)), (0, vec!["writable"]));
    assert_eq!(report.files[0].report.warnings[0].structure, Structure::Header);
    std::fs::write(image.path(), &good).unwrap();
    let other = diffdisk::Disk::open(image.path(), &OpenOptions::new().writable(true)).unwrap();
    other.write_at(b"x", 0).unwrap();
    other.close().unwrap();
    assert_eq!(faults(&check()), ["writable", "other_image_file"]);
    std::fs::write(image.path(), &good).unwrap();
    std::fs::write(world.path("images/app/1.blake3"), "# nothing").unwrap();
    let report = check();
    assert!(!report.is_sound() && faults(&report) == ["digests", "writable"], "{report:?}");
    std::fs::remove_file(image.path()).unwrap();
    assert_eq!(faults(&check()), ["digests", "no_file"]);
}

/// Presses Ctrl-C once something was done.
struct Impatient<'a>(&'a Cancel);

impl Progress for Impatient<'_> {
    fn phase(&self, _phase: diffdisk::Phase, _total: Option<u64>) {}

    fn advance(&self, done: u64) {
        if done > 0 {
            self.0.cancel();
        }
    }
}

#[test]
fn a_hydrated_clone_holds_what_it_shows_and_keeps_its_link() {
    let world = World::new();
    let (clone, model) = branched(&world);
    let open = clone.open().unwrap();
    assert_eq!(clone.hydrate(&NoProgress, &Cancel::new()).unwrap_err().kind(), ErrorKind::InUse);
    open.close().unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    assert_eq!(clone.hydrate(&NoProgress, &cancel).unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(whole(&clone) == model);
    let done = clone.hydrate(&NoProgress, &Cancel::new()).unwrap();
    assert!(done.copied > 0 && !done.is_cut, "{done:?}");
    assert!(whole(&clone) == model);
    in_order(&clone);
    assert_eq!((clone.parents().unwrap().len(), clone.savepoints().unwrap().len()), (2, 2));
    // Nothing of it is the parents' any more.
    let disk = clone.open_with(&OpenOptions::new()).unwrap();
    let foreign = disk.extents(0, disk.size()).unwrap().map(Result::unwrap).filter(|extent| match extent.kind {
        diffdisk::ExtentKind::Data { layer, .. } => layer > 0,
        diffdisk::ExtentKind::Zero { layer } => layer.is_some_and(|layer| layer > 0),
    });
    assert_eq!(foreign.count(), 0);
    drop(disk);
    assert_eq!(clone.hydrate(&NoProgress, &Cancel::new()).unwrap().copied, 0);
    assert_eq!(world.store.image("app").unwrap().remove().unwrap_err().kind(), ErrorKind::InUse, "the link is there");
    assert!(world.leftovers().is_empty());
}

#[test]
fn a_hydration_that_was_stopped_goes_on() {
    let world = World::new();
    let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
    let mut rounds = 0;
    loop {
        let cancel = Cancel::new();
        let result = clone.hydrate(&Impatient(&cancel), &cancel);
        assert!(whole(&clone) == golden());
        in_order(&clone);
        match result {
            Ok(_) => break,
            Err(e) => assert!(e.kind() == ErrorKind::Cancelled && e.to_string().contains("goes on"), "{e}"),
        }
        rounds += 1;
        assert!(rounds < 100, "it never ends");
    }
    assert_eq!(clone.hydrate(&NoProgress, &Cancel::new()).unwrap().copied, 0);
}

#[test]
fn a_clone_is_hydrated_while_it_is_written_and_saved() {
    let world = World::new();
    let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
    let live = clone.open_live().unwrap();
    let mut model = golden();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..200_u64 {
                live.write_at(&[n as u8; 700], n * 40_000).unwrap();
            }
        });
        assert!(live.hydrate(&NoProgress, &Cancel::new()).unwrap().copied > 0);
        live.save("s").unwrap();
        writer.join().unwrap();
    });
    for n in 0..200_usize {
        model[n * 40_000..n * 40_000 + 700].fill(n as u8);
    }
    live.close().unwrap();
    assert!(whole(&clone) == model);
    in_order(&clone);
}

#[test]
fn a_clone_has_another_size_and_its_savepoints_keep_theirs() {
    let world = World::new();
    let (clone, mut model) = branched(&world);
    let resize = |size: u64, options: ResizeOptions| clone.resize(size, &options, &NoProgress, &Cancel::new());
    let virtual_size = || world.store.clones().unwrap()[0].sizes.unwrap().virtual_size;
    let (small, large) = (size() as u64, 64 * MIB);
    let resized = resize(large, ResizeOptions::new()).unwrap();
    assert_eq!((resized.from, resized.to), (small, large));
    model.resize(large as usize, 0);
    assert!(whole(&clone) == model);
    in_order(&clone);
    assert_eq!((virtual_size(), clone.summary().unwrap().sizes.unwrap().virtual_size), (large, large));
    write(&clone, &mut model, large - 512, 5, 512);

    // Smaller only where nothing is lost, and only by somebody who says so.
    assert_eq!(resize(small, ResizeOptions::new()).unwrap_err().kind(), ErrorKind::InvalidInput);
    let message = resize(small, ResizeOptions::new().shrink(true)).unwrap_err().to_string();
    assert!(message.contains("would be lost"), "{message}");
    assert!(whole(&clone) == model);

    // A savepoint of the larger clone, and the smaller ones below it.
    clone.save("large").unwrap();
    let disk = clone.open().unwrap();
    disk.trim(large - MIB, MIB).unwrap();
    disk.close().unwrap();
    resize(small, ResizeOptions::new().shrink(true)).unwrap();
    assert!(whole(&clone) == model[..small as usize]);
    assert_eq!(virtual_size(), small);
    in_order(&clone);
    for (name, size) in [("s1", small), ("s2", small), ("large", large)] {
        clone.revert(name).unwrap();
        assert_eq!((whole(&clone).len() as u64, virtual_size()), (size, size), "{name}");
    }
    assert!(whole(&clone) == model);
    clone.drop_savepoint("large").unwrap();
    clone.drop_savepoint("s1").unwrap();
    assert!(whole(&clone) == model, "merged with what it stood on");
    in_order(&clone);
    clone.set_protected(true).unwrap();
    assert_eq!(resize(large * 2, ResizeOptions::new()).unwrap_err().kind(), ErrorKind::Denied);
    clone.set_protected(false).unwrap();
    clone.reset(&ResetOptions::default().discard_savepoints(true)).unwrap();
    assert!(whole(&clone) == golden() && virtual_size() == small);
    let open = clone.open().unwrap();
    assert_eq!(resize(large, ResizeOptions::new()).unwrap_err().kind(), ErrorKind::InUse);
    open.close().unwrap();
}

fn alone(clone: &CloneDisk) -> bool {
    matches!(clone.summary().unwrap().base, CloneBase::Alone { .. })
}

fn flatten(clone: &CloneDisk) -> Result<diffdisk::Hydrated, diffdisk::StoreError> {
    clone.flatten(&NoProgress, &Cancel::new())
}

/// A clone without savepoints, and what it shows.
fn changed(world: &World) -> (CloneDisk, Vec<u8>) {
    let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
    let mut model = golden();
    write(&clone, &mut model, 100, 7, 5000);
    write(&clone, &mut model, 5 * MIB, 8, 300);
    (clone, model)
}

#[test]
fn a_flattened_clone_needs_no_image_and_is_a_clone_in_everything_else() {
    let world = World::new();
    let (clone, mut model) = changed(&world);
    let id = clone.id().unwrap();
    clone.save("s").unwrap();
    let message = flatten(&clone).unwrap_err().to_string();
    assert!(message.contains("the savepoints s of") && message.contains("drop them first"), "{message}");
    clone.drop_savepoint("s").unwrap();
    let open = clone.open().unwrap();
    assert_eq!(flatten(&clone).unwrap_err().kind(), ErrorKind::InUse);
    open.close().unwrap();

    assert!(flatten(&clone).unwrap().is_cut);
    assert!(whole(&clone) == model && alone(&clone));
    in_order(&clone);
    assert!(flatten(&clone).unwrap().is_cut, "again");
    let image = world.store.image("app").unwrap();
    assert!(image.clones().unwrap().is_empty());
    image.remove().unwrap();
    assert!(whole(&clone) == model && clone.parents().unwrap().is_empty());

    // Savepoints of it stand on one another.
    clone.save("s1").unwrap();
    let first_state = model.clone();
    write(&clone, &mut model, 3 * MIB, 9, 100_000);
    let live = clone.open_live().unwrap();
    live.save("s2").unwrap();
    live.close().unwrap();
    write(&clone, &mut model, 0, 10, 9);
    in_order(&clone);
    assert_eq!(clone.parents().unwrap().len(), 2);
    let message = flatten(&clone).map(|done| done.is_cut);
    assert!(matches!(message, Ok(true)), "it stands on no image: {message:?}");
    clone.drop_savepoint("s1").unwrap();
    assert!(whole(&clone) == model && clone.parents().unwrap().len() == 1);
    in_order(&clone);
    clone.drop_savepoint("s2").unwrap();
    assert!(whole(&clone) == model && clone.parents().unwrap().is_empty());
    in_order(&clone);
    clone.save("s3").unwrap();
    write(&clone, &mut model.clone(), 0, 11, 9);
    clone.revert("s3").unwrap();
    assert!(whole(&clone) == model && model != first_state);

    // Books that are lost say the same again.
    std::fs::remove_file(world.path("alice.vhdx.json")).unwrap();
    clone.repair().unwrap();
    assert!(alone(&clone) && clone.id().unwrap() == id);
    let record = world.files().into_iter().find(|name| name.starts_with("images/.clones/")).unwrap();
    std::fs::remove_file(world.path(&record)).unwrap();
    world.store.sweep().unwrap();
    clone.repair().unwrap();
    assert!(alone(&world.store.find_clone("alice").unwrap()));
    in_order(&clone);

    // On an image again only when somebody says on which.
    let other = world.image("other");
    let e = clone.reset(&ResetOptions::default().discard_savepoints(true)).unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidInput && e.to_string().contains("it came from app@1"), "{e}");
    let rebased = clone.rebase("other", &diffdisk::RebaseOptions::new(), &NoProgress, &Cancel::new());
    assert!(rebased.is_err());
    let e = other.create_clone(clone.path(), &quick().if_exists(IfExists::Reuse)).unwrap_err();
    assert!(e.to_string().contains("was flattened"), "{e}");
    let renamed = clone.rename(world.path("bob")).unwrap();
    assert!(whole(&renamed) == model && alone(&renamed));
    renamed.reset(&ResetOptions::default().to("other").discard_savepoints(true)).unwrap();
    assert!(!alone(&renamed) && whole(&renamed) == golden());
    assert_eq!(other.remove().unwrap_err().kind(), ErrorKind::InUse);
    in_order(&renamed);
    flatten(&renamed).unwrap();
    renamed.remove().unwrap();
    other.remove().unwrap();
    assert_eq!(world.files(), ["db.img", "images/.diffdisk-store"]);
}

#[test]
fn a_flattening_that_was_stopped_goes_on() {
    let world = World::new();
    let (clone, model) = changed(&world);
    for _ in 0..3 {
        let cancel = Cancel::new();
        let e = clone.flatten(&Impatient(&cancel), &cancel).unwrap_err();
        assert!(e.kind() == ErrorKind::Cancelled && e.to_string().contains("linked as it was"), "{e}");
        assert!(whole(&clone) == model && !alone(&clone));
        in_order(&clone);
        assert_eq!(world.store.image("app").unwrap().remove().unwrap_err().kind(), ErrorKind::InUse);
    }
    assert_eq!(flatten(&clone).unwrap().copied, 0, "what was copied was kept");
    assert!(alone(&clone));
    world.store.image("app").unwrap().remove().unwrap();
    assert!(whole(&clone) == model);
}

#[test]
fn a_clone_is_flattened_while_it_is_written() {
    let world = World::new();
    let (clone, mut model) = changed(&world);
    let other = world.store.image("app").unwrap().create_clone(world.path("other"), &quick()).unwrap();
    let disk = clone.open().unwrap();
    let wrong = other.flatten_open(&disk, &NoProgress, &Cancel::new()).unwrap_err();
    assert!(wrong.to_string().contains("another file"), "{wrong}");
    other.remove().unwrap();
    let cancel = Cancel::new();
    assert_eq!(clone.flatten_open(&disk, &Impatient(&cancel), &cancel).unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(!alone(&clone));
    let (stop, written) = (std::sync::atomic::AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (disk, stop, written) = (&disk, &stop, &written);
        scope.spawn(move || {
            for n in 0..200_u64 {
                disk.write_at(&[n as u8 + 1; 700], n * 40_000).unwrap();
                written.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if stop.load(std::sync::atomic::Ordering::Relaxed) && n > 100 {
                    break;
                }
            }
        });
        assert!(clone.flatten_open(disk, &NoProgress, &Cancel::new()).unwrap().is_cut);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // Nobody needs the image any more, although the disk is open.
        assert!(alone(&clone));
        world.store.image("app").unwrap().remove().unwrap();
    });
    for n in 0..written.into_inner() as usize {
        model[n * 40_000..n * 40_000 + 700].fill(n as u8 + 1);
    }
    assert!(clone.flatten_open(&disk, &NoProgress, &Cancel::new()).unwrap().is_cut, "again");
    disk.close().unwrap();
    assert!(whole(&clone) == model);
    in_order(&clone);
}

/// The states between the steps, by hand, and everybody who may come next.
#[test]
fn whoever_comes_next_settles_a_flattening() {
    for is_cut in [false, true] {
        for next in ["open", "repair", "sweep", "save", "check"] {
            let world = World::new();
            let (clone, model) = changed(&world);
            let record = world.files().into_iter().find(|name| name.starts_with("images/.clones/")).unwrap();
            for books in ["alice.vhdx.json", &record] {
                let text = std::fs::read_to_string(world.path(books)).unwrap();
                std::fs::write(world.path(books), text.replacen('{', "{ \"flattening\": true,", 1)).unwrap();
            }
            if is_cut {
                let options = OpenOptions::new().writable(true).parents(ParentPolicy::Anywhere);
                let disk = Disk::open(clone.path(), &options).unwrap();
                disk.flatten(&NoProgress, &Cancel::new()).unwrap();
                disk.close().unwrap();
            }
            match next {
                "open" => clone.open().unwrap().close().unwrap(),
                "repair" => {
                    let done = clone.repair().unwrap().done.concat();
                    assert!(done.contains(if is_cut { "finished" } else { "taken back" }), "{done}");
                }
                "sweep" => assert_eq!(world.store.sweep().unwrap().swept.len(), 1),
                "save" => clone.save("s").unwrap(),
                _ => {
                    let report = check(&clone);
                    assert!(report.is_sound() && faults(&report).contains(&"unfinished_flatten"), "{report:?}");
                    clone.repair().unwrap();
                }
            }
            assert_eq!(alone(&clone), is_cut, "{next}");
            assert!(whole(&clone) == model, "{next}");
            world.store.sweep().unwrap();
            assert!(world.store.sweep().unwrap().swept.is_empty());
            in_order(&clone);
            assert_eq!(world.store.image("app").unwrap().remove().is_ok(), is_cut, "{next}");
            assert!(whole(&clone) == model, "{next}");
        }
    }
}

#[test]
fn what_another_program_flattened_is_taken_note_of_when_somebody_says_so() {
    let world = World::new();
    let (clone, model) = changed(&world);
    let disk = Disk::open(clone.path(), &OpenOptions::new().writable(true).parents(ParentPolicy::Anywhere)).unwrap();
    disk.flatten(&NoProgress, &Cancel::new()).unwrap();
    disk.close().unwrap();
    let report = check(&clone);
    assert!(faults(&report) == ["no_parent"] && !report.books[0].is_repairable, "{report:?}");
    for e in [clone.open().unwrap_err(), clone.repair().unwrap_err(), clone.save("s").unwrap_err()] {
        assert!(matches!(e.kind(), ErrorKind::AlreadyExists) && e.to_string().contains("`clone flatten` takes note"), "{e}");
    }
    assert!(flatten(&clone).unwrap().is_cut);
    in_order(&clone);
    assert!(whole(&clone) == model && alone(&clone));
}

/// A reset to another generation that died before its last note; then something else is noted.
#[test]
fn a_clone_keeps_its_image_whatever_is_noted_after_a_reset_that_died() {
    let world = World::new();
    let clone = world.image("app").create_clone(world.path("alice"), &quick()).unwrap();
    let other = world.image("other");
    let record = world.path(&world.files().into_iter().find(|name| name.starts_with("images/.clones/")).unwrap());
    let (sidecar, before) = (world.path("alice.vhdx.json"), std::fs::read_to_string(&record).unwrap());
    clone.reset(&ResetOptions::default().to("other")).unwrap();
    let next = format!("{{ \"next_image\": {{ \"guid\": \"{}\" }},", other.manifest().data_write_guid);
    std::fs::write(&sidecar, &before).unwrap();
    std::fs::write(&record, before.replacen('{', &next, 1)).unwrap();
    clone.set_protected(true).unwrap();
    assert_eq!(other.remove().unwrap_err().kind(), ErrorKind::InUse, "the clone stands on it");
    assert!(whole(&clone) == golden());
    in_order(&clone);
    world.store.image("app").unwrap().remove().unwrap();
}
