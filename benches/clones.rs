//! What clones cost at the level of the store: `cargo bench --bench clones`.
//!
//! For images of 1 GiB, 1 TiB and 64 TiB: a thousand clones made one after the other, median and worst; bytes on disk of a fresh one;
//! then how long it takes to list ten thousand. Once with `durable(false)` (what the engine itself costs) and once made to survive
//! a power cut (what the disk costs). Nothing is gated here: the figures go into `docs/bench/` with their date.
//!
//! `DIFFDISK_BENCH_DIR` says where (default: a new directory where temporary files go).

use diffdisk::{Cancel, CloneOptions, CreateOptions, Disk, Image, ImageOptions, NoProgress, Source, Store};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

const CLONES: usize = 1000;
const LISTED: usize = 10_000;

fn image_of(store: &Store, dir: &Path, name: &str, size: u64) -> Result<Image, Box<dyn Error>> {
    let base = dir.join(format!("{name}.vhdx"));
    let disk = Disk::create(&base, &CreateOptions::dynamic(size))?;
    disk.write_at(&[1; 4096], 0)?;
    disk.write_at(&[2; 4096], size - 4096)?;
    disk.close()?;
    Ok(store.create_image(name, Source::vhdx(&base), &ImageOptions::default(), &NoProgress, &Cancel::new())?)
}

fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() - 1])
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = match std::env::var_os("DIFFDISK_BENCH_DIR") {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let store = Store::open(dir.path().join("images"))?;
    println!("| image | clones made | median | worst | bytes on disk, fresh |");
    println!("|---|---|---|---|---|");
    let mut made = 0;
    let mut small = None;
    for (name, size) in [("gib", 1_u64 << 30), ("tib", 1 << 40), ("most", 64 << 40)] {
        let image = image_of(&store, dir.path(), name, size)?;
        for (label, durable) in [("not synced", false), ("durable", true)] {
            let mut times = Vec::with_capacity(CLONES);
            let mut fresh = 0;
            for n in 0..CLONES {
                let path = dir.path().join(format!("{name}-{durable}-{n}.vhdx"));
                let before = Instant::now();
                let clone = image.create_clone(&path, &CloneOptions::default().durable(durable))?;
                times.push(before.elapsed());
                fresh = clone.summary()?.sizes.map_or(0, |sizes| sizes.allocated);
            }
            made += CLONES;
            let (median, worst) = spread(times);
            println!("| {} GiB | {CLONES}, {label} | {median:.1?} | {worst:.1?} | {fresh} |", size >> 30);
        }
        small.get_or_insert(image);
    }
    let small = small.ok_or("an image was made")?;
    while made < LISTED {
        small.create_clone(dir.path().join(format!("more-{made}.vhdx")), &CloneOptions::default().durable(false))?;
        made += 1;
    }
    let times: Vec<Duration> = (0..5)
        .map(|_| {
            let before = Instant::now();
            let listed = store.clones().map(|clones| clones.len());
            assert_eq!(listed.ok(), Some(LISTED), "every clone is listed");
            before.elapsed()
        })
        .collect();
    let (median, worst) = spread(times);
    println!("\nlisting {LISTED} clones: median {median:.1?}, worst {worst:.1?}");
    Ok(())
}
