//! `diffdisk demo`: the product in one minute, on a machine that has nothing but Rust.
//!
//! Makes an image with a database in it, clones it, changes every clone in its own way, proves that nobody sees anybody else's changes
//! and that the image is the same to the last bit, resets one clone, and prints what all that cost. SQLite runs in this
//! process on the disks themselves: no mount, no root, no server.

mod data;
mod lab;
mod report;

use crate::context::Context;
use crate::error::CliError;
use diffdisk::sqlite::SqliteError;
use diffdisk::{CreateError, DiskError, ErrorKind, OpenError};
use lab::Lab;
pub use report::Report;
use rusqlite::Connection;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Show what clones cost: a database in an image, twenty clones, all changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk demo --size 256M --clones 5 --dir /tmp/demo")]
pub struct DemoArgs {
    /// About how large the database becomes (K, M, G and T are binary).
    #[arg(long, default_value = "512M", value_parser = parse_size)]
    size: u64,
    /// How many clones to make.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clones: u32,
    /// Where to leave image and clones. Must be new, empty, or an earlier demo's, whose image and clones are replaced.
    #[arg(long, default_value = "diffdisk-demo")]
    dir: PathBuf,
}

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Something of the user's is there.
    #[error("{dir}: there is something in it already; say --dir NEW, or remove it")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The operating system's word on a file.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A disk could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A disk could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk is no database.
    #[error(transparent)]
    Volume(#[from] SqliteError),
    /// A statement failed.
    #[error("SQLite: {0}")]
    Statement(#[from] rusqlite::Error),
    /// The promise is broken.
    #[error("{what}: expected {expected}, found {found}")]
    Differs {
        /// What was compared.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl DemoError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    /// What sort of thing went wrong, for the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotEmpty { .. } => ErrorKind::AlreadyExists,
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                io::ErrorKind::StorageFull => ErrorKind::NoSpace,
                _ => ErrorKind::Io,
            },
            Self::Create(e) => e.kind(),
            Self::Open(e) => e.kind(),
            Self::Disk(e) => e.kind(),
            Self::Volume(e) => e.kind(),
            Self::Statement(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => ErrorKind::NoSpace,
            Self::Statement(_) => ErrorKind::Io,
            Self::Differs { .. } => ErrorKind::Damaged,
        }
    }
}

impl From<DemoError> for CliError {
    fn from(e: DemoError) -> Self {
        Self::new(e.kind(), e.to_string())
    }
}

/// Runs the demo and prints the table.
pub fn show(args: &DemoArgs, ctx: &Context) -> Result<(), CliError> {
    let report = run(args)?;
    ctx.print(|out| writeln!(out, "{report}"))
}

/// Runs the demo; tells on standard error what it is at. The report's `Display` is the table.
pub fn run(args: &DemoArgs) -> Result<Report, DemoError> {
    let started = Instant::now();
    let lab = Lab::new(&args.dir)?;
    let clones = 1..=args.clones;

    eprintln!("Making an image with a database of about {} ...", report::size(args.size));
    let before = Instant::now();
    // Twice the size leaves the clones room to grow; a dynamic disk takes only what is used.
    let virtual_size = (args.size * 2).next_multiple_of(1 << 20).max(64 << 20);
    let (rows, database) = lab.make_image(virtual_size, |connection| {
        let rows = data::generate(connection, args.size)?;
        Ok((rows, data::database_size(connection)?))
    })?;
    let image_time = before.elapsed();
    let digest = lab.image_digest()?;

    eprintln!("Cloning it {} times ...", args.clones);
    let clone_times = collect(clones.clone(), |n| timed(|| lab.make_clone(n)))?;
    let fresh = collect(clones.clone(), |n| Ok(Lab::sizes(&lab.clone_path(n))?.0))?;
    let first_queries = collect(clones.clone(), |n| timed(|| lab.on_clone(n, best_answers)))?;

    eprintln!("Changing every clone in its own way, and looking at what each sees ...");
    let reputation = lab.on_clone(1, |connection| number(connection, "SELECT sum(reputation) FROM users"))?;
    for n in clones.clone() {
        lab.on_clone(n, |connection| change(connection, n))?;
    }
    for n in clones.clone() {
        check_clone(&lab, n, reputation)?;
    }
    let changed = collect(clones, |n| Ok(Lab::sizes(&lab.clone_path(n))?.0))?;
    check("SHA-256 of the image", hex(&digest), hex(&lab.image_digest()?))?;

    eprintln!("Resetting one, and copying the image once for comparison ...");
    let reset_time = timed(|| lab.reset_clone(args.clones))?;
    check("changes in the clone that was reset", String::new(), lab.on_clone(args.clones, own_changes)?)?;
    let copy_time = timed(|| lab.copy_image())?;

    let (image_file, _) = Lab::sizes(&lab.image())?;
    let (image, first_clone) = (lab.image(), lab.clone_path(1));
    let (dir, clones, total) = (lab.dir, args.clones, started.elapsed());
    Ok(Report {
        dir,
        image,
        first_clone,
        rows,
        database,
        image_file,
        image_time,
        clones,
        clone_times,
        fresh,
        changed,
        first_queries,
        reset_time,
        copy_time,
        digest,
        total,
    })
}

/// One figure per clone, sorted.
fn collect<T: Ord>(clones: impl Iterator<Item = u32>, figure: impl FnMut(u32) -> Result<T, DemoError>) -> Result<Vec<T>, DemoError> {
    let mut figures = clones.map(figure).collect::<Result<Vec<T>, DemoError>>()?;
    figures.sort_unstable();
    Ok(figures)
}

fn timed(work: impl FnOnce() -> Result<(), DemoError>) -> Result<Duration, DemoError> {
    let before = Instant::now();
    work()?;
    Ok(before.elapsed())
}

fn number(connection: &Connection, sql: &str) -> rusqlite::Result<i64> {
    connection.query_row(sql, (), |row| row.get(0))
}

/// What somebody would ask first: the best answers of ten busy people.
fn best_answers(connection: &Connection) -> rusqlite::Result<()> {
    let sql = "SELECT u.display_name, p.score FROM users u JOIN posts p ON p.owner_id = u.id
               WHERE u.id BETWEEN 40 AND 49 AND p.kind = 2 ORDER BY p.score DESC LIMIT 5";
    let mut best = connection.prepare(sql)?;
    best.query_map((), |row| row.get::<_, String>(0))?.try_for_each(|name| name.map(drop))
}

/// Rows in every clone; in every third a column and a table too, in every third an index.
fn change(connection: &Connection, n: u32) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN")?;
    connection.execute("INSERT INTO users(id, display_name, reputation, created) VALUES (-?1, 'only in clone ' || ?1, 0, 0)", [n])?;
    connection.execute("UPDATE users SET reputation = reputation + ?1 WHERE id BETWEEN 1 AND 100", [n])?;
    connection.execute("DELETE FROM votes WHERE post_id = ?1", [n])?;
    match n % 3 {
        0 => connection.execute_batch(&format!(
            "ALTER TABLE users ADD COLUMN clone_{n}_column TEXT; CREATE TABLE clone_{n}_table(id INTEGER PRIMARY KEY, note TEXT);
             INSERT INTO clone_{n}_table(note) SELECT display_name FROM users WHERE id BETWEEN 1 AND 1000;"
        ))?,
        1 => connection.execute_batch(&format!("CREATE INDEX clone_{n}_index ON users(reputation)"))?,
        _ => {}
    }
    connection.execute_batch("COMMIT")
}

/// All changes of the sort that [`change`] makes, whoever made them.
fn own_changes(connection: &Connection) -> rusqlite::Result<String> {
    let sql = "SELECT group_concat(what, ', ') FROM (
        SELECT display_name AS what FROM users WHERE id < 0
        UNION ALL SELECT name FROM sqlite_schema WHERE name LIKE 'clone\\_%' ESCAPE '\\'
        UNION ALL SELECT name FROM pragma_table_info('users') WHERE name LIKE 'clone\\_%' ESCAPE '\\')";
    connection.query_row(sql, (), |row| row.get::<_, Option<String>>(0)).map(Option::unwrap_or_default)
}

/// Looks for the clone's own changes, and for anybody else's.
fn check_clone(lab: &Lab, n: u32, reputation: i64) -> Result<(), DemoError> {
    let own = match n % 3 {
        0 => format!("only in clone {n}, clone_{n}_table, clone_{n}_column"),
        1 => format!("only in clone {n}, clone_{n}_index"),
        _ => format!("only in clone {n}"),
    };
    let (found, sum, votes, quick) = lab.on_clone(n, |connection| {
        // Reading all of it, to see that all of it is sound, in one clone of each kind.
        let quick = if n <= 3 { connection.query_row("PRAGMA quick_check", (), |row| row.get(0))? } else { "ok".to_owned() };
        let sum = number(connection, "SELECT sum(reputation) FROM users")?;
        let votes = number(connection, &format!("SELECT count(*) FROM votes WHERE post_id = {n}"))?;
        Ok((own_changes(connection)?, sum, votes, quick))
    })?;
    check(&format!("changes in clone {n}"), own, found)?;
    check(&format!("sum of reputations in clone {n}"), reputation + 100 * i64::from(n), sum)?;
    check(&format!("votes on post {n} in clone {n}"), 0, votes)?;
    check(&format!("quick_check of clone {n}"), "ok".to_owned(), quick)
}

fn check<T: PartialEq + ToString>(what: &str, expected: T, found: T) -> Result<(), DemoError> {
    if expected == found {
        return Ok(());
    }
    Err(DemoError::Differs { what: what.to_owned(), expected: expected.to_string(), found: found.to_string() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `512M` and the like.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let size = digits.parse::<u64>().map_err(|_| format!("{text:?} is not a size such as 512M"))?;
    let bytes = size.checked_mul(1 << shift).filter(|bytes| (1 << 20..=1 << 40).contains(bytes));
    bytes.ok_or_else(|| format!("{text} is not between 1M and 1T"))
}
