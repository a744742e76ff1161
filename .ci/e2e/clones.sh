#!/bin/bash
# End to end: a raw ext4 image that holds a real database becomes an image, the image gets 20 clones. Each clone is changed through NBD by
# a foreign client and compared, by us and by qemu-img, with a plain file that got the same changes:
#
#   odd clones    the database inside is changed by SQLite, put back into the file system by debugfs, and what differs on the disk is
#                 pushed by libnbd; what the clone holds then is a sound file system with a sound database
#   even clones   qemu-io writes, zeroes and discards at random
#
# When all are changed, each is compared again: nobody saw the changes of another. The parent is hashed before and after.
#
# Usage: .ci/e2e/clones.sh [path of the diffdisk binary [seed]]
set -euo pipefail
# shellcheck source=.ci/e2e/lib.sh
source "$(dirname "$0")/lib.sh" "$@"
seed_random "${2:-1}"
clones=20
size=$((80 << 20))

need_libnbd
need qemu-utils qemu-io qemu-img
need e2fsprogs mke2fs e2fsck debugfs
cd "$work"
database() { "$python" "$here/clones_database.py" "$@"; }

sound_ext4() {
    e2fsck -fn "$1" >e2fsck.txt 2>&1 || { cat e2fsck.txt; die "e2fsck finds errors in $1"; }
}

# The database in a raw disk: is it sound, and is it the one with change N?
check_database() {
    rm -f out.db
    debugfs -R 'dump /data/app.db out.db' "$1" 2>/dev/null
    database check out.db "$2"
}

mkdir -p files/data
database make files/data/app.db
truncate -s "$size" image.img
mke2fs -q -F -t ext4 -d files image.img
"$diffdisk" convert image.img image.vhdx --from raw >/dev/null
"$diffdisk" compare image.img image.vhdx >/dev/null
qemu-img compare -q -f raw -F vhdx image.img image.vhdx
seal image.vhdx
say "an image of $(stat -c %s files/data/app.db) bytes of SQLite in ext4: $(($(stat -c %b image.vhdx) * 512)) bytes allocated"

change_database() {
    cp files/data/app.db changed.db
    database change changed.db "$1"
    debugfs -w -f /dev/stdin "plain$1.img" >debugfs.txt 2>&1 <<<$'rm /data/app.db\nwrite changed.db /data/app.db'
    rm changed.db
    sound_ext4 "plain$1.img"
    database push image.img "plain$1.img" "$uri"
}

# The same commands for the disk and for the plain file. Discards are of whole blocks, which then read as zeros here as there.
change_at_random() {
    local changes=() n at len
    for ((n = 0; n < 30; n++)); do
        random $((size - (2 << 20)))
        at=$drawn
        random $((1 << 20))
        len=$((drawn + 1))
        random 5
        case $drawn in
        0) changes+=(-c "write -P $((n + 1)) $at $len") ;;
        1) changes+=(-c "write -P $((n + 1)) $((at & ~4095)) $((((len >> 4) & ~4095) + 4096))") ;;
        2) changes+=(-c "write -z $((at & ~511)) $(((len & ~511) + 512))") ;;
        3) changes+=(-c "write -z -u $((at & ~4095)) $(((len & ~4095) + 4096))") ;;
        4) changes+=(-c "discard $((at & ~1048575)) 1M") ;;
        esac
    done
    local to
    for to in "plain$1.img" "$uri"; do
        qemu-io -f raw -d unmap "${changes[@]}" -c flush "$to" >qemu-io.txt 2>&1 || { cat qemu-io.txt; die "qemu-io fails on $to"; }
        # It says what goes wrong, and goes on.
        ! grep -i -E 'fail|error|invalid' qemu-io.txt || die "qemu-io complains about $to"
    done
}

allocated=0
for ((clone = 1; clone <= clones; clone++)); do
    "$diffdisk" create "clone$clone.vhdx" --parent image.vhdx >/dev/null
    cp --sparse=always image.img "plain$clone.img"
    serve "clone$clone.vhdx"
    if ((clone % 2)); then change_database "$clone"; else change_at_random "$clone"; fi
    qemu-img compare -q -f raw -F raw "plain$clone.img" "$uri" || die "clone $clone: not what the plain file is, says qemu-img over NBD"
    stop
    "$diffdisk" compare "plain$clone.img" "clone$clone.vhdx" >/dev/null || die "clone $clone: not what the plain file is"
    ! cmp -s image.img "plain$clone.img" || die "clone $clone: nothing was changed"
done

for ((clone = 1; clone <= clones; clone++)); do
    "$diffdisk" check "clone$clone.vhdx" >/dev/null || die "clone $clone is damaged"
    "$diffdisk" compare "plain$clone.img" "clone$clone.vhdx" >/dev/null || die "clone $clone: changed by the others"
    if ((clone % 2)); then
        "$diffdisk" convert "clone$clone.vhdx" out.img --to raw --force >/dev/null
        sound_ext4 out.img
        check_database out.img "$clone"
    fi
    allocated=$((allocated + $(stat -c %b "clone$clone.vhdx") * 512))
    "$diffdisk" digest "clone$clone.vhdx"
done >digests.txt
[ "$(sort -u digests.txt | wc -l)" = "$clones" ] || die "two clones are the same"

"$diffdisk" convert image.vhdx out.img --to raw --force >/dev/null
cmp image.img out.img
check_database out.img 0
check_parent
say "$clones clones, each what a plain file is after the same changes; $((allocated / clones)) bytes allocated each on average; the parent unchanged"
say ok
