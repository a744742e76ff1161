#!/usr/bin/env bash
# The recipe of docs/operator-guide.md that gives back what a file system inside a disk no longer uses, run as it stands there.
#
# For ext4, XFS and NTFS (where this machine has the tools and the kernel can mount it): a formatted base with some files, a clone of it in which
# large files are written and deleted again, so that the clone is full of what nobody needs. After the recipe the clone's file is shorter and takes
# less, its files are what they were, the file system's own checker finds nothing, every 4 KiB of the disk are what they were or zeros, qemu-img
# finds the merged disk sound and reads what we read, and the parent was not written.
#
#   .ci/e2e/trim.sh [BINARY]     FILL_MIB=n
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "$(realpath "$0")")/lib.sh" "$@"
need_kernel_doors
need util-linux fstrim losetup
need qemu-utils qemu-img
fill=${FILL_MIB:-96}
guide=$here/../../docs/operator-guide.md
cd "$work"
mkdir bin
ln -s "$diffdisk" bin/diffdisk
PATH=$work/bin:$PATH

# The commands between the mark and the end of the block after it. Their first line says what is where, which is another place here.
awk '/^<!-- tested by .ci\/e2e\/trim.sh -->/ { found = 1; next } found && /^```sh/ { on = 1; next } on && /^```/ { exit } on' "$guide" >recipe.sh
head -1 recipe.sh | grep -q '^disk=.* run=.* mnt=' || die "the operator's guide has no such recipe"
sed -i 1d recipe.sh
[ "$(grep -cE '^(diffdisk|losetup|fstrim|mount|umount|nbdfuse)' recipe.sh)" -ge 6 ] || die "the recipe in the guide lacks commands: $(cat recipe.sh)"

# fs_tools TYPE: makes, checks; 1 where this machine cannot.
fs_tools() {
    case $1 in
    ext4) need e2fsprogs mke2fs e2fsck ;;
    xfs) need xfsprogs mkfs.xfs xfs_repair ;;
    ntfs) need ntfs-3g mkntfs ntfsfix ;;
    esac
}
make_fs() { # TYPE FILE
    truncate -s 400M "$2"
    case $1 in
    ext4) mke2fs -q -F -t ext4 -E nodiscard "$2" ;;
    xfs) mkfs.xfs -q -K "$2" ;;
    ntfs) mkntfs -q -F -f "$2" >/dev/null 2>&1 ;;
    esac
}
check_fs() { # TYPE FILE
    case $1 in
    ext4) e2fsck -fn "$2" >fsck.txt 2>&1 ;;
    xfs) xfs_repair -n -f "$2" >fsck.txt 2>&1 ;;
    ntfs) ntfsfix -n "$2" >fsck.txt 2>&1 ;;
    esac || { cat fsck.txt; die "the checker of $1 finds faults"; }
}
fill_fs() { # what is needed, and what is written and deleted again
    "$python" - "$fs" "$fill" <<'PY'
import os, random, sys
random.seed(30)
home, fill = sys.argv[1], int(sys.argv[2])
for n in range(fill // 4):
    with open(f"{home}/kept{n}", "wb") as file:
        file.write(random.randbytes(50_000))
for n in range(fill // 4):
    with open(f"{home}/gone{n}", "wb") as file:
        for _ in range(4):
            file.write(random.randbytes(1 << 20))
PY
    sync -f "$fs"
    rm "$fs"/gone*
    sync -f "$fs"
}
sums() { (cd "$fs" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
allocated() { echo $(($(stat -c '%b * %B' "$1"))); }

recipe() { # DISK: the guide's commands
    disk=$1 run=$work/run mnt=$fs
    fuse_dir=$run/fuse
    mkdir -p "$run"
    # shellcheck source=/dev/null
    source ./recipe.sh >recipe.txt 2>&1 || { cat recipe.txt; die "the recipe failed"; }
    loop='' server=''
    [ ! -e "$run/nbd" ] || die "the recipe leaves its socket"
    fuse_dir=$work/fuse
}

tried=''
for type in ext4 xfs ntfs; do
    if ! (fs_tools $type) 2>tools.txt; then
        say "skipped: $type: $(tail -1 tools.txt)"
        continue
    fi
    rm -f ./*.vhdx ./*.raw
    make_fs $type base.raw
    "$diffdisk" convert base.raw base.vhdx >/dev/null
    seal base.vhdx
    "$diffdisk" create alice.vhdx --parent base.vhdx >/dev/null
    serve alice.vhdx
    attach
    if ! mount "$loop" "$fs" 2>mount.txt; then
        say "skipped: $type: this machine cannot mount it: $(tail -1 mount.txt)"
        detach
        stop
        chmod 644 base.vhdx
        continue
    fi
    fill_fs
    sums >before.txt
    umount "$fs"
    detach
    stop
    "$diffdisk" convert alice.vhdx before.raw >/dev/null
    # Compaction alone knows nothing of the file system inside: what it gives back is the measure for the recipe.
    "$diffdisk" compact alice.vhdx >/dev/null
    full=$(stat -c %s alice.vhdx) full_allocated=$(allocated alice.vhdx)

    recipe alice.vhdx

    small=$(stat -c %s alice.vhdx) small_allocated=$(allocated alice.vhdx)
    [ "$small" -lt $((full * 2 / 3)) ] || die "$type: the file had $full bytes, and has $small"
    [ "$small_allocated" -lt $((full_allocated / 2)) ] || die "$type: the file took $full_allocated bytes, and takes $small_allocated"
    "$diffdisk" check alice.vhdx --chain >/dev/null || die "$type: check refuses the clone"
    "$diffdisk" convert alice.vhdx after.raw >/dev/null
    "$python" - "$fill" <<'PY' || die "$type: something else than what was or zeros"
import sys
zero, gone, other = bytes(4096), 0, 0
with open("before.raw", "rb") as before, open("after.raw", "rb") as after:
    while old := before.read(4 << 20):
        new = after.read(len(old))
        if old != new:
            for at in range(0, len(old), 4096):
                piece = new[at : at + 4096]
                if piece != old[at : at + 4096]:
                    gone += piece == zero
                    other += piece != zero
# To be mounted and trimmed makes a file system write a little: its super block, its journal.
if gone < int(sys.argv[1]) * 200 or other > 2000:
    sys.exit(f"{gone} pieces of 4 KiB became zeros, {other} something else")
PY
    check_fs $type after.raw
    "$diffdisk" merge alice.vhdx --to flat.vhdx >/dev/null
    qemu-img check -q -f vhdx flat.vhdx || die "$type: qemu-img check refuses the merged disk"
    qemu-img compare -q -f vhdx -F raw flat.vhdx after.raw || die "$type: qemu-img reads something else"
    serve alice.vhdx
    attach
    mount -o ro "$loop" "$fs"
    sums | cmp - before.txt || die "$type: files changed"
    umount "$fs"
    detach
    stop
    check_parent
    chmod 644 base.vhdx
    tried+=" $type"
    say "$type: $((full >> 20)) MiB became $((small >> 20)), allocated $((full_allocated >> 20)) MiB became $((small_allocated >> 20)); $(wc -l <before.txt) files are what they were"
done
[ -n "$tried" ] || die "no file system could be tried"
say "ok:$tried"
