//! What grows with what: `cargo bench --bench scale [-- --svg FILE]`.
//!
//! Four questions, each with a table: a thousand clones of one image open in one process; a 64 TiB clone with more and more scattered
//! writes; chains up to 64 deep; a block whose sectors alternate between child and parent. With `--svg` the same figures are drawn.
//!
//! `DIFFDISK_BENCH_DIR` says where the files go (default: a memory file system, so that what grows is the engine's own).
//! `DIFFDISK_SCALE_WRITES` is the largest number of scattered writes (default 100,000; a million takes about 9 GiB of space and
//! 6 GiB of memory, because every write is alone in its 16 MiB).
//! `DIFFDISK_SCALE_CLONES` is the largest number of clones (default 1,000).

#[path = "support/plot.rs"]
mod plot;
#[path = "support/ground.rs"]
mod support;

use diffdisk::{CreateOptions, Disk, OpenOptions};
use plot::{Line, Panel};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;
use support::{Buffer, PAGE};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Bytes of this process that are in memory and not in a file.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = text.split(' ').skip(1).filter_map(|field| field.parse::<u64>().ok());
    let (all, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    (all - shared.min(all)) * 4096
}

/// How many descriptors of this process lead to a file.
fn descriptors(path: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|to| to == path)).count()
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / 1000.0
}

/// Nanoseconds of a 4 KiB read, the median of some rounds of reads all over `span` bytes.
fn read_time(disk: &Disk, span: u64) -> f64 {
    let mut buf = Buffer::new(PAGE);
    let mut rounds: Vec<f64> = (0..9)
        .map(|round: u64| {
            let start = Instant::now();
            for i in 0..2000_u64 {
                let at = (i * 0x9E37_79B1 + round) % (span / PAGE as u64) * PAGE as u64;
                disk.read_at(buf.get_mut(), at).expect("the disk is read");
                black_box(buf.get()[0]);
            }
            start.elapsed().as_nanos() as f64 / 2000.0
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn image(path: &Path, size: u64, filled: u64) {
    let base = Disk::create(path, &CreateOptions::dynamic(size).durable(false)).expect("an image is created");
    let content = Buffer::new(MIB as usize);
    for at in (0..filled).step_by(MIB as usize) {
        base.write_at(content.get(), at).expect("an image is filled");
    }
    base.close().expect("an image is closed");
}

fn child(dir: &Path, name: &str, parent: &str) -> Disk {
    let options = CreateOptions::child().durable(false).overwrite(true);
    Disk::create_child(dir.join(name), dir.join(parent), &options).expect("a child is created")
}

/// Clones of one image, open in one process.
fn clones(dir: &Path) -> Panel {
    let most = knob("DIFFDISK_SCALE_CLONES", 1000);
    let filled = 64 * MIB;
    image(&dir.join("image.vhdx"), 64 << 30, filled);
    for i in 0..most {
        child(dir, &format!("clone{i}.vhdx"), "image.vhdx").close().expect("a clone is closed");
    }
    println!("\nclones of one image of 64 GiB, open for writing in one process\n");
    println!(
        "| clones | open all, ms | us each | memory of an idle clone, KiB | after 64 reads of each, KiB | after one write to each, KiB | descriptors of the image |"
    );
    println!("|---|---|---|---|---|---|---|");
    let (mut time, mut memory) = (Vec::new(), Vec::new());
    for many in [1, 10, 100, 1000, 10_000].into_iter().filter(|&many| many <= most) {
        let before = resident();
        let start = Instant::now();
        let open: Vec<Disk> = (0..many)
            .map(|i| {
                let path = dir.join(format!("clone{i}.vhdx"));
                Disk::open(path, &OpenOptions::new().writable(true)).expect("a clone opens")
            })
            .collect();
        let spent = micros(start);
        let per = |now: u64| now.saturating_sub(before) as f64 / many as f64 / 1024.0;
        let idle = per(resident());
        let mut buf = Buffer::new(PAGE);
        for disk in &open {
            for i in 0..64 {
                disk.read_at(buf.get_mut(), i * MIB).expect("a clone is read");
            }
        }
        let read = per(resident());
        for disk in &open {
            disk.write_at(buf.get(), 7 * MIB).expect("a clone is written");
        }
        let written = per(resident());
        let shared = descriptors(&dir.join("image.vhdx"));
        println!("| {many} | {:.1} | {:.0} | {idle:.1} | {read:.1} | {written:.1} | {shared} |", spent / 1000.0, spent / many as f64);
        assert_eq!(shared, 1, "all of them stand on one open image");
        time.push((many as f64, spent / 1000.0));
        memory.push((many as f64, idle * many as f64 / 1024.0));
    }
    let lines = vec![Line { name: "time to open all, ms", points: time }, Line { name: "memory of all, idle, MiB", points: memory }];
    Panel { title: "clones of one image", x: "clones", y: "ms, MiB", lines }
}

/// A 64 TiB clone, its changes spread all over it.
fn scattered(dir: &Path) -> Panel {
    image(&dir.join("huge.vhdx"), 64 * TIB, 0);
    let most = knob("DIFFDISK_SCALE_WRITES", 100_000);
    let options = CreateOptions::child().block_size(MIB).durable(false).overwrite(true);
    println!("\na 64 TiB clone with blocks of 1 MiB, 4 KiB writes all over it\n");
    println!("| writes | us a write | flush, ms | memory, MiB | allocated, MiB | close, ms | open, us | first read, us |");
    println!("|---|---|---|---|---|---|---|---|");
    let (mut flushes, mut memories, mut opens) = (Vec::new(), Vec::new(), Vec::new());
    for many in [100, 1000, 10_000, 100_000, 1_000_000].into_iter().filter(|&many| many <= most) {
        let path = dir.join("scattered.vhdx");
        let disk = Disk::create_child(&path, dir.join("huge.vhdx"), &options).expect("a clone is created");
        let (mut buf, before) = (Buffer::new(PAGE), resident());
        let at = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16) % (64 * TIB / PAGE as u64) * PAGE as u64;
        let start = Instant::now();
        for i in 0..many {
            disk.write_at(buf.get(), at(i)).expect("the clone is written");
        }
        let write = micros(start) / many as f64;
        let start = Instant::now();
        disk.flush().expect("the clone is flushed");
        let flush = micros(start) / 1000.0;
        let memory = resident().saturating_sub(before) as f64 / MIB as f64;
        let allocated = disk.info().expect("the clone knows itself").sizes.allocated as f64 / MIB as f64;
        let start = Instant::now();
        disk.close().expect("the clone is closed");
        let close = micros(start) / 1000.0;
        let start = Instant::now();
        let disk = Disk::open(&path, &OpenOptions::new().writable(true)).expect("the clone opens");
        let open = micros(start);
        let start = Instant::now();
        disk.read_at(buf.get_mut(), at(many / 2)).expect("the clone is read");
        let read = micros(start);
        println!("| {many} | {write:.1} | {flush:.1} | {memory:.1} | {allocated:.0} | {close:.0} | {open:.0} | {read:.0} |");
        drop(disk);
        std::fs::remove_file(path).expect("the clone is removed");
        flushes.push((many as f64, flush));
        memories.push((many as f64, memory.max(0.1)));
        opens.push((many as f64, open / 1000.0));
    }
    let lines = vec![
        Line { name: "flush, ms", points: flushes },
        Line { name: "memory, MiB", points: memories },
        Line { name: "open again, ms", points: opens },
    ];
    Panel { title: "a 64 TiB clone, scattered writes", x: "writes of 4 KiB", y: "ms, MiB", lines }
}

/// Chains of empty children.
fn chains(dir: &Path) -> Panel {
    let filled = 64 * MIB;
    image(&dir.join("0.vhdx"), 1 << 30, filled);
    for depth in 1..=64 {
        child(dir, &format!("{depth}.vhdx"), &format!("{}.vhdx", depth - 1)).close().expect("a child is closed");
    }
    println!("\nchains of empty children over 64 MiB of data\n");
    println!("| depth | open and first read, us | memory, KiB | read 4 KiB warm, ns |");
    println!("|---|---|---|---|");
    let (mut opens, mut reads) = (Vec::new(), Vec::new());
    for depth in [1, 2, 4, 8, 16, 32, 64] {
        let path = dir.join(format!("{depth}.vhdx"));
        let mut buf = Buffer::new(PAGE);
        let before = resident();
        let start = Instant::now();
        let disk = Disk::open(&path, &OpenOptions::new()).expect("the chain opens");
        disk.read_at(buf.get_mut(), MIB).expect("the chain is read");
        let open = micros(start);
        let memory = resident().saturating_sub(before) as f64 / 1024.0;
        let read = read_time(&disk, filled);
        println!("| {depth} | {open:.0} | {memory:.0} | {read:.0} |");
        opens.push((f64::from(depth), open));
        reads.push((f64::from(depth), read / 1000.0));
    }
    let lines = vec![Line { name: "open and first read, us", points: opens }, Line { name: "warm read of 4 KiB, us", points: reads }];
    Panel { title: "depth of the chain", x: "children", y: "us", lines }
}

/// Sectors that alternate between child and parent.
fn fragmented(dir: &Path) {
    let span = 16 * MIB;
    image(&dir.join("parent.vhdx"), span, span);
    let disk = child(dir, "fragmented.vhdx", "parent.vhdx");
    let sector = Buffer::new(512);
    println!("\n1 MiB reads and writes where runs of sectors alternate between child and parent\n");
    println!("| runs of | read 1 MiB, us | calls | read 4 KiB, ns | rewrite of 1 MiB, us |");
    println!("|---|---|---|---|---|");
    let mut buf = Buffer::new(MIB as usize);
    for (at, run) in [(0, MIB), (4 * MIB, 65_536), (8 * MIB, 4096), (12 * MIB, 512)] {
        for place in (at..at + 4 * MIB).step_by(2 * run as usize).filter(|_| run < MIB) {
            for sector_at in (place..place + run).step_by(512) {
                disk.write_at(sector.get(), sector_at).expect("the child is written");
            }
        }
        let time = |work: &mut dyn FnMut(u64)| {
            let mut rounds: Vec<f64> = (0..16)
                .map(|i| {
                    let start = Instant::now();
                    work(at + i % 3 * MIB);
                    micros(start)
                })
                .collect();
            rounds.sort_by(f64::total_cmp);
            rounds[8]
        };
        let whole = time(&mut |at| disk.read_at(buf.get_mut(), at).expect("the child is read"));
        let mut page = Buffer::new(PAGE);
        let small = time(&mut |at| {
            for i in 0..256 {
                disk.read_at(page.get_mut(), at + i * PAGE as u64).expect("the child is read");
            }
        });
        // The last MiB of each stretch is made whole by the first write, so that this is a rewrite.
        let write = time(&mut |_| disk.write_at(buf.get(), at + 3 * MIB).expect("the child is written"));
        println!(
            "| {} | {whole:.0} | {} | {:.0} | {write:.0} |",
            if run == MIB { "1 MiB (untouched)".into() } else { format!("{run}") },
            MIB / run,
            small * 1000.0 / 256.0
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let dir = support::scratch_dir();
    println!("in {}", dir.path().display());
    let panels = [clones(dir.path()), scattered(dir.path()), chains(dir.path())];
    fragmented(dir.path());
    if let Some(at) = arguments.iter().position(|argument| argument == "--svg") {
        let path = arguments.get(at + 1).expect("--svg takes a file");
        std::fs::write(path, plot::svg(&panels)).expect("the plot is written");
        println!("\nplot: {path}");
    }
}
