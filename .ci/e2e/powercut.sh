#!/bin/bash
# End to end: power cuts with a real kernel. An emulated guest has a clone for its disk, over NBD. It makes an ext4 there, writes files,
# and prints a line whenever a `sync` is done. At a random moment everything dies at once.
#
#   guest: ext4  ->  QEMU  ->  NBD  ->  diffdisk serve  ->  host: ext4  ->  loop  ->  nbdfuse  ->  nbdkit, cache=writeback  ->  a file
#                                                                                                  ^ holds what was not flushed
#
# Killing a process loses nothing of the host's page cache, so killing a server alone is no power cut. Here the clone lives in a file
# system on a device with a volatile write cache: nbdkit keeps writes to itself until it is told to flush, and dies first. What comes
# back is what was on stable media: the host's ext4 replays its journal, diffdisk its log, the guest's ext4 its journal. Then e2fsck
# must find nothing, and every file whose sync was printed must be there, to the byte. The next round goes on with the same clone.
#
# The control takes the flushes away under the same stack (the host's kernel is told that the device has no cache) and must be noticed.
#
# Usage: .ci/e2e/powercut.sh [path of the diffdisk binary [cuts [seed]]]
set -euo pipefail
# shellcheck source=.ci/e2e/lib.sh
source "$(dirname "$0")/lib.sh" "$@"
cuts=${2:-10} seed=${3:-$RANDOM}

need_kernel_doors
need_libnbd
need nbdkit nbdkit
need e2fsprogs mke2fs e2fsck debugfs
need util-linux losetup
need busybox-static busybox
need cpio cpio
seed_random "$seed"
cd "$work"

# QEMU and a kernel, unpacked privately: installed, Debian 12's system emulator would take a newer qemu-utils away.
emulator=$work/emulator
unpack_emulator() {
    local kernel libs missing
    mkdir -p "$emulator/packages"
    cd "$emulator/packages"
    kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
    [ -n "$kernel" ] || { apt-get update >/dev/null; kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1); }
    [ -n "$kernel" ] || skip "there is no linux-image-cloud-amd64"
    libs='libfdt1 libslirp0 libpmem1 libndctl6 libdaxctl1 librdmacm1 libibverbs1 liburing2 libfuse3-3 libcapstone4 libpixman-1-0 libvdeplug2 libaio1 libnuma1'
    # shellcheck disable=SC2086  # words
    apt-get download qemu-system-x86 seabios "$kernel" $libs >/dev/null 2>&1 ||
        for package in qemu-system-x86 qemu-system-common qemu-system-data seabios "$kernel" $libs; do apt-get download "$package" >/dev/null 2>&1 || true; done
    apt-get download qemu-system-common qemu-system-data >/dev/null 2>&1 || true
    for package in *.deb; do dpkg -x "$package" "$emulator/root"; done
    rm -f ./*.deb
    cd "$work"
    export LD_LIBRARY_PATH=$emulator/root/usr/lib/x86_64-linux-gnu
    missing=$(ldd "$emulator/root/usr/bin/qemu-system-x86_64" | grep 'not found' || true)
    unset LD_LIBRARY_PATH
    [ -z "$missing" ] || die "the emulator lacks libraries: $missing"
}
if [ -n "${DIFFDISK_EMULATOR:-}" ]; then # a directory where the packages are unpacked already
    mkdir -p "$emulator"
    ln -s "$DIFFDISK_EMULATOR" "$emulator/root"
else
    unpack_emulator
fi
kernel=$(echo "$emulator"/root/boot/vmlinuz-*)
modules=$(echo "$emulator"/root/lib/modules/*/kernel)

# The guest's whole world: busybox, mke2fs, the drivers.
initramfs() {
    local dir=$work/initramfs program library module
    mkdir -p "$dir"/{bin,dev,proc,mnt,lib,modules}
    cp "$(command -v busybox)" "$dir/bin/busybox"
    program=$(command -v mke2fs)
    cp "$program" "$dir/bin/mke2fs"
    ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$dir$(dirname "$library")"
        cp -L "$library" "$dir$library"
    done
    for module in virtio/virtio virtio/virtio_ring virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev virtio/virtio_pci block/virtio_blk; do
        find "$modules/drivers" -path "*/$module.ko*" -exec cp {} "$dir/modules/" \;
    done
    cat >"$dir/init" <<'GUEST'
#!/bin/busybox sh
busybox() { /bin/busybox "$@"; }
fail() {
    echo "guest: $*"
    busybox poweroff -f
}
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
for pass in 1 2 3 4; do # they need each other, in an order that changes from kernel to kernel
    for module in /modules/*; do busybox insmod $module 2>/dev/null; done
done
run=$(busybox sed -n 's/.*run=\([0-9]*\).*/\1/p' /proc/cmdline)
if [ "$run" = 1 ]; then
    /bin/mke2fs -q -F -t ext4 -b 4096 -m 0 -E nodiscard /dev/vda || fail "no file system"
    busybox sync
fi
busybox mount -t ext4 /dev/vda /mnt || fail "cannot mount"
busybox mkdir /mnt/$run
n=0
while [ $n -lt 300 ]; do
    n=$((n + 1))
    busybox yes "run $run file $n" | busybox head -c $(((n * 7919) % 40000 + 1)) >/mnt/$run/$n
    echo "run $run file $n" >/mnt/newest
    if busybox sync; then echo "synced $run $n"; fi
done
while :; do busybox sleep 1; done
GUEST
    chmod +x "$dir/init"
    (cd "$dir" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initramfs.gz"
}
initramfs

device='' guest=''
device_on() {
    nbdkit --foreground --unix "$work/device" --filter=cache file "$work/media.img" cache=writeback >>"$work/nbdkit.txt" 2>&1 &
    device=$!
    for _ in $(seq 300); do
        [ ! -S "$work/device" ] || break
        sleep 0.02
    done
    attach "$work/device"
}

device_gone() {
    rm -f "$work/device"
    device=''
}

# A graceful end: the file system first, then the stack, then nbdkit, which waits for its clients.
device_off() {
    umount "$fs"
    detach
    kill "$device"
    wait "$device" 2>/dev/null || true
    device_gone
}

before_cleanup() {
    if [ -n "$guest" ]; then kill -9 "$guest" 2>/dev/null; fi
    # Without its device the file system cannot say its last words, and cleaning up would wait for them.
    if [ -n "$device" ]; then kill -9 "$device" 2>/dev/null; fi
}

boot() {
    : >serial.txt
    LD_LIBRARY_PATH=$emulator/root/usr/lib/x86_64-linux-gnu "$emulator/root/usr/bin/qemu-system-x86_64" \
        -L "$emulator/root/usr/share/qemu" -L "$emulator/root/usr/share/seabios" -M pc -accel tcg -m 192 -smp 1 -nodefaults \
        -no-user-config -no-reboot -display none -serial file:serial.txt -kernel "$kernel" -initrd initramfs.gz \
        -append "console=ttyS0 quiet panic=-1 run=$1" -drive "file=nbd:unix:$socket,if=virtio,format=raw" 2>>qemu.txt &
    guest=$!
}

synced() { grep -c '^synced' serial.txt || true; }

# cut RUN: boots the guest and takes the power away at a random moment after its third sync.
cut() {
    local waited=0
    boot "$1"
    until [ "$(synced)" -ge 3 ]; do
        kill -0 "$guest" 2>/dev/null || { cat serial.txt qemu.txt; die "the guest ended"; }
        sleep 0.1
        waited=$((waited + 1))
        [ $waited -lt 900 ] || { tail serial.txt; die "the guest does not come up"; }
    done
    random 2000
    sleep "$(printf '%d.%03d' $((drawn / 1000)) $((drawn % 1000)))"
    kill -9 "$device" "$guest" "$server" # in this order: nothing is flushed by anybody's last act
    wait "$device" "$guest" "$server" 2>/dev/null || true
    guest='' server=''
    tr -d '\r' <serial.txt | grep '^synced [0-9]* [0-9]*$' >>promised.txt || true
    device_gone
    detach
}

# After a cut: the media as they are, everybody's replay, and what was promised. Succeeds or says what is missing.
verify() {
    device_on
    mount -t ext4 "$loop" "$fs" || { echo "the host's file system does not mount"; return 1; }
    local log
    log=$("$diffdisk" info "$fs/clone.vhdx" --json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["log"])') || return 1
    "$diffdisk" check "$fs/clone.vhdx" --parents "$work" --chain >/dev/null || { echo "the clone is damaged"; return 1; }
    "$diffdisk" read "$fs/clone.vhdx" --parents "$work" >cut.raw || return 1
    device_off
    e2fsck -y -E journal_only cut.raw >e2fsck.txt 2>&1 || true
    e2fsck -fn cut.raw >>e2fsck.txt 2>&1 || { cat e2fsck.txt; echo "e2fsck finds errors"; return 1; }
    rm -rf out && mkdir out
    debugfs -R "rdump / out" cut.raw >debugfs.txt 2>&1
    "$python" - promised.txt out "$log" <<'PYTHON'
import os, sys
promised, out, log = sys.argv[1:]
lines = [tuple(map(int, line.split()[1:])) for line in open(promised)]
lost = []
for run, n in lines:
    text = f"run {run} file {n}\n".encode()
    length = n * 7919 % 40000 + 1
    path = f"{out}/{run}/{n}"
    want = (text * (length // len(text) + 1))[:length]
    if not os.path.exists(path) or open(path, "rb").read() != want:
        lost.append((run, n))
if lines:
    newest = open(f"{out}/newest").read().split() if os.path.exists(f"{out}/newest") else []
    if len(newest) != 4 or (int(newest[1]), int(newest[3])) < max(lines):
        lost.append(("newest", newest))
print(f"{len(lines)} files were synced and {len(lines) - len(lost)} are there, log {log}")
sys.exit(f"lost: {lost[:5]}" if lost else 0)
PYTHON
}

# The parent: data everywhere, so that what a lost bitmap uncovers is no file system.
"$python" -c 'import sys; [sys.stdout.buffer.write(bytes([0x50 + n % 7]) * 4096) for n in range(24 * 1024)]' >parent.raw
"$diffdisk" convert parent.raw parent.vhdx --from raw >/dev/null
rm parent.raw
seal parent.vhdx

media() {
    rm -f media.img
    truncate -s 256M media.img
    mke2fs -q -F -t ext4 -m 0 media.img
    device_on
    mount -t ext4 "$loop" "$fs"
    "$diffdisk" create "$fs/clone.vhdx" --parent parent.vhdx >/dev/null
    : >promised.txt
}

power_on() {
    serve "$fs/clone.vhdx" --parents "$work"
}

media
total=0
for ((run = 1; run <= cuts; run++)); do
    if [ "$run" -gt 1 ]; then
        device_on
        mount -t ext4 "$loop" "$fs"
    fi
    power_on
    cut "$run"
    said=$(verify) || { echo "$said"; die "cut $run (seed $seed) lost what was promised"; }
    say "cut $run: $said"
    total=$((total + 1))
done
promised=$(wc -l <promised.txt)
[ "$promised" -ge $((3 * total)) ] || die "only $promised syncs were printed"
check_parent

say "would this notice a flush that does nothing? The host's kernel is told that its device has no cache, so it sends none:"
media
device_off
device_on
mount -t ext4 "$loop" "$fs"
swallow_flushes
power_on
cut 1
if said=$(verify); then die "nothing was lost without flushes ($said): this test shows nothing"; fi
say "it would: $(echo "$said" | tail -1)"

echo "powercut: $total cuts, $promised syncs printed and kept, seed $seed, control noticed"
