#!/bin/bash
# End to end: our NBD server against foreign clients (libnbd, nbdcopy, qemu-img, qemu-io). The parent is hashed before and after.
#
# Usage: .ci/e2e/nbd.sh [path of the diffdisk binary]
set -euo pipefail

diffdisk=$(realpath "${1:-target/release/diffdisk}")
python=/usr/bin/python3 # the one the distribution's libnbd module is for
here=$(dirname "$(realpath "$0")")

need() {
    if ! { command -v nbdcopy nbdinfo qemu-img qemu-io && "$python" -c 'import nbd'; } >/dev/null 2>&1; then
        local packages=(libnbd-bin python3-libnbd)
        command -v qemu-img >/dev/null || packages+=(qemu-utils)
        apt-get install -y --no-install-recommends "${packages[@]}" >/dev/null
    fi
}

work=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then kill -9 "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT

socket=$work/socket
uri="nbd+unix:///?socket=$socket"

# The server says where it listens as soon as clients can connect; that line is the signal to go on.
serve() {
    mkfifo "$work/said"
    "$diffdisk" serve "$@" --nbd "unix:$socket" >"$work/said" &
    server=$!
    read -r line <"$work/said"
    rm "$work/said"
    [ "$line" = "$uri" ] || { echo "the server says: $line"; exit 1; }
}

stop() {
    kill -TERM "$server"
    wait "$server" || { echo "the server did not end well"; exit 1; }
    server=
    [ ! -e "$socket" ] || { echo "the socket was left behind"; exit 1; }
}

crash() {
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    server=
}

need
cd "$work"

# Real-looking content: data, holes, a tail that is no whole block.
truncate -s $((72 * 1048576 + 512)) plain.img
dd if=/dev/urandom of=plain.img bs=1M count=9 conv=notrunc status=none
dd if=/dev/urandom of=plain.img bs=1M count=5 seek=40 conv=notrunc status=none
dd if=/dev/urandom of=plain.img bs=512 count=1 seek=$((72 * 2048)) conv=notrunc status=none

echo "nbd: a foreign client fills a disk, a foreign reader agrees"
"$diffdisk" create base.vhdx --size $((72 * 1048576 + 512)) --block-size 1M
serve base.vhdx
[ "$(stat -c %a "$socket")" = 600 ]
nbdinfo "$uri" >info.txt
grep -q 'can_multi_conn: true' info.txt
grep -q 'can_fast_zero: true' info.txt
nbdcopy --destination-is-zero --flush plain.img "$uri"
stop
qemu-img compare -q -f raw -F vhdx plain.img base.vhdx
before=$(sha256sum base.vhdx)

echo "nbd: a clone and a plain file get the same changes"
"$diffdisk" create clone.vhdx --parent base.vhdx
serve clone.vhdx
changes=(-c 'write -P 17 3M 700k' -c 'write -P 18 1000 3000' -c 'write -z 5M 2M' -c 'write -P 19 39M 2M' -c 'write -z -u 41M 64k' -c 'write -f -P 20 72M 512')
qemu-io -f raw "${changes[@]}" -c flush "$uri" >/dev/null
qemu-io -f raw "${changes[@]}" -c flush plain.img >/dev/null
qemu-img compare -q -f raw -F raw plain.img "$uri"
nbdcopy "$uri" out.img
cmp plain.img out.img
nbdcopy --connections=1 --requests=64 --request-size=65536 "$uri" out.img
cmp plain.img out.img
"$python" "$here/nbd_rude.py" "$uri"
cmp <(nbdcopy "$uri" -) plain.img
stop
"$diffdisk" check clone.vhdx >/dev/null

echo "nbd: block status is our map"
"$diffdisk" map clone.vhdx --json >map.json
serve clone.vhdx --read-only
nbdinfo --map --json "$uri" >status.json
nbdinfo --map=diffdisk:depth --json "$uri" >depth.json
qemu-img map --output=json "$uri" >qemu.json
stop
"$python" "$here/nbd_map.py" map.json status.json depth.json qemu.json plain.img

echo "nbd: a flush on one connection covers the other, and survives kill -9"
serve clone.vhdx
"$python" - "$uri" <<'PY'
import nbd, sys
one, two = nbd.NBD(), nbd.NBD()
one.connect_uri(sys.argv[1])
two.connect_uri(sys.argv[1])
for at in range(64):
    one.pwrite(bytes([at + 1]) * 4096, at * 1048576 + 8192)
two.flush()
one.pwrite(b"\xff" * 512, 71 * 1048576, flags=nbd.CMD_FLAG_FUA)
PY
crash
serve clone.vhdx
"$python" - "$uri" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for at in range(64):
    assert h.pread(4096, at * 1048576 + 8192) == bytes([at + 1]) * 4096, at
assert h.pread(512, 71 * 1048576) == b"\xff" * 512
PY
stop
"$diffdisk" check clone.vhdx >/dev/null

[ "$(sha256sum base.vhdx)" = "$before" ] || { echo "the parent was written"; exit 1; }
echo "nbd: ok"
