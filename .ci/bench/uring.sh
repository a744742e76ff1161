#!/bin/bash
# Would an io_uring back end win? Plain files, O_DIRECT, 4 KiB at random: one synchronous thread, a ring, libaio, and more threads.
# Says nothing about this crate; docs/design/0020 draws the conclusion. Usage: .ci/bench/uring.sh [directory on a real disk]
set -euo pipefail
dir=${1:-${TMPDIR:-/tmp}}
for tool in fio jq; do
    command -v "$tool" >/dev/null || { echo "uring bench: SKIPPED, there is no $tool"; exit 0; }
done
file=$(mktemp "$dir/uring-bench.XXXXXX")
trap 'rm -f "$file"' EXIT
fio --name=lay --filename="$file" --size=512M --rw=write --bs=1M --end_fsync=1 --output-format=json >/dev/null

run() { # RW ENGINE DEPTH THREADS
    fio --name=x --filename="$file" --size=512M --direct=1 --time_based --runtime="${URING_SECONDS:-3}" --rw="$1" --bs=4k --ioengine="$2" \
        --iodepth="$3" --numjobs="$4" --thread --group_reporting --norandommap --output-format=json 2>/dev/null |
        jq -r '.jobs[0] | (.read.iops + .write.iops) | floor'
}

echo "operations a second on $(stat -f -c %T "$dir"), load $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) processors"
echo
echo "| | 1 thread, pread | io_uring, depth 1 | io_uring, depth 32 | libaio, depth 32 | 8 threads, pread | 32 threads, pread |"
echo "|---|---|---|---|---|---|---|"
for round in 1 2 3; do
    for rw in randread randwrite; do
        echo "| $rw, round $round | $(run $rw psync 1 1) | $(run $rw io_uring 1 1) | $(run $rw io_uring 32 1) | $(run $rw libaio 32 1) | $(run $rw psync 1 8) | $(run $rw psync 1 32) |"
    done
done
