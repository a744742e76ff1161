#!/bin/bash
# Our NBD server beside qemu-nbd (a raw file; a qcow2 overlay over one) and nbdkit's file plugin: the same client (fio's nbd engine),
# the same machine, the same minutes. Rounds are taken in turns, and every figure is the median of its rounds; the ratio is ours
# to the best of the others. Prints a table in Markdown.
#
# Usage: .ci/bench/nbd.sh [path of the diffdisk binary]
#   DIFFDISK_BENCH_DIR  where the files go (default /dev/shm: what is measured is the servers)
#   NBD_ROUNDS          rounds (default 5)   NBD_SECONDS  seconds of a measurement (default 1)   NBD_MIB  size (default 512)
set -euo pipefail

diffdisk=$(realpath "${1:-target/release/diffdisk}")
rounds=${NBD_ROUNDS:-5} seconds=${NBD_SECONDS:-1} mib=${NBD_MIB:-512}

for pair in fio:fio qemu-nbd:qemu-utils qemu-img:qemu-utils nbdkit:nbdkit jq:jq; do
    if ! command -v "${pair%:*}" >/dev/null; then
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${pair#*:}" >/dev/null 2>&1 || true
    fi
    command -v "${pair%:*}" >/dev/null || { echo "nbd bench: SKIPPED, there is no ${pair%:*} and it could not be installed"; exit 0; }
done
fio --enghelp 2>/dev/null | grep -qw nbd || { echo "nbd bench: SKIPPED, this fio has no nbd engine"; exit 0; }

base=${DIFFDISK_BENCH_DIR:-/dev/shm}
[ -d "$base" ] || base=${TMPDIR:-/tmp}
work=$(mktemp -d "$base/nbd-bench.XXXXXX")
servers=()
cleanup() {
    local pid
    for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

echo "content of ${mib} MiB ..." >&2
head -c "${mib}M" /dev/urandom >"$work/data.raw"
cp "$work/data.raw" "$work/kit.raw"
cp "$work/data.raw" "$work/qemu.raw"
qemu-img create -q -f qcow2 -b "$work/data.raw" -F raw "$work/overlay.qcow2"
"$diffdisk" convert "$work/data.raw" "$work/image.vhdx" --from raw --to vhdx >/dev/null
"$diffdisk" create "$work/clone.vhdx" --parent "$work/image.vhdx" >/dev/null

start() { # NAME COMMAND...: a server that listens on $work/NAME
    local name=$1 i
    shift
    "$@" >"$work/$name.log" 2>&1 &
    servers+=($!)
    for i in $(seq 100); do
        [ -S "$work/$name" ] && return
        sleep 0.05
    done
    echo "$name does not listen: $(cat "$work/$name.log")" >&2
    exit 1
}

start ours "$diffdisk" serve "$work/clone.vhdx" --nbd "unix:$work/ours"
start qemu-raw qemu-nbd -t -e 8 --cache=writeback -f raw -k "$work/qemu-raw" "$work/qemu.raw"
start qemu-qcow2 qemu-nbd -t -e 8 --cache=writeback -f qcow2 -k "$work/qemu-qcow2" "$work/overlay.qcow2"
start nbdkit nbdkit -f -U "$work/nbdkit" file "$work/kit.raw"
names=(ours qemu-raw qemu-qcow2 nbdkit)

measure() { # NAME RW BS DEPTH: prints microseconds an operation
    fio --name=m --ioengine=nbd --uri="nbd+unix:///?socket=$work/$1" --rw="$2" --bs="$3" --iodepth="$4" --size="${mib}M" \
        --runtime="$seconds" --time_based --norandommap --randrepeat=0 --output-format=json 2>/dev/null |
        sed -n "/^{/,\$p" |
        jq -r '.jobs[0] | (.read.total_ios + .write.total_ios) as $n | if $n > 0 then ((.read.runtime + .write.runtime) * 1000 / $n) else 0 end'
}

median() { sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
spread() { sort -g | awk '{v[NR] = $1} END {printf "%.1f-%.1f", v[1], v[NR]}'; }

echo "load $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) processors, $rounds rounds of $seconds s, ${mib} MiB in $base"
echo
echo "| us an operation (least-most) | ours, a clone | qemu-nbd raw | qemu-nbd qcow2 overlay | nbdkit file | ours to the best other |"
echo "|---|---|---|---|---|---|"
behind=0
while IFS=: read -r label rw bs depth; do
    for name in "${names[@]}"; do : >"$work/$name.figures"; done
    for name in "${names[@]}"; do measure "$name" "$rw" "$bs" "$depth" >/dev/null; done
    for ((round = 0; round < rounds; round++)); do
        for ((i = 0; i < ${#names[@]}; i++)); do
            name=${names[$(((i + round) % ${#names[@]}))]}
            measure "$name" "$rw" "$bs" "$depth" >>"$work/$name.figures"
        done
    done
    line="| $label"
    best=
    for name in "${names[@]}"; do
        figure=$(median <"$work/$name.figures")
        line+=" | $(printf %.1f "$figure") ($(spread <"$work/$name.figures"))"
        if [ "$name" = ours ]; then
            ours=$figure
        elif [ -z "$best" ] || awk "BEGIN {exit !($figure < $best)}"; then
            best=$figure
        fi
    done
    ratio=$(awk "BEGIN {printf \"%.2f\", $ours / $best}")
    awk "BEGIN {exit !($ratio > 1)}" && behind=$((behind + 1))
    echo "$line | $ratio |"
done <<'ROWS'
random read 4 KiB, depth 1:randread:4k:1
random read 4 KiB, depth 32:randread:4k:32
random write 4 KiB, depth 1:randwrite:4k:1
random write 4 KiB, depth 32:randwrite:4k:32
sequential read 1 MiB, depth 1:read:1m:1
sequential read 1 MiB, depth 32:read:1m:32
sequential write 1 MiB, depth 1:write:1m:1
sequential write 1 MiB, depth 32:write:1m:32
ROWS
echo
echo "behind the best of the others in $behind of 8 rows"
