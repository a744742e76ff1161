//! The command line, as a script sees it: arguments in, bytes and exit codes out.
#![cfg(feature = "cli")]

#[path = "support/loud.rs"]
mod loud;
#[path = "support/unpack.rs"]
mod unpack;

use diffdisk::{CreateOptions, Disk, OpenOptions};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A directory in which commands run.
struct Place {
    _dir: tempfile::TempDir,
    home: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = dir.path().canonicalize().expect("its real name");
        Self { _dir: dir, home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diffdisk"));
        command.current_dir(&self.home).args(args.split_whitespace()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &str) -> Output {
        self.command(args).output().expect("the binary runs")
    }

    /// Runs a command that must succeed; its standard output.
    fn ok(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{args} said {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn json(&self, args: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{args} --json"))).expect("one JSON value")
    }

    /// Runs a command that must fail with this code; what it said on standard error, which with `--json` holds the same in JSON.
    fn fails(&self, code: i32, args: &str) -> String {
        let output = self.run(args);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args}: {message}");
        assert_eq!(text(&output.stdout), "", "{args}");
        let with_json = self.run(&format!("{args} --json"));
        assert_eq!(with_json.status.code(), Some(code), "{args} --json");
        let error: Value = serde_json::from_slice(&with_json.stderr).expect("one line of JSON");
        assert_eq!(keys(&error), ["error"]);
        assert_eq!(keys(&error["error"]), ["kind", "message"]);
        assert_eq!(text(&with_json.stdout), "", "{args} --json");
        message
    }

    fn write(&self, args: &str, content: &[u8]) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        // A verb that refuses its arguments does not read.
        let _ = child.stdin.take().expect("a pipe").write_all(content);
        child.wait_with_output().expect("it ends")
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.home).expect("the directory");
        let mut names: Vec<String> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// A base with two stretches of data, a child that overlays one and a grandchild in a directory of its own.
    fn chain(&self) {
        self.ok("create base.vhdx --size 20M --block-size 2M");
        assert!(self.write("write base.vhdx --offset 1000", &[0xB0; 5000]).status.success());
        assert!(self.write("write base.vhdx --offset 12M", &[0xB1; 3 << 20]).status.success());
        self.ok("create child.vhdx --parent base.vhdx");
        assert!(self.write("write child.vhdx --offset 13M", &[0xC0; 70_000]).status.success());
        std::fs::create_dir_all(self.path("far")).expect("a directory");
        self.ok("create far/leaf.vhdx --parent child.vhdx");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The definition, spelled out.
fn sparse_digest(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    for (i, piece) in bytes.chunks(65536).enumerate() {
        if piece.iter().any(|b| *b != 0) {
            hash.update((i as u64 * 65536).to_le_bytes());
            hash.update((piece.len() as u32).to_le_bytes());
            hash.update(piece);
        }
    }
    hash.update((bytes.len() as u64).to_le_bytes());
    hex(&hash.finalize())
}

fn content_of_child() -> Vec<u8> {
    let mut content = vec![0; 20 << 20];
    content[1000..6000].fill(0xB0);
    content[12 << 20..15 << 20].fill(0xB1);
    content[13 << 20..][..70_000].fill(0xC0);
    content
}

#[test]
fn info_has_the_pinned_keys() {
    let place = Place::new();
    place.chain();
    let info = place.json("info child.vhdx --chain");
    for key in ["type", "virtual_size", "block_size", "logical_sector_size", "physical_sector_size", "data_write_guid", "log"] {
        assert!(!info[key].is_null(), "{key}");
    }
    assert_eq!((&info["type"], &info["virtual_size"]), (&json!("differencing"), &json!(20 << 20)));
    assert_eq!((&info["logical_sector_size"], &info["physical_sector_size"]), (&json!(512), &json!(4096)));
    assert_eq!(info["log"], "clean");
    assert_eq!(keys(&info["sizes"]), ["allocated", "apparent", "diverged", "virtual"]);
    assert_eq!((&info["sizes"]["virtual"], &info["sizes"]["diverged"]), (&json!(20 << 20), &json!(70_144)));
    let base = place.json("info base.vhdx");
    assert_eq!((&base["type"], &base["block_size"], &base["parent"]), (&json!("dynamic"), &json!(2 << 20), &Value::Null));
    assert!(base.get("chain").is_none(), "a chain is listed only on request");
    assert_eq!(keys(&info["parent"]), ["linkage", "paths"]);
    assert_eq!(info["parent"]["linkage"], base["data_write_guid"]);
    assert_eq!(info["parent"]["paths"]["relative_path"], r".\base.vhdx");
    let chain = info["chain"].as_array().expect("a list");
    assert_eq!(chain.len(), 2);
    assert_eq!((&chain[0]["type"], &chain[1]["type"]), (&json!("differencing"), &json!("dynamic")), "leaf first");
    assert_eq!(chain[1]["data_write_guid"], base["data_write_guid"]);
    assert_eq!(place.json("info far/leaf.vhdx")["type"], "differencing", "one file is opened, so no policy is asked");
    assert!(place.ok("info child.vhdx --chain").contains(r"relative_path        .\base.vhdx"));
}

#[test]
fn a_dirty_log_is_told_and_left_alone() {
    let place = Place::new();
    let disk = Disk::create(place.path("a.vhdx"), &CreateOptions::dynamic(8 << 20)).expect("a disk");
    disk.write_at(&[1; 4096], 0).expect("a write");
    disk.flush().expect("a flush");
    drop(disk);
    let before = std::fs::read(place.path("a.vhdx")).expect("the file");
    assert_eq!(place.json("info a.vhdx")["log"], "dirty");
    assert_eq!(place.json("check a.vhdx")["errors"], json!([]));
    assert!(place.ok("digest a.vhdx").starts_with(&sha256(&[vec![1; 4096], vec![0; (8 << 20) - 4096]].concat())));
    assert_eq!(std::fs::read(place.path("a.vhdx")).expect("the file"), before);
}

#[test]
fn create_takes_every_option() {
    let place = Place::new();
    let made = place.json("create a.vhdx --size 3G --fixed --block-size 4M --sector 4096 --physical-sector 4096 --log-size 2M");
    assert_eq!(keys(&made), ["block_size", "data_write_guid", "file", "type", "virtual_size"]);
    let info = place.json("info a.vhdx");
    assert_eq!((&info["type"], &info["virtual_size"], &info["block_size"]), (&json!("fixed"), &json!(3_u64 << 30), &json!(4 << 20)));
    assert_eq!((&info["logical_sector_size"], &info["physical_sector_size"]), (&json!(4096), &json!(4096)));
    assert!(place.fails(5, "create a.vhdx --size 1G").contains("--force"));
    place.ok("create a.vhdx --size 1G --force");
    assert_eq!(place.json("info a.vhdx")["type"], "dynamic");
    place.ok("create b.vhdx --parent a.vhdx --size 2G --block-size 1M");
    assert_eq!(place.json("info b.vhdx")["virtual_size"], json!(2_u64 << 30), "a child may be larger");
    for wrong in [
        "create c.vhdx",
        "create c.vhdx --size 1X",
        "create c.vhdx --size 1G --block-size 3M",
        "create c.vhdx --size 65T",
        "create c.vhdx --size 1G --sector 1024",
        "create c.vhdx --size 513",
        "create c.vhdx --parent a.vhdx --fixed",
        "create c.vhdx --size 1G --log-size 1000",
    ] {
        place.fails(2, wrong);
    }
    place.fails(3, "create c.vhdx --parent nowhere.vhdx");
    place.fails(3, "create nodir/c.vhdx --size 1G");
    assert_eq!(place.names(), ["a.vhdx", "b.vhdx"], "failures leave nothing");
}

#[test]
fn content_goes_in_and_out() {
    let place = Place::new();
    place.chain();
    let content = content_of_child();
    assert_eq!(place.run("read child.vhdx").stdout, content);
    assert_eq!(place.run("read child.vhdx --offset 13107100 --length 1500000").stdout, content[13_107_100..14_607_100]);
    assert_eq!(place.run("read child.vhdx --offset 20M").stdout, b"");
    let piece = place.json("read child.vhdx --offset 5998 --length 4");
    assert_eq!(piece, json!({ "file": "child.vhdx", "offset": 5998, "length": 4, "hex": "b0b00000" }));
    place.fails(2, "read child.vhdx --offset 20M --length 1");
    place.fails(2, "read child.vhdx --offset 21M");
    let answer = place.write("write child.vhdx --offset 0x10 --json", b"hello");
    assert_eq!(serde_json::from_slice::<Value>(&answer.stdout).expect("JSON"), json!({ "file": "child.vhdx", "offset": 16, "written": 5 }));
    assert_eq!(place.run("read child.vhdx --offset 15 --length 7").stdout, b"\0hello\0");
    assert_eq!(
        place.json("trim child.vhdx --offset 12M --length 1M"),
        json!({ "file": "child.vhdx", "offset": 12 << 20, "length": 1 << 20 })
    );
    assert_eq!(place.run("read child.vhdx --offset 12M --length 1M").stdout, vec![0; 1 << 20]);
    assert_eq!(place.run("read base.vhdx --offset 12M --length 1M").stdout, vec![0xB1; 1 << 20]);
    place.fails(2, "trim child.vhdx --offset 19M --length 2M");
    assert_eq!(place.json("info child.vhdx")["log"], "clean");
}

#[test]
fn what_does_not_fit_is_refused_and_what_fitted_stays() {
    let place = Place::new();
    place.ok("create a.vhdx --size 3M");
    let output = place.write("write a.vhdx --offset 2M --json", &vec![7; (1 << 20) + 1]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("1048576 bytes fitted"), "{}", text(&output.stderr));
    assert_eq!(place.run("read a.vhdx --offset 2M").stdout, vec![7; 1 << 20]);
    assert_eq!(place.write("write a.vhdx --offset 4M", b"x").status.code(), Some(2));
    assert_eq!(place.json("info a.vhdx")["log"], "clean");
}

#[test]
fn map_names_file_and_place() {
    let place = Place::new();
    place.chain();
    let map = place.json("map child.vhdx");
    let rows: Vec<_> =
        map.as_array().expect("a list").iter().map(|row| (row["start"].as_u64(), row["kind"].as_str(), row["depth"].as_u64())).collect();
    let row = |start: u64, kind, depth| (Some(start), Some(kind), Some(depth));
    assert_eq!(rows[..2], [row(0, "data", 1), row(2 << 20, "absent", 1)]);
    assert!(rows.contains(&row(13 << 20, "data", 0)));
    let total: u64 = map.as_array().expect("a list").iter().map(|row| row["length"].as_u64().expect("a number")).sum();
    assert_eq!(total, 20 << 20, "they cover the disk");
    for row in map.as_array().expect("a list") {
        assert_eq!(row.get("file_offset").is_some(), row["kind"] == "data", "{row}");
        let file = std::fs::read(place.path(if row["depth"] == 0 { "child.vhdx" } else { "base.vhdx" })).expect("the file");
        if let Some(at) = row["file_offset"].as_u64() {
            let start = row["start"].as_u64().expect("a number") as usize;
            assert_eq!(file[at as usize], content_of_child()[start], "{row}");
        }
    }
    let part = place.json("map child.vhdx --offset 13M --length 4K");
    assert_eq!((part.as_array().expect("a list").len(), &part[0]["length"]), (1, &json!(4096)));
    assert_eq!(place.json("map child.vhdx --offset 20M"), json!([]));
    place.ok("trim child.vhdx --offset 12M --length 1M");
    assert_eq!(place.json("map child.vhdx --offset 12M --length 1M")[0]["kind"], "zero");
    assert_eq!(place.ok("map child.vhdx --offset 13M --length 4K").lines().count(), 4);
}

#[test]
fn digests_are_as_defined() {
    let place = Place::new();
    place.chain();
    let content = content_of_child();
    assert_eq!(place.ok("digest child.vhdx"), format!("{}  child.vhdx\n", sha256(&content)));
    let sparse = place.json("digest child.vhdx --sparse");
    assert_eq!(keys(&sparse), ["algorithm", "digest", "file", "virtual_size"]);
    assert_eq!(sparse["digest"], json!(sparse_digest(&content)));
    std::fs::write(place.path("odd.img"), &content[..5_000_001]).expect("a file");
    assert_eq!(place.json("digest odd.img --sparse --from raw")["digest"], json!(sparse_digest(&content[..5_000_001])));
    assert_eq!(place.json("digest odd.img --from raw")["digest"], json!(sha256(&content[..5_000_001])));
    place.fails(6, "digest odd.img");
}

#[test]
fn holes_of_64_tib_cost_nothing() {
    let place = Place::new();
    // Blocks so small that each BAT has 64 Mi entries: nobody may look at all of them.
    place.ok("create base.vhdx --size 64T --block-size 1M");
    place.ok("create child.vhdx --parent base.vhdx --block-size 1M");
    assert!(place.write("write child.vhdx --offset 63T", &[5; 100_000]).status.success());
    let mut hash = Sha256::new();
    for (i, piece) in [&[5; 65536][..], &[[5; 100_000 - 65536].as_slice(), &[0; 2 * 65536 - 100_000]].concat()].iter().enumerate() {
        hash.update(((63_u64 << 40) + i as u64 * 65536).to_le_bytes());
        hash.update(65536_u32.to_le_bytes());
        hash.update(piece);
    }
    hash.update((64_u64 << 40).to_le_bytes());
    let start = Instant::now();
    assert_eq!(place.json("digest child.vhdx --sparse")["digest"], json!(hex(&hash.finalize())));
    assert_eq!(place.json("map child.vhdx").as_array().expect("a list").len(), 3);
    assert_eq!(place.run("compare base.vhdx child.vhdx").status.code(), Some(6));
    assert_eq!(place.json("diff base.vhdx child.vhdx")["changed"], 102_400);
    assert!(place.json("diff base.vhdx child.vhdx --export delta.vhdx")["allocated"].as_u64().expect("a number") < 1 << 20);
    assert_eq!(place.json("rebase delta.vhdx --onto child.vhdx --dry-run")["agreed"], 102_400);
    assert_eq!(place.run("rebase delta.vhdx --onto child.vhdx").status.code(), Some(0));
    place.ok("compare delta.vhdx child.vhdx");
    assert!(start.elapsed() < Duration::from_secs(6), "eight walks took {:?}", start.elapsed());
}

#[test]
fn check_reports_what_is_broken() {
    let place = Place::new();
    place.chain();
    let sound = place.json("check child.vhdx --chain");
    assert_eq!(sound, json!({ "file": "child.vhdx", "errors": [], "warnings": [], "notes": [] }));
    assert!(place.ok("check child.vhdx").contains("0 errors, 0 warnings"));
    // Two payload blocks in one place: both entries point at where the first one is.
    let mut base = std::fs::read(place.path("base.vhdx")).expect("the file");
    let bat = 3 << 20;
    let first: [u8; 8] = base[bat..bat + 8].try_into().expect("eight bytes");
    assert_ne!(first, [0; 8], "the BAT is where new files have it");
    base[bat + 8..bat + 16].copy_from_slice(&first);
    std::fs::write(place.path("bad.vhdx"), &base).expect("a file");
    let output = place.run("check bad.vhdx --json");
    assert_eq!(output.status.code(), Some(6));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let error = &report["errors"][0];
    assert_eq!(keys(error), ["block", "fault", "layer", "message", "offset", "other", "repair", "structure", "values"]);
    assert_eq!((&error["fault"], &error["repair"], &error["block"]), (&json!("shared_place"), &json!("no"), &json!(1)));
    assert_eq!((&error["structure"], &error["offset"]), (&json!("bat_entry"), &json!(bat + 8)));
    let other = json!({ "structure": "payload_block", "block": 0, "offset": 4 << 20, "entry": bat });
    assert_eq!((&error["other"], &error["values"]["mib"]), (&other, &json!(4)));
    let told = text(&place.run("check bad.vhdx").stdout);
    assert!(
        told.contains("error: bat entry of layer 0 at 0x300008 (block 1): it lies at 4 MiB, over payload block 0 at 0x400000"),
        "{told}"
    );
    // What cannot even be opened is a finding, too.
    std::fs::write(place.path("noise.vhdx"), vec![1; 4 << 20]).expect("a file");
    let output = place.run("check noise.vhdx --json");
    assert_eq!(output.status.code(), Some(6));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["errors"][0]["structure"], "file_identifier");
    place.fails(3, "check nowhere.vhdx");
}

#[test]
fn repair_says_what_it_did_and_what_it_left() {
    let place = Place::new();
    place.chain();
    let base = std::fs::read(place.path("base.vhdx")).expect("a file");
    let bytes = |name: &str| std::fs::read(place.path(name)).expect("a file");
    let run = |args: &str| {
        let output = place.run(args);
        assert!(output.stderr.is_empty(), "{args} said {}", text(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON value");
        (output.status.code(), answer)
    };

    // Nothing to do, and nothing is touched.
    let sound = place.json("check base.vhdx --repair");
    assert_eq!(sound["repair"], json!({ "steps": [], "repaired": [], "needs": [] }));
    assert!(bytes("base.vhdx") == base);
    assert!(place.ok("check base.vhdx --repair").starts_with("nothing was changed\n"));

    // One copy of the region table is spoiled; the other one has what it said.
    let mut spoiled = base.clone();
    spoiled[(192 << 10) + 16] ^= 0xff;
    std::fs::write(place.path("table.vhdx"), &spoiled).expect("a file");
    let before = place.json("check table.vhdx");
    let finding = &before["warnings"][0];
    assert_eq!((&finding["structure"], &finding["repair"]), (&json!("region_table"), &json!("yes")));
    assert!(bytes("table.vhdx") == spoiled, "looking changes nothing");
    assert!(place.ok("check table.vhdx").contains("(--repair)"));
    let mended = place.json("check table.vhdx --repair");
    assert_eq!(keys(&mended), ["errors", "file", "notes", "repair", "warnings"]);
    assert_eq!(keys(&mended["repair"]), ["needs", "repaired", "steps"]);
    assert_eq!((&mended["errors"], &mended["warnings"]), (&json!([]), &json!([])), "what is left");
    assert_eq!(mended["repair"]["steps"][0]["step"], "region_table");
    assert_eq!(keys(&mended["repair"]["steps"][0]), ["message", "step"]);
    assert_eq!(mended["repair"]["repaired"][0], *finding);
    // Whoever changes a file writes its headers and its log, which is the second MiB; everything else is what it was.
    let now = bytes("table.vhdx");
    assert!(now[192 << 10..1 << 20] == base[192 << 10..1 << 20], "the copy is again what it was");
    assert!(now[2 << 20..] == base[2 << 20..], "nothing else has changed");
    std::fs::write(place.path("table.vhdx"), &spoiled).expect("a file");
    let said = place.ok("check table.vhdx --repair");
    assert!(said.contains("repaired: region table of layer 0") && said.contains("did: "), "{said}");

    // Both copies: nothing to put them right from. The answer is an answer, and the file stays what it is.
    spoiled[(256 << 10) + 16] ^= 0xff;
    std::fs::write(place.path("lost.vhdx"), &spoiled).expect("a file");
    let (code, left) = run("check lost.vhdx --repair --json");
    assert_eq!((code, &left["repair"]["steps"]), (Some(6), &json!([])));
    assert!(left["errors"].as_array().expect("a list").iter().any(|finding| finding["repair"] == "no"), "{left}");
    assert!(bytes("lost.vhdx") == spoiled);

    // Consent is for repairs, and there must be a file.
    place.fails(2, "check base.vhdx --accept-empty-log");
    place.fails(3, "check nowhere.vhdx --repair");

    // Neither is a file repaired that somebody writes.
    let open = Disk::open(place.path("base.vhdx"), &OpenOptions::new().writable(true)).expect("opens");
    place.fails(5, "check base.vhdx --repair");
    open.close().expect("closes");
}

#[test]
fn parents_follow_the_policy() {
    let place = Place::new();
    place.chain();
    let home = place.home.display();
    for verb in ["digest far/leaf.vhdx --sparse", "map far/leaf.vhdx", "read far/leaf.vhdx --length 1", "info far/leaf.vhdx --chain"] {
        let refusal = place.fails(4, verb);
        assert!(refusal.contains("--parents") && refusal.contains("anywhere"), "{refusal}");
        for allowed in
            [format!("{verb} --parents {home}"), format!("{verb} --parents /nowhere --parents ."), format!("{verb} --parents anywhere")]
        {
            assert!(place.run(&allowed).status.success(), "{allowed}");
        }
    }
    for verb in [
        "check far/leaf.vhdx --chain",
        "trim far/leaf.vhdx --offset 0 --length 0",
        "write far/leaf.vhdx --offset 0",
        "convert far/leaf.vhdx flat.img",
        "compare far/leaf.vhdx child.vhdx",
        "create far/next.vhdx --parent far/leaf.vhdx",
    ] {
        place.fails(4, verb);
        assert!(place.run(&format!("{verb} --parents {home}")).status.success(), "{verb}");
    }
    std::fs::remove_file(place.path("base.vhdx")).expect("the base goes");
    let missing = place.fails(3, "read child.vhdx");
    assert!(missing.contains("relink"), "{missing}");
    place.ok("create base.vhdx --size 20M");
    assert!(place.fails(6, "read child.vhdx").contains("another disk"));
}

#[test]
fn convert_goes_both_ways_and_keeps_holes() {
    let place = Place::new();
    place.chain();
    let content = content_of_child();
    let flat = place.json("convert child.vhdx flat.img");
    assert_eq!(
        keys(&flat),
        ["allocated", "destination", "from", "parent", "source", "source_size", "to", "virtual_size", "written", "zeroed"]
    );
    assert_eq!((&flat["from"], &flat["to"], &flat["virtual_size"]), (&json!("vhdx"), &json!("raw"), &json!(20 << 20)));
    assert_eq!(std::fs::read(place.path("flat.img")).expect("the file"), content);
    for (to, kind) in [("vhdx", "dynamic"), ("vhdx-fixed", "fixed")] {
        place.ok(&format!("convert flat.img {to}.vhdx --to {to} --block-size 2M"));
        let info = place.json(&format!("info {to}.vhdx"));
        assert_eq!((&info["type"], &info["block_size"], &info["log"]), (&json!(kind), &json!(2 << 20), &json!("clean")));
        assert!(place.ok(&format!("digest {to}.vhdx")).starts_with(&sha256(&content)));
        assert!(info["sizes"]["allocated"].as_u64().expect("a number") < 8 << 20, "zeros of the raw file are not stored: {info}");
    }
    place.ok("convert vhdx-fixed.vhdx again.vhdx");
    assert_eq!(place.json("info again.vhdx")["type"], "dynamic");
    place.ok("compare again.vhdx child.vhdx");
    assert!(place.fails(5, "convert flat.img again.vhdx").contains("--force"));
    place.ok("convert flat.img again.vhdx --force");
    // A size that is no whole number of sectors grows to the next one.
    std::fs::write(place.path("odd.img"), &content[..1_000_001]).expect("a file");
    assert_eq!(place.json("convert odd.img odd.vhdx")["virtual_size"], 1_000_448);
    place.ok("compare odd.img odd.vhdx --zero-tail");
    assert_eq!(place.json("convert odd.img odd4.vhdx --sector 4096")["virtual_size"], 1_003_520);
}

#[test]
fn formats_are_declared_not_probed() {
    let place = Place::new();
    place.chain();
    std::fs::copy(place.path("base.vhdx"), place.path("disk.img")).expect("a copy");
    // By its name it is raw, so its bytes are the content, VHDX or not.
    place.ok("convert disk.img wrapped.vhdx --block-size 1M");
    assert_eq!(place.run("read wrapped.vhdx --length 8").stdout, b"vhdxfile");
    place.ok("convert disk.img inner.raw --from vhdx");
    place.ok("compare inner.raw base.vhdx");
    place.ok("compare disk.img base.vhdx --a-format vhdx");
    assert_eq!(place.run("compare disk.img base.vhdx").status.code(), Some(6));
    place.ok("compare base.vhdx disk.img --from raw --b-format raw");
}

#[test]
fn convert_makes_children_and_feeds_pipes() {
    let place = Place::new();
    place.chain();
    let mut content = content_of_child();
    place.ok("convert child.vhdx flat.vhdx");
    content[3 << 20..5 << 20].fill(0);
    content[7_000_000] ^= 1;
    std::fs::write(place.path("later.img"), &content).expect("a file");
    let made = place.json("convert later.img later.vhdx --parent flat.vhdx");
    assert_eq!((&made["parent"], &made["to"]), (&json!("flat.vhdx"), &json!("vhdx")));
    assert_eq!(made["written"], 4096);
    assert_eq!(place.json("info later.vhdx")["type"], "differencing");
    assert!(place.ok("digest later.vhdx").starts_with(&sha256(&content)));
    place.ok("compare later.img later.vhdx");
    assert_eq!(place.run("convert later.vhdx -").stdout, content);
    assert_eq!(place.run("convert later.img -").stdout, content);
    place.fails(2, "convert later.img - --json");
    place.fails(2, "convert later.img a.img --parent flat.vhdx");
    place.fails(3, "convert later.img a.vhdx --parent nowhere.vhdx");
    place.fails(2, "convert later.img a.vhdx --parent flat.vhdx --sector 4096");
    place.fails(2, "convert later.img flat.vhdx --parent flat.vhdx --force");
    assert!(!place.path("a.vhdx").exists());
}

#[test]
fn changes_are_listed_and_exported_and_children_rebased() {
    let place = Place::new();
    place.chain();
    let content = content_of_child();
    place.ok("convert base.vhdx app.vhdx");
    let found = place.json("diff base.vhdx child.vhdx");
    assert_eq!(keys(&found), ["a", "b", "changed", "extents", "granularity"]);
    let extents = found["extents"].as_array().expect("a list");
    assert!(!extents.is_empty() && keys(&extents[0]) == ["kind", "length", "start"], "{found}");
    let changed: u64 = extents.iter().map(|extent| extent["length"].as_u64().expect("a number")).sum();
    assert_eq!(found["changed"], changed);
    assert_eq!(place.json("diff child.vhdx child.vhdx")["extents"], json!([]));
    assert_eq!(place.json("diff app.vhdx base.vhdx --by-allocation")["b"]["file"], "base.vhdx");
    place.fails(2, "diff base.vhdx child.vhdx --granularity 1000");

    // Sent as a file to where a copy of the base is: read through there, it is the child.
    let made = place.json("diff base.vhdx child.vhdx --export delta.vhdx");
    assert_eq!(keys(&made), ["allocated", "file", "parent", "virtual_size", "written", "zeroed"]);
    assert!(made["written"].as_u64().expect("a number") + made["zeroed"].as_u64().expect("a number") <= changed + 8192, "{made}");
    assert!(place.ok("digest delta.vhdx").starts_with(&sha256(&content)));
    assert!(place.fails(5, "diff base.vhdx child.vhdx --export delta.vhdx").contains("--force"));
    place.ok("diff base.vhdx child.vhdx --export delta.vhdx --force");
    std::fs::write(place.path("base.img"), &content).expect("a file");
    place.fails(2, "diff base.img child.vhdx --export a.vhdx");

    // The same content under another identity: nothing meets, and nothing changes.
    let done = place.json("rebase child.vhdx --onto app.vhdx --dry-run");
    assert_eq!(keys(&done), ["agreed", "conflicts", "copied", "file", "inherited", "linked", "parent"]);
    assert_eq!((&done["linked"], &done["inherited"]), (&json!(false), &json!(0)));
    let before = place.json("info child.vhdx")["data_write_guid"].clone();
    assert_eq!(place.json("rebase child.vhdx --onto app.vhdx")["linked"], true);
    assert!(place.ok("digest child.vhdx").starts_with(&sha256(&content)));
    assert_eq!(place.json("info child.vhdx")["data_write_guid"], before);
    // A parent that changed where the child holds something.
    place.ok("create blank.vhdx --size 20M");
    let output = place.run("rebase child.vhdx --onto blank.vhdx --json");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(6), String::new()));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(!told["conflicts"].as_array().expect("a list").is_empty() && told["linked"] == false, "{told}");
    assert!(place.ok("digest child.vhdx").starts_with(&sha256(&content)));
    let kept = place.json("rebase child.vhdx --onto blank.vhdx --keep-content");
    assert!(kept["copied"].as_u64().expect("a number") > 0 && kept["linked"] == true, "{kept}");
    assert!(place.ok("digest child.vhdx").starts_with(&sha256(&content)));
    place.ok("check child.vhdx --chain");
    place.fails(2, "rebase child.vhdx --onto child.vhdx");
    place.fails(2, "rebase blank.vhdx --onto app.vhdx");
}

#[test]
fn convert_leaves_no_halves() {
    let place = Place::new();
    place.chain();
    for (wrong, code) in [
        ("convert base.vhdx base.vhdx --force", 2),
        ("convert child.vhdx base.vhdx --force", 2),
        ("convert base.vhdx far --force", 2),
        ("convert base.vhdx a.img --block-size 1M", 2),
        ("convert base.vhdx a.vhdx --block-size 3M", 2),
        ("convert base.vhdx nodir/a.img", 3),
        ("convert nowhere.img a.vhdx", 3),
        ("convert base.vhdx a.vhdx --from raw --to nothing", 2),
    ] {
        place.fails(code, wrong);
    }
    // Block 1 of the source points past the end of its file: found only on the way.
    let mut bad = std::fs::read(place.path("base.vhdx")).expect("the file");
    bad[(3 << 20) + 9 * 8..][..8].copy_from_slice(&((900_u64 << 20) | 6).to_le_bytes());
    std::fs::write(place.path("bad.vhdx"), bad).expect("a file");
    place.fails(6, "convert bad.vhdx a.img");
    place.fails(6, "convert bad.vhdx a.vhdx");
    assert_eq!(place.names(), ["bad.vhdx", "base.vhdx", "child.vhdx", "far"]);
    assert_eq!(place.json("check child.vhdx --chain")["errors"], json!([]), "the sources are whole");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing() {
    let place = Place::new();
    // All of its blocks have a place and none has content: hours of reading, no space.
    place.ok("create huge.vhdx --size 8T --fixed --block-size 256M");
    for (signal, target) in [("-INT", "raw.img"), ("-TERM", "copy.vhdx")] {
        let mut child = place.command(&format!("convert huge.vhdx {target} --json")).stderr(Stdio::piped()).spawn().expect("it runs");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !place.names().iter().any(|name| name.ends_with(".tmp")) {
            assert!(Instant::now() < deadline && child.try_wait().expect("its state").is_none(), "the copy never began");
            std::thread::yield_now();
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs").success());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(9), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(r#""kind":"cancelled""#), "{}", text(&output.stderr));
        assert_eq!(place.names(), ["huge.vhdx"]);
    }
}

#[test]
fn compare_names_the_first_difference() {
    let place = Place::new();
    place.chain();
    assert_eq!(place.ok("compare child.vhdx child.vhdx"), "they are the same\n");
    place.ok("convert child.vhdx flat.img");
    assert!(place.write("write child.vhdx --offset 14680000", b"!").status.success());
    for pair in ["child.vhdx flat.img", "flat.img child.vhdx"] {
        let output = place.run(&format!("compare {pair} --json"));
        assert_eq!(output.status.code(), Some(6));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(keys(&answer), ["a", "b", "first_difference", "same"]);
        assert_eq!((&answer["same"], &answer["first_difference"]), (&json!(false), &json!(14_680_000)));
        assert!(output.stderr.is_empty(), "the answer was given");
        assert!(text(&place.run(&format!("compare {pair}")).stdout).contains("14680000"));
    }
    place.ok("create short.vhdx --size 1M");
    place.ok("create long.vhdx --size 2M");
    let output = place.run("compare short.vhdx long.vhdx --json");
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["first_difference"], 1 << 20);
    place.ok("compare short.vhdx long.vhdx --zero-tail");
    place.fails(3, "compare short.vhdx nowhere.img");
}

#[test]
fn a_disk_in_use_is_said_to_be() {
    let place = Place::new();
    place.chain();
    let writer = Disk::open(place.path("child.vhdx"), &OpenOptions::new().writable(true)).expect("a writer");
    for verb in [
        "write child.vhdx --offset 0",
        "trim child.vhdx --offset 0 --length 1",
        "digest child.vhdx",
        "convert base.vhdx child.vhdx --force",
    ] {
        assert!(place.fails(5, verb).contains("in use"), "{verb}");
    }
    assert!(place.fails(5, "write base.vhdx --offset 0").contains("in use"), "a parent of an open disk is not written");
    writer.close().expect("a close");
    place.ok("digest child.vhdx --sparse");
}

#[cfg(target_os = "linux")]
#[test]
fn outputs_and_inputs_that_fail_have_their_codes() {
    let place = Place::new();
    place.ok("create a.vhdx --size 4M");
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    for verb in ["read a.vhdx", "info a.vhdx --json", "map a.vhdx"] {
        assert_eq!(place.command(verb).stdout(full()).status().expect("it runs").code(), Some(8), "{verb}");
    }
    let directory = std::fs::File::open(&place.home).expect("a directory");
    let output = place.command("write a.vhdx --offset 0 --json").stdin(directory).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "reading a directory is not foreseen");
    assert!(text(&output.stderr).contains(r#""kind":"io""#));
}

#[test]
fn a_reader_may_leave_early() {
    let place = Place::new();
    place.ok("create a.vhdx --size 1G");
    for i in 0..40 {
        assert!(place.write(&format!("write a.vhdx --offset {}", i * (8 << 20)), b"x").status.success());
    }
    for verb in ["read a.vhdx", "read a.vhdx --json", "map a.vhdx --json", "completions bash"] {
        let mut child = place.command(verb).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let mut first = [0; 1];
        child.stdout.take().expect("a pipe").read_exact(&mut first).expect("it prints");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{verb}");
    }
}

#[test]
fn help_completions_and_manual_come_from_the_parser() {
    let place = Place::new();
    let help = place.ok("--help");
    let verbs = ["create", "info", "check", "map", "digest", "read", "write", "trim", "convert", "compare", "completions", "man"];
    for verb in verbs {
        assert!(help.contains(verb), "{verb}");
        assert!(place.ok(&format!("{verb} --help")).contains("Example"), "{verb} --help has an example");
    }
    assert!(help.contains("9 cancelled"));
    assert!(place.ok("--version").contains(env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(place.ok(&format!("completions {shell}")).contains("compare"), "{shell}");
    }
    assert!(place.json("completions bash")["script"].as_str().expect("text").contains("compare"));
    std::fs::create_dir(place.path("man1")).expect("a directory");
    let files = place.json("man man1");
    assert!(files["files"].as_array().expect("a list").contains(&json!("man1/diffdisk-convert.1")), "{files}");
    for verb in verbs {
        let page = std::fs::read_to_string(place.path(&format!("man1/diffdisk-{verb}.1"))).expect("a page");
        assert!(page.contains(".TH"), "{verb}");
    }
    place.fails(3, "man nowhere");
    for wrong in ["", "nonsense", "info", "info a.vhdx --nonsense", "completions ksh", "map a.vhdx --offset x"] {
        place.fails(2, wrong);
    }
}

/// A handful of the corpus through the binary; all of it goes through the library in `corpus.rs`.
#[test]
fn the_corpus_through_the_binary() {
    let home =
        std::env::var_os("DIFFDISK_CORPUS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"), PathBuf::from);
    if !home.is_dir() {
        loud::loud(&format!("skipped: no corpus at {}", home.display()));
        return;
    }
    let accepted = ["real/win11-diff-512/win11-diff-512", "made/chain/chain-dev-0", "made/dirty/dirty-dev-1", "made/huge/huge-dev-0"];
    for case in accepted {
        let (place, case) = unpack_case(&home, case);
        let leaf = case["chain"][0].as_str().expect("a name");
        let info = place.json(&format!("info {leaf} --chain --parents ."));
        assert_eq!((&info["type"], &info["virtual_size"]), (&case["type"], &case["virtual_size"]), "{leaf}");
        assert_eq!(info["log"] == "dirty", case["dirty"] == true, "{leaf}");
        assert_eq!(info["chain"].as_array().expect("a list").len(), case["chain"].as_array().expect("a list").len());
        assert_eq!(place.json(&format!("digest {leaf} --sparse --parents ."))["digest"], case["digest"]["sdigest"], "{leaf}");
        if let Some(digest) = case["digest"]["sha256"].as_str() {
            assert!(place.ok(&format!("digest {leaf} --parents .")).starts_with(digest), "{leaf}");
        }
        assert_eq!(place.json(&format!("check {leaf} --chain --parents ."))["errors"], json!([]), "{leaf}");
    }
    for case in ["made/bad/bad-bat-far-outside", "made/bad/bad-block-size-large", "made/bad/bad-chain-cycle"] {
        let (place, case) = unpack_case(&home, case);
        let leaf = case["chain"][0].as_str().expect("a name");
        place.fails(6, &format!("digest {leaf} --sparse --parents ."));
        assert_eq!(place.run(&format!("check {leaf} --chain --parents .")).status.code(), Some(6), "{leaf}");
    }
    let (place, case) = unpack_case(&home, "made/bad/bad-bat-on-bat");
    assert_eq!(place.run(&format!("check {} --json", case["chain"][0].as_str().expect("a name"))).status.code(), Some(6));
}

fn unpack_case(home: &Path, name: &str) -> (Place, Value) {
    let json = std::fs::read_to_string(home.join(format!("{name}.json")));
    let json =
        json.or_else(|_| std::fs::read_to_string(home.join(name).join(format!("{}.json", name.rsplit('/').next().expect("a name")))));
    let case: Value = serde_json::from_str(&json.expect("the case")).expect("a case is JSON");
    let place = Place::new();
    for file in case["files"].as_object().expect("files").keys() {
        let dir = home.join(name);
        let dir = dir.parent().expect("a directory").to_owned();
        let nested = home.join(name).join(format!("{file}.xz"));
        let from = if nested.is_file() { nested } else { dir.join(format!("{file}.xz")) };
        unpack::unpack(&from, &place.path(file)).expect("it unpacks");
    }
    (place, case)
}
