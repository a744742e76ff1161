//! `diffdisk serve` and `clone save` of one clone by two processes, and the store's verbs that came with it.
#![cfg(all(unix, feature = "cli"))]

#[path = "support/loud.rs"]
mod loud;
#[path = "support/place.rs"]
mod place;

use loud::loud;
use place::Place;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

impl Place {
    /// With an image, and a clone `a` of it.
    fn with_clone() -> Self {
        let place = Self::new();
        place.json("image create app db.img");
        place.json("clone create app a --no-sync");
        place
    }

    fn read(&self, at: u64) -> String {
        let output = self.run(&format!("read a.vhdx --offset {at} --length 9 --parents images --parents ."));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A server, and what it said when it was ready.
    fn serve(&self, more: &str) -> (Child, Value) {
        let mut child = self
            .command(&format!("serve a.vhdx --nbd unix:socket --json {more}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (child, serde_json::from_str(&line).unwrap())
    }

    fn stop(&self, mut child: Child) -> String {
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success(), "{said}");
        said
    }
}

#[test]
fn a_clone_that_is_served_is_saved_by_another_process() {
    let place = Place::with_clone();
    place.write("a.vhdx", 0, b"my clone!");
    let (server, said) = place.serve("");
    assert_eq!(said["can_be_saved"], true);
    let control = place.home.join("a.vhdx.control");
    assert_eq!(std::fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    let saved = place.json("clone save a first");
    assert!(saved["pause_microseconds"].is_u64(), "{saved}");
    assert_eq!(saved["savepoints"][0]["name"], "first");
    let message = place.fails(5, "clone save a first");
    assert!(message.contains("first"), "{message}");
    place.fails(2, "clone save a ../x");
    assert!(place.fails(5, "clone drop a first").contains("stands on it"));
    place.json("clone save a second");
    let dropped = place.json("clone drop a first");
    assert_eq!((&dropped["merged_files"], dropped["savepoints"].as_array().unwrap().len()), (&json!(1), 1));
    place.fails(5, "clone revert a second");

    // Who talks nonsense gets an answer or is hung up on, and the next one is served.
    for nonsense in ["{}\n", "not json\n", "{\"verb\":\"explode\"}\n", "\n"] {
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.write_all(nonsense.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((&answer["ok"], &answer["kind"]), (&json!(false), &json!("invalid_input")), "{nonsense}");
    }
    drop(UnixStream::connect(&control).unwrap());
    place.json("clone save a third");
    assert_eq!(place.stop(server), "");
    assert!(!control.exists());
    assert_eq!(place.read(0), "my clone!");
    let shown = place.json("clone show a");
    assert_eq!(shown["current_savepoint"], "third");
    place.json("clone revert a second");
    assert_eq!(place.read(0), "my clone!");
}

#[test]
fn a_dead_server_s_socket_is_replaced_and_readers_are_not_asked() {
    let place = Place::with_clone();
    let (mut server, _) = place.serve("");
    server.kill().unwrap();
    server.wait().unwrap();
    let control = place.home.join("a.vhdx.control");
    assert!(control.exists());
    assert_eq!(place.json("clone save a while-nobody-serves")["pause_microseconds"], 0);
    let (server, _) = place.serve("");
    place.json("clone save a again");
    place.stop(server);
    let (server, said) = place.serve("--read-only");
    assert_eq!((&said["can_be_saved"], &said["read_only"]), (&json!(false), &json!(true)));
    place.stop(server);
    let (mut server, _) = place.serve("");
    server.kill().unwrap();
    server.wait().unwrap();
    place.json("clone remove a");
    let left = std::fs::read_dir(&place.home).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.starts_with('a')).collect::<Vec<_>>(), Vec::<String>::new());
    loud("live: a server and a saver, two processes");
}

#[test]
fn a_clone_becomes_a_generation_and_others_move_onto_it() {
    let place = Place::with_clone();
    place.json("clone create app b --no-sync");
    place.write("a.vhdx", 1 << 20, b"by alice!");
    assert_eq!(place.json("image refresh app a --from clone")["reference"], "app@2");
    assert_eq!(place.json("image verify app")["reference"], "app@2");
    // The same change on both sides is no conflict, so the clone it came from moves as well.
    let moved = place.json("clone rebase a");
    assert_eq!((&moved["image"], &moved["linked"], &moved["conflicts"]), (&json!("app@2"), &json!(true), &json!([])));
    assert_eq!(place.read(1 << 20), "by alice!");
    let looked = place.json("clone rebase b --dry-run");
    assert_eq!((&looked["image"], &looked["linked"]), (&json!("app@1"), &json!(false)));
    assert_eq!(place.json("clone rebase b")["image"], "app@2");
    assert_eq!(place.json("image remove app@1")["removed"], json!(["app@1"]));
    assert!(place.fails(5, "image remove app@2").contains("a.vhdx"));

    // Where changes meet nothing happens.
    place.write("a.vhdx", 2 << 20, b"mine mine");
    std::fs::write(place.home.join("db.img"), vec![7; 5 << 20]).unwrap();
    assert_eq!(place.json("image refresh app db.img")["reference"], "app@3");
    let output = place.run("clone rebase a --json");
    assert_eq!(output.status.code(), Some(6));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["image"], answer["conflicts"].as_array().unwrap().is_empty()), (&json!("app@2"), false));
    assert_eq!(place.read(2 << 20), "mine mine");
    assert_eq!(place.json("clone rebase a --keep-content")["image"], "app@3");
    assert_eq!((place.read(2 << 20), place.read(0)), ("mine mine".to_owned(), "the image".to_owned()));
    // Blocks that hold what the image shows go; the content stays.
    let compacted = place.json("clone compact a");
    assert!(compacted["apparent"].as_u64() <= compacted["apparent_before"].as_u64(), "{compacted}");
    assert_eq!((place.read(2 << 20), place.read(0)), ("mine mine".to_owned(), "the image".to_owned()));
    place.json("clone save a s");
    assert!(place.fails(5, "clone rebase a --onto app@2").contains("drop them first"));
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    for key in moved.as_object().unwrap().keys().chain(["pause_microseconds".into(), "merged_files".into(), "can_be_saved".into()].iter()) {
        assert!(documented.contains(&format!("`{key}`")), "{key} is not in docs/json.md");
    }
}
