//! `diffdisk image`, `clone` and `relink`, as a script sees them: arguments in, JSON and exit codes out.
#![cfg(all(unix, feature = "cli"))]

#[path = "support/place.rs"]
mod place;

use diffdisk::{CreateOptions, Disk};
use place::Place;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

impl Place {
    fn read(&self, file: &str) -> String {
        self.ok(&format!("read {file} --offset 0 --length 9 --parents images"))
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn from_a_raw_file_to_clones_and_back() {
    let place = Place::new();
    let image = place.json("image create app db.img --label owner=dba");
    assert_eq!((&image["reference"], &image["source"]["kind"], &image["labels"]["owner"]), (&json!("app@1"), &json!("raw"), &json!("dba")));
    assert_eq!(place.json("image verify app")["blocks"], 1);

    let clone = place.json("clone create app clones/{user}-{n} --no-sync");
    assert_eq!((&clone["name"], &clone["outcome"], &clone["image"]), (&json!("tess-1"), &json!("created"), &json!("app@1")));
    place.write("clones/tess-1.vhdx", 0, b"my clone!");
    assert_eq!(place.read("clones/tess-1.vhdx"), "my clone!");
    assert_eq!(place.json("clone create app clones/tess-1 --if-exists reuse")["outcome"], "reused");

    place.ok("clone save tess-1 mine");
    place.write("clones/tess-1.vhdx", 0, b"worse....");
    let shown = place.json("clone revert tess-1 mine");
    assert_eq!((&shown["current_savepoint"], shown["parents"].as_array().unwrap().len()), (&json!("mine"), 2));
    assert_eq!(place.read("clones/tess-1.vhdx"), "my clone!");
    assert!(place.fails(5, "clone reset tess-1").contains("mine"));
    place.ok("clone reset tess-1 --discard-savepoints");
    assert_eq!(place.read("clones/tess-1.vhdx"), "the image");

    std::fs::write(place.home.join("db.img"), b"new image").unwrap();
    assert_eq!(place.json("image refresh app")["reference"], "app@2");
    assert!(place.fails(2, "image remove app").contains("app@1, app@2"));
    assert!(place.fails(5, "image remove app@1").contains("tess-1.vhdx"));
    place.ok("clone reset tess-1 --to latest");
    assert_eq!(place.read("clones/tess-1.vhdx"), "new image");
    assert_eq!(place.json("image prune --keep 1 --unused")["removed"], json!(["app@1"]));
    place.ok("clone rename tess-1 clones/other");
    place.ok("clone protect other");
    place.fails(4, "clone remove other");
    place.ok("clone protect other --off");
    place.ok("clone remove other");
    place.ok("image remove app");
    assert_eq!(place.json("image list")["images"], json!([]));
    assert_eq!(std::fs::read_dir(place.home.join("clones")).unwrap().count(), 0);
}

#[test]
fn what_is_sealed_is_not_replaced_by_force() {
    let place = Place::new();
    place.ok("image create app db.img");
    place.ok("clone create app c");
    place.ok("clone save c s");
    let parent = place.json("clone show c")["parents"][0].as_str().unwrap().to_owned();
    for (file, what) in [("images/app/1.vhdx", "the image app@1"), (parent.as_str(), "the savepoint s")] {
        let before = std::fs::read(place.home.join(file)).unwrap();
        for verb in [
            "create {} --size 1M --force",
            "convert db.img {} --to vhdx --force",
            "diff c.vhdx db.img --export {} --parents images --force",
        ] {
            assert!(place.fails(4, &verb.replace("{}", file)).contains(what), "{verb}");
        }
        assert_eq!(std::fs::read(place.home.join(file)).unwrap(), before);
    }
}

#[test]
fn the_keys_are_those_of_the_documentation() {
    let place = Place::new();
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let image = place.json("image create app db.img");
    place.ok("clone create app a --ttl 1h");
    place.ok("clone save a s");
    let list = place.json("clone list");
    let clone = &list["clones"][0];
    assert_eq!(keys(&clone["sizes"]), ["allocated", "apparent", "diverged", "virtual"]);
    let shown = place.json("clone show a");
    let images = place.json("image list");
    let values = [&image, clone, &shown, &shown["savepoints"][0], &images, &images["images"][0]];
    for key in values.iter().flat_map(|value| keys(value)) {
        assert!(documented.contains(&format!("`{key}`")), "{key} is not in docs/json.md");
    }
}

#[test]
fn steps_and_expiry() {
    let place = Place::new();
    std::fs::write(place.home.join("template.sh"), "test -s \"$1\"").unwrap();
    std::fs::write(place.home.join("broken.sh"), "echo it broke >&2; exit 1").unwrap();
    place.ok("image create app db.img");
    let made = place.json("clone create app a --template template.sh --ttl 0s");
    assert_eq!((made["steps"].as_array().unwrap().len(), keys(&made["steps"][0])), (1, vec!["allocated", "milliseconds", "step"]));
    assert!(place.fails(1, "clone create app b --template broken.sh").contains("it broke"));
    assert!(place.fails(1, "image create bad db.img --modify ./nonsense").contains("nothing was made"));
    assert_eq!(place.run("clone prune").status.code(), Some(2), "it says what it prunes");
    let pruned = place.json("clone prune --expired");
    assert!(pruned["removed"][0].as_str().unwrap().ends_with("a.vhdx"), "{pruned}");
    assert_eq!(place.json("clone list")["clones"], json!([]));
    assert_eq!(place.json("image list")["images"].as_array().unwrap().len(), 1);
}

#[test]
fn failures_have_their_codes_and_one_sentence() {
    let place = Place::new();
    place.fails(3, "image list");
    place.ok("image create app db.img");
    place.ok("clone create app a");
    for (code, args) in [
        (2, "image create a/b db.img"),
        (5, "image create app db.img"),
        (3, "image create new missing.img"),
        (2, "image create new images"),
        (6, "image create new db.img --from vhdx"),
        (3, "image show app@2"),
        (3, "image refresh other"),
        (5, "clone create app a"),
        (3, "clone create none b"),
        (3, "clone show b"),
        (3, "clone revert a s"),
        (2, "clone save a b.c"),
        (2, "clone create app {host}"),
        (2, "image list --store ."),
    ] {
        place.fails(code, args);
    }
    place.ok("image disable app");
    place.fails(4, "clone create app b");
    place.ok("image enable app");
    let path = place.home.join("images/app/1.vhdx");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(9).position(|window| window == b"the image").unwrap();
    bytes[at] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    assert!(place.fails(6, "image verify app").contains("block 0"));
    let disk =
        Disk::open(place.home.join("a.vhdx"), &diffdisk::OpenOptions::new().writable(true).parents(diffdisk::ParentPolicy::Anywhere));
    assert!(place.fails(5, "clone reset a").contains("in use"));
    drop(disk.unwrap());
    place.ok("clone reset a");
}

/// A clone that is called like the disk of the next generation would be cleared away as what a crash left of it.
#[test]
fn no_clone_lies_inside_of_the_store() {
    let place = Place::new();
    place.ok("image create app db.img");
    place.ok("clone create app a");
    for args in
        ["clone create app images/app/2", "clone create app images/.clones/x", "clone create app images/x", "clone rename a images/app/2"]
    {
        let message = place.fails(2, args);
        assert!(message.contains("inside of the store") && message.contains("directory of your own"), "{args}: {message}");
    }
    place.ok("image refresh app");
    assert_eq!(place.read("a.vhdx"), "the image");
    assert_eq!(place.json("image list")["problems"], json!([]));
}

/// What a user sees when something is not where it was, or not what it was: what, where, and what to do next.
#[test]
fn what_is_missing_or_damaged_is_named() {
    let place = Place::new();
    let path = |name: &str| place.home.join(name);
    place.ok("image create app db.img");
    place.ok("clone create app a");
    place.ok("clone create app b");
    place.ok("clone save b s");
    std::fs::write(path("text"), "text").unwrap();
    for (code, args, part) in [
        (5, "image rename app app", "there is already an image app"),
        (3, "image rename nope other", "there is no image nope in"),
        (3, "image list nope", "there is no image nope in"),
        (2, "clone create app text/a", "it is not a directory"),
        (2, "image create x images", "--from directory"),
        (5, "clone rename a a", "choose another name"),
        (5, "image remove app", "remove, reset or flatten them first"),
    ] {
        let message = place.fails(code, args);
        assert!(message.contains(part), "{args}: {message}");
    }

    // A clone's file.
    std::fs::rename(path("a.vhdx"), path("away")).unwrap();
    for verb in ["save a t", "compact a", "hydrate a", "flatten a", "resize a --size 1G", "rebase a", "reset a", "rename a c", "repair a"] {
        let message = place.fails(3, &format!("clone {verb}"));
        assert!(message.contains("the file of the clone a is missing") && !message.contains("0x0"), "{verb}: {message}");
    }
    assert_eq!(place.run("clone check a").status.code(), Some(6));
    std::fs::rename(path("away"), path("a.vhdx")).unwrap();

    // What it stands on.
    std::fs::rename(path("b.s.avhdx"), path("away")).unwrap();
    for verb in ["save b t", "compact b", "hydrate b", "resize b --size 1G"] {
        let message = place.fails(3, &format!("clone {verb}"));
        assert!(message.contains("the savepoint s under the clone b is missing"), "{verb}: {message}");
    }
    std::fs::rename(path("away"), path("b.s.avhdx")).unwrap();
    std::fs::rename(path("images/app/1.vhdx"), path("away")).unwrap();
    for verb in
        ["save a t", "compact a", "hydrate a", "flatten a", "resize a --size 1G", "reset a", "revert b s", "repair a", "create app@1 c"]
    {
        let message = place.fails(3, &format!("clone {verb}"));
        assert!(message.contains("is missing") && message.contains("images/app/1.vhdx") && message.contains("copy"), "{verb}: {message}");
    }
    assert!(place.fails(3, "image verify app").contains("the disk of app@1 is missing"));
    std::fs::rename(path("away"), path("images/app/1.vhdx")).unwrap();
    place.ok("clone compact a");

    // What cannot be read.
    std::fs::write(path("a.vhdx"), "").unwrap();
    assert!(place.fails(6, "clone save a t").contains("`clone check`"));
    assert_eq!(place.run("clone check a").status.code(), Some(6));
    place.ok("clone reset a");
    for record in std::fs::read_dir(path("images/.clones")).unwrap() {
        std::fs::write(record.unwrap().path(), "{").unwrap();
    }
    for args in ["clone list", "image sweep", "image remove app"] {
        assert!(place.fails(6, args).contains("`clone repair PATH`"), "{args}");
    }
    place.ok("clone repair a.vhdx");
    place.ok("clone repair b.vhdx");
    place.ok("clone list");
    let options = diffdisk::OpenOptions::new().writable(true).parents(diffdisk::ParentPolicy::Anywhere);
    let open = ["a.vhdx", "b.vhdx"].map(|name| Disk::open(path(name), &options).unwrap());
    assert_eq!(place.run("clone repair").status.code(), Some(5), "in use is no damage");
    drop(open);
    place.ok("clone repair");
}

/// Also for root, whom the permissions of the file do not stop.
#[test]
fn no_verb_changes_an_image() {
    let place = Place::new();
    place.ok("image create app db.img");
    place.ok("clone create app a");
    place.write("a.vhdx", 0, b"the clone");
    let image = place.home.join("images/app/1.vhdx");
    let (before, clone) = (std::fs::read(&image).unwrap(), std::fs::read(place.home.join("a.vhdx")).unwrap());
    for args in [
        "write images/app/1.vhdx --offset 0",
        "trim images/app/1.vhdx --offset 0 --length 1M",
        "compact images/app/1.vhdx",
        "resize images/app/1.vhdx --size 64M",
        "check images/app/1.vhdx --repair",
        "flatten images/app/1.vhdx",
        "hydrate images/app/1.vhdx",
        "rebase images/app/1.vhdx --onto a.vhdx",
        "relink images/app/1.vhdx --parent a.vhdx",
        "serve images/app/1.vhdx --nbd unix:s",
        "merge a.vhdx --parents images",
        "merge a.vhdx --parents images --force --delete",
        "merge a.vhdx --parents images --into images/app/1.vhdx",
    ] {
        let message = place.fails(4, args);
        assert!(message.contains("app@1") && message.contains("1 clones"), "{args}: {message}");
    }
    assert_eq!((std::fs::read(&image).unwrap(), std::fs::read(place.home.join("a.vhdx")).unwrap()), (before, clone));
    place.ok("check images/app/1.vhdx");
    place.ok("merge a.vhdx --parents images --to merged.vhdx");
    place.ok("flatten a.vhdx --parents images");
}

/// A savepoint has children that the store knows; what a file-level verb may do to it is nothing that they would notice.
#[test]
fn no_verb_changes_a_savepoint() {
    let place = Place::new();
    place.ok("image create app db.img");
    place.ok("clone create app a");
    place.write("a.vhdx", 0, b"the state");
    place.ok("clone save a s");
    place.write("a.vhdx", 0, b"the clone");
    // Its files keep their names.
    place.ok("clone rename a b");
    let file = |name: &str| std::fs::read(place.home.join(name)).unwrap();
    let before = (file("a.s.avhdx"), file("b.vhdx"));
    for args in [
        "write a.s.avhdx --offset 0 --parents images",
        "trim a.s.avhdx --offset 0 --length 1M --parents images",
        "compact a.s.avhdx --parents images",
        "resize a.s.avhdx --size 64M --parents images",
        "flatten a.s.avhdx --parents images",
        "hydrate a.s.avhdx --parents images",
        "rebase a.s.avhdx --onto images/app/1.vhdx --parents images",
        "serve a.s.avhdx --nbd unix:s --parents images",
        "merge b.vhdx --parents images",
        "merge b.vhdx --parents images --force --delete",
        "merge b.vhdx --parents images --into a.s.avhdx",
    ] {
        let message = place.fails(4, args);
        assert!(message.contains("savepoint s of the clone") && message.contains("b.vhdx stand on it"), "{args}: {message}");
        assert!(message.contains("`clone drop b s`"), "{args}: {message}");
    }
    assert!(place.fails(2, "rebase b.vhdx --onto images/app/1.vhdx --parents images").contains("`clone rebase b`"));
    assert!((file("a.s.avhdx"), file("b.vhdx")) == before);
    place.ok("check a.s.avhdx --repair");
    place.ok("relink a.s.avhdx --parent images/app/1.vhdx");
    place.ok("merge b.vhdx --parents images --to merged.vhdx");
    assert_eq!(place.read("b.vhdx"), "the clone");
    place.ok("clone revert b s");
    assert_eq!(place.read("b.vhdx"), "the state");
    // Once it is no savepoint of anybody it is a file like any other.
    std::fs::copy(place.home.join("a.s.avhdx"), place.home.join("copy.avhdx")).unwrap();
    place.ok("flatten copy.avhdx --parents images");
}

#[test]
fn a_moved_store_is_repaired_and_a_sweep_says_what_it_did() {
    let place = Place::new();
    place.ok("image create app db.img");
    place.ok("clone create app a");
    std::fs::rename(place.home.join("images"), place.home.join("elsewhere")).unwrap();
    place.fails(3, "info a.vhdx --chain --parents elsewhere");
    let repaired = place.json("clone repair --store elsewhere");
    assert!(repaired["clones"][0]["done"].as_array().is_some_and(|done| !done.is_empty()), "{repaired}");
    place.ok("info a.vhdx --chain --parents elsewhere");
    std::fs::remove_file(place.home.join("a.vhdx")).unwrap();
    let swept = place.json("image sweep --store elsewhere");
    assert_eq!((swept["swept"].as_array().unwrap().len(), &swept["problems"]), (1, &json!([])));
}

#[test]
fn a_check_tells_of_files_and_books() {
    let place = Place::new();
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    place.ok("image create app db.img");
    place.ok("clone create app a");
    place.ok("clone save a s");
    let sound = place.json("clone check a");
    assert_eq!(keys(&sound), ["books", "clone", "files", "sound"]);
    assert_eq!((&sound["sound"], sound["files"][0]["layers"].as_array().unwrap().len()), (&json!(true), 3));
    assert_eq!(place.json("image check app")["reference"], "app@1");
    assert!(place.ok("image check app").contains("0 errors"));
    place.fails(3, "clone check b");
    place.fails(3, "image check app@2");
    std::fs::rename(place.home.join("a.s.avhdx"), place.home.join("away")).unwrap();
    std::fs::remove_file(place.home.join("a.vhdx.json")).unwrap();
    let output = place.run("clone check a --json");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let broken: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(keys(&broken["books"][0]), ["fault", "file", "message", "repairable", "severity"]);
    for (key, value) in [("no_sidecar", "warning"), ("no_savepoint", "error")] {
        let finding = broken["books"].as_array().unwrap().iter().find(|finding| finding["fault"] == key).unwrap();
        assert_eq!(finding["severity"], value);
        assert!(documented.contains(&format!("`{key}`")), "{key}");
    }
    let output = place.run("clone check a");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("sidecar is missing (clone repair)") && output.stderr.is_empty(), "{text}");
    std::fs::rename(place.home.join("away"), place.home.join("a.s.avhdx")).unwrap();
    place.ok("clone repair a");
    assert_eq!(place.json("clone check a")["books"], json!([]));
}

#[test]
fn a_clone_is_hydrated_and_resized() {
    let place = Place::new();
    place.ok("image create app db.img");
    place.ok("clone create app a");
    place.write("a.vhdx", 2 << 20, b"mine");
    let digest = place.ok("digest a.vhdx --parents images");
    let done = place.json("clone hydrate a");
    assert_eq!(keys(&done), ["blocks", "copied", "file", "is_cut"]);
    assert_eq!((done["copied"].as_u64().unwrap() > 0, &done["is_cut"]), (true, &json!(false)));
    assert_eq!(place.ok("digest a.vhdx --parents images"), digest);
    place.ok("clone save a s");
    let done = place.json("clone resize a --size 64M");
    assert_eq!((keys(&done), &done["virtual_size"]), (vec!["file", "virtual_size", "virtual_size_before"], &json!(64 << 20)));
    assert!(place.ok("clone resize a --size 65M").contains("savepoints keep the size they have: s"));
    assert_eq!(place.json("clone list")["clones"][0]["sizes"]["virtual"], 65 << 20);
    assert!(place.fails(2, "clone resize a --size 64M").contains("--shrink says so"));
    place.ok("clone resize a --size 5M --shrink");
    place.write("a.vhdx", 4 << 20, b"end");
    assert!(place.fails(2, "clone resize a --size 4M --shrink").contains("would be lost"));
    place.fails(2, "clone resize a --size 65T");
    place.fails(3, "clone resize b --size 1G");
    place.fails(3, "clone hydrate b");
    place.ok("clone revert a s");
    assert_eq!(place.ok("digest a.vhdx --parents images"), digest);
}

#[test]
fn a_flattened_clone_is_no_clone_of_its_image_any_more() {
    let place = Place::new();
    place.ok("image create app db.img");
    for (name, verb) in [("a", "clone flatten a"), ("b", "flatten b.vhdx --parents images")] {
        place.ok(&format!("clone create app {name}"));
        place.write(&format!("{name}.vhdx"), 2 << 20, b"mine");
        place.ok(&format!("clone save {name} s"));
        assert!(place.fails(5, verb).contains("drop them first"));
        place.ok(&format!("clone drop {name} s"));
        let digest = place.ok(&format!("digest {name}.vhdx --parents images"));
        let done = place.json(verb);
        assert_eq!((keys(&done), &done["is_cut"]), (vec!["blocks", "copied", "file", "is_cut"], &json!(true)), "{verb}");
        assert_eq!(place.ok(&format!("digest {name}.vhdx")), digest);
        let shown = place.json(&format!("clone show {name}"));
        assert_eq!((&shown["image"], &shown["flattened"]["from"]), (&Value::Null, &json!("app@1")), "{shown}");
        assert_eq!(place.json(&format!("clone check {name}"))["books"], json!([]));
    }
    assert_eq!(place.json("image list")["images"][0]["clones"], 0);
    assert_eq!(place.json("clone list --image app")["clones"], json!([]));
    assert!(place.ok("clone list").contains("flattened, was of app@1"));
    assert!(place.fails(2, "clone reset a").contains("--to IMAGE"));
    assert!(place.fails(2, "clone rebase a").contains("was flattened"));
    assert!(place.fails(5, "clone create app a --if-exists reuse").contains("was flattened"));
    place.ok("clone reset b --to latest");
    assert_eq!((place.read("b.vhdx").as_str(), &place.json("clone show b")["image"]), ("the image", &json!("app@1")));
    place.fails(5, "image remove app");
    place.ok("clone remove b");
    place.ok("image remove app");
    assert_eq!(place.read("a.vhdx"), "the image");
    place.fails(3, "clone flatten b");
    place.ok("clone save a t");
    place.ok("clone revert a t");
    place.ok("clone remove a");
}

#[test]
fn relink_wants_a_proof() {
    let place = Place::new();
    let path = |name: &str| place.home.join(name);
    Disk::create(path("app.vhdx"), &CreateOptions::dynamic(8 << 20)).unwrap().close().unwrap();
    Disk::create(path("other.vhdx"), &CreateOptions::dynamic(8 << 20)).unwrap().close().unwrap();
    Disk::create_child(path("a.vhdx"), path("app.vhdx"), &CreateOptions::child()).unwrap().close().unwrap();
    std::fs::create_dir(path("deep")).unwrap();
    std::fs::rename(path("app.vhdx"), path("deep/moved.vhdx")).unwrap();
    let message = place.fails(6, "relink a.vhdx --parent other.vhdx");
    assert!(message.contains("--force-unproven"), "{message}");
    assert!(place.fails(6, "relink a.vhdx --parent a.vhdx").contains("itself"));
    assert!(place.fails(2, "relink other.vhdx --parent deep/moved.vhdx").contains("differencing"));
    place.fails(3, "relink a.vhdx --parent missing.vhdx");
    place.fails(3, "info a.vhdx --chain");
    let before = place.json("info a.vhdx");
    let linked = place.json("relink a.vhdx --parent deep/moved.vhdx");
    assert_eq!(linked["parent"]["paths"]["relative_path"], r".\deep\moved.vhdx");
    assert_eq!(place.json("info a.vhdx --chain")["chain"].as_array().unwrap().len(), 2);
    let after = place.json("info a.vhdx");
    assert_eq!((&before["data_write_guid"], &after["log"]), (&after["data_write_guid"], &json!("clean")));
    assert_ne!(before["file_write_guid"], after["file_write_guid"]);
    assert_eq!(place.json("check a.vhdx --chain")["errors"], json!([]));
    place.ok("relink a.vhdx --parent other.vhdx --force-unproven");
    place.ok("check a.vhdx --chain");
    place.fails(6, "relink a.vhdx --parent deep/moved.vhdx");
}

#[test]
fn a_copy_with_another_identity_is_proven_by_digests() {
    let place = Place::new();
    place.ok("image create app db.img");
    place.ok("image create other db.img");
    place.ok("create a.vhdx --parent images/app/1.vhdx");
    place.write("a.vhdx", 0, b"my");
    // The image came back from a backup of its bytes: same content, other blocks, other identity.
    place.ok("convert images/app/1.vhdx raw.img");
    place.ok("convert raw.img copy.vhdx --block-size 4M");
    place.ok("convert raw.img changed.vhdx");
    let mut child = place.command("write changed.vhdx --offset 3M").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert!(child.wait().unwrap().success());
    place.fails(6, "relink a.vhdx --parent copy.vhdx");
    assert!(place.fails(2, "relink a.vhdx --parent copy.vhdx --manifest images/other/1.json").contains("made over"));
    assert!(place.fails(6, "relink a.vhdx --parent changed.vhdx --manifest images/app/1.json").contains("block 3"));
    place.fails(6, "relink a.vhdx --parent changed.vhdx --from-store images");
    place.fails(3, "relink a.vhdx --parent copy.vhdx --manifest images/app/2.json");
    place.fails(3, "relink a.vhdx --parent copy.vhdx --from-store nowhere");
    place.fails(2, "relink copy.vhdx --parent copy.vhdx --manifest images/app/1.json");
    let before = place.json("info a.vhdx");
    let linked = place.json("relink a.vhdx --parent copy.vhdx --manifest images/app/1.json");
    assert_eq!(keys(&linked), ["file", "parent", "verified"]);
    assert_eq!(linked["verified"]["blocks"], 1);
    let after = place.json("info a.vhdx");
    assert_eq!(before["data_write_guid"], after["data_write_guid"]);
    assert_eq!(after["parent"]["linkage"], place.json("info copy.vhdx")["data_write_guid"]);
    assert_eq!(place.read("a.vhdx"), "mye image");
    place.ok("create b.vhdx --parent images/app/1.vhdx");
    assert_eq!(place.json("relink b.vhdx --parent copy.vhdx --from-store images")["verified"]["blocks"], 1);
    assert_eq!(place.read("b.vhdx"), "the image");
    place.ok("check b.vhdx --chain");
}

#[test]
fn ctrl_c_while_an_image_is_made_leaves_nothing() {
    let place = Place::new();
    let mut child =
        place.command("image create app -").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // Two MiB: the first piece is in the store for certain once the second is taken off the pipe.
    input.write_all(&vec![7; 2 << 20]).unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    // The command looks between two pieces, so it needs others to look.
    let began = std::time::Instant::now();
    while input.write_all(&[7; 64 << 10]).is_ok() {
        assert!(began.elapsed().as_secs() < 60, "it goes on as if nothing had been said");
    }
    drop(input);
    let lines: Vec<String> = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(9), "{lines:?}");
    assert!(lines.concat().contains("cancelled"), "{lines:?}");
    assert_eq!(place.json("image list"), json!({ "images": [], "problems": [] }));
    let left = std::fs::read_dir(place.home.join("images/.work")).unwrap().count();
    assert_eq!(left, 0);
}

/// A limit on the size of files stands in for a full disk: the system refuses in the same places, and needs nobody's permission.
#[test]
fn a_full_disk_in_the_middle_of_a_verb_leaves_nothing_half_done() {
    let place = Place::new();
    place.ok("image create app db.img");
    place.ok("clone create app a");
    std::fs::write(place.home.join("big.img"), vec![9; 12 << 20]).unwrap();
    let names = || {
        let mut names = Vec::new();
        for dir in ["", "images", "images/app", "images/.clones"] {
            names.extend(std::fs::read_dir(place.home.join(dir)).unwrap().map(|entry| entry.unwrap().path()));
        }
        names.sort();
        names
    };
    let before = names();
    // In units of 512 bytes; a clone's file has 4 MiB, an image of the big file more than 12.
    for (limit, args) in [
        (2 << 10, "clone create app b"),
        (2 << 10, "clone create app b-{n} --no-sync"),
        (2 << 10, "clone reset a"),
        (2 << 10, "clone save a s"),
        (16 << 10, "image create big big.img"),
        (16 << 10, "image refresh app big.img"),
        (0, "clone protect a"),
        (0, "image disable app"),
    ] {
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec {} {args}", env!("CARGO_BIN_EXE_diffdisk"));
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(&place.home)
            .env("DIFFDISK_STORE", "images")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "{args}: {message}");
        assert_eq!(names(), before, "{args}: {message}");
        assert_eq!(place.json("clone show a")["savepoints"], json!([]), "{args}");
        assert_eq!(place.read("a.vhdx"), "the image", "{args}");
    }
    assert_eq!(place.json("image list")["images"].as_array().unwrap().len(), 1);
    let swept = place.json("image sweep");
    assert_eq!((&swept["swept"], &swept["problems"]), (&json!([]), &json!([])));
}
