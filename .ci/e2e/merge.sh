#!/usr/bin/env bash
# Merged and flattened files through foreign readers, kill -9 in the middle, and the time beside `qemu-img commit`.
#
# A base and a clone of it with scattered changes; the model is a raw file with the same bytes. After each verb the result goes to
#   qemu-img   check, and compare with the model
#   7-Zip      the digest of what it unpacks
# Then merges are killed at random moments: the clone must show what it showed, and the same command must finish the work.
#
#   .ci/e2e/merge.sh [BINARY]     CHANGES=n KILLS=n ROUNDS=n
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "$(realpath "$0")")/lib.sh" "$@"
need qemu-utils qemu-img qemu-io
seven=''
for tool in 7zz 7z; do
    if command -v $tool >/dev/null && $tool i | grep -i '\bvhdx\b' >/dev/null; then seven=$tool; fi
done
[ -n "$seven" ] || need p7zip-full 7z
[ -n "$seven" ] || { 7z i | grep -i '\bvhdx\b' >/dev/null && seven=7z; } || say "7-Zip here does not know VHDX; its part is left out"
changes=${CHANGES:-4096} kills=${KILLS:-10} rounds=${ROUNDS:-3}
cd "$work"

# The model: 512 MiB, every third MiB of the base filled; 4 KiB changes all over, some of them zeros.
"$python" - "$changes" <<'EOF'
import os, random, sys
random.seed(7)
size, n = 512 << 20, int(sys.argv[1])
for name in ("base.raw", "model.raw"):
    with open(name, "wb") as f:
        f.truncate(size)
block = random.randbytes(1 << 20)
for name in ("base.raw", "model.raw"):
    with open(name, "r+b") as f:
        for at in range(0, size, 3 << 20):
            f.seek(at); f.write(block)
places = random.sample(range(size // 4096), n)
with open("model.raw", "r+b") as f, open("qemu-io.txt", "w") as io:
    for i, place in enumerate(places):
        byte = i % 251
        f.seek(place * 4096); f.write(bytes([byte]) * 4096)
        io.write(f"write -q -P {byte} {place * 4096} 4096\n")
EOF
model_sum=$(sha256sum <model.raw)

fresh() { # base.vhdx and clone.vhdx, anew
    rm -f base.vhdx clone.vhdx
    cp --sparse=always kept/base.vhdx base.vhdx
    cp --sparse=always kept/clone.vhdx clone.vhdx
}
foreign() { # FILE [MODEL SUM]: qemu and 7-Zip find the model in it
    local model=${2:-model.raw} model_sum=${3:-$model_sum}
    qemu-img check -q -f vhdx "$1" || die "qemu-img check refuses $1"
    qemu-img compare -q -f vhdx -F raw "$1" "$model" || die "qemu-img finds something else in $1"
    if [ -n "$seven" ]; then
        rm -rf out && "$seven" x -y -oout "$1" >/dev/null || die "7-Zip refuses $1"
        [ "$(sha256sum <out/*)" = "$model_sum" ] || die "7-Zip finds something else in $1"
        rm -rf out
    fi
    "$diffdisk" check "$1" >/dev/null || die "our own check refuses $1"
}
shows() { "$diffdisk" compare "$1" model.raw >/dev/null || die "$1 shows something else: $2"; }

# The originals are kept in a folder of their own: a second child beside the base would stand in the way of a merge into it.
"$diffdisk" convert base.raw base.vhdx >/dev/null
"$diffdisk" convert model.raw clone.vhdx --parent base.vhdx >/dev/null
mkdir kept
cp --sparse=always base.vhdx clone.vhdx kept

"$diffdisk" merge clone.vhdx --to new.vhdx >/dev/null
foreign new.vhdx
cmp base.vhdx kept/base.vhdx && cmp clone.vhdx kept/clone.vhdx || die "merge --to changed another file"
"$diffdisk" hydrate clone.vhdx >/dev/null
shows clone.vhdx hydrated
# Still a child, which qemu cannot read: 7-Zip follows its link. And the clone has all of it, so a stranger in its parent's place would not show.
if [ -n "$seven" ]; then
    rm -rf out && "$seven" x -y -oout clone.vhdx >/dev/null || die "7-Zip refuses the hydrated clone"
    [ "$(sha256sum <out/*)" = "$model_sum" ] || die "7-Zip finds something else in the hydrated clone"
    rm -rf out
fi
fresh
"$diffdisk" flatten clone.vhdx >/dev/null
rm base.vhdx
foreign clone.vhdx
fresh
"$diffdisk" merge clone.vhdx --delete >/dev/null
[ ! -e clone.vhdx ] || die "the clone is still there"
foreign base.vhdx
say "qemu-img${seven:+ and 7-Zip} read merged, new and flattened files as the model"

# The same under the books of a store: hydrated, flattened, saved and resized; in the end nothing of the store is left.
export DIFFDISK_STORE=$work/images
head -c 64M base.raw >small.raw
"$diffdisk" image create app small.raw >/dev/null
"$diffdisk" clone create app alice.vhdx >/dev/null
for at in 0 3 7 40 63; do
    head -c 5000 /dev/urandom >piece
    "$diffdisk" write alice.vhdx --offset ${at}M --parents images <piece >/dev/null
    dd if=piece of=small.raw bs=1M seek=$at conv=notrunc status=none
done
"$diffdisk" clone hydrate alice >/dev/null
"$diffdisk" compare alice.vhdx small.raw --parents images >/dev/null || die "a hydrated clone shows something else"
"$diffdisk" clone flatten alice >/dev/null
"$diffdisk" image remove app >/dev/null
small_sum=$(sha256sum <small.raw)
foreign alice.vhdx small.raw "$small_sum"
"$diffdisk" clone resize alice --size 96M >/dev/null
truncate -s 96M small.raw
foreign alice.vhdx small.raw "$(sha256sum <small.raw)"
"$diffdisk" clone save alice s >/dev/null
"$diffdisk" clone drop alice s >/dev/null
foreign alice.vhdx small.raw "$(sha256sum <small.raw)"
"$diffdisk" clone check alice >/dev/null || die "a check finds fault with a flattened clone"
unset DIFFDISK_STORE
say "a clone that was hydrated, flattened, resized and saved without its image: the same to foreign readers"

seed_random 3
killed=0
for verb in merge flatten; do
    fresh
    for ((round = 0; round < kills; round++)); do
        "$diffdisk" $verb clone.vhdx >/dev/null 2>&1 &
        act=$!
        random 90
        sleep "0.$(printf '%03d' "$drawn")"
        if kill -9 $act 2>/dev/null; then killed=$((killed + 1)); fi
        wait $act 2>/dev/null || true
        shows clone.vhdx "killed $verb, round $round"
    done
    "$diffdisk" $verb clone.vhdx >/dev/null
    shows clone.vhdx "$verb in the end"
done
foreign clone.vhdx
say "$killed kills of merge and flatten: the clone showed the same after each"

fresh
"$diffdisk" merge clone.vhdx >/dev/null 2>&1 &
act=$!
sleep 0.02
kill -INT $act 2>/dev/null || true
status=0
wait $act || status=$?
[ $status = 9 ] || [ $status = 0 ] || die "Ctrl-C ends a merge with $status"
shows clone.vhdx "after Ctrl-C"

# The same input for both: a qcow2 overlay with the same writes. Interleaved; the median counts.
qemu-img convert -q -f raw -O qcow2 base.raw base0.qcow2
ours=() theirs=()
for ((round = 0; round < rounds; round++)); do
    cp --sparse=always base0.qcow2 base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 clone.qcow2
    qemu-io -f qcow2 clone.qcow2 <qemu-io.txt >/dev/null
    fresh
    sync -f .
    from=$(date +%s%N); qemu-img commit -q -d -f qcow2 clone.qcow2; theirs+=($(($(date +%s%N) - from)))
    qemu-img compare -q -f qcow2 -F raw base.qcow2 model.raw || die "the overlay is not the same input"
    sync -f .
    from=$(date +%s%N); "$diffdisk" merge clone.vhdx --delete >/dev/null; ours+=($(($(date +%s%N) - from)))
done
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
ours=$(median "${ours[@]}") theirs=$(median "${theirs[@]}")
awk -v a="$ours" -v b="$theirs" -v n="$changes" -v name="$name" 'BEGIN {
    printf "%s: %d changes of 4 KiB: diffdisk merge %.1f ms, qemu-img commit (qcow2) %.1f ms, ratio %.2f\n", name, n, a / 1e6, b / 1e6, a / b }'
