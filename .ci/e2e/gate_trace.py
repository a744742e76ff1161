"""What a child may make us open: every way of naming a parent that lies, in every verb that reads a disk, with the system calls traced.

A child of a real parent is made with the binary itself; then the paths in its locator are overwritten. Wherever the lie leads there is a
disk with the identity that the child asks for, so nothing but the parent policy stands in the way. In each run `strace` writes down what
was opened (and where the descriptor really leads) and whether anything was asked of the network:

  * nothing outside of the child's directory is opened or even tried, but for the program's own libraries;
  * there is no socket, no connection, no name looked up;
  * the verb fails with one of the documented exit codes, in time, and the secret's content is nowhere in what it prints.

Then a directory entry is swapped, as fast as it goes, between a good parent and a link to the secret while the child is opened again and
again: what is read is the good parent's content or an error.

Usage: gate_trace.py BINARY WORK [RACES]
"""

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time

BINARY, WORK = os.path.abspath(sys.argv[1]), os.path.realpath(sys.argv[2])
RACES = int(sys.argv[3]) if len(sys.argv) > 3 else 150
HOME = f"{WORK}/home"  # the child's directory, and all that may be opened
TRACE = f"{WORK}/trace"
LONG = "a-name-that-leaves-room-for-every-lie-" + "x" * 120 + ".vhdx"
SECRET = b"TOP-SECRET"


def run(*words, stdin=None, check=True):
    done = subprocess.run([BINARY, *words], input=stdin, capture_output=True, cwd=HOME, timeout=60)
    if check and done.returncode:
        sys.exit(f"{words}: {done.stderr.decode()}")
    return done


def locator_of(data):
    """Where the parent locator's table is, and its pairs as (key, place of the value, room of the value, place of the entry)."""
    kind = bytes.fromhex("b7ef4ab09ed1814ab78925b8e9445913")
    at = data.find(kind)
    assert at > 0, "the child has no parent locator"
    count = struct.unpack_from("<H", data, at + 18)[0]
    pairs = []
    for n in range(count):
        entry = at + 20 + 12 * n
        key_at, value_at, key_len, value_len = struct.unpack_from("<IIHH", data, entry)
        key = data[at + key_at : at + key_at + key_len].decode("utf-16-le")
        pairs.append((key, at + value_at, value_len, entry))
    return pairs


def lying(path, text):
    """A copy of the honest child in which every path is `text`."""
    data = bytearray(open(f"{HOME}/honest.vhdx", "rb").read())
    value, changed = text.encode("utf-16-le"), 0
    for key, at, room, entry in locator_of(bytes(data)):
        if key == "parent_linkage" or key == "parent_linkage2":
            continue
        assert len(value) <= room, (key, len(value), room)
        data[at : at + len(value)] = value
        struct.pack_into("<H", data, entry + 10, len(value))
        changed += 1
    assert changed, "the locator names no path"
    with open(path, "wb") as file:
        file.write(data)


def build():
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(f"{HOME}/sub")
    with open(f"{WORK}/raw", "wb") as file:
        file.write(SECRET * 100)
        file.truncate(4 << 20)
    run("convert", f"{WORK}/raw", LONG, "--from", "raw")
    run("create", "honest.vhdx", "--parent", LONG)
    # The secret is the parent itself, moved away: identity and size are what the child wants.
    os.rename(f"{HOME}/{LONG}", f"{WORK}/secret.vhdx")
    os.makedirs(f"{WORK}/homely")
    os.symlink("../secret.vhdx", f"{HOME}/link.vhdx")
    os.symlink("..", f"{HOME}/up")
    os.symlink(f"{WORK}", f"{HOME}/sub/abs")
    os.mkfifo(f"{HOME}/fifo.vhdx")
    os.symlink("/proc/self/fd/0", f"{HOME}/fd.vhdx")
    shutil.copy(f"{WORK}/secret.vhdx", f"{WORK}/homely/secret.vhdx")
    run("create", "wrong-identity.vhdx", "--size", "4M")
    try:
        os.mknod(f"{HOME}/device.vhdx", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        print("gate: skipped: no device node can be made here")


def lies():
    out = f"{WORK}/secret.vhdx"
    backslashed = out.replace("/", "\\")
    yield from ["..\\secret.vhdx", "../secret.vhdx", ".\\..\\secret.vhdx", "sub\\..\\..\\secret.vhdx", "..\\homely\\secret.vhdx", ".." + "\\.." * 20 + backslashed]
    yield from [out, backslashed, "\\\\?\\" + backslashed, "file://" + out, "/proc/self/root" + out, "\\proc\\self\\cwd\\..\\secret.vhdx"]
    yield from ["link.vhdx", ".\\link.vhdx", "up\\secret.vhdx", "sub\\abs\\secret.vhdx", "fd.vhdx"]
    yield from ["fifo.vhdx", "device.vhdx", "sub", ".", "", "child.vhdx", "honest.vhdx", "wrong-identity.vhdx", "no-such-file.vhdx"]
    yield from ["C:\\secret.vhdx", "C:secret.vhdx", "link.vhdx:stream", "secret.vhdx\0.vhdx", "CON", "\\\\.\\PhysicalDrive0"]
    for host in ("fileserver", "10.9.8.7", "fileserver@SSL@443\\DavWWWRoot"):
        yield from [f"\\\\{host}\\share\\secret.vhdx", f"\\\\?\\UNC\\{host}\\share\\secret.vhdx", f"//{host}/share/secret.vhdx"]
    yield from ["smb://fileserver/share/secret.vhdx", "http://10.9.8.7/secret.vhdx", "nbd://10.9.8.7/secret", "json:{\"driver\":\"https\"}"]


VERBS = [
    ["info", "child.vhdx"],
    ["info", "child.vhdx", "--chain"],
    ["check", "child.vhdx", "--chain"],
    ["map", "child.vhdx"],
    ["digest", "child.vhdx"],
    ["read", "child.vhdx"],
    ["convert", "child.vhdx", "out.raw"],
    ["write", "child.vhdx", "--offset", "0"],
    ["trim", "child.vhdx", "--offset", "0", "--length", "1M"],
]
for verb in (["resize", "child.vhdx", "--size", "8M"], ["compact", "child.vhdx"], ["merge", "child.vhdx"], ["repair", "child.vhdx"]):
    if subprocess.run([BINARY, verb[0], "--help"], capture_output=True).returncode == 0:
        VERBS.append(verb)

SYSTEM = re.compile(r"/(etc/ld\.so|lib|lib64|usr/lib|usr/local/lib|usr/share/locale|proc/(self|\d+)/(maps|cgroup|mountinfo|fd)|sys/(fs/cgroup|devices)|dev/(null|urandom|tty)|etc/(localtime|passwd|nsswitch))")
NETWORK = "socket,connect,bind,sendto,sendmsg,getpeername"
OPENS = "openat,openat2,open,execve,readlink,statx,newfstatat,stat,lstat,access,faccessat2"


def inside(path):
    return path == HOME or path.startswith(HOME + "/")


def traced(words, stdin=b"some bytes"):
    command = ["strace", "-f", "-y", "-qq", "-s", "512", "-o", TRACE, "-e", f"trace={OPENS},{NETWORK}", "--", BINARY, *words]
    return subprocess.run(command, cwd=HOME, input=stdin, capture_output=True, timeout=60)


def opened():
    """The paths asked for and those that descriptors lead to, and the calls that touch the network."""
    asked, reached, network = [], [], []
    for line in open(TRACE, errors="replace"):
        match = re.match(r"\d+ +(\w+)\((.*)", line)
        if not match:
            continue
        name, rest = match.groups()
        if name in NETWORK.split(","):
            # The loader of names may ask a local daemon, and does not here; nothing is excused.
            network.append(line.strip())
            continue
        directory = re.match(r"(?:\d+|AT_FDCWD)<([^>]*)>, ", rest)
        text = re.search(r'"((?:[^"\\]|\\.)*)"', rest)
        if name.startswith("open") and text:
            path = text[1].encode().decode("unicode_escape")
            asked.append(os.path.normpath(os.path.join(directory[1] if directory else HOME, path)))
            result = re.search(r"= \d+<([^>]*)>", line)
            if result:
                reached.append(result[1])
    return asked, reached, network


def check_trace(what, allowed=()):
    asked, reached, network = opened()
    assert reached, "nothing was traced"
    for path in asked + reached:
        if not inside(path) and not SYSTEM.match(path) and path not in allowed:
            sys.exit(f"gate: {what}: {path} was opened or tried")
    if network:
        sys.exit(f"gate: {what}: {network[0]}")
    return len(asked)


def all_lies():
    runs, opens = 0, 0
    for text in lies():
        for verb in VERBS:
            lying(f"{HOME}/child.vhdx", text)
            if os.path.exists(f"{HOME}/out.raw"):
                os.remove(f"{HOME}/out.raw")
            what = f"{' '.join(verb)} with the parent {text!r}"
            done = traced(verb)
            # `info` of one file and `repair` look at no parent: they may succeed, and open one file.
            may = verb in (VERBS[0],) or verb[0] in ("repair", "resize", "compact")
            if not (1 <= done.returncode <= 9 or (may and done.returncode == 0)):
                sys.exit(f"gate: {what}: ended with {done.returncode}: {done.stdout[:100]} {done.stderr.decode()}")
            if SECRET in done.stdout + done.stderr:
                sys.exit(f"gate: {what}: the secret was printed")
            opens += check_trace(what)
            if verb == VERBS[0]:
                disks = {path for path in opened()[1] if path.endswith(".vhdx")}
                if disks != {f"{HOME}/child.vhdx"}:
                    sys.exit(f"gate: {what}: inspecting opened {disks}")
            runs += 1
    return runs, opens


def honest():
    """The control: the same parent inside of the directory is opened, and what it holds comes out."""
    shutil.copy(f"{WORK}/secret.vhdx", f"{HOME}/sub/good.vhdx")
    lying(f"{HOME}/child.vhdx", "sub\\good.vhdx")
    done = traced(["read", "child.vhdx"])
    assert done.returncode == 0 and SECRET in done.stdout, done.stderr
    check_trace("an honest child")
    assert f"{HOME}/sub/good.vhdx" in opened()[1], "the trace does not show the parent"
    # And the tracing itself: where everything is allowed, the secret is seen to be opened.
    lying(f"{HOME}/child.vhdx", f"{WORK}/secret.vhdx")
    done = traced(["read", "child.vhdx", "--parents", "anywhere"])
    assert done.returncode == 0 and SECRET in done.stdout, done.stderr
    assert f"{WORK}/secret.vhdx" in opened()[1], "the trace does not show what was opened"


def race():
    """Links swapped in while the child is opened. The good parent has the same identity and other content."""
    good = f"{HOME}/good.vhdx"
    shutil.copy(f"{WORK}/secret.vhdx", good)
    data = open(good, "rb").read().replace(SECRET, b"in-the-gat")
    open(good, "wb").write(data)
    os.makedirs(f"{HOME}/real", exist_ok=True)
    shutil.copy(good, f"{HOME}/real/secret.vhdx")
    libc, stop, swaps = ctypes.CDLL(None, use_errno=True), threading.Event(), [0]

    def exchange(a, b):
        assert libc.renameat2(-100, a.encode(), -100, b.encode(), 2) == 0, os.strerror(ctypes.get_errno())

    def swap():
        shutil.copy(good, f"{HOME}/p.vhdx")
        os.symlink("../secret.vhdx", f"{HOME}/p.other")
        os.rename(f"{HOME}/real", f"{HOME}/d")
        os.symlink("..", f"{HOME}/d.other")
        while not stop.is_set():
            exchange(f"{HOME}/p.vhdx", f"{HOME}/p.other")
            exchange(f"{HOME}/d", f"{HOME}/d.other")
            swaps[0] += 2

    thread = threading.Thread(target=swap)
    thread.start()
    while swaps[0] == 0:
        time.sleep(0.01)
    good_reads = refused = 0
    try:
        for n in range(RACES):
            lying(f"{HOME}/child.vhdx", ["p.vhdx", "d\\secret.vhdx"][n % 2])
            done = traced(["read", "child.vhdx"]) if n % 8 == 0 else run("read", "child.vhdx", check=False)
            if SECRET in done.stdout:
                sys.exit("gate: a race was lost: the secret was read")
            if n % 8 == 0 and f"{WORK}/secret.vhdx" in opened()[1]:
                sys.exit("gate: a race was lost: the secret was opened")
            if done.returncode == 0:
                assert b"in-the-gat" in done.stdout
                good_reads += 1
            else:
                assert 1 <= done.returncode <= 9, done
                refused += 1
    finally:
        stop.set()
        thread.join()
    if not (good_reads and refused):
        sys.exit(f"gate: the race was none: {good_reads} good reads, {refused} refused")
    return good_reads, refused, swaps[0]


build()
honest()
runs, opens = all_lies()
good_reads, refused, swaps = race()
print(
    f"gate: {len(list(lies()))} lies in {len(VERBS)} verbs, {runs} runs, {opens} opens traced, all inside of the gate, no network; "
    f"race: {RACES} opens during {swaps} swaps, {good_reads} read the good parent, {refused} were refused, none the secret"
)
shutil.rmtree(WORK)
