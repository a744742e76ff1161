//! The table at the end, and what to type next.

use super::data::Rows;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the demo measured and proved.
#[derive(Debug)]
pub struct Report {
    pub dir: PathBuf,
    pub image: PathBuf,
    pub first_clone: PathBuf,
    pub rows: Rows,
    pub database: u64,
    pub image_file: u64,
    pub image_time: Duration,
    pub clones: u32,
    /// Sorted.
    pub clone_times: Vec<Duration>,
    /// Allocated bytes per fresh clone, sorted.
    pub fresh: Vec<u64>,
    /// Allocated bytes per changed clone, sorted.
    pub changed: Vec<u64>,
    /// Sorted.
    pub first_queries: Vec<Duration>,
    pub reset_time: Duration,
    pub copy_time: Duration,
    pub digest: [u8; 32],
    pub total: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows;
        let n = u64::from(self.clones);
        let mut line = |what: &str, figure: String| writeln!(f, "  {what:<34} {figure}");
        line("database in the image", format!("{}, {} rows", size(self.database), rows.users + rows.posts + rows.comments + rows.votes))?;
        line("", format!("{} users, {} posts, {} comments, {} votes", rows.users, rows.posts, rows.comments, rows.votes))?;
        line("image made and sealed in", format!("{} ({} on disk)", time(self.image_time), size(self.image_file)))?;
        line("clones", format!("{n}"))?;
        line("one clone made in", format!("median {}, worst {}", time(median(&self.clone_times)), time(last(&self.clone_times))))?;
        line("a fresh clone takes on disk", format!("median {}, most {}", size(median(&self.fresh)), size(last(&self.fresh))))?;
        line("a changed clone takes on disk", format!("median {}, most {}", size(median(&self.changed)), size(last(&self.changed))))?;
        line("open and first query", format!("median {}, worst {}", time(median(&self.first_queries)), time(last(&self.first_queries))))?;
        line("one clone reset in", time(self.reset_time))?;
        line("one copy of the image takes", format!("{}, {}", time(self.copy_time), size(self.image_file)))?;
        line(&format!("{n} copies would have taken"), format!("{}, {}", time(self.copy_time * self.clones), size(self.image_file * n)))?;
        let clones_time: Duration = self.clone_times.iter().sum();
        line(&format!("the {n} clones took"), format!("{}, {} changed", time(clones_time), size(self.changed.iter().sum())))?;
        line("each clone sees", "its own changes, nobody else's".to_owned())?;
        line("image after all that", "bit-identical (SHA-256 before and after):".to_owned())?;
        line("", self.digest.iter().map(|byte| format!("{byte:02x}")).collect())?;
        line("everything took", time(self.total))?;
        self.next_steps(f)
    }
}

impl Report {
    fn next_steps(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = std::env::current_exe().map_or_else(|_| "diffdisk".to_owned(), |path| path.display().to_string());
        let clone = within(&self.dir, &self.first_clone);
        let image = within(&self.dir, &self.image);
        writeln!(f, "\nEverything is still there. Go on by hand:\n")?;
        writeln!(f, "  cd {}", self.dir.display())?;
        writeln!(f, "  alias diffdisk={program}")?;
        for (command, what) in [
            (format!("diffdisk info {clone} --chain"), "what the clone is, and whose child"),
            (format!("diffdisk map {clone}"), "which ranges are its own"),
            (format!("diffdisk check {clone} --chain"), "every invariant of clone and image"),
            (format!("diffdisk create mine.vhdx --parent {image}"), "a clone of your own"),
            (format!("diffdisk convert {clone} plain.db --to raw"), "the database as a plain file: sqlite3 plain.db"),
            (format!("diffdisk serve {clone} --nbd unix:clone.sock"), "the clone as a block device for others"),
        ] {
            writeln!(f, "  {command:<52} # {what}")?;
        }
        Ok(())
    }
}

fn within<'p>(dir: &Path, path: &'p Path) -> std::path::Display<'p> {
    path.strip_prefix(dir).unwrap_or(path).display()
}

fn median<T: Copy + Default>(sorted: &[T]) -> T {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn last<T: Copy + Default>(sorted: &[T]) -> T {
    sorted.last().copied().unwrap_or_default()
}

/// Three digits and a unit.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

/// Binary units, as everywhere in this program.
pub fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "bytes");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(time(Duration::from_micros(1234)), "1.2 ms");
        assert_eq!(time(Duration::from_millis(61_250)), "61.2 s");
        assert_eq!(median(&[1, 2, 9]), 2);
        assert_eq!(last::<u64>(&[]), 0);
    }
}
