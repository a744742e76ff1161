# What the end-to-end scripts share. Source it with the arguments of the script: `source lib.sh "$@"`.
#
# It owns everything a run leaves in the kernel: the server, the FUSE mount, the loop device, the file system on it. One stack at a
# time, built by `serve` and `attach`, torn down by `detach` and `stop`, or by the trap however the script ends. Only processes
# started here are ever signalled, by their id.
#
# shellcheck shell=bash disable=SC2034  # variables are for the scripts that source this

diffdisk=$(realpath "${1:-target/release/diffdisk}")
python=/usr/bin/python3 # the one the distribution's libnbd module is for
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
name=$(basename "$0" .sh)

work=$(mktemp -d)
chmod 755 "$work" # a database server that is not root must reach its directory
socket=$work/socket
uri="nbd+unix:///?socket=$socket"
fuse_dir=$work/fuse
fs=$work/fs
server='' fuse='' fuse_shell='' loop=''

die() {
    echo "$name: $*" >&2
    exit 1
}

say() {
    echo "$name: $*"
}

# Only for a door of the kernel that is missing: a missing package gets installed.
skip() {
    echo "$name: skipped: $*"
    exit 0
}

# need PACKAGE COMMAND...: installs the package when a command is missing.
need() {
    local package=$1 command
    shift
    for command in "$@"; do
        if ! command -v "$command" >/dev/null; then
            export DEBIAN_FRONTEND=noninteractive
            apt-get install -y --no-install-recommends "$package" >/dev/null || {
                apt-get update >/dev/null
                apt-get install -y --no-install-recommends "$package" >/dev/null
            }
            command -v "$command" >/dev/null || die "$package has no $command"
        fi
    done
}

need_libnbd() {
    need libnbd-bin nbdcopy
    if ! "$python" -c 'import nbd' 2>/dev/null; then
        apt-get install -y --no-install-recommends python3-libnbd >/dev/null
    fi
}

# What a disk needs to be mounted: root, FUSE, loop devices and the right to mount.
need_kernel_doors() {
    [ "$(id -u)" = 0 ] || skip "not root"
    [ -e /dev/fuse ] && (: <>/dev/fuse) 2>/dev/null || skip "/dev/fuse cannot be opened"
    [ -e /dev/loop-control ] && losetup -f >/dev/null 2>&1 || skip "there are no loop devices"
    mkdir -p "$work/door"
    mount -t tmpfs none "$work/door" 2>/dev/null || skip "mounting is not permitted"
    umount "$work/door"
    need libnbd-bin nbdcopy
    command -v nbdfuse >/dev/null || need nbdfuse nbdfuse # a package of its own since Debian 13
}

is_mounted() {
    grep -q " $1 " /proc/mounts
}

# serve FILE [OPTION...]: returns as soon as clients can connect, which is when the server says where it listens.
serve() {
    local said line
    mkfifo "$work/said"
    exec {said}<>"$work/said"
    rm "$work/said"
    "$diffdisk" serve "$@" --nbd "unix:$socket" >&"$said" {said}>&- &
    server=$!
    read -r -t 30 line <&"$said" || die "the server does not say that it listens"
    exec {said}>&-
    [ "$line" = "$uri" ] || die "the server says: $line"
}

# A graceful end, which must leave neither an error nor the socket.
stop() {
    kill -TERM "$server"
    wait "$server" || die "the server did not end well"
    server=''
    [ ! -e "$socket" ] || die "the socket was left behind"
}

crash() {
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    server=''
}

of_loop() {
    echo "/sys/block/${loop#/dev/}/$1"
}

# attach [SOCKET [NBDFUSE OPTION...]]: the served disk becomes a file (nbdfuse) and that file a block device ($loop).
attach() {
    local from=${1:-$socket} ready rest=''
    [ $# = 0 ] || shift
    mkdir -p "$fuse_dir" "$fs"
    mkfifo "$work/ready"
    exec {ready}<>"$work/ready"
    # The inner shell swallows bash's word on how its child ended: nbdfuse 1.14 fails an assertion when its server is killed.
    (nbdfuse "$@" -P "$work/ready" "$fuse_dir/disk" --unix "$from" {ready}>&- || true) 2>>"$work/nbdfuse.txt" &
    fuse_shell=$!
    # It writes its id, without a line's end, when it is ready.
    read -r -t 30 -n 1 fuse <&"$ready" || die "nbdfuse does not come up: $(tail -1 "$work/nbdfuse.txt")"
    read -r -t 0.1 rest <&"$ready" || true
    fuse+=$rest
    exec {ready}>&-
    rm "$work/ready"
    # Direct: what the guest has written is in our server, not in a second page cache; a flush of the device becomes an fsync of the
    # FUSE file, which nbdfuse sends as NBD_CMD_FLUSH.
    loop=$(losetup -f --show --direct-io=on "$fuse_dir/disk")
    grep -q 'write back' "$(of_loop queue/write_cache)" || die "$loop swallows flushes"
    flushes_before=$(awk '{ print $16 }' "$(of_loop stat)")
}

# Works as well when the server or nbdfuse is dead: then the file system cannot write its last words, and that is the point.
detach() {
    if is_mounted "$fs"; then umount "$fs" 2>/dev/null || umount -l "$fs"; fi
    if [ -n "$loop" ]; then
        # What `swallow_flushes` did would stay with the device for whoever gets it next.
        echo 'write back' >"$(of_loop queue/write_cache)"
        losetup -d "$loop" || true
    fi
    if is_mounted "$fuse_dir"; then umount "$fuse_dir" 2>/dev/null || umount -l "$fuse_dir"; fi
    if [ -n "$fuse" ]; then
        # Without its mount nbdfuse ends by itself; one whose server is dead may not.
        [ -n "$server" ] || kill -9 "$fuse" 2>/dev/null || true
        wait "$fuse_shell" || true
    fi
    loop='' fuse=''
}

# How many flushes the block device has sent down, and seen answered, since it was attached.
device_flushes() {
    echo $(($(awk '{ print $16 }' "$(of_loop stat)") - flushes_before))
}

# For a control: the kernel believes that the device has no cache and sends no flush from now on.
swallow_flushes() {
    echo 'write through' >"$(of_loop queue/write_cache)"
}

# What else a script has to end comes first: it redefines this.
before_cleanup() { :; }

cleanup() {
    local status=$?
    set +e
    before_cleanup
    if [ -n "$fuse" ] && [ -n "$server" ] && [ $status != 0 ]; then crash; fi
    detach
    if [ -n "$server" ]; then crash; fi
    if is_mounted "$fs" || is_mounted "$fuse_dir"; then
        echo "$name: left behind: mounts under $work" >&2
    else
        rm -rf --one-file-system "$work"
    fi
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The parent: nothing may change it, so it is hashed before and after.
seal() {
    chmod 444 "$1"
    sealed=$1
    sealed_sum=$(sha256sum <"$1")
}

check_parent() {
    [ "$(sha256sum <"$sealed")" = "$sealed_sum" ] || die "the parent was written"
}

# A seeded generator, the same on every machine: random N gives 0..N-1 in $drawn (a function in $(...) would lose the state).
seed_random() {
    random_state=$(($1 & 0x7fffffff))
}

random() {
    random_state=$(((random_state * 1103515245 + 12345) & 0x7fffffff))
    drawn=$(((random_state >> 8) % $1))
}
