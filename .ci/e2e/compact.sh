#!/usr/bin/env bash
# Compacted and resized disks through foreign readers, kill -9 in the middle, and the time of a resize beside `qemu-img resize`.
#
# The model is a raw file with the same bytes. A disk is filled, overwritten with zeros and trimmed here and there, compacted, killed while it
# compacts, grown past what its block allocation table can map (so that the table moves) and shrunk again. After each verb
#   qemu-img   check, and compare with the model
#
#   .ci/e2e/compact.sh [BINARY]     KILLS=n ROUNDS=n
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "$(realpath "$0")")/lib.sh" "$@"
need qemu-utils qemu-img
kills=${KILLS:-8} rounds=${ROUNDS:-5}
cd "$work"

"$python" - <<'EOF'
import os, random
random.seed(11)
size = 256 << 20
with open("full.raw", "wb") as full, open("model.raw", "wb") as model:
    for f in (full, model):
        f.truncate(size)
    for mib in range(0, 256):
        if mib % 4 == 3:
            continue
        block = random.randbytes(1 << 20)
        full.seek(mib << 20); full.write(block)
        # Every fifth block becomes zeros as a whole, every seventh in its second half.
        if mib % 5 == 0:
            continue
        model.seek(mib << 20); model.write(block[: 1 << 19] if mib % 7 == 0 else block)
EOF
sound() { # FILE MODEL: qemu and we find no fault in it, and the model in it
    qemu-img check -q -f vhdx "$1" || die "qemu-img check refuses $1"
    qemu-img compare -q -f vhdx -F raw "$1" "$2" || die "qemu-img finds something else in $1"
    "$diffdisk" check "$1" >/dev/null || die "our own check refuses $1"
}

"$diffdisk" convert full.raw disk.vhdx >/dev/null
# The zeros are written as data where the model has them, which is what a compaction is to find.
"$python" - <<'EOF' >zeros.txt
for mib in range(0, 256):
    if mib % 4 == 3:
        continue
    if mib % 5 == 0:
        print(mib << 20, 1 << 20)
    elif mib % 7 == 0:
        print((mib << 20) + (1 << 19), 1 << 19)
EOF
while read -r offset length; do
    head -c "$length" /dev/zero | "$diffdisk" write disk.vhdx --offset "$offset" >/dev/null
done <zeros.txt
cp --sparse=always disk.vhdx disk0.vhdx
before=$(stat -c %s disk.vhdx)
"$diffdisk" compact disk.vhdx >/dev/null
after=$(stat -c %s disk.vhdx)
[ "$after" -lt $((before * 9 / 10)) ] || die "compacting cut $before bytes to $after only"
sound disk.vhdx model.raw
say "compacted: $((before >> 20)) MiB became $((after >> 20)); qemu-img reads it as the model"

seed_random 5
killed=0
cp --sparse=always disk0.vhdx disk.vhdx
for ((round = 0; round < kills; round++)); do
    "$diffdisk" compact disk.vhdx >/dev/null 2>&1 &
    act=$!
    random 60
    sleep "0.$(printf '%03d' "$drawn")"
    if kill -9 $act 2>/dev/null; then killed=$((killed + 1)); fi
    wait $act 2>/dev/null || true
    "$diffdisk" compare disk.vhdx model.raw >/dev/null || die "killed while it compacted, round $round: it shows something else"
done
"$diffdisk" compact disk.vhdx >/dev/null
sound disk.vhdx model.raw
say "$killed kills of compact: the disk showed the same after each"

# 300 GiB do not fit a table of 1 MiB with blocks of 1 MiB. qemu-img reads holes of VHDX as bytes, so it is given the old part and the last MiB only.
"$diffdisk" resize disk.vhdx --size 300G >/dev/null
qemu-img check -q -f vhdx disk.vhdx || die "qemu-img check refuses the grown disk"
"$diffdisk" check disk.vhdx >/dev/null || die "our own check refuses the grown disk"
part() { echo "driver=raw,offset=$1,size=$2,file.driver=vhdx,file.file.driver=file,file.file.filename=disk.vhdx"; }
qemu-img compare -q --image-opts "$(part 0 268435456)" driver=raw,file.driver=file,file.filename=model.raw || die "qemu-img finds something else in the grown disk"
truncate -s 1M zeros.raw
qemu-img compare -q --image-opts "$(part $((299 << 30 | 1023 << 20)) 1048576)" driver=raw,file.driver=file,file.filename=zeros.raw ||
    die "qemu-img finds something in the new end"
status=0
"$diffdisk" resize disk.vhdx --size 100M --shrink >/dev/null 2>&1 || status=$?
[ $status != 0 ] || die "a resize cut content off"
status=0
"$diffdisk" resize disk.vhdx --size 256M >/dev/null 2>&1 || status=$?
[ $status = 2 ] || die "shrinking without --shrink ends with $status"
"$diffdisk" resize disk.vhdx --size 256M --shrink >/dev/null
sound disk.vhdx model.raw
"$diffdisk" create child.vhdx --parent disk.vhdx >/dev/null
status=0
"$diffdisk" resize disk.vhdx --size 1G >/dev/null 2>&1 || status=$?
[ $status != 0 ] || die "a parent was resized under its child"
# The child itself, which qemu-img cannot read: changed, trimmed, compacted, made longer and shorter again, and read by 7-Zip, which follows its link.
cp --sparse=always model.raw child.raw
head -c 20M /dev/urandom >new.raw
"$diffdisk" write child.vhdx --offset 10M <new.raw >/dev/null
dd if=new.raw of=child.raw bs=1M seek=10 conv=notrunc status=none
"$diffdisk" trim child.vhdx --offset 12M --length 6M >/dev/null
dd if=/dev/zero of=child.raw bs=1M seek=12 count=6 conv=notrunc status=none
"$diffdisk" compact child.vhdx >/dev/null
"$diffdisk" resize child.vhdx --size 300G >/dev/null
"$diffdisk" resize child.vhdx --size 256M --shrink >/dev/null
"$diffdisk" compare child.vhdx child.raw >/dev/null || die "the child shows something else"
need p7zip-full 7z
[ "$(7z e -so -tVHDX child.vhdx 2>/dev/null | sha256sum)" = "$(sha256sum <child.raw)" ] || die "7-Zip reads the compacted and resized child otherwise"
rm child.vhdx
say "grown to 300 GiB and back: qemu-img reads both as the model; content and children are not cut off"

ours=() theirs=()
for ((round = 0; round < rounds; round++)); do
    rm -f r.raw r.vhdx
    truncate -s 1G r.raw
    "$diffdisk" create r.vhdx --size 1G >/dev/null
    sync -f .
    from=$(date +%s%N); qemu-img resize -q -f raw r.raw 2G; theirs+=($(($(date +%s%N) - from)))
    from=$(date +%s%N); "$diffdisk" resize r.vhdx --size 2G >/dev/null; ours+=($(($(date +%s%N) - from)))
done
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
ours=$(median "${ours[@]}") theirs=$(median "${theirs[@]}")
awk -v a="$ours" -v b="$theirs" -v name="$name" 'BEGIN {
    printf "%s: resize 1 GiB to 2 GiB, durable: diffdisk %.1f ms, qemu-img (raw, not synced) %.1f ms\n", name, a / 1e6, b / 1e6 }'
