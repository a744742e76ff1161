#!/usr/bin/env bash
# convert, compare, diff and rebase beside foreign readers, and beside qemu-img's own verbs for speed.
#
# Rounds of random content (one seed, printed): raw to dynamic, fixed and child; chains to raw; changes exported as a child. What comes out
# goes through qemu-img (compare, check, convert) and 7-Zip (digest); a delta sent to a copy of its parent and merged there is B again;
# a child rebased onto a newer image is what byte arrays say. Then the same input is converted and compared by diffdisk and by qemu-img in
# turn, and the ratio is printed.
#
#   .ci/e2e/convert.sh [BINARY]     SEED=n ROUNDS=n SPEED_MIB=n (0: no speed part)
set -euo pipefail

here=$(cd "$(dirname "$0")/../.." && pwd)
diffdisk=${1:-${CARGO_TARGET_DIR:-$here/target}/release/diffdisk}
[[ -x $diffdisk ]] || (cd "$here" && cargo build --release --quiet --bin diffdisk)
diffdisk=$(realpath "$diffdisk")
seed=${SEED:-20261125}
rounds=${ROUNDS:-4}
speed_mib=${SPEED_MIB:-512}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

missing=()
install() {
    command -v apt-get >/dev/null || return 1
    local sudo=""
    [[ $(id -u) == 0 ]] || sudo="sudo -n"
    $sudo apt-get install -y -qq "$@" >/dev/null 2>&1 || { $sudo apt-get update -qq >/dev/null 2>&1 && $sudo apt-get install -y -qq "$@" >/dev/null 2>&1; }
}
have_qemu() { command -v qemu-img >/dev/null; }
have_7zip() {
    for zip in 7zz 7z; do
        if command -v "$zip" >/dev/null && "$zip" i | grep -i '\bvhdx\b' >/dev/null; then return 0; fi
    done
    return 1
}
need() { # NAME TEST PACKAGE...
    local name=$1 test=$2 package
    shift 2
    "$test" && return 0
    for package in "$@"; do
        install "$package" && "$test" && return 0
    done
    missing+=("$name")
    echo "convert: MISSING $name (tried to install: $*)"
}
zip=""
need qemu-img have_qemu qemu-utils
need 7-Zip have_7zip 7zip p7zip-full
command -v python3 >/dev/null || { echo "convert: needs python3" >&2; exit 1; }
is_missing() { [[ " ${missing[*]-} " == *" $1 "* ]]; }

fail() { echo "convert: FAILED (seed $seed): $*" >&2; exit 1; }
declare -A count=([qemu]=0 [7-Zip]=0 [delta]=0 [rebase]=0)
tick() { count[$1]=$((count[$1] + 1)); }

# scribble FILE SIZE TIMES SEED [FROM TO]: random stretches of a sparse raw file become other bytes, or zeros, or holes.
cat >scribble.py <<'PY'
import os, random, sys
path, size, times, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
low, high = (int(x) for x in sys.argv[5:7]) if len(sys.argv) > 5 else (0, size)
rng = random.Random(seed)
with open(path, "r+b" if os.path.exists(path) else "w+b") as file:
    file.truncate(size)
    for _ in range(times):
        at = rng.randrange(low, high)
        length = min(rng.choice([500, 8192, 300_000, 3 << 20]), high - at)
        file.seek(at)
        file.write(bytes(length) if rng.random() < 0.3 else rng.randbytes(length))
PY
sha() { sha256sum <"$1" | cut -d' ' -f1; }

agree() { # VHDX RAW: foreign readers of a disk without a parent, 512-byte sectors
    if ! is_missing qemu-img; then
        qemu-img check -q "$1" || fail "qemu-img check $1"
        qemu-img compare -q -f vhdx -F raw "$1" "$2" || fail "qemu-img says that $1 and $2 differ"
        qemu-img convert -f vhdx -O raw "$1" theirs.img
        cmp -s theirs.img "$2" || fail "qemu-img reads $1 otherwise"
        tick qemu
    fi
    zip_agrees "$1" "$2"
}
zip_agrees() { # VHDX RAW
    is_missing 7-Zip && return 0
    local theirs
    theirs=$("$zip" e -so -tVHDX "$1" 2>/dev/null | sha256sum | cut -d' ' -f1) || fail "7-Zip cannot unpack $1"
    [[ $theirs == "$(sha "$2")" ]] || fail "7-Zip reads $1 otherwise"
    tick 7-Zip
}

echo "convert: seed $seed, $rounds rounds, missing: ${missing[*]:-nothing}"
for ((round = 0; round < rounds; round++)); do
    rm -f ./*.vhdx ./*.img
    size=$(((30 + round * 7) * 1048576))
    python3 scribble.py one.img "$size" 12 "$seed-$round-one"
    cp --sparse=always one.img two.img
    # The second generation changes the upper half, clones the lower one: a rebase has no conflict.
    python3 scribble.py two.img "$size" 6 "$seed-$round-two" $((size / 2 / 1048576 * 1048576)) "$size"

    for to in vhdx vhdx-fixed; do
        "$diffdisk" convert one.img "one-$to.vhdx" --to "$to" --block-size $((1 << (round % 3)))M >/dev/null
        agree "one-$to.vhdx" one.img
        "$diffdisk" convert "one-$to.vhdx" back.img >/dev/null
        cmp -s back.img one.img || fail "back from $to"
        rm back.img
    done
    "$diffdisk" convert one.img - --workers 1 | cmp -s - one.img || fail "a pipe"
    if ! is_missing qemu-img; then
        qemu-img convert -f raw -O vhdx two.img theirs.vhdx
        "$diffdisk" compare theirs.vhdx two.img >/dev/null || fail "qemu-img's VHDX is not what it was made of"
    fi

    # Restored as a clone of the image, read by others as a chain; the same changes as a list, and as a file to send.
    mv one-vhdx.vhdx one.vhdx
    "$diffdisk" convert two.img two.vhdx --to vhdx >/dev/null
    "$diffdisk" convert two.img clone.vhdx --parent one.vhdx >/dev/null
    zip_agrees clone.vhdx two.img
    "$diffdisk" compare clone.vhdx two.img >/dev/null || fail "a dump restored as a clone"
    "$diffdisk" diff one.vhdx two.vhdx --json >list.json
    "$diffdisk" diff one.vhdx clone.vhdx --json >family.json
    python3 - list.json family.json one.img two.img <<'PY' || fail "diff lists other changes than there are"
import json, sys
lists = [json.load(open(path))["extents"] for path in sys.argv[1:3]]
assert lists[0] == lists[1], "two ways to the same disk"
one, two = (open(path, "rb").read() for path in sys.argv[3:5])
told = set()
for extent in lists[0]:
    told.update(range(extent["start"] // 4096, (extent["start"] + extent["length"] + 4095) // 4096))
for at in range(0, len(one), 4096):
    assert (one[at:at + 4096] != two[at:at + 4096]) == (at // 4096 in told), at
PY
    "$diffdisk" diff one.vhdx two.vhdx --export delta.vhdx >/dev/null
    mkdir -p there && cp --sparse=always one.vhdx delta.vhdx there/
    if "$diffdisk" merge --help >/dev/null 2>&1; then
        (cd there && "$diffdisk" merge delta.vhdx --to merged.vhdx >/dev/null) || fail "the delta does not merge"
        agree there/merged.vhdx two.img
    else
        echo "convert: skipped: there is no merge to apply the delta with; it is read over its parent instead"
        zip_agrees there/delta.vhdx two.img
        "$diffdisk" compare there/delta.vhdx two.img >/dev/null || fail "the delta over its parent"
    fi
    rm -r there
    tick delta

    # A clone of the first image, changed below, put onto the second one; and one that keeps what it shows.
    cp --sparse=always one.img mine.img
    python3 scribble.py mine.img "$size" 3 "$seed-$round-mine" 0 $((size / 2 / 1048576 * 1048576))
    "$diffdisk" convert mine.img mine.vhdx --parent one.vhdx >/dev/null
    cp --sparse=always mine.vhdx kept.vhdx
    "$diffdisk" rebase mine.vhdx --onto two.vhdx >/dev/null || fail "conflicts where there are none"
    head -c $((size / 2 / 1048576 * 1048576)) mine.img >expected.img
    tail -c +$((size / 2 / 1048576 * 1048576 + 1)) two.img >>expected.img
    zip_agrees mine.vhdx expected.img
    "$diffdisk" rebase kept.vhdx --onto two.vhdx --keep-content >/dev/null
    rm one.vhdx
    zip_agrees kept.vhdx mine.img
    "$diffdisk" check kept.vhdx --chain >/dev/null || fail "check after a rebase"
    "$diffdisk" compare kept.vhdx mine.img >/dev/null || fail "a rebase that keeps the content"
    tick rebase
done

# ---- speed, beside qemu-img on the same input in the same minute ----------------------------------------------------------------------

if ((speed_mib > 0)) && ! is_missing qemu-img; then
    bash "$here/benches/convert.sh" "$diffdisk" "$speed_mib"
fi

echo "convert: agreed: qemu-img ${count[qemu]}, 7-Zip ${count[7-Zip]}; deltas ${count[delta]}, rebases ${count[rebase]}"
if ((${#missing[@]} > 0)); then
    echo "convert: not run for want of tools: ${missing[*]}"
    [[ ${CI:-} != true ]] || exit 1
fi
