#!/usr/bin/env bash
# `diffdisk mount`: a clone as a raw file under a loop device with a real ext4 in it. Files are written, deleted and discarded, the clone is saved while it
# is mounted, Ctrl-C is refused while somebody uses the file and obeyed afterwards, a killed server leaves a sound disk, and the image is what it was.
#
#   .ci/e2e/mount.sh [BINARY]
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "$(realpath "$0")")/lib.sh" "$@"
need_kernel_doors
need e2fsprogs mke2fs e2fsck
need util-linux fstrim losetup
need jq jq
cd "$work"
mkdir mnt in
export DIFFDISK_STORE=$work/images
truncate -s 256M raw.img
mke2fs -q -F -t ext4 raw.img
"$diffdisk" image create app raw.img >/dev/null
image=$(ls images/app/*.vhdx)
sum=$(sha256sum <"$image")
"$diffdisk" clone create app alice.vhdx >/dev/null

loop_of_disk='' server=''
before_cleanup() {
    umount in 2>/dev/null || true
    [ -z "$loop_of_disk" ] || losetup -d "$loop_of_disk" 2>/dev/null || true
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    umount -l mnt 2>/dev/null || true
}
start() {
    "$diffdisk" mount alice.vhdx --fuse mnt --json >said &
    server=$!
    for _ in $(seq 100); do
        [ ! -s said ] || return 0
        kill -0 "$server" 2>/dev/null || die "the server ended"
        sleep 0.05
    done
    die "the server says nothing"
}
ended() { # the server is gone within five seconds
    for _ in $(seq 100); do
        if ! kill -0 "$server" 2>/dev/null; then
            wait "$server" || die "the server failed"
            server=''
            return 0
        fi
        sleep 0.05
    done
    die "the server goes on"
}

start
[ "$(jq -r .mounted said)" = "$work/mnt/alice.img" ] && [ "$(jq .can_be_saved said)" = true ] || die "$(cat said)"
cmp raw.img mnt/alice.img
loop_of_disk=$(losetup -f --show mnt/alice.img)
mount "$loop_of_disk" in
cp "$diffdisk" in/kept
head -c 64M /dev/urandom >in/gone
sync -f in
"$diffdisk" clone save alice one >/dev/null
rm in/gone
sync -f in
fstrim in
kill -INT "$server"
sleep 0.3
kill -0 "$server" || die "Ctrl-C tore the file away from the loop device"
cmp "$diffdisk" in/kept
umount in
losetup -d "$loop_of_disk"
loop_of_disk=''
umount mnt
ended
"$diffdisk" check alice.vhdx --parents "$work" >/dev/null

# Killed: what was synced is there.
start
loop_of_disk=$(losetup -f --show mnt/alice.img)
mount "$loop_of_disk" in
echo durable >in/synced
sync -f in
kill -9 "$server"
wait "$server" 2>/dev/null || true
umount in 2>/dev/null || umount -l in
losetup -d "$loop_of_disk" 2>/dev/null || true
loop_of_disk='' server=''
umount mnt 2>/dev/null || umount -l mnt
sleep 0.3
start
e2fsck -fp mnt/alice.img >fsck.txt 2>&1 || [ $? -le 1 ] || die "$(cat fsck.txt)"
[ "$(debugfs -R "cat synced" mnt/alice.img 2>/dev/null)" = durable ] || die "what was synced is gone"
kill -INT "$server"
ended
[ "$(sha256sum <"$image")" = "$sum" ] || die "the image was changed"
say "ext4 on a loop device on a mounted clone: saved, discarded, refused and obeyed Ctrl-C, survived kill -9: ok"
