#!/usr/bin/env bash
# Damaged files, repaired, and what a foreign reader says to them; and how fast `check` is beside `qemu-img check`.
#
# Files of ours and of qemu-img are damaged in every way that a repair puts right, one way at a time and several at once. Afterwards
# `diffdisk check` must have nothing to say but notes, `qemu-img check` must be content, and both must read what the file held before.
#
#   .ci/e2e/repair.sh [BINARY]      RUNS=n (of the speed comparison)
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "$0")/lib.sh" "$@"
[ -x "$diffdisk" ] || die "no binary at $diffdisk"
need qemu-utils qemu-img qemu-io
cd "$work"

raw_digest() { sha256sum "$1" | cut -d' ' -f1; }

# What qemu-img reads, as one digest.
foreign_digest() {
    qemu-img convert -f vhdx -O raw "$1" out.raw
    raw_digest out.raw
    rm out.raw
}

make_files() {
    "$diffdisk" create ours.vhdx --size 40M >/dev/null
    "$diffdisk" create fixed.vhdx --size 10M --fixed >/dev/null
    qemu-img create -q -f vhdx theirs.vhdx 40M
    qemu-img create -q -f vhdx -o subformat=fixed,block_state_zero=off theirs-fixed.vhdx 16M
    local file at
    for file in ours fixed; do
        for at in 0 5M 9M; do
            head -c 300000 /dev/urandom | "$diffdisk" write "$file.vhdx" --offset "$at" >/dev/null
        done
    done
    for file in theirs theirs-fixed; do
        qemu-io -f vhdx -c 'write -q -P 0x5a 64k 300k' -c 'write -q -P 0xa5 9M 500k' "$file.vhdx"
    done
}

repaired=0
# try FILE WAY...: damages a copy, repairs it, and has everybody look at it.
try() {
    local file=$1 way options='' before report
    shift
    cp --sparse=always "$file.vhdx" hurt.vhdx
    before=$(foreign_digest hurt.vhdx)
    for way in "$@"; do
        "$python" "$here/repair_damage.py" hurt.vhdx "$way"
        [ "$way" != emptylog ] || options=--accept-empty-log
    done
    # shellcheck disable=SC2086  # an option or none
    "$diffdisk" check hurt.vhdx --repair $options >report.txt || die "$file, $*: not repaired: $(cat report.txt)"
    grep -q '^did: ' report.txt || die "$file, $*: nothing was done: $(cat report.txt)"
    report=$("$diffdisk" check hurt.vhdx)
    case $report in *": 0 errors, 0 warnings"*) ;; *) die "$file, $*: left: $report" ;; esac
    "$diffdisk" check hurt.vhdx --repair | grep -q 'nothing was changed' || die "$file, $*: a second repair did something"
    qemu-img check -q -f vhdx hurt.vhdx || die "$file, $*: qemu-img check is not content"
    [ "$(foreign_digest hurt.vhdx)" = "$before" ] || die "$file, $*: qemu-img reads something else"
    [ "$("$diffdisk" digest hurt.vhdx | cut -d' ' -f1)" = "$before" ] || die "$file, $*: we read something else"
    repaired=$((repaired + 1))
}

make_files
for file in ours theirs; do
    for way in header1 header2 table1 table2 tail place emptylog; do
        try "$file" "$way"
    done
    try "$file" header1 table1 tail place
    try "$file" header2 table2 place
done
for file in fixed theirs-fixed; do
    for way in header1 table1 table2 emptylog; do
        try "$file" "$way"
    done
done
say "$repaired damaged files repaired; $(qemu-img --version | head -1) reads them all as before"

# ---- speed -------------------------------------------------------------------------------------------------------------------------

runs=${RUNS:-20}
"$diffdisk" create wide.vhdx --size 64G --block-size 1M >/dev/null
"$python" "$here/repair_damage.py" wide.vhdx fill
# seconds COMMAND...: of $runs runs.
seconds() {
    local from
    from=$(date +%s%N)
    for _ in $(seq "$runs"); do "$@" >/dev/null; done
    echo $(($(date +%s%N) - from))
}
"$diffdisk" check wide.vhdx >/dev/null
ours=$(seconds "$diffdisk" check wide.vhdx)
theirs=$(seconds qemu-img check -q -f vhdx wide.vhdx)
say "check of 64 GiB in 65536 blocks: $((ours / runs / 1000)) us, qemu-img check $((theirs / runs / 1000)) us," \
    "ratio $("$python" -c "print(f'{$ours / $theirs:.2f}')") ($runs runs each, process start included)"
