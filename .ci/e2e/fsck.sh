#!/bin/bash
# End to end: ext4 in a clone, mounted through nbdfuse and a loop device. A storm of files, `kill -9` of the server in the middle of it,
# served and mounted again: what was fsynced is there and e2fsck finds nothing. Then discard: `fstrim` gives the clone's space back and
# never uncovers bytes of the parent. The parent is hashed before and after.
#
# Usage: .ci/e2e/fsck.sh [path of the diffdisk binary [rounds [seed]]]
set -euo pipefail
# shellcheck source=.ci/e2e/lib.sh
source "$(dirname "$0")/lib.sh" "$@"
rounds=${2:-3} seed=${3:-1}

need_kernel_doors
need_libnbd
need e2fsprogs mke2fs e2fsck
need util-linux fstrim losetup
cd "$work"
seed_random "$seed"

mount_ext4() {
    # After an error nothing more is written: what a guest whose disk died does.
    mount -t ext4 -o errors=remount-ro,discard "$loop" "$fs"
}

clean_ext4() {
    e2fsck -fn "$loop" >e2fsck.txt 2>&1 || { cat e2fsck.txt; die "e2fsck finds errors"; }
}

allocated() {
    echo $(($(stat -c '%b * %B' "$1")))
}

# The parent: an ext4 with some files, all of its free space filled with a mark.
truncate -s 256M parent.img
"$python" "$here/fsck_parent.py" fill parent.img
mkdir files
cp -r "$here" files/
mke2fs -q -F -t ext4 -b 4096 -m 0 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 -d files parent.img
"$diffdisk" convert parent.img parent.vhdx --from raw >/dev/null
seal parent.vhdx

say "does a flush of the guest reach the server?"
"$diffdisk" create probe.vhdx --parent parent.vhdx >/dev/null
serve probe.vhdx
attach "$socket" -v
mount_ext4
before=$(grep -c 'nbd_aio_flush: enter' nbdfuse.txt || true)
for n in 1 2 3 4 5 6 7 8 9 10; do dd if=/dev/zero of="$fs/probe$n" bs=4k count=1 conv=fsync status=none; done
after=$(grep -c 'nbd_aio_flush: enter' nbdfuse.txt)
say "10 fsyncs of files: $((after - before)) flushes sent to the server"
[ $((after - before)) -ge 10 ] || die "flushes are lost on the way"
detach
stop
rm probe.vhdx

# check_storm CLONE LEDGER: what the storm was promised, then what e2fsck thinks.
check_storm() {
    serve "$1"
    attach
    mount_ext4 # the kernel replays the journal
    "$python" "$here/fsck_storm.py" check "$fs" "$2"
    umount "$fs"
    clean_ext4
}

"$diffdisk" create clone.vhdx --parent parent.vhdx >/dev/null
: >ledger.txt
for ((round = 1; round <= rounds; round++)); do
    serve clone.vhdx
    attach
    mount_ext4
    if ((round % 5 == 0)); then # room for the next ones
        rm -rf "$fs"/w*
        : >ledger.txt
    fi
    random 3000
    delay=$((500 + drawn))
    "$python" "$here/fsck_storm.py" storm "$fs" ledger.txt "$seed.$round" 60 &
    storm=$!
    sleep "$(printf '%d.%03d' $((delay / 1000)) $((delay % 1000)))"
    flushes=$(device_flushes)
    crash
    wait "$storm" || die "the storm did not notice that its disk is gone"
    detach
    "$diffdisk" check clone.vhdx >/dev/null || die "the clone is damaged"
    log=$("$diffdisk" info clone.vhdx --json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["log"])')
    say "round $round: killed after $delay ms and $flushes flushes, log $log"
    check_storm clone.vhdx ledger.txt
    detach
    stop
done
"$diffdisk" check clone.vhdx >/dev/null || die "the clone is damaged"

say "would this notice a lost flush? The kernel is told that the device has no cache, so it sends none:"
"$diffdisk" create control.vhdx --parent parent.vhdx >/dev/null
: >control.txt
serve control.vhdx
attach
swallow_flushes
mount_ext4
"$python" "$here/fsck_storm.py" storm "$fs" control.txt "$seed" 60 &
storm=$!
sleep 2
crash
wait "$storm" || die "the storm did not notice that its disk is gone"
detach
"$diffdisk" check control.vhdx >/dev/null || die "the clone is damaged"
serve control.vhdx
attach
if mount_ext4 2>/dev/null && "$python" "$here/fsck_storm.py" check "$fs" control.txt; then
    die "a server that was never told to flush lost nothing: this test shows nothing"
fi
say "it would: that is what a lost flush looks like"
detach
stop

say "discard"
serve clone.vhdx
attach
mount -t ext4 "$loop" "$fs"
dd if=/dev/urandom of="$fs/large" bs=1M status=none 2>/dev/null || true # until it is full
sync -f "$fs"
umount "$fs"
detach
stop
"$diffdisk" read clone.vhdx | "$python" "$here/fsck_parent.py" find >marks.full
full=$(allocated clone.vhdx)
serve clone.vhdx
attach
mount -t ext4 "$loop" "$fs"
find "$fs" -name large -delete
rm -rf "$fs"/w*
sync -f "$fs"
fstrim "$fs"
sync -f "$fs"
crash # what the trim did is flushed: a crash must not undo it, and must not uncover anything either
detach
"$diffdisk" check clone.vhdx >/dev/null || die "the clone is damaged"
"$diffdisk" read clone.vhdx | "$python" "$here/fsck_parent.py" find >marks.crash
serve clone.vhdx
attach
mount -t ext4 "$loop" "$fs"
fstrim "$fs"
diff -r "$here" "$fs/$(basename "$here")" || die "the files of the parent changed"
umount "$fs"
clean_ext4
detach
stop
trimmed=$(allocated clone.vhdx)
"$diffdisk" read clone.vhdx | "$python" "$here/fsck_parent.py" find >marks.trimmed
say "full: $full bytes allocated, $(wc -l <marks.full) pieces show the parent; trimmed: $trimmed bytes, $(wc -l <marks.trimmed) pieces"
[ "$trimmed" -lt $((full / 4)) ] || die "the clone did not shrink"
for marks in marks.crash marks.trimmed; do
    uncovered=$(comm -13 <(sort marks.full) <(sort $marks) | wc -l)
    [ "$uncovered" = 0 ] || die "$uncovered pieces of the parent came to light ($marks)"
done
"$diffdisk" check clone.vhdx >/dev/null || die "the clone is damaged"

check_parent
say ok
