"""A storm of files on a mounted file system that is going to lose its disk, and the check of what must have survived.

    fsck_storm.py storm DIRECTORY LEDGER SEED SECONDS   exits 0 when the disk died under it, 3 when the time was over first
    fsck_storm.py check DIRECTORY LEDGER                exits 0 when every promise in the ledger was kept

The ledger lies outside of the disk. `kept NAME SHA256` is written after fsync of the file and of its directory returned; `gone NAME` is
written before the file is removed, so whether it is still there after the crash is open. What has no line owes nobody anything.
"""

import hashlib
import os
import random
import sys
import threading
import time

WORKERS = 4


def write(path, content, sync):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        at = 0
        while at < len(content):
            at += os.write(fd, content[at : at + 65536])
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Ledger:
    def __init__(self, path):
        self.file = open(path, "a", buffering=1)
        self.lock = threading.Lock()
        self.kept = 0

    def say(self, *words):
        with self.lock:
            self.file.write(" ".join(words) + "\n")
            self.kept += words[0] == "kept"


def worker(root, number, rng, ledger, until):
    """One directory per worker: no two of them ever meet on a name. Returns whether the disk died."""
    home = os.path.join(root, f"w{number}-{rng.randrange(1 << 30):x}")
    kept, serial = [], 0
    try:
        os.mkdir(home)
        sync_directory(root)
        while time.monotonic() < until:
            serial += 1
            name = os.path.join(home, f"f{serial}")
            size = rng.choice([rng.randrange(1, 4096), rng.randrange(1, 65536), rng.randrange(1, 1 << 19)])
            content = rng.randbytes(size)
            what = rng.random()
            if what < 0.45:
                # Written under another name and moved, as careful programs do.
                write(name + ".new", content, True)
                os.rename(name + ".new", name)
                sync_directory(home)
                ledger.say("kept", name[len(root) + 1 :], hashlib.sha256(content).hexdigest())
                kept.append(name)
            elif what < 0.8:
                write(name, content, False)
                if rng.random() < 0.5:
                    os.truncate(name, rng.randrange(size + 1))
                if rng.random() < 0.7:
                    os.unlink(name)
            # Room for the others: a storm that has filled the disk does nothing more.
            while len(kept) > 40 or (kept and what > 0.9):
                what = 0
                victim = kept.pop(rng.randrange(len(kept)))
                ledger.say("gone", victim[len(root) + 1 :])
                os.unlink(victim)
    except OSError as error:
        if error.errno == 28:
            print("storm: the disk is full, make it larger", file=sys.stderr)
            os._exit(1)
        return True
    return False


def storm(root, path, seed, seconds):
    ledger = Ledger(path)
    until = time.monotonic() + seconds
    died = []
    threads = [
        threading.Thread(target=lambda n=n: died.append(worker(root, n, random.Random(f"{seed} {n}"), ledger, until))) for n in range(WORKERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if any(died) else 3


def check(root, path):
    kept, broken = {}, []
    for line in open(path):
        words = line.split()
        if words[0] == "kept":
            kept[words[1]] = words[2]
        else:
            kept.pop(words[1], None)
    if not kept:
        sys.exit("the ledger promises nothing: this checked nothing")
    for name, digest in kept.items():
        try:
            with open(os.path.join(root, name), "rb") as file:
                if hashlib.sha256(file.read()).hexdigest() != digest:
                    broken.append(f"{name}: other content")
        except OSError as error:
            broken.append(f"{name}: {error.strerror}")
    print(f"  {len(kept)} fsynced files promised, {len(broken)} broken")
    for line in broken[:3]:
        print(f"    {line}")
    return 1 if broken else 0


if __name__ == "__main__":
    if sys.argv[1] == "storm":
        sys.exit(storm(sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5])))
    sys.exit(check(sys.argv[2], sys.argv[3]))
