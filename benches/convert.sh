#!/usr/bin/env bash
# convert, compare and diff beside qemu-img and cp, on the same input, in turn: prints a table of ratios.
#
#   benches/convert.sh [BINARY [MIB [ROUNDS]]]     DIR=where (default: the system's temporary directory)
#
# The input is half zeros (256 KiB of data, 256 KiB of zeros that are stored), as in the harness's W13. Every figure is the median over the
# rounds; the programs take turns, so that a busy machine is busy for all of them. Ratios below 1 are faster than the other program.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
diffdisk=$(realpath "${1:-${CARGO_TARGET_DIR:-$here/target}/release/diffdisk}")
mib=${2:-512}
rounds=${3:-5}
command -v qemu-img >/dev/null || { echo "bench: no qemu-img (apt-get install qemu-utils)"; exit 0; }
work=$(mktemp -d -p "${DIR:-${TMPDIR:-/tmp}}")
trap 'rm -rf "$work"' EXIT

exec python3 - "$diffdisk" "$mib" "$rounds" "$work" <<'PY'
import os, random, statistics, subprocess, sys, time
diffdisk, mib, rounds, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.chdir(work)
block = random.Random(1).randbytes(256 << 10)
with open("src.img", "wb") as file:
    for _ in range(mib * 2):
        file.write(block)
        file.write(bytes(256 << 10))
    os.fsync(file.fileno())
run = lambda *args: subprocess.run(args, check=True, stdout=subprocess.DEVNULL)
ours = lambda *args: run(diffdisk, *args)
def write(file, offset):
    subprocess.run([diffdisk, "write", file, "--offset", str(offset)], input=b"x" * 4096, check=True, stdout=subprocess.DEVNULL)
ours("convert", "src.img", "app.vhdx")
run("qemu-img", "convert", "-f", "raw", "-O", "vhdx", "src.img", "their.vhdx")
for name in ("alice.vhdx", "bob.vhdx"):
    ours("create", name, "--parent", "app.vhdx")
    for at in range(8):
        write(name, (at * 37 % mib << 20) + len(name) * 4096)
run("cp", "--sparse=always", "src.img", "copy.img")

def gone(name):
    if os.path.exists(name): os.remove(name)
cases = {
    "convert raw to dynamic": {
        "diffdisk": lambda: ours("convert", "src.img", "o.vhdx"),
        "diffdisk, 1 worker": lambda: ours("convert", "src.img", "o.vhdx", "--workers", "1"),
        "qemu-img": lambda: run("qemu-img", "convert", "-f", "raw", "-O", "vhdx", "src.img", "o.vhdx"),
        "qemu-img -W -m 8": lambda: run("qemu-img", "convert", "-W", "-m", "8", "-f", "raw", "-O", "vhdx", "src.img", "o.vhdx"),
        "cp --sparse + sync": lambda: (run("cp", "--sparse=always", "src.img", "o.vhdx"), run("sync", "o.vhdx")),
    },
    "convert dynamic to raw": {
        "diffdisk": lambda: ours("convert", "app.vhdx", "o.img"),
        "qemu-img": lambda: run("qemu-img", "convert", "-f", "vhdx", "-O", "raw", "their.vhdx", "o.img"),
        "qemu-img -W -m 8": lambda: run("qemu-img", "convert", "-W", "-m", "8", "-f", "vhdx", "-O", "raw", "their.vhdx", "o.img"),
    },
    "compare raw with dynamic": {
        "diffdisk": lambda: ours("compare", "src.img", "app.vhdx"),
        "qemu-img": lambda: run("qemu-img", "compare", "-f", "raw", "-F", "vhdx", "src.img", "their.vhdx"),
    },
    "compare two raw files": {
        "diffdisk": lambda: ours("compare", "src.img", "copy.img"),
        "qemu-img": lambda: run("qemu-img", "compare", "-f", "raw", "-F", "raw", "src.img", "copy.img"),
        "cmp": lambda: run("cmp", "src.img", "copy.img"),
    },
    "what changed between two clones": {
        "diffdisk diff": lambda: ours("diff", "alice.vhdx", "bob.vhdx"),
        "diffdisk diff --by-allocation": lambda: ours("diff", "alice.vhdx", "bob.vhdx", "--by-allocation"),
        "qemu-img compare of two raw files": lambda: run("qemu-img", "compare", "-f", "raw", "-F", "raw", "src.img", "copy.img"),
    },
}
print(f"bench: {mib} MiB, half zeros, {rounds} rounds, in {work}, {os.cpu_count()} processors; ms (median), ratio of diffdisk to it")
for case, programs in cases.items():
    times = {name: [] for name in programs}
    for number in range(rounds):
        order = list(programs)
        for name in order[number % len(order):] + order[:number % len(order)]:
            gone("o.vhdx"), gone("o.img")
            begin = time.perf_counter()
            programs[name]()
            times[name].append(time.perf_counter() - begin)
    gone("o.vhdx"), gone("o.img")
    first = next(iter(programs))
    for name in programs:
        # Round by round, as the rounds differ and the programs in one do not.
        ratio = statistics.median(a / b for a, b in zip(times[first], times[name]))
        print(f"  {case:34} {name:34} {statistics.median(times[name]) * 1000:9.1f} {ratio:6.2f}")
PY
