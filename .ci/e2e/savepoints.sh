#!/bin/bash
# End to end: a clone is served over NBD, four foreign connections (libnbd) write to it without a pause, and another process saves it again and
# again and drops savepoints in between. Afterwards every savepoint must be a state that the clone had at one moment: of each connection
# everything up to some write and nothing behind it, and at least what it had flushed when the save began. The frozen files are read by 7-Zip,
# which knows no locators of ours and follows the chain by itself.
#
# Usage: .ci/e2e/savepoints.sh [path of the diffdisk binary [saves]]
set -euo pipefail
# shellcheck source=.ci/e2e/lib.sh
source "$(dirname "$0")/lib.sh" "$@"
saves=${2:-25}

need_libnbd
need jq jq
cd "$work"
export DIFFDISK_STORE=$work/images
truncate -s 64M raw.img
printf 'the image' | dd of=raw.img conv=notrunc status=none
"$diffdisk" image create app raw.img >/dev/null
seal images/app/1.vhdx
"$diffdisk" clone create app alice.vhdx >/dev/null

serve alice.vhdx
[ "$(stat -c %a alice.vhdx.control)" = 600 ] || die "the control socket is for its owner only"
"$python" "$here/savepoints_writer.py" write "$uri" flushed stop &
writer=$!
before_cleanup() { kill "$writer" 2>/dev/null || true; }
while [ ! -s flushed ]; do kill -0 "$writer" || die "the writer ended"; done

# save NAME: how long the writers had to wait, and how long the command took, in microseconds.
pauses=() wholes=()
save() {
    local from
    from=$(date +%s%N)
    pauses+=("$("$diffdisk" clone save alice "$1" --json | jq .pause_microseconds)")
    wholes+=($((($(date +%s%N) - from) / 1000)))
}
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
worst() { printf '%s\n' "$@" | sort -n | tail -1; }
# What writers wait is a pointer and one more lock, and no sync: on any file system, however busy the machine, its median stays far below this.
measured() { # WHERE
    [ "$(median "${pauses[@]}")" -lt 10000 ] || die "the median pause is $(median "${pauses[@]}") µs"
    say "$1: ${#pauses[@]} saves under 4 connections, µs: pause $(median "${pauses[@]}") median, $(worst "${pauses[@]}") worst;" \
        "the whole command $(median "${wholes[@]}") median, $(worst "${wholes[@]}") worst"
}

for ((n = 0; n < saves; n++)); do
    cp flushed "before$n"
    save "s$n"
    # What lies in the middle goes while the clone is written; what the clone stands on does not.
    if ((n % 5 == 4)); then
        "$diffdisk" clone drop alice "s$((n - 2))" >/dev/null
        rm "before$((n - 2))"
        ! "$diffdisk" clone drop alice "s$n" 2>/dev/null || die "what the open clone stands on was dropped"
    fi
done
[ "$("$diffdisk" clone save alice s0 --json 2>&1 | jq -r .error.kind)" = already_exists ] || die "a second s0"
touch stop
wait "$writer" || die "the writer failed"
before_cleanup() { :; }
stop
[ ! -e alice.vhdx.control ] || die "the control socket was left behind"

checked=0 foreign=0 seven=''
if command -v 7z >/dev/null && 7z i >formats.txt && grep -i '\bvhdx\b' >/dev/null formats.txt; then seven=yes; fi
# 7-Zip follows the chain by the relative paths, and for it a backslash is a letter here.
ln -s images/app/1.vhdx 'images\app\1.vhdx'
for before in before*; do
    saved=s${before#before}
    "$diffdisk" check "alice.$saved.avhdx" --chain --parents "$work" >/dev/null || die "$saved is damaged"
    "$diffdisk" convert "alice.$saved.avhdx" out.img --to raw --force --parents "$work" >/dev/null
    "$python" "$here/savepoints_writer.py" check out.img "$before" || die "$saved is not a state that the clone had"
    checked=$((checked + 1))
    if [ -n "$seven" ] && ((checked % 6 == 1)); then
        rm -rf other && mkdir other
        if 7z e -y -oother "alice.$saved.avhdx" </dev/null >7z.txt 2>&1; then
            cmp out.img other/* || die "$saved: 7-Zip reads something else"
            foreign=$((foreign + 1))
        else
            grep -m 3 ERROR 7z.txt || true
            die "$saved: 7-Zip cannot read it"
        fi
    fi
done
[ "$foreign" -gt 0 ] || say "skipped: there is no 7-Zip that knows VHDX"
"$diffdisk" clone revert alice s1 >/dev/null
"$diffdisk" convert alice.vhdx out.img --to raw --force --parents "$work" >/dev/null
"$python" "$here/savepoints_writer.py" check out.img before1 || die "after the revert"
check_parent
measured "on the disk"
say "$checked savepoints are states of one moment, 7-Zip agrees on $foreign"

# Where a sync costs nothing, what is left is our own work, the start of a process and the machine's load: ten milliseconds on a quiet machine with room to spare,
# asserted with what a loaded one needs.
if [ -d /dev/shm ] && [ "$(stat -f -c %T /dev/shm)" = tmpfs ]; then
    memory=$(mktemp -d -p /dev/shm savepoints.XXXXXX)
    before_cleanup() {
        kill "$writer" 2>/dev/null || true
        rm -rf "$memory"
    }
    cd "$memory"
    export DIFFDISK_STORE=$memory/images
    truncate -s 64M raw.img
    "$diffdisk" image create app raw.img >/dev/null
    "$diffdisk" clone create app alice.vhdx >/dev/null
    serve alice.vhdx
    "$python" "$here/savepoints_writer.py" write "$uri" flushed stop &
    writer=$!
    while [ ! -s flushed ]; do kill -0 "$writer" || die "the writer ended"; done
    pauses=() wholes=()
    for ((n = 0; n < saves; n++)); do save "s$n"; done
    touch stop
    wait "$writer" || die "the writer failed"
    stop
    [ "$(median "${wholes[@]}")" -lt 100000 ] || die "the median save takes $(median "${wholes[@]}") µs in memory"
    measured "in memory"
    cd "$work"
    rm -rf "$memory"
    before_cleanup() { :; }
else
    say "skipped: /dev/shm is no memory file system; saves in memory are not measured"
fi
say ok
