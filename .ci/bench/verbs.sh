#!/usr/bin/env bash
# Every verb that qemu-img has too, beside qemu-img, on the same content: prints a table in Markdown, and fails when a result is wrong.
#
#   .ci/bench/verbs.sh [BINARY]      ROUNDS=n (5)  MIB=n (256)  DIRS="where ..." (a memory file system, and the disk)
#
# Each place gets fresh inputs; they are in the page cache when they are measured, the outputs are new. The programs take turns within a round, and
# a ratio is the median of the rounds' ratios, because a machine is slow for a while and then fast for a while. Below 1 diffdisk is faster. Each time is
# that of a whole process. diffdisk returns when the result is durable; qemu-img does that in commit and rebase, in convert only with
# `-t writeback`, and in resize never. What qemu-img cannot do with VHDX (resize, commit, rebase, backing files) it does with raw or qcow2, as
# the table says.
set -euo pipefail

diffdisk=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/release/diffdisk}")
for pair in qemu-img qemu-io; do
    if ! command -v $pair >/dev/null; then
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends qemu-utils >/dev/null 2>&1 || true
    fi
    command -v $pair >/dev/null || { echo "verbs bench: SKIPPED, there is no $pair and it could not be installed"; exit 0; }
done

dirs=${DIRS:-/dev/shm ${TMPDIR:-/tmp}}
for dir in $dirs; do
    [ -d "$dir" ] || { echo "verbs bench: $dir is left out, there is no such directory"; continue; }
    work=$(mktemp -d -p "$dir" verbs-bench.XXXXXX)
    # shellcheck disable=SC2064  # this directory, not the next one
    trap "rm -rf '$work'" EXIT
    python3 - "$diffdisk" "${MIB:-256}" "${ROUNDS:-5}" "$work" <<'PY'
import json, os, random, shutil, statistics, subprocess, sys, time

diffdisk, mib, rounds, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.chdir(work)
size = mib << 20
random.seed(30)


def run(*args, **kwargs):
    return subprocess.run(args, check=True, stdout=subprocess.DEVNULL, **kwargs)


def ours(*args):
    return run(diffdisk, *args)


def qemu(*args):
    return run("qemu-img", *args)


def copy(name, to):
    run("cp", "--sparse=always", name, to)


# Half zeros that are stored, in stretches of 256 KiB; and a second state with 4 KiB changed here and there.
block = random.randbytes(256 << 10)
with open("a.raw", "wb") as file:
    for _ in range(mib * 2):
        file.write(block + bytes(256 << 10))
shutil.copy("a.raw", "b.raw")
# All in the first eighth, so that a rebase has something left to compare.
places = random.sample(range(size // 8 // 4096), 2048)
with open("b.raw", "r+b") as file, open("changes.io", "w") as io:
    for place in places:
        file.seek(place * 4096)
        file.write(bytes([place % 250 + 1]) * 4096)
        io.write(f"write -q -P {place % 250 + 1} {place * 4096} 4096\n")
ours("convert", "a.raw", "a.vhdx")
qemu("convert", "-O", "vhdx", "a.raw", "qemu.vhdx")
qemu("convert", "-O", "qcow2", "a.raw", "a.qcow2")
copy("a.vhdx", "a2.vhdx")
copy("a.qcow2", "a2.qcow2")
os.mkdir("kept")
ours("convert", "b.raw", "kept/b.vhdx", "--parent", "a.vhdx", "--parents", ".")
qemu("create", "-q", "-f", "qcow2", "-b", "../a.qcow2", "-F", "qcow2", "kept/b.qcow2")
run("qemu-io", "-f", "qcow2", "kept/b.qcow2", stdin=open("changes.io"))
# A table with 65536 entries, every second block present; the same as clusters of qcow2.
ours("create", "wide.vhdx", "--size", "64G", "--block-size", "1M")
with open("wide.io", "w") as io:
    for n in range(4096):
        io.write(f"write -q -P 7 {n << 24} 4096\n")
run("qemu-io", "-f", "vhdx", "wide.vhdx", stdin=open("wide.io"))
qemu("create", "-q", "-f", "qcow2", "-o", "cluster_size=1M", "wide.qcow2", "64G")
run("qemu-io", "-f", "qcow2", "wide.qcow2", stdin=open("wide.io"))
run("sync", "-f", ".")


def clear():
    for name in ("o.vhdx", "o.raw", "o.qcow2", "o2.qcow2", "p.vhdx", "p.qcow2"):
        if os.path.exists(name):
            os.remove(name)


def pair(suffix):
    """A base and an overlay of its own, to be changed: p and o."""

    def prepare():
        copy("a." + suffix, "p." + suffix)
        if suffix == "vhdx":
            copy("kept/b.vhdx", "o.vhdx")
            ours("relink", "o.vhdx", "--parent", "p.vhdx")
        else:
            qemu("create", "-q", "-f", "qcow2", "-b", "p.qcow2", "-F", "qcow2", "o.qcow2")
            run("qemu-io", "-f", "qcow2", "o.qcow2", stdin=open("changes.io"))
        run("sync", "-f", ".")

    return prepare


def raw_file():
    run("truncate", "-s", str(size), "o.raw")
    run("sync", "-f", ".")


def vhdx_file():
    copy("a.vhdx", "o.vhdx")
    run("sync", "-f", ".")


nothing = lambda: None
same = lambda a, b, *more: (lambda: qemu("compare", "-q", *more, a, b))
D, Q, W = "diffdisk", "qemu-img", "qemu-img -t writeback"
# Verb, then for each program: what to prepare, what to measure, and what must be true afterwards.
cases = [
    ("create, 1 TiB", {D: (nothing, lambda: ours("create", "o.vhdx", "--size", "1T"), nothing),
        Q: (nothing, lambda: qemu("create", "-q", "-f", "vhdx", "o.vhdx", "1T"), nothing)}),
    ("create a child (qemu-img: qcow2)", {D: (nothing, lambda: ours("create", "o.vhdx", "--parent", "a.vhdx"), nothing),
        Q: (nothing, lambda: qemu("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "o.qcow2"), nothing)}),
    ("info", {D: (nothing, lambda: ours("info", "wide.vhdx"), nothing), Q: (nothing, lambda: qemu("info", "-f", "vhdx", "wide.vhdx"), nothing)}),
    ("check, 64 GiB, 4096 blocks", {D: (nothing, lambda: ours("check", "wide.vhdx"), nothing),
        Q: (nothing, lambda: qemu("check", "-q", "-f", "vhdx", "wide.vhdx"), nothing)}),
    ("map, 64 GiB, 4096 blocks (qemu-img: qcow2)", {D: (nothing, lambda: ours("map", "wide.vhdx", "--json"), nothing),
        Q: (nothing, lambda: qemu("map", "-f", "qcow2", "--output=json", "wide.qcow2"), nothing)}),
    ("map of VHDX (qemu-img: one extent, all data)", {D: (nothing, lambda: ours("map", "a.vhdx", "--json"), nothing),
        Q: (nothing, lambda: qemu("map", "-f", "vhdx", "--output=json", "a.vhdx"), nothing)}),
    ("convert raw to dynamic", {D: (nothing, lambda: ours("convert", "a.raw", "o.vhdx"), same("a.raw", "o.vhdx", "-f", "raw", "-F", "vhdx")),
        Q: (nothing, lambda: qemu("convert", "-f", "raw", "-O", "vhdx", "a.raw", "o.vhdx"), nothing),
        W: (nothing, lambda: qemu("convert", "-t", "writeback", "-f", "raw", "-O", "vhdx", "a.raw", "o.vhdx"), nothing)}),
    ("convert dynamic to raw", {D: (nothing, lambda: ours("convert", "a.vhdx", "o.raw"), same("a.raw", "o.raw", "-f", "raw", "-F", "raw")),
        Q: (nothing, lambda: qemu("convert", "-f", "vhdx", "-O", "raw", "qemu.vhdx", "o.raw"), nothing),
        W: (nothing, lambda: qemu("convert", "-t", "writeback", "-f", "vhdx", "-O", "raw", "qemu.vhdx", "o.raw"), nothing)}),
    ("compare raw with dynamic", {D: (nothing, lambda: ours("compare", "a.raw", "a.vhdx"), nothing),
        Q: (nothing, lambda: qemu("compare", "-q", "-f", "raw", "-F", "vhdx", "a.raw", "qemu.vhdx"), nothing)}),
    ("compare two dynamic", {D: (nothing, lambda: ours("compare", "a.vhdx", "a2.vhdx"), nothing),
        Q: (nothing, lambda: qemu("compare", "-q", "-f", "vhdx", "-F", "vhdx", "a.vhdx", "a2.vhdx"), nothing)}),
    ("resize to twice the size (qemu-img: raw)", {
        D: (vhdx_file, lambda: ours("resize", "o.vhdx", "--size", str(2 * size)), lambda: qemu("check", "-q", "-f", "vhdx", "o.vhdx")),
        Q: (raw_file, lambda: qemu("resize", "-q", "-f", "raw", "o.raw", str(2 * size)), nothing)}),
    ("commit of 2048 changes (qemu-img: qcow2)", {
        D: (pair("vhdx"), lambda: ours("merge", "o.vhdx"), same("b.raw", "p.vhdx", "-f", "raw", "-F", "vhdx")),
        Q: (pair("qcow2"), lambda: qemu("commit", "-q", "-d", "-f", "qcow2", "o.qcow2"), same("b.raw", "p.qcow2", "-f", "raw", "-F", "qcow2"))}),
    ("the same, and the overlay removed", {
        D: (pair("vhdx"), lambda: ours("merge", "o.vhdx", "--delete"), nothing),
        Q: (pair("qcow2"), lambda: (qemu("commit", "-q", "-d", "-f", "qcow2", "o.qcow2"), os.remove("o.qcow2")), nothing)}),
    ("rebase onto an equal base (qemu-img: qcow2)", {
        D: (pair("vhdx"), lambda: ours("rebase", "o.vhdx", "--onto", "a2.vhdx", "--keep-content"), lambda: ours("compare", "o.vhdx", "b.raw")),
        Q: (pair("qcow2"), lambda: qemu("rebase", "-q", "-f", "qcow2", "-b", "a2.qcow2", "-F", "qcow2", "o.qcow2"),
            same("b.raw", "o.qcow2", "-f", "raw", "-F", "qcow2"))}),
    ("change the link only (qemu-img: rebase -u)", {
        D: (pair("vhdx"), lambda: ours("relink", "o.vhdx", "--parent", "p.vhdx"), lambda: ours("compare", "o.vhdx", "b.raw")),
        Q: (pair("qcow2"), lambda: qemu("rebase", "-u", "-q", "-f", "qcow2", "-b", "a2.qcow2", "-F", "qcow2", "o.qcow2"), nothing)}),
]

kind = subprocess.run(["stat", "-f", "-c", "%T", "."], capture_output=True, text=True).stdout.strip()
print(f"\n{mib} MiB, half zeros; {rounds} rounds; {os.cpu_count()} processors; {kind}; ms, median\n")
print("| verb | diffdisk | qemu-img | ratio | qemu-img, durable | ratio |\n|---|---|---|---|---|---|")
for verb, programs in cases:
    times = {name: [] for name in programs}
    for number in range(rounds):
        order = list(programs)
        for name in order[number % len(order):] + order[:number % len(order)]:
            prepare, act, judge = programs[name]
            clear()
            prepare()
            begin = time.perf_counter()
            act()
            times[name].append((time.perf_counter() - begin) * 1000)
            # Outside of what is measured, once for each program.
            if number == 0:
                judge()
    clear()
    cells = [f"{statistics.median(times[D]):.1f}"]
    for name in (Q, W):
        if name in times:
            cells += [f"{statistics.median(times[name]):.1f}", f"{statistics.median(a / b for a, b in zip(times[D], times[name])):.2f}"]
        else:
            cells += ["", ""]
    print(f"| {verb} | {' | '.join(cells)} |", flush=True)
PY
    rm -rf "$work"
done
