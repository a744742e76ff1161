//! What saving a disk costs those who use it meanwhile: `cargo bench --bench live`.
//!
//! Four threads write 4 KiB at random places of a clone of 1 GiB and flush after every 32nd write; a fifth freezes the leaf again and again.
//! Printed are the pause (from the moment from which new requests have to wait), the longest write of the four threads in the neighbourhood of
//! a save and far from one, and how long a save takes as a whole. Then what the shared lock of a [`LiveDisk`] costs a read and a
//! rewrite, as a ratio to the same call on a [`Disk`].
//!
//! `DIFFDISK_BENCH_DIR` says where (default: where temporary files go; on a memory file system a sync costs nothing).
//! `DIFFDISK_BENCH_SAVES` says how many saves (default and most: 200).

use diffdisk::{CreateOptions, Disk, LiveDisk, OpenOptions};
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 30;
const WRITERS: u64 = 4;
const PAGE: u64 = 4096;

/// A generator of places (xorshift).
struct Places(u64);

impl Places {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (SIZE / PAGE) * PAGE
    }
}

fn at(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    times.get(((times.len() as f64 - 1.0) * part).round() as usize).copied().unwrap_or_default()
}

fn row(what: &str, times: &mut [Duration]) {
    let n = times.len();
    println!("| {what} | {n} | {:.1?} | {:.1?} | {:.1?} |", at(times, 0.5), at(times, 0.99), at(times, 1.0));
}

fn saves(dir: &Path, saves: u64) -> Result<(), Box<dyn Error>> {
    Disk::create(dir.join("app.vhdx"), &CreateOptions::dynamic(SIZE))?.close()?;
    Disk::create_child(dir.join("alice.vhdx"), dir.join("app.vhdx"), &CreateOptions::child())?.close()?;
    let live = LiveDisk::open(dir.join("alice.vhdx"), &OpenOptions::new())?;
    let (stop, saving) = (AtomicBool::new(false), AtomicBool::new(false));
    let (mut pauses, mut whole) = (Vec::new(), Vec::new());
    let written = AtomicU64::new(0);
    let (mut near, mut far) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let workers: Vec<_> = (0..WRITERS)
            .map(|thread| {
                let (live, stop, saving, written) = (&live, &stop, &saving, &written);
                scope.spawn(move || {
                    let (mut places, mut near, mut far) = (Places(thread + 1), Vec::new(), Vec::new());
                    let page = [thread as u8 + 1; PAGE as usize];
                    for n in 1_u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let began = Instant::now();
                        live.write_at(&page, places.next()).expect("a write");
                        let took = began.elapsed();
                        if saving.load(Ordering::Relaxed) {
                            near.push(took)
                        } else {
                            far.push(took)
                        }
                        written.fetch_add(1, Ordering::Relaxed);
                        if n.is_multiple_of(32) {
                            live.flush().expect("a flush");
                        }
                    }
                    (near, far)
                })
            })
            .collect();
        let result = (|| -> Result<(), Box<dyn Error>> {
            for n in 0..saves.min(200) {
                std::thread::sleep(Duration::from_millis(20));
                saving.store(true, Ordering::Relaxed);
                let began = Instant::now();
                pauses.push(live.freeze_and_switch(dir.join(format!("alice.{n}.avhdx")))?.pause);
                whole.push(began.elapsed());
                saving.store(false, Ordering::Relaxed);
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            let (a, b) = worker.join().expect("a writer");
            near.extend(a);
            far.extend(b);
        }
        result
    })?;
    println!("| {} writes by {WRITERS} threads | times | median | 99 % | worst |", written.load(Ordering::Relaxed));
    println!("|---|---|---|---|---|");
    row("pause of a save", &mut pauses);
    row("a save as a whole", &mut whole);
    row("a write while a save runs", &mut near);
    row("a write otherwise", &mut far);
    Ok(live.close()?)
}

/// Nanoseconds of one call by each of the threads.
fn nanoseconds(threads: u64, call: &(dyn Fn(u64) + Sync)) -> f64 {
    const CALLS: u64 = 50_000;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut places = Places(thread + 1);
                for _ in 0..CALLS {
                    call(places.next() % (64 << 20));
                }
            });
        }
    });
    began.elapsed().as_nanos() as f64 / CALLS as f64
}

/// The least of several rounds of each, taken in turns, because a busy machine is slow for a while and then fast for a while.
fn in_turns(threads: u64, a: &(dyn Fn(u64) + Sync), b: &(dyn Fn(u64) + Sync)) -> (f64, f64) {
    (0..11)
        .map(|_| (nanoseconds(threads, a), nanoseconds(threads, b)))
        .fold((f64::INFINITY, f64::INFINITY), |least, round| (least.0.min(round.0), least.1.min(round.1)))
}

fn lock(dir: &Path) -> Result<(), Box<dyn Error>> {
    let open = |name: &str| -> Result<Disk, Box<dyn Error>> {
        let disk = Disk::create(dir.join(name), &CreateOptions::dynamic(SIZE))?;
        disk.write_at(&vec![1; 64 << 20], 0)?;
        disk.flush()?;
        Ok(disk)
    };
    let (disk, live) = (open("plain.vhdx")?, LiveDisk::from(open("live.vhdx")?));
    println!("\n| 4 KiB, hot | threads | Disk | LiveDisk | ratio |");
    println!("|---|---|---|---|---|");
    let page = [3; PAGE as usize];
    for threads in [1, 2, 4] {
        let read = in_turns(threads, &|at| disk.read_at(&mut [0; PAGE as usize], at).expect("a read"), &|at| {
            live.read_at(&mut [0; PAGE as usize], at).expect("a read")
        });
        let write = in_turns(threads, &|at| disk.write_at(&page, at).expect("a write"), &|at| live.write_at(&page, at).expect("a write"));
        for (what, (a, b)) in [("read", read), ("rewrite", write)] {
            println!("| {what} | {threads} | {a:.0} ns | {b:.0} ns | {:.3} |", b / a);
        }
    }
    live.close()?;
    Ok(disk.close()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = match std::env::var_os("DIFFDISK_BENCH_DIR") {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let wanted = std::env::var("DIFFDISK_BENCH_SAVES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    saves(dir.path(), wanted)?;
    lock(dir.path())
}
