//! What converting and comparing cost in process, as ratios to the plainest program that does the same: read, look for zeros, write.
//!
//! Half of the input is stored zeros, in turns of 256 KiB, as in a raw image that was written once and trimmed never. Rounds are
//! interleaved, and every ratio is taken within its round, so a busy machine is busy for both. Prints a table and fails nobody.
//!
//!     cargo bench --bench convert            DIFFDISK_BENCH_DIR=/dev/shm  DIFFDISK_BENCH_MIB=512  DIFFDISK_BENCH_ROUNDS=9

#[path = "support/positioned.rs"]
mod positioned;

use diffdisk::storage::{FileStorage, Storage};
use diffdisk::{Cancel, CompareOptions, Content, ConvertOptions, NoProgress, OpenOptions, compare, convert, is_zero};
use positioned::Positioned;
use std::fs::{File, OpenOptions as Open};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

const STEP: usize = 256 << 10;

fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn milliseconds(act: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    act();
    begin.elapsed().as_secs_f64() * 1e3
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The plain program. Not synced.
fn plain_copy(from: &Path, to: &Path, buffer: &mut [u8]) {
    let (from, to) = (File::open(from).expect("the input"), Open::new().write(true).create_new(true).open(to).expect("an output"));
    let len = from.metadata().expect("a length").len();
    to.set_len(len).expect("a length");
    let zeros = vec![0; 64 << 10];
    let mut at = 0;
    while at < len {
        let part = buffer.len().min((len - at) as usize);
        from.read_exact_at(&mut buffer[..part], at).expect("a read");
        let mut start = None;
        for (place, piece) in (0..).step_by(zeros.len()).zip(buffer[..part].chunks(zeros.len())) {
            match (piece == &zeros[..piece.len()], start) {
                (true, Some(first)) => {
                    to.write_all_at(&buffer[first..place], at + first as u64).expect("a write");
                    start = None;
                }
                (false, None) => start = Some(place),
                (true, None) | (false, Some(_)) => {}
            }
        }
        if let Some(first) = start {
            to.write_all_at(&buffer[first..part], at + first as u64).expect("a write");
        }
        at += part as u64;
    }
}

fn plain_compare(a: &Path, b: &Path, buffers: &mut (Vec<u8>, Vec<u8>)) {
    let (a, b) = (File::open(a).expect("one"), File::open(b).expect("the other"));
    let len = a.metadata().expect("a length").len();
    for at in (0..len).step_by(1 << 20) {
        let part = (len - at).min(1 << 20) as usize;
        a.read_exact_at(&mut buffers.0[..part], at).expect("a read");
        b.read_exact_at(&mut buffers.1[..part], at).expect("a read");
        assert!(buffers.0[..part] == buffers.1[..part]);
    }
}

fn main() {
    let (mib, rounds) = (setting("DIFFDISK_BENCH_MIB", 512), setting("DIFFDISK_BENCH_ROUNDS", 9));
    let dir = std::env::var("DIFFDISK_BENCH_DIR").unwrap_or_else(|_| "/dev/shm".to_owned());
    let dir = tempfile::tempdir_in(&dir).unwrap_or_else(|_| tempfile::tempdir().expect("a directory"));
    let path = |name: &str| dir.path().join(name);
    let input = FileStorage::create_new(&path("src.img")).expect("an input");
    let mut data = vec![0; 2 * STEP];
    for (at, byte) in data[..STEP].iter_mut().enumerate() {
        *byte = (at * 31 % 255) as u8 + 1;
    }
    for at in 0..mib * 2 {
        input.write_at(&data, (at * 2 * STEP) as u64).expect("a write");
    }
    drop(input);
    println!(
        "convert: {mib} MiB, half stored zeros, {rounds} rounds in {}; median ms, median ratio to the plain program",
        dir.path().display()
    );

    let zeros = vec![0; 4096];
    let ns = milliseconds(|| {
        for _ in 0..100_000 {
            assert!(is_zero(black_box(&zeros)));
        }
    }) * 1e6
        / 1e5;
    println!("  looking for zeros: {ns:.0} ns for 4 KiB");

    let go = |options: ConvertOptions, to: &str| {
        let source = Content::raw(path("src.img")).expect("the input");
        convert(&source, path(to), &options.durable(false), &NoProgress, &Cancel::new()).expect("a conversion");
    };
    go(ConvertOptions::dynamic(), "a.vhdx");
    std::fs::copy(path("src.img"), path("copy.img")).expect("a copy");
    let same = |a: Content<'_>, b: Content<'_>, workers| {
        let options = CompareOptions::new().workers(workers);
        assert_eq!(compare(&a, &b, &options, &NoProgress, &Cancel::new()).expect("a comparison"), None);
    };
    let raw = |name: &str| Content::raw(path(name)).expect("a raw file");
    let vhdx = |name: &str| Content::vhdx(path(name), &OpenOptions::new()).expect("a disk");
    let mut buffer = vec![0; 2 << 20];
    let mut buffers = (vec![0; 1 << 20], vec![0; 1 << 20]);
    type Case<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let converting: Vec<Case<'_>> = vec![
        ("convert to dynamic, 1 worker", Box::new(|| go(ConvertOptions::dynamic().workers(1), "o"))),
        ("convert to dynamic, 2 workers", Box::new(|| go(ConvertOptions::dynamic().workers(2), "o"))),
        ("convert to raw, 1 worker", Box::new(|| go(ConvertOptions::raw().workers(1), "o"))),
        ("convert to raw, 2 workers", Box::new(|| go(ConvertOptions::raw().workers(2), "o"))),
    ];
    let comparing: Vec<Case<'_>> = vec![
        ("compare raw files, 1 worker", Box::new(|| same(raw("src.img"), raw("copy.img"), 1))),
        ("compare raw files, 2 workers", Box::new(|| same(raw("src.img"), raw("copy.img"), 2))),
        ("compare raw and dynamic, 2 workers", Box::new(|| same(raw("src.img"), vhdx("a.vhdx"), 2))),
    ];
    for (cases, is_copy) in [(&converting, true), (&comparing, false)] {
        let mut times = vec![Vec::new(); cases.len() + 1];
        for round in 0..rounds {
            for turn in 0..=cases.len() {
                let case = (turn + round) % (cases.len() + 1);
                let _ = std::fs::remove_file(path("o"));
                times[case].push(milliseconds(|| match (case, is_copy) {
                    (0, true) => plain_copy(&path("src.img"), &path("o"), &mut buffer),
                    (0, false) => plain_compare(&path("src.img"), &path("copy.img"), &mut buffers),
                    _ => cases[case - 1].1(),
                }));
            }
        }
        println!("  {:36} {:8.1}", if is_copy { "the plain copy" } else { "the plain comparison" }, median(&mut times[0].clone()));
        for ((name, _), taken) in cases.iter().zip(&times[1..]) {
            let mut ratios: Vec<f64> = taken.iter().zip(&times[0]).map(|(ours, plain)| ours / plain).collect();
            println!("  {name:36} {:8.1} {:6.2}", median(&mut taken.clone()), median(&mut ratios));
        }
    }
}
