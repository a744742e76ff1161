#!/bin/bash
# End to end: faults under the real binary.
#   1. System calls that fail, one after the other, in every verb that changes something (faults_inject.py).
#   2. A server whose k-th fdatasync fails: the client's flush fails, and no later one is done.
#   3. A disk on a FUSE file whose back end fails at the flip of a switch, and whose server dies in the middle of a write.
#
# Usage: .ci/e2e/faults.sh [path of the diffdisk binary [every N-th place [seed]]]       1 for all of them, which takes long
set -euo pipefail
# shellcheck source=.ci/e2e/lib.sh
source "$(dirname "$0")/lib.sh" "$@"
every=${2:-40} seed=${3:-1}

need strace strace
strace -qq -o /dev/null true 2>/dev/null || skip "strace may not trace here"
need_libnbd

shm=$work/inject
if [ -w /dev/shm ]; then shm=$(mktemp -d -p /dev/shm); fi
device=''
before_cleanup() {
    rm -rf --one-file-system "$shm"
    if [ -n "$device" ]; then kill -9 "$device" 2>/dev/null; fi
}
"$python" "$here/faults_inject.py" "$diffdisk" "$shm/world" --every "$every" --seed "$seed"

say "a k-th fdatasync that fails"
cd "$work"
real=$diffdisk
cat >failing <<SCRIPT
#!/bin/bash
exec strace -f -qq -o /dev/null -e trace=fdatasync,fsync -e inject=fdatasync,fsync:error=EIO:when=\$(cat "$work/when") -- "$real" "\$@"
SCRIPT
chmod +x failing
refused=0
for k in 1 2 3 4 5 6; do
    # From the k-th on in one round, once in the next: a sync that failed is never made good by a later one.
    for when in "$k+" "$k"; do
        echo "$when" >when
        rm -f synced.vhdx # a clean log: opening it syncs nothing
        "$diffdisk" create synced.vhdx --size 16M >/dev/null
        diffdisk=$work/failing
        serve synced.vhdx
        diffdisk=$real
        "$python" - "$uri" "$k" <<'PYTHON' && said=sound || said=refused
import sys
import nbd
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
failed = False
for n in range(8):
    # A request may fail; what must not be is a flush that is done after one that was not.
    try:
        handle.pwrite(bytes([n + 1]) * 4096, (n * 2 + int(sys.argv[2])) << 20 & (15 << 20))
        handle.flush()
        if failed:
            sys.exit("a flush was done after one that failed")
    except nbd.Error:
        failed = True
# Reads go on.
assert len(handle.pread(4096, 0)) == 4096
sys.exit(1 if failed else 0)
PYTHON
        [ "$said" = sound ] || refused=$((refused + 1))
        # The server is strace's child: it is ended gently, closes the disk or says why not, and strace ends with it.
        kill -TERM "$(cat "/proc/$server/task/$server/children")" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=''
        rm -f "$socket"
        "$diffdisk" check synced.vhdx >/dev/null || die "after a failed sync the disk is damaged"
    done
done
[ "$refused" -ge 6 ] || die "only $refused of 12 servers met a failed sync"
say "12 servers, $refused of them met a failed sync and did no flush afterwards"

need_kernel_doors
need nbdkit nbdkit
say "a FUSE back end with a switch"
"$diffdisk" create fixed.vhdx --size 8M --fixed >/dev/null
nbdkit --foreground --unix "$work/device" --filter=error file "$work/fixed.vhdx" error-pwrite=EIO error-pwrite-rate=100% error-pread=EIO \
    error-pread-rate=100% error-file="$work/switch" >nbdkit.txt 2>&1 &
device=$!
for _ in $(seq 300); do
    [ ! -S "$work/device" ] || break
    sleep 0.02
done
mount_point=$work/switched
mkdir "$mount_point"
nbdfuse "$mount_point/disk.vhdx" --unix "$work/device" >nbdfuse.txt 2>&1 &
fuse_of_switch=$!
for _ in $(seq 300); do
    ! is_mounted "$mount_point" || break
    sleep 0.02
done
before_cleanup() {
    umount -l "$mount_point" 2>/dev/null
    kill -9 "$fuse_of_switch" "$device" 2>/dev/null
    rm -rf --one-file-system "$shm"
}
disk=$mount_point/disk.vhdx
head -c 2M /dev/zero | tr '\0' A >old.bin
head -c 2M /dev/zero | tr '\0' B >new.bin
"$diffdisk" write "$disk" --offset 1M <old.bin >/dev/null
touch switch
for verb in "write $disk --offset 1M" "trim $disk --offset 4M --length 1M" "check $disk" "digest $disk"; do
    # shellcheck disable=SC2086  # words
    if "$diffdisk" $verb <new.bin >/dev/null 2>failed.txt; then
        case $verb in
        check* | digest*) ;; # the kernel may still have the pages
        *) die "\`$verb\` succeeded on storage that fails" ;;
        esac
    fi
done
rm switch
"$diffdisk" check "$disk" >/dev/null || die "the disk is damaged after its storage failed"
"$diffdisk" read "$disk" --offset 1M --length 2M >after.bin
"$python" - after.bin <<'PYTHON' || die "after a failed write the disk holds what nobody wrote"
import sys
data = open(sys.argv[1], "rb").read()
sys.exit(0 if len(data) == 2 << 20 and set(data) <= set(b"AB") else 1)
PYTHON
"$diffdisk" write "$disk" --offset 1M <new.bin >/dev/null || die "the storage is healed and writing fails"
"$diffdisk" read "$disk" --offset 1M --length 2M | cmp - new.bin || die "what was written is not there"
say "a FUSE file whose server dies in the middle of a write"
(sleep 0.3; kill -9 "$fuse_of_switch") &
killer=$!
status=0
for _ in $(seq 500); do
    "$diffdisk" write "$disk" --offset 1M <old.bin >/dev/null 2>failed.txt || { status=$?; break; }
done
wait "$killer"
# 7 is "unavailable"; the moment decides which call meets it first, and with what.
[ $status -ge 1 ] && [ $status -le 9 ] || die "a dead file system ends the command with $status: $(cat failed.txt)"
say "exit code $status: $(head -c 200 failed.txt)"
umount -l "$mount_point" 2>/dev/null || true
kill "$device" 2>/dev/null || true
wait "$fuse_of_switch" "$device" 2>/dev/null || true
device=''
"$diffdisk" check fixed.vhdx >/dev/null || die "the disk is damaged after its connection was aborted"
say ok
