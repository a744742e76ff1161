//! Images and clones from the outside: the whole lifecycle, and what happens to it when things are not as they should be.
#![cfg(all(unix, feature = "store"))]

#[path = "support/store.rs"]
mod support;

use diffdisk::{
    Cancel, CloneDisk, CloneState, CreateOptions, Disk, ErrorKind, IfExists, Image, ImageOptions, NoProgress, OpenOptions, Origin,
    ParentPolicy, Phase, Progress, ResetOptions, Source, Step, Store, StoreError,
};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::*;

fn options() -> ImageOptions {
    ImageOptions::default()
}

/// An image with one clone.
fn cloned(world: &World) -> (Image, CloneDisk) {
    let image = world.image("app");
    let clone = image.create_clone(world.path("alice.vhdx"), &quick()).unwrap();
    (image, clone)
}

/// Writes the first bytes of a clone.
fn change(clone: &CloneDisk, byte: u8) {
    let disk = clone.open().unwrap();
    disk.write_at(&[byte; 512], 0).unwrap();
    disk.close().unwrap();
}

fn all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xEE; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn an_image_holds_its_source_and_says_so() {
    let world = World::new();
    let image = world.image("app");
    let manifest = image.manifest();
    assert_eq!((image.reference().as_str(), manifest.source.kind.as_str(), manifest.source.size), ("app@1", "raw", RAW_LEN));
    assert_eq!(manifest.virtual_size, RAW_LEN.next_multiple_of(512));
    let mode = std::fs::metadata(image.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o222, 0, "nobody may write to it");
    let shown = all(&image.open().unwrap());
    assert!(shown[..RAW_LEN as usize] == content(1) && shown[RAW_LEN as usize..].iter().all(|&b| b == 0));
    assert_eq!(manifest.data_blocks, 3, "blocks of zeros have no digest");
    assert!(manifest.allocated < 2 * MIB, "holes and zeros take no space: {}", manifest.allocated);
    assert_eq!(image.verify(&NoProgress, &Cancel::new()).unwrap().blocks, 3);
    assert_eq!(world.files(), ["db.img", "images/.diffdisk-store", "images/app/1.blake3", "images/app/1.json", "images/app/1.vhdx"]);
}

#[test]
fn a_day_of_a_developer() {
    let world = World::new();
    let (image, clone) = cloned(&world);
    let sealed = std::fs::read(image.path()).unwrap();
    assert_eq!((clone.name().as_str(), clone.origin(), first(&clone, 1)), ("alice", Origin::Created, vec![1]));

    change(&clone, 9);
    clone.save("nine").unwrap();
    change(&clone, 10);
    clone.save("ten").unwrap();
    change(&clone, 11);
    let names = |clone: &CloneDisk| clone.savepoints().unwrap().into_iter().map(|s| s.name).collect::<Vec<_>>();
    assert_eq!(names(&clone), ["nine", "ten"]);
    assert_eq!(clone.current_savepoint().unwrap().unwrap().name, "ten");
    clone.revert("nine").unwrap();
    assert_eq!(first(&clone, 1), [9]);
    clone.revert("ten").unwrap();
    assert_eq!(first(&clone, 1), [10]);
    clone.revert("nine").unwrap();
    clone.drop_savepoint("ten").unwrap();
    assert_eq!((names(&clone), first(&clone, 1)), (vec!["nine".to_owned()], vec![9]));
    assert_eq!(clone.save("nine").unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(clone.revert("no").unwrap_err().kind(), ErrorKind::NotFound);

    let refused = clone.reset(&ResetOptions::default()).unwrap_err();
    assert!(matches!(refused, StoreError::SavepointsInTheWay { .. }) && refused.to_string().contains("nine"), "{refused}");
    clone.reset(&ResetOptions::default().discard_savepoints(true)).unwrap();
    assert_eq!((first(&clone, 1), clone.savepoints().unwrap().len()), (vec![1], 0));
    let disk = clone.open().unwrap();
    assert!(disk.check().unwrap().is_sound());
    drop(disk);

    std::fs::write(world.path("new.img"), content(50)).unwrap();
    let second =
        world.store.refresh_image("app", Some(Source::raw(world.path("new.img"))), &options(), &NoProgress, &Cancel::new()).unwrap();
    assert_eq!((second.generation(), world.store.image("app").unwrap().generation()), (2, 2));
    assert_eq!(first(&clone, 1), [1], "the clone stays where it is");
    clone.reset(&ResetOptions::default().to("latest")).unwrap();
    assert_eq!((first(&clone, 1), clone.summary().unwrap().base.image().unwrap()), (vec![50], "app@2".to_owned()));
    assert_eq!(
        world.store.refresh_image("app", None, &options(), &NoProgress, &Cancel::new()).unwrap().generation(),
        3,
        "from where 2 came"
    );

    let refused = second.remove().unwrap_err();
    assert!(matches!(&refused, StoreError::HasClones { clones, .. } if clones == &[clone.path()]), "{refused}");
    let pruned = world.store.prune_images(Some("app"), 1).unwrap();
    assert_eq!((pruned.removed, pruned.kept[0].0.as_str()), (vec!["app@1".to_owned()], "app@2"));
    assert_eq!(world.store.image("app@1").unwrap_err().kind(), ErrorKind::NotFound);
    clone.remove().unwrap();
    second.remove().unwrap();
    world.store.image("app@3").unwrap().remove().unwrap();
    assert_eq!(world.files(), ["db.img", "images/.diffdisk-store", "new.img"]);
    assert!(sealed.len() > 1, "it was read before anything was done");
}

#[test]
fn clones_never_change_their_image() {
    let world = World::new();
    let (image, clone) = cloned(&world);
    let stat = |_: ()| {
        let m = std::fs::metadata(image.path()).unwrap();
        (std::fs::read(image.path()).unwrap(), m.modified().unwrap(), m.len())
    };
    let before = stat(());
    change(&clone, 2);
    clone.save("a").unwrap();
    change(&clone, 3);
    clone.revert("a").unwrap();
    clone.reset(&ResetOptions::default().discard_savepoints(true)).unwrap();
    clone.repair().unwrap();
    clone.remove().unwrap();
    assert!(before == stat(()));
}

#[test]
fn images_come_from_vhdx_chains_streams_and_directories() {
    let world = World::new();
    let (base, leaf) = (world.path("base.vhdx"), world.path("leaf.vhdx"));
    let disk = Disk::create(&base, &CreateOptions::dynamic(4 * MIB).logical_sector(4096)).unwrap();
    disk.write_at(&[1; 8192], 0).unwrap();
    disk.close().unwrap();
    let disk = Disk::create_child(&leaf, &base, &CreateOptions::child()).unwrap();
    disk.write_at(&[2; 4096], 4096).unwrap();
    disk.write_at(&[3; 4096], 3 * MIB).unwrap();
    let expected = all(&disk);
    disk.close().unwrap();
    let cancel = Cancel::new();
    let image = world.store.create_image("flat", Source::vhdx(&leaf), &options(), &NoProgress, &cancel).unwrap();
    assert!(all(&image.open().unwrap()) == expected);
    assert_eq!(image.manifest().logical_sector_size, 4096);

    let stream = std::io::Cursor::new(content(7));
    let image = world.store.create_image("stream", Source::reader(stream), &options().size(16 * MIB), &NoProgress, &cancel).unwrap();
    let shown = all(&image.open().unwrap());
    assert!(shown.len() as u64 == 16 * MIB && shown[..RAW_LEN as usize] == content(7));
    let again = world.store.refresh_image("stream", None, &options(), &NoProgress, &cancel).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InvalidInput, "a stream cannot be read again: {again}");

    std::fs::create_dir_all(world.path("tree/sub")).unwrap();
    std::fs::write(world.path("tree/sub/file"), vec![0x5A; 300_000]).unwrap();
    let made = world.store.create_image("tree", Source::directory(world.path("tree")), &options(), &NoProgress, &cancel);
    match std::process::Command::new("/usr/sbin/mke2fs").arg("-V").output() {
        Ok(_) => {
            let shown = all(&made.unwrap().open().unwrap());
            assert_eq!(shown[1024 + 56..1024 + 58], [0x53, 0xEF], "the magic number of ext4");
            assert!(shown.windows(4096).step_by(4096).any(|block| block.iter().all(|&b| b == 0x5A)));
        }
        Err(_) => assert!(matches!(made.unwrap_err(), StoreError::Tool { tool: "mke2fs", .. })),
    }
    assert!(world.files().iter().all(|file| !file.contains(".work")), "{:?}", world.files());
}

#[test]
fn sources_are_what_they_are_declared_to_be() {
    let world = World::new();
    let raw = world.raw();
    std::fs::write(world.path("empty"), b"").unwrap();
    let refused = |source| world.store.create_image("app", source, &options(), &NoProgress, &Cancel::new()).unwrap_err();
    for (source, kind) in [
        (Source::raw(world.path("missing")), ErrorKind::NotFound),
        (Source::raw(world.path("empty")), ErrorKind::InvalidInput),
        (Source::raw(world.dir.path()), ErrorKind::InvalidInput),
        (Source::block_device(&raw), ErrorKind::InvalidInput),
        (Source::vhdx(&raw), ErrorKind::Damaged),
        (Source::directory(&raw), ErrorKind::InvalidInput),
        (Source::reader(std::io::empty()), ErrorKind::InvalidInput),
    ] {
        let name = format!("{source:?}");
        let error = refused(source);
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
    assert!(world.store.images().unwrap().images.is_empty());
    assert_eq!(world.files(), ["db.img", "empty", "images/.diffdisk-store"]);
}

#[test]
fn steps_change_an_image_before_it_is_sealed_or_leave_nothing() {
    let world = World::new();
    let raw = world.raw();
    let make = |name: &str, options: &ImageOptions| world.store.create_image(name, Source::raw(&raw), options, &NoProgress, &Cancel::new());
    let other = world.path("other.vhdx");
    let disk = Disk::create(&other, &CreateOptions::dynamic(MIB)).unwrap();
    disk.write_at(&[0x77; 512], 0).unwrap();
    disk.close().unwrap();
    let replace = Step::shell(format!("cp '{}' \"$1\" && test \"$1\" = \"$DIFFDISK_DISK\"", other.display()));
    let image = make("masked", &options().modify(replace).label("owner", "dba")).unwrap();
    assert_eq!((image.manifest().virtual_size, image.manifest().labels["owner"].as_str()), (MIB, "dba"));
    assert_eq!(image.manifest().modified_by.len(), 1);
    image.verify(&NoProgress, &Cancel::new()).unwrap();

    let before = world.files();
    let error = make("bad", &options().modify(Step::shell("echo no such table >&2; exit 3"))).unwrap_err();
    assert!(error.to_string().contains("no such table") && error.to_string().contains('3'), "{error}");
    let error = make("bad", &options().modify(Step::shell("echo x > \"$1\""))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    let error = make("bad", &options().modify(Step::script(world.path("missing.sh")))).unwrap_err();
    assert!(matches!(error, StoreError::Step { .. }), "{error}");
    assert_eq!(world.files(), before);
}

/// Cancels after so many bytes of a phase.
struct Stop {
    phase: Phase,
    after: u64,
    cancel: Cancel,
    now: AtomicU64,
    seen: AtomicU64,
}

impl Stop {
    fn new(phase: Phase, after: u64) -> Self {
        Self { phase, after, cancel: Cancel::new(), now: AtomicU64::new(0), seen: AtomicU64::new(u64::MAX) }
    }
}

impl Progress for Stop {
    fn phase(&self, phase: Phase, _total: Option<u64>) {
        self.now.store(u64::from(phase == self.phase), Ordering::Relaxed);
    }

    fn advance(&self, done: u64) {
        if self.now.load(Ordering::Relaxed) == 1 {
            self.seen.fetch_min(done, Ordering::Relaxed);
            if done >= self.after {
                self.cancel.cancel();
            }
        }
    }
}

#[test]
fn a_cancelled_image_leaves_nothing_or_what_it_takes_to_resume() {
    let world = World::new();
    let raw = world.path("big.img");
    let bytes: Vec<u8> = (0..(20 * MIB) as usize).map(|i| (i / 4096) as u8 | 1).collect();
    std::fs::write(&raw, &bytes).unwrap();
    let before = world.files();
    for phase in [Phase::Load, Phase::Digest] {
        let stop = Stop::new(phase, 10 * MIB);
        let error = world.store.create_image("app", Source::raw(&raw), &options(), &stop, &stop.cancel).unwrap_err();
        assert_eq!((error.kind(), world.files()), (ErrorKind::Cancelled, before.clone()));
    }
    let stop = Stop::new(Phase::Load, 10 * MIB);
    let resumable = options().resume(true);
    let error = world.store.create_image("app", Source::raw(&raw), &resumable, &stop, &stop.cancel).unwrap_err();
    assert!(error.to_string().contains("resumes"), "{error}");
    assert!(world.store.images().unwrap().images.is_empty());

    let whole = Stop::new(Phase::Load, u64::MAX);
    let image = world.store.create_image("app", Source::raw(&raw), &resumable, &whole, &whole.cancel).unwrap();
    assert!(whole.seen.load(Ordering::Relaxed) > 10 * MIB, "it went on where it had stopped");
    assert!(all(&image.open().unwrap()) == bytes);

    let stop = Stop::new(Phase::Load, 5 * MIB);
    world.store.create_image("other", Source::raw(&raw), &resumable, &stop, &stop.cancel).unwrap_err();
    let swept = world.store.sweep().unwrap().swept;
    assert_eq!(swept.len(), 2, "the disk and its journal: {swept:?}");
    assert!(world.files().iter().all(|file| !file.contains(".work")));
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn nothing_is_made_to_stand_on_a_disk_that_took_the_images_place() {
    let world = World::new();
    let image = world.image("app");
    let clone = image.create_clone(world.dir.path().join("alice"), &Default::default()).unwrap();
    let disk = clone.open().unwrap();
    disk.write_at(b"mine", 0).unwrap();
    disk.close().unwrap();
    let other = world.dir.path().join("other.vhdx");
    Disk::create(&other, &CreateOptions::dynamic(image.manifest().virtual_size)).unwrap().close().unwrap();
    let before = std::fs::read(clone.path()).unwrap();
    std::fs::rename(image.path(), world.dir.path().join("sealed.vhdx")).unwrap();
    std::fs::rename(&other, image.path()).unwrap();
    let refused = clone.reset(&ResetOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Damaged, "{refused}");
    assert!(refused.to_string().contains("data write GUID"), "{refused}");
    assert_eq!(std::fs::read(clone.path()).unwrap(), before, "the clone keeps what it had");
    let made = image.create_clone(world.dir.path().join("bob"), &Default::default()).unwrap_err();
    assert_eq!(made.kind(), ErrorKind::Damaged, "{made}");
    assert!(!world.dir.path().join("bob.vhdx").exists());
    std::fs::rename(world.dir.path().join("sealed.vhdx"), image.path()).unwrap();
    clone.reset(&ResetOptions::default()).unwrap();
    image.create_clone(world.dir.path().join("bob"), &Default::default()).unwrap();
}

#[test]
fn verify_names_the_first_bad_block() {
    let world = World::new();
    let image = world.image("app");
    let mut bytes = std::fs::read(image.path()).unwrap();
    let at = bytes.windows(4096).position(|w| w.iter().all(|&b| b == 2)).unwrap();
    bytes[at + 100] ^= 1;
    std::fs::set_permissions(image.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(image.path(), &bytes).unwrap();
    let error = image.verify(&NoProgress, &Cancel::new()).unwrap_err();
    let block = 3 * MIB / image.manifest().block_size;
    assert!(matches!(error, StoreError::BadBlock { block: found, .. } if found == block), "{error}");
    std::fs::write(image.path().with_extension("blake3"), "x").unwrap();
    assert_eq!(image.verify(&NoProgress, &Cancel::new()).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn what_is_in_use_is_left_alone() {
    let world = World::new();
    let (_, clone) = cloned(&world);
    let disk = clone.open().unwrap();
    for error in [
        clone.open().unwrap_err(),
        clone.reset(&ResetOptions::default()).unwrap_err(),
        clone.save("a").unwrap_err(),
        clone.rename(world.path("bob")).unwrap_err(),
        clone.remove().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    }
    disk.write_at(&[4; 512], 0).unwrap();
    disk.close().unwrap();
    assert_eq!((first(&clone, 1), clone.savepoints().unwrap().len()), (vec![4], 0));
    clone.remove().unwrap();
    assert!(world.store.sweep().unwrap().swept.is_empty());
}

#[test]
fn disabled_images_get_no_new_clones() {
    let world = World::new();
    let (image, clone) = cloned(&world);
    let second = world.store.refresh_image("app", None, &options(), &NoProgress, &Cancel::new()).unwrap();
    second.set_enabled(false).unwrap();
    assert_eq!(world.store.image("app@latest").unwrap().generation(), 1);
    assert_eq!(second.create_clone(world.path("bob"), &quick()).unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(clone.reset(&ResetOptions::default().to("app@2")).unwrap_err().kind(), ErrorKind::Denied);
    image.set_enabled(false).unwrap();
    assert!(matches!(world.store.image("app").unwrap_err(), StoreError::Disabled { .. }));
    clone.reset(&ResetOptions::default()).unwrap();
    assert_eq!(first(&clone, 1), [1], "old ones live");
    second.set_enabled(true).unwrap();
    assert_eq!(world.store.image("app").unwrap().generation(), 2);
}

#[test]
fn names_have_patterns_and_taken_ones_have_choices() {
    let world = World::new();
    let image = world.image("app");
    let clones = world.path("clones");
    let make = |name: &str, then| image.create_clone(clones.join(name), &quick().if_exists(then));
    let numbered: Vec<String> = (0..3).map(|_| make("{image}-{n}", IfExists::Fail).unwrap().name()).collect();
    assert_eq!(numbered, ["app-1", "app-2", "app-3"]);
    assert!(make("{user}-{date}", IfExists::Fail).unwrap().path().exists());
    assert!(matches!(make("{host}", IfExists::Fail).unwrap_err(), StoreError::Name { .. }));

    let clone = make("app-1", IfExists::Reuse).unwrap();
    change(&clone, 8);
    assert_eq!(make("app-1", IfExists::Fail).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let reused = make("app-1", IfExists::Reuse).unwrap();
    assert_eq!((reused.origin(), first(&reused, 1)), (Origin::Reused, vec![8]));
    let replaced = make("app-1", IfExists::Replace).unwrap();
    assert_eq!((replaced.origin(), first(&replaced, 1), replaced.id().unwrap()), (Origin::Replaced, vec![1], clone.id().unwrap()));
    let other = world.image("other");
    assert!(matches!(other.create_clone(clone.path(), &quick().if_exists(IfExists::Reuse)).unwrap_err(), StoreError::Foreign { .. }));
    std::fs::write(clones.join("mine.vhdx"), b"precious").unwrap();
    for then in [IfExists::Reuse, IfExists::Replace] {
        assert!(matches!(make("mine", then).unwrap_err(), StoreError::Foreign { .. }));
    }
    assert_eq!(std::fs::read(clones.join("mine.vhdx")).unwrap(), b"precious");
    assert_eq!(world.store.clones().unwrap().len(), 4);
}

#[test]
fn templates_run_on_the_fresh_clone_and_their_cost_is_known() {
    let world = World::new();
    let image = world.image("app");
    let template = world.path("template.sh");
    std::fs::write(&template, "head -c 8192 /dev/zero >/dev/null\necho ran > \"$(dirname \"$1\")/ran\"\n").unwrap();
    let clone = image.create_clone(world.path("a"), &quick().template(Step::script(&template)).template(Step::shell("true"))).unwrap();
    assert_eq!(clone.steps().unwrap().len(), 2);
    assert_eq!(std::fs::read(world.path("ran")).unwrap(), b"ran\n");
    let before = world.files();
    let error = image.create_clone(world.path("b"), &quick().template(Step::shell("exit 1"))).unwrap_err();
    assert!(matches!(error, StoreError::Step { .. }), "{error}");
    let error = image.create_clone(world.path("b"), &quick().template(Step::shell("cp /dev/null \"$1\""))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    let cancel = Cancel::new();
    cancel.cancel();
    let error = image.create_clone(world.path("b"), &quick().template(Step::shell("sleep 60")).cancel(&cancel)).unwrap_err();
    assert_eq!((error.kind(), world.files()), (ErrorKind::Cancelled, before));
}

#[test]
fn protection_and_expiry() {
    let world = World::new();
    let image = world.image("app");
    let make = |name: &str, ttl| image.create_clone(world.path(name), &quick().ttl(Duration::from_secs(ttl))).unwrap();
    let (gone, kept, shielded, put_off) = (make("gone", 0), make("kept", 3600), make("shielded", 0), make("put-off", 0));
    shielded.set_protected(true).unwrap();
    put_off.set_expiry(None).unwrap();
    for error in [shielded.remove().unwrap_err(), shielded.reset(&ResetOptions::default()).unwrap_err()] {
        assert!(matches!(error, StoreError::Protected { .. }), "{error}");
    }
    let pruned = world.store.prune_clones().unwrap();
    assert_eq!((pruned.removed, pruned.kept.len()), (vec![gone.path().display().to_string()], 1));
    assert!(kept.path().exists() && put_off.path().exists() && !gone.path().exists());
    shielded.set_protected(false).unwrap();
    assert_eq!(world.store.prune_clones().unwrap().removed.len(), 1);
}

#[test]
fn listings_know_the_sizes_with_and_without_an_index() {
    let world = World::new();
    let (_, clone) = cloned(&world);
    change(&clone, 5);
    clone.save("a").unwrap();
    change(&clone, 6);
    let first_list = world.store.clones().unwrap();
    let sizes = first_list[0].sizes.unwrap();
    assert_eq!((sizes.virtual_size, sizes.diverged, first_list[0].savepoints), (RAW_LEN.next_multiple_of(512), 512, 1));
    assert!(first_list[0].savepoints_allocated > 0 && first_list[0].last_used >= Some(first_list[0].created));
    let index = world.store.dir().join(".index");
    assert!(index.exists());
    // As if a minute had passed: the index may then be believed.
    let minute_ago = std::time::SystemTime::now() - Duration::from_secs(60);
    std::fs::File::options().append(true).open(clone.path()).unwrap().set_modified(minute_ago).unwrap();
    let listed = world.store.clones().unwrap();
    let remembered = std::fs::read_to_string(&index).unwrap();
    assert!(remembered.contains("[{"), "the diverged bytes are remembered: {remembered}");
    assert_eq!(world.store.clones().unwrap(), listed);
    std::fs::write(&index, "diffdisk-index 1 00000000\n{}").unwrap();
    assert_eq!(world.store.clones().unwrap(), listed);
    std::fs::remove_file(&index).unwrap();
    assert_eq!(world.store.clones().unwrap(), listed);
    std::fs::remove_file(clone.path()).unwrap();
    let gone = &world.store.clones().unwrap()[0];
    assert_eq!((gone.state, gone.sizes), (CloneState::Making, None), "it is young");
}

#[test]
fn clones_are_found_by_path_name_and_identity() {
    let world = World::new();
    let (image, alice) = cloned(&world);
    let id = alice.id().unwrap();
    for text in ["alice", "alice.vhdx", &id.to_string(), alice.path().to_str().unwrap()] {
        assert_eq!(world.store.find_clone(text).unwrap().path(), alice.path(), "{text}");
    }
    image.create_clone(world.path("other/alice"), &quick()).unwrap();
    assert!(matches!(world.store.find_clone("alice").unwrap_err(), StoreError::Ambiguous { .. }));
    assert_eq!(world.store.find_clone("bob").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn renamed_images_and_clones_keep_working() {
    let world = World::new();
    let (_, clone) = cloned(&world);
    change(&clone, 5);
    let taken = world.image("taken");
    assert!(matches!(world.store.rename_image("app", "taken").unwrap_err(), StoreError::ImageExists { .. }));
    taken.remove().unwrap();
    let repaired = world.store.rename_image("app", "shop").unwrap();
    assert!(repaired.len() == 1 && repaired[0].failed.is_none(), "{repaired:?}");
    assert_eq!((first(&clone, 1), clone.summary().unwrap().base.image().unwrap()), (vec![5], "shop@1".to_owned()));
    let outside = OpenOptions::new().parents(ParentPolicy::Beneath(vec![world.store.dir().into()]));
    Disk::open(clone.path(), &outside).expect("other programs find the image, too");
    assert_eq!(world.store.image("app").unwrap_err().kind(), ErrorKind::NotFound);

    let bob = clone.rename(world.path("bob")).unwrap();
    assert_eq!((bob.name().as_str(), first(&bob, 1)), ("bob", vec![5]));
    assert_eq!(clone.open().unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::create_dir(world.path("deep")).unwrap();
    let bob = bob.rename(world.path("deep/bob")).unwrap();
    assert_eq!(first(&bob, 1), [5]);
    Disk::open(bob.path(), &outside).expect("the way to the image has changed");
    bob.save("s").unwrap();
    let carl = bob.rename(world.path("deep/carl")).unwrap();
    assert_eq!((first(&carl, 1), carl.savepoints().unwrap().len()), (vec![5], 1));
    assert!(matches!(carl.rename(world.path("carl")).unwrap_err(), StoreError::SavepointsInTheWay { .. }));
    std::fs::write(world.path("deep/dora.vhdx"), b"x").unwrap();
    assert_eq!(carl.rename(world.path("deep/dora")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(world.store.clones().unwrap().len(), 1);
    let swept = world.store.sweep().unwrap();
    assert!(swept.swept.is_empty() && swept.problems.is_empty(), "{swept:?}");
    // What a renaming leaves that failed at its last step, or at its second: a sidecar of the other name.
    for other in ["deep/bob.vhdx.json", "deep/erna.vhdx.json"] {
        std::fs::copy(world.path("deep/carl.vhdx.json"), world.path(other)).unwrap();
        let swept = world.store.sweep().unwrap();
        assert!(swept.swept.len() == 1 && swept.problems.is_empty(), "{swept:?}");
        assert!(!world.path(other).exists());
        assert_eq!((first(&carl, 1), carl.savepoints().unwrap().len()), (vec![5], 1));
    }
    // And one that died between the disk's new name and the store's record of it: both sidecars, the disk under the new name.
    std::fs::copy(world.path("deep/carl.vhdx.json"), world.path("deep/alma.vhdx.json")).unwrap();
    std::fs::rename(world.path("deep/carl.vhdx"), world.path("deep/alma.vhdx")).unwrap();
    let swept = world.store.sweep().unwrap();
    assert!(swept.swept.len() == 2 && swept.problems.is_empty(), "{swept:?}");
    let alma = world.store.find_clone("alma").unwrap();
    assert_eq!((first(&alma, 1), alma.savepoints().unwrap().len()), (vec![5], 1));
    let carl = alma;
    carl.remove().unwrap();
    assert_eq!(world.files().iter().filter(|f| f.starts_with("deep")).count(), 1);
}

#[test]
fn a_moved_store_is_found_again_by_identity() {
    let world = World::new();
    let (_, clone) = cloned(&world);
    change(&clone, 5);
    clone.save("s").unwrap();
    change(&clone, 6);
    std::fs::rename(world.store.dir(), world.path("moved")).unwrap();
    let store = Store::open(world.path("moved")).unwrap();
    let outside = OpenOptions::new().parents(ParentPolicy::Anywhere);
    assert_eq!(Disk::open(clone.path(), &outside).unwrap_err().kind(), ErrorKind::NotFound);
    let clone = store.find_clone("alice").unwrap();
    assert_eq!(first(&clone, 1), [6], "the store needs no paths");
    let repaired = store.repair_clones().unwrap().remove(0);
    assert!(repaired.failed.is_none() && repaired.done.len() >= 2, "{repaired:?}");
    let disk = Disk::open(clone.path(), &outside).unwrap();
    assert!(disk.check().unwrap().is_sound() && all(&disk)[0] == 6);
    drop(disk);
    assert!(clone.repair().unwrap().done.is_empty(), "there is nothing left to do");
    clone.revert("s").unwrap();
    assert_eq!(first(&clone, 1), [5], "a relinked savepoint is the same parent");
}

#[test]
fn an_image_that_is_missing_is_named() {
    let world = World::new();
    let (image, clone) = cloned(&world);
    std::fs::rename(world.store.dir().join("app"), world.path("away")).unwrap();
    let error = clone.open().unwrap_err();
    let guid = image.manifest().data_write_guid.to_string();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(&guid) && error.to_string().contains("app@1"), "{error}");
    for error in [clone.reset(&ResetOptions::default()).unwrap_err(), clone.repair().unwrap_err(), clone.save("x").unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    std::fs::rename(world.path("away"), world.store.dir().join("app")).unwrap();
    assert_eq!(first(&clone, 1), [1]);
}

#[test]
fn foreign_files_are_reported_and_left_alone() {
    let world = World::new();
    let (_, clone) = cloned(&world);
    let store = world.store.dir();
    std::fs::write(store.join("notes.txt"), b"n").unwrap();
    std::fs::write(store.join("app/readme"), b"n").unwrap();
    std::fs::write(store.join("app/9.json"), b"{").unwrap();
    std::fs::create_dir(store.join("not an image")).unwrap();
    std::fs::write(world.path("alice.other.avhdx"), b"n").unwrap();
    let before = world.files();
    let catalog = world.store.images().unwrap();
    assert_eq!((catalog.images.len(), catalog.problems.len()), (1, 4), "{:?}", catalog.problems);
    let sweep = world.store.sweep().unwrap();
    assert_eq!((sweep.swept, world.files()), (vec![], before));
    assert_eq!(first(&clone, 1), [1]);
    assert!(matches!(Store::open(world.dir.path()).unwrap_err(), StoreError::NotAStore { .. }));
    std::fs::remove_file(store.join(".diffdisk-store")).unwrap();
    assert_eq!(Store::open(store).unwrap().images().unwrap().images.len(), 1, "images are the truth, the marker can be lost");
}

#[test]
fn half_made_images_are_no_images_and_are_swept() {
    let world = World::new();
    let image = world.image("app");
    let dir = world.store.dir().to_path_buf();
    std::fs::copy(image.path(), dir.join("app/2.vhdx")).unwrap();
    std::fs::create_dir(dir.join("young")).unwrap();
    std::fs::write(dir.join("young/1.blake3"), b"x").unwrap();
    std::fs::create_dir_all(dir.join(".work")).unwrap();
    std::fs::write(dir.join(".work/old@1.vhdx"), b"x").unwrap();
    std::fs::write(dir.join(".work/old.lock"), b"").unwrap();
    std::fs::write(dir.join("app/.3.json.0123456789abcdef.tmp"), b"x").unwrap();
    let catalog = world.store.images().unwrap();
    assert_eq!((catalog.images.len(), catalog.problems.len()), (1, 3), "{:?}", catalog.problems);
    assert_eq!(world.store.image("app").unwrap().generation(), 1);
    assert_eq!(world.store.sweep().unwrap().swept.len(), 4);
    assert_eq!(world.files(), ["db.img", "images/.diffdisk-store", "images/app/1.blake3", "images/app/1.json", "images/app/1.vhdx"]);
    assert!(!dir.join("young").exists());
}

#[test]
fn an_interrupted_removal_of_an_image_is_finished_or_undone() {
    let world = World::new();
    let (image, clone) = cloned(&world);
    let (manifest, retired) = (image.path().with_extension("json"), image.path().with_file_name(".1.retired"));
    std::fs::rename(&manifest, &retired).unwrap();
    let swept = world.store.sweep().unwrap().swept;
    assert!(swept.len() == 1 && swept[0].what.contains("undone"), "{swept:?}");
    assert_eq!(first(&clone, 1), [1]);
    clone.remove().unwrap();
    std::fs::rename(&manifest, &retired).unwrap();
    assert!(world.store.sweep().unwrap().swept[0].what.contains("finished"));
    assert_eq!(world.files(), ["db.img", "images/.diffdisk-store"]);
}

#[test]
fn sidecar_and_record_stand_in_for_each_other() {
    let world = World::new();
    let (image, clone) = cloned(&world);
    change(&clone, 5);
    let sidecar = world.path("alice.vhdx.json");
    let record = world.store.dir().join(".clones").join(format!("{}.json", clone.id().unwrap()));
    for spoil in [|path: &std::path::Path| std::fs::remove_file(path), |path: &std::path::Path| std::fs::write(path, b"{")] {
        spoil(&sidecar).unwrap();
        assert_eq!(first(&clone, 1), [5]);
        clone.set_protected(true).unwrap();
        assert!(std::fs::read_to_string(&sidecar).unwrap().contains("app"), "written again");
        clone.set_protected(false).unwrap();
    }
    std::fs::remove_file(&record).unwrap();
    assert!(world.store.clones().unwrap().is_empty());
    assert_eq!(world.store.clone_at(clone.path()).unwrap().repair().unwrap().done.len(), 1);
    assert_eq!(world.store.clones().unwrap().len(), 1);
    assert_eq!(image.remove().unwrap_err().kind(), ErrorKind::InUse);
    let other = Store::open(world.path("other-store")).unwrap();
    let error = other.clone_at(clone.path()).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }) && error.to_string().contains("images"), "{error}");
}

#[test]
fn a_clone_moved_or_deleted_by_hand_is_noticed_by_a_sweep() {
    let world = World::new();
    let (image, clone) = cloned(&world);
    change(&clone, 5);
    let bob = image.create_clone(world.path("bob"), &quick()).unwrap();
    std::fs::rename(clone.path(), world.path("moved.vhdx")).unwrap();
    std::fs::rename(world.path("alice.vhdx.json"), world.path("moved.vhdx.json")).unwrap();
    std::fs::remove_file(bob.path()).unwrap();
    assert_eq!(image.remove().unwrap_err().kind(), ErrorKind::InUse, "nobody knows yet whether they live");
    let sweep = world.store.sweep().unwrap();
    assert_eq!((sweep.swept.len(), sweep.problems.len()), (2, 0), "{sweep:?}");
    assert_eq!(first(&world.store.find_clone("moved").unwrap(), 1), [5]);
    assert_eq!(world.store.clones().unwrap().len(), 1);
    assert!(!world.path("bob.vhdx.json").exists());
}

/// The states that a crash between the steps of a save can leave, put together by hand.
#[test]
fn an_interrupted_save_is_undone_or_finished() {
    let edit = |world: &World, from: &str, to: &str| {
        let sidecar = world.path("alice.vhdx.json");
        let text = std::fs::read_to_string(&sidecar).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&sidecar, text.replace(from, to)).unwrap();
    };
    let pending = |world: &World| edit(world, "\"name\": \"s\",", "\"name\": \"s\", \"pending\": true,");
    let saved = || {
        let world = World::new();
        let (_, clone) = cloned(&world);
        change(&clone, 5);
        clone.save("s").unwrap();
        (world, clone)
    };
    let (leaf, frozen) = ("alice.vhdx", "alice.s.avhdx");

    let (world, clone) = saved();
    pending(&world);
    assert_eq!((first(&clone, 1), clone.savepoints().unwrap().len()), (vec![5], 1), "everything was done but the note");

    let (world, clone) = saved();
    pending(&world);
    std::fs::rename(world.path(frozen), world.path(leaf)).unwrap();
    assert_eq!((first(&clone, 1), clone.savepoints().unwrap().len()), (vec![5], 0), "the file never got its second name");

    let (world, clone) = saved();
    pending(&world);
    std::fs::rename(world.path(frozen), world.path(leaf)).unwrap();
    std::fs::hard_link(world.path(leaf), world.path(frozen)).unwrap();
    assert_eq!((first(&clone, 1), clone.savepoints().unwrap().len()), (vec![5], 0), "the file has two names");
    assert!(!world.path(frozen).exists());
    change(&clone, 6);

    let (world, clone) = saved();
    pending(&world);
    std::fs::remove_file(world.path(leaf)).unwrap();
    assert_eq!((first(&clone, 1), clone.savepoints().unwrap().len()), (vec![5], 0), "no second names here, so it was renamed");

    let (world, clone) = saved();
    std::fs::remove_file(world.path(leaf)).unwrap();
    let sweep = world.store.sweep().unwrap();
    assert!(sweep.swept.is_empty() && sweep.problems[0].what.contains("savepoints"), "{sweep:?}");
    clone.revert("s").unwrap();
    assert_eq!(first(&clone, 1), [5], "deleted by hand, and back");

    let (world, clone) = saved();
    edit(&world, "\"protected\": false,", "\"protected\": false, \"removing\": true,");
    std::fs::remove_file(world.path(leaf)).unwrap();
    assert_eq!(world.store.sweep().unwrap().swept.len(), 1);
    assert!(world.store.clones().unwrap().is_empty() && !world.path(frozen).exists(), "{}", clone.name());
}

/// Tells the child which store to try.
const READ_ONLY: &str = "DIFFDISK_TEST_READ_ONLY_STORE";

/// Run by [`a_store_that_cannot_be_written_can_be_read`] as somebody who may not write there.
#[test]
fn read_only_child() {
    let Some(dir) = std::env::var_os(READ_ONLY) else { return };
    let store = Store::open(&dir).unwrap();
    let image = store.image("app").unwrap();
    assert_eq!(image.verify(&NoProgress, &Cancel::new()).unwrap().blocks, 3);
    assert_eq!(store.clones().unwrap().len(), 1);
    let elsewhere = tempfile::tempdir().unwrap();
    let raw = elsewhere.path().join("raw");
    std::fs::write(&raw, [1; 4096]).unwrap();
    for error in [
        image.create_clone(elsewhere.path().join("mine"), &quick()).unwrap_err(),
        store.create_image("new", Source::raw(&raw), &options(), &NoProgress, &Cancel::new()).unwrap_err(),
        image.set_enabled(false).unwrap_err(),
        image.remove().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("permission"), "{error}");
    }
    assert_eq!(support::files_below(elsewhere.path()), ["raw"]);
    println!("the child has looked at everything");
}

#[test]
fn a_store_that_cannot_be_written_can_be_read() {
    use std::os::unix::process::CommandExt;
    let world = World::new();
    let (image, _) = cloned(&world);
    let mut dirs = vec![world.store.dir().to_path_buf(), world.store.dir().join("app"), world.store.dir().join(".clones")];
    std::fs::create_dir_all(world.store.dir().join(".work")).unwrap();
    dirs.push(world.store.dir().join(".work"));
    for dir in &dirs {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o555)).unwrap();
    }
    std::fs::set_permissions(world.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // A copy of this binary, because not everybody may look into the directory that it lies in.
    let binary = world.path("child");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = std::process::Command::new(&binary);
    child.args(["--exact", "read_only_child", "--nocapture"]).env(READ_ONLY, world.store.dir()).current_dir("/");
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(world.dir.path()).unwrap()) == 0;
    if is_root {
        // The superuser may write everywhere.
        child.uid(65534).gid(65534);
    }
    let output = child.output().unwrap();
    for dir in &dirs {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("looked at everything"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(image.is_enabled().unwrap());
}

#[test]
fn errors_say_what_where_and_what_next() {
    let world = World::new();
    let (image, clone) = cloned(&world);
    let shown = |error: StoreError| error.to_string();
    let text = shown(world.store.image("ap").unwrap_err());
    assert!(
        text.contains("no image ap in") && text.contains(world.store.dir().to_str().unwrap()) && text.contains("there is app"),
        "{text}"
    );
    let text = shown(world.store.image("app@7").unwrap_err());
    assert!(text.contains("app@7") && text.contains("app@1"), "{text}");
    let text = shown(image.remove().unwrap_err());
    assert!(
        text.contains("1 clone ") && text.contains(clone.path().to_str().unwrap()) && text.contains("remove, reset or flatten"),
        "{text}"
    );
    let text = shown(world.store.create_image("a/b", Source::raw("x"), &options(), &NoProgress, &Cancel::new()).unwrap_err());
    assert!(text.contains("\"a/b\"") && text.contains("letters"), "{text}");
    assert!(world.files().iter().all(|file| !file.contains(".work")));
}
