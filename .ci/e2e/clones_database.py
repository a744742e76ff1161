"""A SQLite database for the clones to hold, to change, and to be pushed over NBD.

    clones_database.py make FILE              a database with users, posts and votes, some 20 MB
    clones_database.py change FILE N          changes it in a way of its own for each N: rows, schema, an index
    clones_database.py check FILE N           is it sound, and does it have the change N and no other? N = 0 is the image's
    clones_database.py push BEFORE AFTER URI  writes what differs between two raw files to an NBD server
"""

import random
import sqlite3
import sys

PIECE = 4096
POSTS, USERS, VOTES = 40000, 4000, 120000


def make(path):
    rng = random.Random(20)
    words = [rng.randbytes(rng.randrange(2, 6)).hex() for _ in range(2000)]
    db = sqlite3.connect(path)
    db.executescript(
        """
        CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, reputation INTEGER);
        CREATE TABLE posts (id INTEGER PRIMARY KEY, owner INTEGER, score INTEGER, body TEXT);
        CREATE TABLE votes (id INTEGER PRIMARY KEY, post INTEGER, kind INTEGER);
        CREATE TABLE changed (clone INTEGER, what TEXT);
        """
    )
    db.executemany("INSERT INTO users VALUES (?, ?, ?)", ((n, rng.choice(words), rng.randrange(1000)) for n in range(USERS)))
    db.executemany(
        "INSERT INTO posts VALUES (?, ?, ?, ?)",
        ((n, int(USERS * rng.random() ** 3), rng.randrange(50), " ".join(rng.choices(words, k=rng.randrange(20, 60)))) for n in range(POSTS)),
    )
    db.executemany("INSERT INTO votes VALUES (?, ?, ?)", ((n, int(POSTS * rng.random() ** 3), rng.randrange(3)) for n in range(VOTES)))
    db.execute("CREATE INDEX votes_post ON votes (post)")
    db.commit()
    db.close()


def change(path, clone):
    db = sqlite3.connect(path)
    what = clone % 4
    if what == 0:
        db.execute("UPDATE posts SET score = score + ? WHERE id % ? = 0", (clone, 20 + clone))
    elif what == 1:
        db.execute("DELETE FROM votes WHERE id % 50 = ?", (clone,))
        db.execute("INSERT INTO posts SELECT id + ?, owner, ?, body FROM posts WHERE id < 500", (POSTS, clone))
    elif what == 2:
        db.execute(f"ALTER TABLE users ADD COLUMN clone{clone} INTEGER DEFAULT {clone}")
        db.execute("UPDATE users SET reputation = 0 WHERE id < 200")
    else:
        db.execute(f"CREATE INDEX posts_{clone} ON posts (owner, score)")
    db.execute("INSERT INTO changed VALUES (?, ?)", (clone, f"change {what}"))
    db.commit()
    db.close()


def check(path, clone):
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    want = [(clone, f"change {clone % 4}")] if clone else []
    assert db.execute("SELECT clone, what FROM changed").fetchall() == want
    if not clone:
        assert db.execute("SELECT count(*) FROM posts").fetchone() == (POSTS,)


def push(before, after, uri):
    import nbd

    h = nbd.NBD()
    h.connect_uri(uri)
    wrote = 0
    with open(before, "rb") as old, open(after, "rb") as new:
        at = 0
        while content := new.read(PIECE):
            if content != old.read(PIECE):
                if content.count(0) == len(content):
                    h.zero(len(content), at)
                else:
                    h.pwrite(content, at)
                wrote += 1
            at += len(content)
    h.flush()
    h.shutdown()
    assert wrote, "nothing differs: this pushed nothing"


if __name__ == "__main__":
    verb, *args = sys.argv[1:]
    if verb in ("change", "check"):
        args[1] = int(args[1])
    {"make": make, "change": change, "check": check, "push": push}[verb](*args)
