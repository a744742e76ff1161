//! What clones cost: creation for images of 1 GiB, 1 TiB and 64 TiB, with and without waiting for the disk, and a listing of 10,000.
//!
//! `cargo bench --bench clones` prints the table; `--bench clones -- 100` makes a hundred of each instead of a thousand, and a tenth of the
//! listing. The directory is the current one's `target`, so that the file system is the one the project lies on.

use diffdisk::{Cancel, CloneOptions, CreateOptions, Disk, ImageOptions, NoProgress, Source, Store};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count = std::env::args().skip(1).find_map(|text| text.parse().ok()).unwrap_or(1000);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let store = Store::open(dir.path().join("store"))?;
    println!("{:>8}  {:>8}  {:>10}  {:>10}  {:>10}  {:>16}", "image", "durable", "median", "p99", "worst", "bytes allocated");
    for (name, size) in [("1G", 1u64 << 30), ("1T", 1 << 40), ("64T", 64 << 40)] {
        let source = dir.path().join(format!("{name}.vhdx"));
        let disk = Disk::create(&source, &CreateOptions::dynamic(size))?;
        disk.write_at(&[1; 4096], size / 2)?;
        disk.close()?;
        let image = store.create_image(name, Source::vhdx(&source), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
        for durable in [false, true] {
            let clones = dir.path().join(format!("{name}-{durable}"));
            let options = CloneOptions::default().durable(durable);
            let mut times = Vec::with_capacity(count);
            for n in 0..count {
                let path = clones.join(format!("{n}.vhdx"));
                let began = Instant::now();
                image.create_clone(&path, &options)?;
                times.push(began.elapsed());
            }
            let allocated = std::fs::metadata(clones.join("0.vhdx"))?.blocks() * 512;
            report(name, durable, &mut times, allocated);
        }
    }
    list(&store, dir.path(), count * 10)
}

fn report(name: &str, durable: bool, times: &mut [Duration], allocated: u64) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{name:>8}  {durable:>8}  {:>10.1?}  {:>10.1?}  {:>10.1?}  {allocated:>16}", at(0.5), at(0.99), at(1.0));
}

fn list(store: &Store, dir: &Path, count: usize) -> Result<(), Box<dyn std::error::Error>> {
    let image = store.image("1G")?;
    let mut there = store.clones()?.len();
    while there < count {
        image.create_clone(dir.join(format!("many/{there}.vhdx")), &CloneOptions::default().durable(false))?;
        there += 1;
    }
    for what in ["first listing", "second listing"] {
        let began = Instant::now();
        let listed = store.clones()?.len();
        println!("{what} of {listed} clones: {:.1?}", began.elapsed());
    }
    Ok(())
}
