"""System calls of the real binary that fail, one after the other, in every verb that changes something.

For each script below and each group of system calls the k-th call that touches the world fails, then in a new world the next one, to
the end of the script; once, and again from then on. `strace` makes them fail (its `inject` option), so nothing in the program knows.
A further group kills the process at its k-th call. After every run:

  * the verb ended with one of its documented exit codes, and said why;
  * `clone repair` and `image sweep`, with nothing failing, end well and leave no file that does not belong to anything;
  * what is there is what was there before or what a successful run leaves, and nothing else; after success, the latter;
  * the verb, run again, ends in the latter;
  * images and their files are untouched, to the byte and the time stamp.

Scripts run at the same time, as many as there are processors, each in a world of its own.

Usage: faults_inject.py BINARY WORK [--every N] [--seed S] [--only SCRIPT,...] [--list]     N: try every N-th place only, drawn by the seed
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("work")
parser.add_argument("--every", type=int, default=1)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--only")
parser.add_argument("--list", action="store_true")
parser.add_argument("--verbose", action="store_true")
parser.add_argument("--jobs", type=int, default=os.cpu_count())
args = parser.parse_args()

BINARY = os.path.abspath(args.binary)
HERE = os.path.dirname(os.path.abspath(__file__))


def work_in(directory):
    global WORK, WORLD, SAVED, TRACE
    WORK = directory
    WORLD, SAVED, TRACE = (os.path.join(WORK, name) for name in ("world", "saved", "trace"))


work_in(os.path.abspath(args.work))
MIB = 1 << 20
ANYWHERE = ["--parents", "anywhere"]
EXITS = set(range(0, 10))

# The system calls of a group, and how they fail.
ONCE, ON = "", "+"
GROUPS = {
    "open": ("openat,openat2,open", ["EACCES", "EIO", "EMFILE"]),
    "read": ("read,pread64,preadv", ["EIO", "short"]),
    "write": ("write,pwrite64,pwritev,copy_file_range", ["EIO", "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EINTR"]),
    "sync": ("fsync,fdatasync,sync_file_range,syncfs", ["EIO", "ENOSPC"]),
    "length": ("ftruncate,fallocate,truncate", ["EIO", "ENOSPC", "EOPNOTSUPP"]),
    "name": ("rename,renameat,renameat2,link,linkat,symlinkat", ["EACCES", "EIO", "EXDEV", "EPERM"]),
    "remove": ("unlink,unlinkat,rmdir", ["EACCES", "EIO"]),
    "lock": ("flock,fcntl", ["EAGAIN", "ENOLCK"]),
    "look": ("stat,fstat,newfstatat,statx,getdents64,lseek,readlink", ["EIO", "EACCES"]),
    "mode": ("mkdir,mkdirat,chmod,fchmod,fchmodat,utimensat", ["EACCES", "ENOSPC"]),
    "kill": (
        "openat,write,pwrite64,fsync,fdatasync,ftruncate,fallocate,rename,renameat,renameat2,linkat,unlink,unlinkat,fchmod,mkdir,flock,fcntl",
        ["KILL"],
    ),
}


def call(*words, stdin=None, ok=(0,), world=True):
    done = subprocess.run([BINARY, *words], cwd=WORLD if world else WORK, input=stdin, capture_output=True)
    if ok is not None and done.returncode not in ok:
        raise AssertionError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return done


def pattern(tag, length):
    return hashlib.shake_128(tag.encode()).digest(length)


def build_world():
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORLD)
    with open(f"{WORLD}/base.raw", "wb") as file:
        file.write(pattern("base", MIB))
        file.truncate(4 * MIB)
    with open(f"{WORLD}/next.raw", "wb") as file:
        file.write(pattern("next", MIB // 2))
        file.truncate(4 * MIB)
    os.mkdir(f"{WORLD}/store")
    os.mkdir(f"{WORLD}/clones")
    call("image", "create", "app", "base.raw", "--store", "store")
    call("image", "refresh", "app", "next.raw", "--store", "store")
    call("image", "create", "idle", "next.raw", "--store", "store")
    call("image", "refresh", "idle", "base.raw", "--store", "store")
    for name in ("alice", "bob"):
        call("clone", "create", "app@1", f"clones/{name}", "--store", "store")
        call("write", f"clones/{name}.vhdx", "--offset", "1M", *ANYWHERE, stdin=pattern(name, 64 << 10))
    call("clone", "save", "clones/alice.vhdx", "one", "--store", "store")
    call("write", "clones/alice.vhdx", "--offset", "2M", *ANYWHERE, stdin=pattern("later", 64 << 10))
    call("clone", "create", "app@1", "clones/old", "--store", "store", "--ttl", "1s")
    call("convert", "base.raw", "plain.vhdx")
    call("create", "child.vhdx", "--parent", "plain.vhdx")
    call("write", "child.vhdx", "--offset", "1M", stdin=pattern("child", 64 << 10))
    # Three layers, another parent for the last, and a damaged disk.
    os.mkdir(f"{WORLD}/chain")
    call("convert", "base.raw", "chain/base.vhdx")
    call("convert", "next.raw", "chain/next.vhdx")
    call("create", "chain/mid.vhdx", "--parent", "chain/base.vhdx")
    call("write", "chain/mid.vhdx", "--offset", "512K", stdin=pattern("mid", 64 << 10))
    call("create", "chain/top.vhdx", "--parent", "chain/mid.vhdx")
    call("write", "chain/top.vhdx", "--offset", "1M", stdin=pattern("top", 64 << 10) + bytes(MIB) + pattern("end", 64 << 10))
    call("convert", "base.raw", "chain/damaged.vhdx")
    subprocess.run([sys.executable, f"{HERE}/repair_damage.py", f"{WORLD}/chain/damaged.vhdx", "place"], check=True)
    os.mkdir(f"{WORLD}/other")
    shutil.copy(f"{WORLD}/plain.vhdx", f"{WORLD}/other/plain.vhdx")
    time.sleep(1.1)  # the clone `old` has to expire
    subprocess.run(["cp", "-a", "--sparse=always", WORLD, SAVED], check=True)
    known.clear()
    for directory, _, names in os.walk(WORLD):
        for name in names:
            path = os.path.relpath(os.path.join(directory, name), WORLD)
            if path.endswith(".vhdx"):
                known[path] = (stamp(path), whole(path), virtual(path))


def restore():
    shutil.rmtree(WORLD)
    subprocess.run(["cp", "-a", "--sparse=always", SAVED, WORLD], check=True)


def has(*verb):
    return subprocess.run([BINARY, *verb, "--help"], capture_output=True).returncode == 0


STORE = ["--store", "store"]
# What nobody sees: it must not be seen after a fault either.
QUIET = {"clone hydrate", "clone compact", "hydrate", "compact"}
CHILD = pattern("written", 3 * MIB // 2)
# Name, words, standard input.
SCRIPTS = [
    ("create", ["create", "new.vhdx", "--size", "8M"], None),
    ("create fixed", ["create", "new.vhdx", "--size", "4M", "--fixed"], None),
    ("create child", ["create", "new.vhdx", "--parent", "plain.vhdx"], None),
    ("convert in", ["convert", "base.raw", "new.vhdx"], None),
    ("convert out", ["convert", "child.vhdx", "new.raw"], None),
    ("write", ["write", "child.vhdx", "--offset", "512K"], CHILD),
    ("trim", ["trim", "child.vhdx", "--offset", "1M", "--length", "2M"], None),
    ("relink", ["relink", "child.vhdx", "--parent", "other/plain.vhdx"], None),
    ("merge", ["merge", "chain/top.vhdx"], None),
    ("merge delete", ["merge", "chain/top.vhdx", "--delete"], None),
    ("merge to", ["merge", "chain/top.vhdx", "--into", "chain/base.vhdx", "--to", "new.vhdx"], None),
    ("flatten", ["flatten", "chain/top.vhdx"], None),
    ("hydrate", ["hydrate", "chain/top.vhdx"], None),
    ("compact", ["compact", "chain/top.vhdx"], None),
    ("resize up", ["resize", "chain/top.vhdx", "--size", "6M"], None),
    ("resize down", ["resize", "child.vhdx", "--size", "3M", "--shrink"], None),
    ("rebase", ["rebase", "chain/top.vhdx", "--onto", "chain/next.vhdx", "--workers", "1"], None),
    ("rebase keep", ["rebase", "chain/top.vhdx", "--onto", "chain/next.vhdx", "--keep-content", "--workers", "1"], None),
    ("convert fixed", ["convert", "chain/top.vhdx", "new.vhdx", "--to", "vhdx-fixed"], None),
    ("convert child", ["convert", "next.raw", "new.vhdx", "--parent", "plain.vhdx"], None),
    ("check repair", ["check", "chain/damaged.vhdx", "--repair"], None),
    ("image create", ["image", "create", "new", "base.raw", *STORE], None),
    ("image refresh", ["image", "refresh", "idle", "next.raw", *STORE], None),
    ("image rename", ["image", "rename", "idle", "busy", *STORE], None),
    ("image disable", ["image", "disable", "app@1", *STORE], None),
    ("image remove", ["image", "remove", "idle@1", *STORE], None),
    ("image prune", ["image", "prune", "idle", "--keep", "1", *STORE], None),
    ("clone create", ["clone", "create", "app@2", "clones/new", *STORE], None),
    ("clone create quick", ["clone", "create", "app@2", "clones/new", "--no-sync", *STORE], None),
    ("clone reset", ["clone", "reset", "clones/bob.vhdx", *STORE], None),
    ("clone reset to", ["clone", "reset", "clones/bob.vhdx", "--to", "latest", *STORE], None),
    ("clone save", ["clone", "save", "clones/bob.vhdx", "two", *STORE], None),
    ("clone revert", ["clone", "revert", "clones/alice.vhdx", "one", *STORE], None),
    ("clone drop", ["clone", "drop", "clones/alice.vhdx", "one", *STORE], None),
    ("clone rebase", ["clone", "rebase", "clones/bob.vhdx", *STORE], None),
    ("clone compact", ["clone", "compact", "clones/bob.vhdx", *STORE], None),
    ("clone resize", ["clone", "resize", "clones/bob.vhdx", "--size", "64M", *STORE], None),
    ("clone hydrate", ["clone", "hydrate", "clones/bob.vhdx", *STORE], None),
    ("clone flatten", ["clone", "flatten", "clones/bob.vhdx", *STORE], None),
    ("clone rename", ["clone", "rename", "clones/alice.vhdx", "clones/carol.vhdx", *STORE], None),
    ("clone protect", ["clone", "protect", "clones/bob.vhdx", *STORE], None),
    ("clone expire", ["clone", "expire", "clones/old.vhdx", "--never", *STORE], None),
    ("clone remove", ["clone", "remove", "clones/alice.vhdx", *STORE], None),
    ("clone prune", ["clone", "prune", "--expired", *STORE], None),
]


def whole_file(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


# What stands in a fresh world under each name of a disk: its time stamp, its bytes, what it shows.
known = {}


def stamp(path):
    there = os.stat(os.path.join(WORLD, path))
    return there.st_mtime_ns, there.st_size


def whole(path):
    with open(os.path.join(WORLD, path), "rb") as file:
        return file.read()


def is_fresh(path):
    return path in known and os.path.exists(os.path.join(WORLD, path)) and stamp(path) == known[path][0]


def virtual(path):
    """Content, and the names of the parent. Asked only where a disk, or one beside it that it may stand on, was touched."""
    around = [other for other in known if os.path.dirname(other) == os.path.dirname(path)]
    if is_fresh(path) and all(map(is_fresh, around)):
        return known[path][2]
    if path == "chain/damaged.vhdx":
        report = json.loads(call("check", path, "--json", ok=None).stdout)
        return json.dumps([report["errors"], report["warnings"]]) + shows(path)
    return shows(path)


def shows(path):
    done = call("digest", path, *ANYWHERE, ok=None)
    if done.returncode != 0:
        return f"exit {done.returncode}: {done.stderr.decode()[:200]}"
    info = json.loads(call("info", path, "--json").stdout)
    return f"{done.stdout.split()[0].decode()} {info['parent'] and info['parent']['paths']}"


VOLATILE = {"created", "created_at", "changed", "sealed", "sealed_at", "id", "disk_id", "identity", "file_write_guid", "data_write_guid", "linkage",
            "allocated", "apparent", "diverged", "steps", "age", "lock", "milliseconds", "modified", "saved", "saved_at", "sizes",
            "accessed", "last_used", "at"}


def stable(value):
    if isinstance(value, dict):
        kept = {key: stable(part) for key, part in value.items() if key not in VOLATILE}
        # When is a time; whether is not.
        return kept | ({"expires": value["expires"] is not None} if "expires" in value else {})
    if isinstance(value, list):
        return sorted((stable(part) for part in value), key=lambda part: json.dumps(part, sort_keys=True))
    return value


def state():
    """Everything that a user can tell one world from another by, without identities and times."""
    found = {}
    for directory, _, names in os.walk(WORLD):
        for name in names:
            path = os.path.relpath(os.path.join(directory, name), WORLD)
            if path.startswith("store/.clones/"):
                path, what = "store/.clones/ID", None
            elif path in ("store/.index",):
                continue
            elif name.endswith((".vhdx", ".avhdx")):
                what = virtual(path)
            elif name.endswith((".json", ".blake3", ".disabled")) or name.startswith("."):
                what = "there"
            else:
                what = whole_file(os.path.join(WORLD, path))
            while path in found:
                path += "'"
            found[path] = what
    for words in (["image", "list"], ["clone", "list"]):
        done = call(*words, "--json", *STORE, ok=None)
        answer = json.loads(done.stdout) if done.returncode == 0 else done.stderr.decode()
        found[" ".join(words)] = json.dumps(stable(answer), sort_keys=True)
    return found


def difference(a, b):
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def brief(what):
    return {key: tuple(value and value[:160] for value in pair) for key, pair in what.items()}


# The hidden file that was to become the result of a verb that died.
HIDDEN = r"(.*/)?\.[^/]*\.tmp"


# Pieces of 512 bytes that are the old or the new ones, for verbs whose writes are not one act.
def pieces(path):
    done = call("read", path, *ANYWHERE, ok=None)
    return [done.stdout[i : i + 512] for i in range(0, len(done.stdout), 512)] if done.returncode == 0 else None


def is_mixture(now, old, new):
    return now is not None and len(now) in (len(old), len(new)) and all(part in pair for part, *pair in zip(now, old, new, strict=True))


def images():
    found = {}
    for directory, _, names in os.walk(f"{WORLD}/store"):
        for name in names:
            if name.endswith(".vhdx") and ".work" not in directory:
                path = os.path.join(directory, name)
                path = os.path.relpath(path, WORLD)
                found[path] = (seen(path), stamp(path))
    for path in ("plain.vhdx", "other/plain.vhdx", "chain/base.vhdx", "chain/next.vhdx"):
        found[path] = (seen(path), stamp(path))
    return found


def seen(path):
    bytes_now = whole(path)
    return "as ever" if path in known and bytes_now == known[path][1] else hashlib.sha256(bytes_now).hexdigest()


def traced(words, stdin, *options):
    return subprocess.run(
        ["strace", "-f", "-y", "-qq", "-s", "0", "-o", TRACE, *options, "--", BINARY, *words], cwd=WORLD, input=stdin, capture_output=True
    )


def places(words, stdin, calls):
    """The numbers of those calls (from 1) that touch the world, in a run where nothing fails."""
    restore()
    done = traced(words, stdin, "-e", f"trace={calls}")
    assert done.returncode == 0, (words, done.stderr)
    found, number = [], {}
    with open(TRACE, errors="replace") as lines:
        for line in lines:
            match = re.match(r"(\d+) +(\w+)\(", line)
            if not match:
                continue
            thread = match[1]
            number[thread] = number.get(thread, 0) + 1
            # Not the loader's files, not what is said on standard output and error.
            rest = line.replace(f"AT_FDCWD<{WORLD}>, ", "").split("(", 1)[1]
            if not re.match(r'"/(etc|lib|lib64|usr|proc|sys|dev/(?!shm))|[0-2]<|\d+<(/etc|/lib|/usr|/proc|/sys|pipe:|anon)', rest):
                found.append(number[thread])
    return sorted(set(found))


class Broken(Exception):
    pass


def judge(name, words, stdin, group, error, place, repeat, old, new, sealed):
    calls = GROUPS[group][0]
    if error == "KILL":
        inject = f"inject={calls}:signal=KILL:when={place}"
    elif error == "short":
        inject = f"inject={calls}:retval=0:when={place}{repeat}"
    else:
        inject = f"inject={calls}:error={error}:when={place}{repeat}"
    restore()
    done = traced(words, stdin, "-e", f"trace={calls}", "-e", inject)
    with open(TRACE, errors="replace") as lines:
        text = lines.read()
    met = "(INJECTED)" in text or (error == "KILL" and "killed by SIGKILL" in text)
    if not met:
        return False
    said = done.stderr.decode(errors="replace").strip()
    if words[0] == "check":
        # Findings are what it was asked for, and stand where answers stand.
        said = said or done.stdout.decode(errors="replace").strip()
    if error != "KILL" and done.returncode not in EXITS:
        raise Broken(f"ended with {done.returncode}: {said}")
    # The number counts in each thread, so it may be the complaint itself that cannot be written.
    if error != "KILL" and done.returncode > 0 and not said and group != "write":
        raise Broken(f"ended with {done.returncode} and said nothing")
    if "panicked" in said:
        raise Broken(said)
    now_sealed = images()
    for path, what in sealed.items():
        if now_sealed.get(path, what) != what:
            raise Broken(f"{path} was changed")
    for repair in (["clone", "repair", *STORE], ["image", "sweep", *STORE]):
        after = call(*repair, ok=None)
        if after.returncode != 0:
            raise Broken(f"ended with {done.returncode} ({said}); then {' '.join(repair)} ends with {after.returncode}: {after.stderr.decode().strip()}")
    now = state()
    if error == "KILL" and words[0] not in ("image", "clone"):
        # Outside of a store nobody sweeps: the hidden file that was to become the result stays.
        now = {path: what for path, what in now.items() if not re.fullmatch(HIDDEN, path)}
    against_old, against_new = difference(old, now), difference(new, now)
    succeeded = error != "KILL" and done.returncode == 0
    if succeeded and against_new and not (is_busy(name, group, error, done) and not against_old):
        raise Broken(f"ended well ({done.stdout.decode().strip()}), but: {brief(against_new)}")
    if not succeeded and against_old and against_new and not allowed_limbo(name, now, old, new):
        raise Broken(f"ended with {done.returncode} ({said}); neither old: {brief(against_old)} nor new: {brief(against_new)}")
    if not against_new:
        return True
    again = call(*words, stdin=stdin, ok=None)
    if again.returncode != 0:
        raise Broken(f"ended with {done.returncode} ({said}); again it ends with {again.returncode}: {again.stderr.decode().strip()}")
    left = {path: what for path, what in difference(new, state()).items() if not re.fullmatch(HIDDEN, path)}
    if left:
        raise Broken(f"ended with {done.returncode} ({said}); run again it leaves {brief(left)}")
    return True


def is_busy(name, group, error, done):
    """A prune leaves what somebody else has locked, and says so: that is no failure."""
    return name in ("image prune", "clone prune") and group == "lock" and error == "EAGAIN" and b"in use" in done.stdout


# The disk that a verb changes piece by piece.
PIECEWISE = {"write": "child.vhdx", "trim": "child.vhdx", "merge": "chain/mid.vhdx", "merge delete": "chain/mid.vhdx"}


def allowed_limbo(name, now, old, new):
    """Writes to a disk are pieces and not one act: each is old or new. A merge may have changed a part of the ancestor, or all of it and
    not yet removed the child."""
    if name == "clone drop":
        # The clone may stand below the savepoint already, with the same content, and the savepoint still be there, whole: a drop that goes on.
        clone = "clones/alice.vhdx"
        rest = {key for key in now.keys() | old.keys() if now.get(key) != old.get(key)} - {clone}
        return not rest and now.get(clone) == new.get(clone)
    if name not in PIECEWISE:
        return False
    rest = {key for key in now.keys() | old.keys() if now.get(key) != old.get(key)} - {PIECEWISE[name]}
    return not rest and is_mixture(pieces(PIECEWISE[name]), *MIXED[name])


MIXED = {}


def perform(script):
    """All faults of one script. Says how many runs there were, how many calls failed, and what was broken."""
    name, words, stdin = script
    if not known:
        work_in(f"{WORK}/{os.getpid()}")
        build_world()
    rng = random.Random(f"{args.seed}/{name}")
    started, met, runs, listed, broken = time.monotonic(), 0, 0, 0, []
    restore()
    old, sealed = state(), images()
    call("clone", "repair", *STORE)
    call("image", "sweep", *STORE)
    assert state() == old, f"a sweep of a sound world changes it: {difference(old, state())}"
    before = pieces(PIECEWISE[name]) if name in PIECEWISE else None
    call(*words, stdin=stdin)
    new = state()
    if name in PIECEWISE:
        MIXED[name] = (before, pieces(PIECEWISE[name]))
    assert (new != old) == (name not in QUIET), f"{name} changes nothing"
    if name.startswith(("image remove", "image prune", "image rename")):
        sealed = {path: what for path, what in sealed.items() if "idle" not in path}
    for group, (calls, errors) in GROUPS.items():
        where = places(words, stdin, calls)
        listed += len(where)
        for error in errors if not args.list else []:
            for repeat in (ONCE, ON):
                if repeat == ON and error in ("KILL", "EINTR", "short"):
                    continue
                for place in where:
                    if args.every > 1 and rng.randrange(args.every):
                        continue
                    runs += 1
                    try:
                        met += judge(name, words, stdin, group, error, place, repeat, old, new, sealed)
                    except (Broken, AssertionError, FileNotFoundError) as what:
                        broken.append(f"{name}: {group} {error} at {place}{repeat}: {what}")
                        print("BROKEN", broken[-1], flush=True)
    if args.verbose or args.list:
        print(f"{name}: {listed} calls, {met} met, {time.monotonic() - started:.0f} s", flush=True)
    return listed, runs, met, broken


def main():
    scripts = [script for script in SCRIPTS if not args.only or script[0] in args.only.split(",")]
    if args.every > 10 and not args.only:
        # A sample has no time for both: a flattening hydrates first.
        scripts = [script for script in scripts if script[0] not in QUIET]
    extra = os.environ.get("DIFFDISK_FAULT_SCRIPTS")
    if extra:
        scripts += [(words, words.split(), None) for words in extra.splitlines()]
    listed, runs, met, broken = 0, 0, 0, []
    with multiprocessing.Pool(args.jobs) as pool:
        for one in pool.imap_unordered(perform, scripts):
            listed, runs, met, broken = listed + one[0], runs + one[1], met + one[2], broken + one[3]
    shutil.rmtree(WORK, ignore_errors=True)
    print(
        f"faults: {met} system calls failed in {runs} runs of {len(scripts)} verbs, every {args.every}. of their {listed} places, seed {args.seed}: "
        f"{len(broken)} broken promises"
    )
    if met == 0 and not args.list:
        sys.exit("nothing was run")
    sys.exit(1 if broken else 0)


main()
