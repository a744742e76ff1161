//! A database with the shape of Stack Exchange's: users, posts, comments, votes, and a few who do most of it.
//!
//! Everything follows from one seed, so two runs of one size make the same rows. Who asks, answers, comments and gets votes is drawn by
//! Zipf's law: the person of rank k is as likely as 1/k. Texts are cut out of one long text of common words.

use rusqlite::{Connection, Statement, Transaction, params};

/// SplitMix64 (Steele, Lea and Flood, 2014): small, fast, and good enough to deal out rows.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.unit() * n as f64) as u64
    }

    /// From 1 to n, k with a probability like 1/k.
    fn zipf(&mut self, n: u64) -> i64 {
        ((n as f64 + 1.0).powf(self.unit()) as i64).clamp(1, n as i64)
    }

    /// From `low` to `high`, as often below ten times `low` as between ten and a hundred times.
    fn spread(&mut self, low: f64, high: f64) -> usize {
        (low * (high / low).powf(self.unit())) as usize
    }
}

const WORDS: &str = "the to a of is in and that it for this on you with not as are be have or if can from but an when how do at use what \
    there will my by which should code file data value function table query index server error row column key string list array class \
    object method type test build run thread lock write read disk block page cache join select insert update delete commit rollback branch \
    merge clone image copy path parent child header log sector offset length buffer stream socket client request response time date zone";

/// A long text to cut bodies and titles out of.
struct Text(String);

impl Text {
    fn new(rng: &mut Rng) -> Self {
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        let mut text = String::with_capacity(4 << 20);
        while text.len() < (4 << 20) - 16 {
            text.push_str(words[rng.zipf(words.len() as u64) as usize - 1]);
            text.push(' ');
        }
        Self(text)
    }

    fn cut(&self, rng: &mut Rng, len: usize) -> &str {
        let at = rng.below((self.0.len() - len) as u64) as usize;
        self.0[at..at + len].trim()
    }
}

/// The tables. Identifiers are row numbers, times are seconds since 1970, kinds are Stack Exchange's numbers.
const TABLES: &str = "
    CREATE TABLE users(id INTEGER PRIMARY KEY, display_name TEXT NOT NULL, reputation INTEGER NOT NULL, created INTEGER NOT NULL, about TEXT);
    CREATE TABLE posts(id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, parent_id INTEGER, owner_id INTEGER NOT NULL REFERENCES users,
        created INTEGER NOT NULL, score INTEGER NOT NULL, views INTEGER, title TEXT, body TEXT NOT NULL);
    CREATE TABLE comments(id INTEGER PRIMARY KEY, post_id INTEGER NOT NULL REFERENCES posts, user_id INTEGER NOT NULL REFERENCES users,
        created INTEGER NOT NULL, text TEXT NOT NULL);
    CREATE TABLE votes(id INTEGER PRIMARY KEY, post_id INTEGER NOT NULL REFERENCES posts, kind INTEGER NOT NULL, created INTEGER NOT NULL);";

const INDEXES: [&str; 4] = [
    "CREATE INDEX posts_by_owner ON posts(owner_id)",
    "CREATE INDEX posts_by_parent ON posts(parent_id) WHERE parent_id IS NOT NULL",
    "CREATE INDEX comments_by_post ON comments(post_id)",
    "CREATE INDEX votes_by_post ON votes(post_id, kind)",
];

/// The share of the wanted size that rows fill; the indexes take the rest.
const ROWS_SHARE: f64 = 0.91;
/// Posts in one transaction; a fifth as many users come with them.
const BATCH: u64 = 5000;
/// The first of August 2008, and how far apart posts are: dates that look right.
const EPOCH: i64 = 1_217_548_800;
const PACE: i64 = 90;

/// How many rows were made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows {
    pub users: u64,
    pub posts: u64,
    pub comments: u64,
    pub votes: u64,
}

/// Fills an empty database until it has about `size` bytes.
pub fn generate(connection: &mut Connection, size: u64) -> rusqlite::Result<Rows> {
    // Nobody misses a half-made image, so loading needs no journal; the image is flushed when it is whole.
    connection.execute_batch("PRAGMA page_size=4096; PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")?;
    connection.execute_batch("PRAGMA cache_size=-65536")?;
    connection.execute_batch(TABLES)?;
    let mut rng = Rng::new(20_080_801);
    let text = Text::new(&mut rng);
    let mut rows = Rows::default();
    let enough = (size as f64 * ROWS_SHARE) as u64;
    while database_size(connection)? < enough {
        let transaction = connection.transaction()?;
        Batch::new(&transaction)?.insert(&mut rng, &text, &mut rows)?;
        transaction.commit()?;
    }
    for index in INDEXES {
        connection.execute_batch(index)?;
    }
    connection.execute_batch("ANALYZE; PRAGMA journal_mode=DELETE; PRAGMA locking_mode=NORMAL")?;
    Ok(rows)
}

/// Pages in use times their size.
pub fn database_size(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()", (), |row| {
        row.get::<_, i64>(0).map(i64::unsigned_abs)
    })
}

/// The statements of one transaction.
struct Batch<'c> {
    user: Statement<'c>,
    post: Statement<'c>,
    comment: Statement<'c>,
    vote: Statement<'c>,
}

impl<'c> Batch<'c> {
    fn new(transaction: &'c Transaction<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            user: transaction.prepare("INSERT INTO users(display_name, reputation, created, about) VALUES (?1, ?2, ?3, ?4)")?,
            post: transaction.prepare(
                "INSERT INTO posts(kind, parent_id, owner_id, created, score, views, title, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?,
            comment: transaction.prepare("INSERT INTO comments(post_id, user_id, created, text) VALUES (?1, ?2, ?3, ?4)")?,
            vote: transaction.prepare("INSERT INTO votes(post_id, kind, created) VALUES (?1, ?2, ?3)")?,
        })
    }

    fn insert(&mut self, rng: &mut Rng, text: &Text, rows: &mut Rows) -> rusqlite::Result<()> {
        for _ in 0..BATCH / 5 {
            rows.users += 1;
            let (reputation, len) = (rng.spread(1.0, 300_000.0) as i64, rng.spread(20.0, 400.0));
            let about = (rng.below(4) == 0).then(|| text.cut(rng, len));
            let created = EPOCH + rows.posts as i64 * PACE;
            self.user.execute(params![format!("user{}", rows.users), reputation, created, about])?;
        }
        for _ in 0..BATCH {
            self.post(rng, text, rows)?;
        }
        Ok(())
    }

    /// One post with its comments and votes.
    fn post(&mut self, rng: &mut Rng, text: &Text, rows: &mut Rows) -> rusqlite::Result<()> {
        rows.posts += 1;
        let (id, created) = (rows.posts as i64, EPOCH + rows.posts as i64 * PACE);
        // Three of five posts are answers, mostly to a recent question.
        let parent = (rows.posts > 1 && rng.below(5) < 3).then(|| id - rng.zipf(rows.posts - 1));
        let (kind, title_len, body_len) = (if parent.is_some() { 2 } else { 1 }, rng.spread(20.0, 120.0), rng.spread(150.0, 6000.0));
        let title = parent.is_none().then(|| text.cut(rng, title_len));
        let views = parent.is_none().then(|| rng.spread(10.0, 500_000.0) as i64);
        let votes = rng.spread(1.0, 60.0) as u64 - 1;
        let body = text.cut(rng, body_len);
        self.post.execute(params![kind, parent, rng.zipf(rows.users), created, votes as i64, views, title, body])?;
        for _ in 0..rng.below(4) {
            rows.comments += 1;
            let len = rng.spread(30.0, 600.0);
            self.comment.execute(params![id, rng.zipf(rows.users), created + rng.spread(60.0, 1e7) as i64, text.cut(rng, len)])?;
        }
        for _ in 0..votes {
            rows.votes += 1;
            let vote = if rng.below(8) == 0 { 3 } else { 2 };
            self.vote.execute(params![id, vote, created + rng.spread(60.0, 1e8) as i64])?;
        }
        Ok(())
    }
}
