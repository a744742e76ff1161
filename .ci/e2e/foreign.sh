#!/usr/bin/env bash
# Our files through foreign readers, and foreign files through us.
#
# Sessions of random writes and trims (one seed, printed) go through `diffdisk`; after each clean close the files are handed to
#   qemu-img   fixed and dynamic disks: check, compare, and the digest of what it reads
#   7-Zip      the same and chains of children: the digest of what it unpacks
#   libvhdi    the same, through its Python binding, parents set by hand
# and images that qemu-img makes and qemu-io writes are read by us. Foreign defects are excluded by name, each with a line that says so.
#
#   .ci/e2e/foreign.sh [BINARY]     SEED=n ROUNDS=n
set -euo pipefail

here=$(cd "$(dirname "$0")/../.." && pwd)
diffdisk=${1:-${CARGO_TARGET_DIR:-$here/target}/release/diffdisk}
[[ -x $diffdisk ]] || (cd "$here" && cargo build --release --quiet --bin diffdisk)
[[ -x $diffdisk ]] || { echo "foreign: no binary at $diffdisk" >&2; exit 1; }
diffdisk=$(realpath "$diffdisk")
seed=${SEED:-20240423}
rounds=${ROUNDS:-12}
RANDOM=$((seed % 32768))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# ---- tools -------------------------------------------------------------------------------------------------------------------------

missing=()
install() { # PACKAGE...: quietly, if this machine can
    command -v apt-get >/dev/null || return 1
    local sudo=""
    [[ $(id -u) == 0 ]] || sudo="sudo -n"
    $sudo apt-get install -y -qq "$@" >/dev/null 2>&1 || { $sudo apt-get update -qq >/dev/null 2>&1 && $sudo apt-get install -y -qq "$@" >/dev/null 2>&1; }
}
have_7zip() {
    for zip in 7zz 7z; do
        # Listing one VHDX is the only honest test: old versions know VHD and not VHDX.
        if command -v "$zip" >/dev/null && "$zip" i | grep -i '\bvhdx\b' >/dev/null; then return 0; fi
    done
    return 1
}
have_libvhdi() {
    for python in /usr/bin/python3 python3; do
        if command -v "$python" >/dev/null && "$python" -c 'import pyvhdi' 2>/dev/null; then return 0; fi
    done
    return 1
}
have_qemu() { command -v qemu-img >/dev/null && command -v qemu-io >/dev/null; }
need() { # NAME TEST PACKAGE...
    local name=$1 test=$2
    shift 2
    "$test" && return 0
    for package in "$@"; do
        install "$package" && "$test" && return 0
    done
    missing+=("$name")
    echo "foreign: MISSING $name (tried to install: $*)"
}
zip="" python=""
need qemu-img have_qemu qemu-utils
need 7-Zip have_7zip 7zip p7zip-full
need libvhdi have_libvhdi python3-libvhdi
is_missing() { [[ " ${missing[*]-} " == *" $1 "* ]]; }

cat >vhdi.py <<'PY'
import hashlib, sys, pyvhdi
files = []
for path in sys.argv[1:]:  # leaf first
    file = pyvhdi.file()
    file.open(path)
    files.append(file)
for child, parent in zip(files, files[1:]):
    child.set_parent(parent)
leaf, digest = files[0], hashlib.sha256()
left = leaf.get_media_size()
leaf.seek_offset(0, 0)
while left:
    part = leaf.read_buffer(min(left, 1 << 20))
    if not part:
        raise SystemExit(f"libvhdi stops {left} bytes before the end")
    digest.update(part)
    left -= len(part)
print(digest.hexdigest())
PY

# ---- counters and comparisons ------------------------------------------------------------------------------------------------------

declare -A count=([qemu-check]=0 [qemu-compare]=0 [qemu-digest]=0 [7-Zip]=0 [libvhdi]=0 [theirs]=0 [sealed]=0 [writes]=0 [trims]=0 [excluded]=0)
tick() { count[$1]=$((count[$1] + 1)); }
fail() { echo "foreign: FAILED (seed $seed): $*" >&2; exit 1; }
excluded() { tick excluded; echo "excluded: $1"; }
digest_of() { "$diffdisk" digest "$1" | cut -d' ' -f1; }
same() { # WHO FILE THEIRS OURS
    [[ $3 == "$4" ]] || fail "$1 reads $2 as $3, we as $4"
}

qemu_agrees() { # FILE OURS: a disk without a parent, 512-byte sectors
    is_missing qemu-img && return 0
    qemu-img check -q "$1" || fail "qemu-img check $1"
    tick qemu-check
    rm -f flat.img
    "$diffdisk" convert "$1" flat.img --to raw >/dev/null
    qemu-img compare -q -f vhdx -F raw "$1" flat.img || fail "qemu-img compare $1"
    tick qemu-compare
    rm -f theirs.img
    qemu-img convert -f vhdx -O raw "$1" theirs.img
    same qemu-img "$1" "$(sha256sum <theirs.img | cut -d' ' -f1)" "$2"
    tick qemu-digest
}
zip_agrees() { # FILE OURS
    is_missing 7-Zip && return 0
    local theirs
    theirs=$("$zip" e -so -tVHDX "$1" 2>/dev/null | sha256sum | cut -d' ' -f1) || fail "7-Zip cannot unpack $1"
    same 7-Zip "$1" "$theirs" "$2"
    tick 7-Zip
}
vhdi_agrees() { # OURS LEAF PARENT...
    is_missing libvhdi && return 0
    local ours=$1 theirs
    shift
    theirs=$("$python" vhdi.py "$@") || fail "libvhdi cannot read $*"
    same libvhdi "$*" "$theirs" "$ours"
    tick libvhdi
}

# ---- sessions ----------------------------------------------------------------------------------------------------------------------

# Sets `picked` to a number below $1. No command substitution: bash seeds RANDOM afresh in a subshell, and a seed would mean nothing.
pick() { picked=$(((RANDOM * 1073741824 + RANDOM * 32768 + RANDOM) % $1)); }
# Content from a word: reproducible, and never a run of zeros.
content() { yes "$seed $1" | head -c "$2" || true; }
session() { # FILE SIZE OPERATIONS TRIMS?
    local file=$1 size=$2 i offset length word
    for ((i = 0; i < $3; i++)); do
        pick "$size" && offset=$picked
        pick 300000 && length=$((picked + 1)) word="$i $RANDOM"
        ((RANDOM % 4)) || length=$((length * 9))
        ((offset + length <= size)) || length=$((size - offset))
        if [[ $4 == trims ]] && ((RANDOM % 4 == 0)); then
            "$diffdisk" trim "$file" --offset "$offset" --length "$length" >/dev/null
            tick trims
        else
            content "$word" "$length" | "$diffdisk" write "$file" --offset "$offset" >/dev/null
            tick writes
        fi
    done
    [[ $("$diffdisk" info "$file" --json) == *'"log":"clean"'* ]] || fail "$file is not clean after a session"
    "$diffdisk" check "$file" --chain >/dev/null || fail "our own check of $file"
}

echo "foreign: seed $seed, $rounds rounds, missing: ${missing[*]:-nothing}"
for ((round = 0; round < rounds; round++)); do
    rm -f ./*.vhdx
    # 7-Zip refuses odd multiples of the sector size: sizes here are even, and the odd ones come below.
    pick 40000 && size=$(((picked + 8000) * 1024))
    block=$((1 << (RANDOM % 4)))M
    kind=""
    ((round % 2)) || kind=--fixed
    # shellcheck disable=SC2086 # $kind is one option or none
    "$diffdisk" create base.vhdx --size "$size" --block-size "$block" $kind >/dev/null
    session base.vhdx "$size" 8 trims
    ours=$(digest_of base.vhdx)
    qemu_agrees base.vhdx "$ours"
    zip_agrees base.vhdx "$ours"
    vhdi_agrees "$ours" base.vhdx

    # A chain of three: its middle is written before the leaf is made. Block sizes differ.
    sealed=$(sha256sum <base.vhdx)
    "$diffdisk" create middle.vhdx --parent base.vhdx >/dev/null
    trims=none
    ((round % 3)) || trims=trims
    session middle.vhdx "$size" 8 "$trims"
    "$diffdisk" create leaf.vhdx --parent middle.vhdx --block-size 2M >/dev/null
    session leaf.vhdx "$size" 8 "$trims"
    for chain in "middle.vhdx base.vhdx" "leaf.vhdx middle.vhdx base.vhdx"; do
        read -ra files <<<"$chain"
        ours=$(digest_of "${files[0]}")
        zip_agrees "${files[0]}" "$ours"
        if [[ $("$diffdisk" map "${files[0]}" --json) == *'"kind":"zero"'* ]]; then
            excluded "libvhdi on ${files[0]} of round $round: it reads the parent where a child says ZERO"
        else
            # shellcheck disable=SC2086 # a list of names without spaces
            vhdi_agrees "$ours" $chain
        fi
    done
    [[ $(sha256sum <base.vhdx) == "$sealed" ]] || fail "a parent changed under its children"
    tick sealed
done

# ---- what foreign readers are known to get wrong, one by one ------------------------------------------------------------------------

rm -f ./*.vhdx
"$diffdisk" create odd.vhdx --size $((8 * 1048576 + 512)) >/dev/null
session odd.vhdx $((8 * 1048576 + 512)) 3 none
qemu_agrees odd.vhdx "$(digest_of odd.vhdx)"
vhdi_agrees "$(digest_of odd.vhdx)" odd.vhdx
excluded "7-Zip on a size that is an odd number of sectors: it refuses the file"
"$diffdisk" create four.vhdx --size 16M --sector 4096 >/dev/null
session four.vhdx 16777216 4 trims
zip_agrees four.vhdx "$(digest_of four.vhdx)"
vhdi_agrees "$(digest_of four.vhdx)" four.vhdx
excluded "qemu-img on 4096-byte logical sectors: it refuses the file"
excluded "qemu-img on differencing disks: it refuses the file"
"$diffdisk" create long.vhdx --parent odd.vhdx --size 12M >/dev/null
session long.vhdx 12582912 3 none
excluded "7-Zip and libvhdi on a child larger than its parent: one stops, one fails at the parent's end; ours reads zeros"
excluded "libvhdi finds no parent by relative_path (it looks for a key of another length), so it is told the parents"

# ---- theirs through us -------------------------------------------------------------------------------------------------------------

if ! is_missing qemu-img; then
    for subformat in dynamic fixed; do
        for block in 1M 8M 32M; do
            rm -f theirs.vhdx theirs.img
            qemu-img create -q -f vhdx -o "subformat=$subformat,block_size=$block" theirs.vhdx 48M
            commands=()
            for ((i = 0; i < 6; i++)); do
                pick 90000 && at=$((picked * 512))
                pick 600 && commands+=(-c "write -q -P $((RANDOM % 255 + 1)) $at $(((picked + 1) * 512))")
            done
            qemu-io -f vhdx "${commands[@]}" theirs.vhdx
            qemu-img convert -f vhdx -O raw theirs.vhdx theirs.img
            "$diffdisk" check theirs.vhdx >/dev/null || fail "our check of qemu's $subformat image, blocks of $block"
            same us theirs.vhdx "$(sha256sum <theirs.img | cut -d' ' -f1)" "$(digest_of theirs.vhdx)"
            # And once more after we have written to it.
            session theirs.vhdx $((48 * 1048576)) 3 trims
            qemu_agrees theirs.vhdx "$(digest_of theirs.vhdx)"
            tick theirs
        done
    done
fi

echo "foreign: ${count[writes]} writes and ${count[trims]} trims; agreed: qemu-img check ${count[qemu-check]}, compare ${count[qemu-compare]}," \
    "digest ${count[qemu-digest]}; 7-Zip ${count[7-Zip]}; libvhdi ${count[libvhdi]}; qemu's images through us ${count[theirs]};" \
    "parents unchanged ${count[sealed]}; excluded ${count[excluded]}"
if ((${#missing[@]} > 0)); then
    echo "foreign: not run for want of tools: ${missing[*]}"
    [[ ${CI:-} != true ]] || exit 1
fi
