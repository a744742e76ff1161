#!/bin/bash
# End to end: PostgreSQL on a clone. `serve` -> nbdfuse -> loop device -> ext4 -> pgbench, with a ledger of the transactions PostgreSQL
# acknowledged. PostgreSQL and our server are killed with -9 at random, served again, mounted again: recovery succeeds, every acknowledged
# transaction is there, sums add up, pg_amcheck and the data checksums find nothing. The parent is hashed before and after.
#
# Usage: .ci/e2e/postgres.sh [path of the diffdisk binary [rounds [seed]]]
set -euo pipefail
# shellcheck source=.ci/e2e/lib.sh
source "$(dirname "$0")/lib.sh" "$@"
rounds=${2:-3} seed=${3:-1}

need_kernel_doors
need_libnbd
need e2fsprogs mke2fs e2fsck
need util-linux losetup setpriv
if ! compgen -G '/usr/lib/postgresql/*/bin/pg_amcheck' >/dev/null; then need postgresql psql; fi
bin=$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/pg_amcheck' | sort -V | tail -1)")
cd "$work"
seed_random "$seed"

run=$work/run # the database's socket and log: not on the clone
mkdir "$run"
chown postgres: "$run"
data=$fs/data
postgres=''

as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups env -C / PGHOST="$run" PGUSER=postgres)

sql() {
    "${as_postgres[@]}" "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -d bench "$@"
}

start_postgres() {
    # setpriv and env become what they start, so the id is that of the postmaster.
    "${as_postgres[@]}" "$bin/postgres" -D "$1" -k "$run" -c listen_addresses= -c shared_buffers=16MB -c max_wal_size=64MB -c checkpoint_timeout=30s \
        -c autovacuum_naptime=5s -c log_checkpoints=on "${@:2}" >>"$run/postgres.txt" 2>&1 &
    postgres=$!
    # -w waits for recovery; the database answers or has said why it cannot.
    local until=$((SECONDS + 120))
    until "${as_postgres[@]}" "$bin/pg_isready" -q; do
        kill -0 "$postgres" 2>/dev/null || { tail -20 "$run/postgres.txt"; die "PostgreSQL does not come up"; }
        [ $SECONDS -lt $until ] || { tail -20 "$run/postgres.txt"; die "PostgreSQL does not get ready"; }
        read -r -t 0.1 <> <(:) || true
    done
}

stop_postgres() {
    kill -INT "$postgres"
    wait "$postgres" || die "PostgreSQL did not end well"
    postgres=''
}

# The postmaster and the children it has at this moment, which are the backends.
kill_postgres() {
    [ -n "$postgres" ] || return 0
    local pids=()
    read -r -a pids 2>/dev/null <"/proc/$postgres/task/$postgres/children" || true
    kill -9 "$postgres" "${pids[@]}" 2>/dev/null || true
    wait "$postgres" 2>/dev/null || true
    postgres='' backends+=("${pids[@]}")
}
backends=()

# A backend that was waiting for its disk may take a moment to go, and holds the file system until then.
bury_postgres() {
    kill_postgres
    local pid
    for pid in "${backends[@]}"; do
        timeout 60 tail -s 0.05 --pid="$pid" -f /dev/null || die "process $pid of PostgreSQL does not end"
    done
    backends=()
}

before_cleanup() {
    bury_postgres
    if [ -n "${bench:-}" ]; then wait "$bench" 2>/dev/null; fi
}

# The image: a database made by PostgreSQL with data checksums, put into an ext4 without mounting anything.
mkdir image
chown postgres: image
"${as_postgres[@]}" "$bin/initdb" -D "$work/image/data" --data-checksums --no-locale -E UTF8 -A trust -N >initdb.txt 2>&1 || { cat initdb.txt; exit 1; }
start_postgres "$work/image/data" -c fsync=off
"${as_postgres[@]}" "$bin/psql" -Xq -d postgres -c 'CREATE DATABASE bench'
"${as_postgres[@]}" "$bin/pgbench" -iq -s 1 bench 2>/dev/null
sql -c 'CREATE EXTENSION amcheck;
    CREATE TABLE ledger (round int, client int, n int, a int NOT NULL, b int NOT NULL, delta int NOT NULL, PRIMARY KEY (round, client, n))'
stop_postgres
truncate -s 512M image.img
mke2fs -q -F -t ext4 -m 0 -E root_owner="$(id -u postgres):$(id -g postgres)" -d image image.img
"$diffdisk" convert image.img image.vhdx --from raw >/dev/null
rm -rf image image.img
seal image.vhdx
"$diffdisk" create clone.vhdx --parent image.vhdx >/dev/null

up() {
    [ -n "$server" ] || serve clone.vhdx
    attach
    mount -t ext4 -o errors=remount-ro "$loop" "$fs"
    start_postgres "$data"
}

# What PostgreSQL acknowledged, from pgbench's log, which has a line for every transaction whose COMMIT came back:
# the client and which of its own it was, from 1.
collect_ledger() {
    cat "$run"/acked.* 2>/dev/null | awk -v round="$1" '{ print round "\t" $1 "\t" $2 }' >>acked.txt
    rm -f "$run"/acked.*
    chmod 644 acked.txt
}

verify() {
    sql >verify.txt <<SQL
CREATE TEMP TABLE acked (round int, client int, n int);
\\copy acked FROM '$work/acked.txt'
SELECT 'acked', count(*) FROM acked;
SELECT 'lost', count(*) FROM acked LEFT JOIN ledger USING (round, client, n) WHERE ledger.a IS NULL;
-- A commit that was on its way may have made it, one for each client; anything more was made up.
SELECT 'unasked', count(*) FROM ledger LEFT JOIN (SELECT round, client, max(n) AS n FROM acked GROUP BY 1, 2) AS last USING (round, client)
    WHERE ledger.n > coalesce(last.n, 0) + 1;
SELECT 'sum', sum(abalance) FROM pgbench_accounts;
SELECT 'rows', count(*) FROM pgbench_accounts;
SELECT 'differ', count(*) FROM pgbench_accounts LEFT JOIN
    (SELECT aid, sum(d) AS d FROM (SELECT a AS aid, -delta AS d FROM ledger UNION ALL SELECT b, delta FROM ledger) AS moves GROUP BY aid) AS moved
    USING (aid) WHERE abalance <> coalesce(d, 0);
SQL
    local acked
    acked=$(sed -n 's/^acked|//p' verify.txt)
    [ "$acked" -gt 0 ] || die "nothing was acknowledged: this checked nothing"
    [ "$(grep -v acked verify.txt | tr '\n' ' ')" = 'lost|0 unasked|0 sum|0 rows|100000 differ|0 ' ] || {
        cat verify.txt
        sql -c "CREATE TEMP TABLE acked (round int, client int, n int)" -c "\\copy acked FROM '$work/acked.txt'" \
            -c "SELECT 'lost: round, client, n', * FROM acked EXCEPT SELECT 'lost: round, client, n', round, client, n FROM ledger LIMIT 20"
        die "the database is not what was acknowledged"
    }
    "${as_postgres[@]}" "$bin/pg_amcheck" -d bench --heapallindexed >amcheck.txt 2>&1 || { cat amcheck.txt; die "pg_amcheck finds damage"; }
    say "  $acked transactions acknowledged until now, all there; sum unchanged; pg_amcheck finds nothing"
}

# Each round draws who dies and when; the first three show one of each kind, in an order of the seed.
kinds=('server' 'both' 'postgres, then server')
random 3
first=$drawn
: >acked.txt
for ((round = 1; round <= rounds; round++)); do
    if [ "$round" -le 3 ]; then
        kind=${kinds[(first + round) % 3]}
    else
        random 4
        kind=${kinds[drawn]:-nbdfuse}
    fi
    up
    "${as_postgres[@]}" "$bin/pgbench" -n -c 4 -j 2 -T 600 -D n=0 -D round="$round" -f "$here/postgres_transfer.sql" -l --log-prefix="$run/acked" bench \
        >"$run/pgbench.txt" 2>&1 &
    bench=$!
    random 5000
    delay=$((1500 + drawn))
    sleep "$(printf '%d.%03d' $((delay / 1000)) $((delay % 1000)))"
    flushes=$(device_flushes)
    case $kind in
    server) crash ;;
    both)
        kill_postgres
        crash
        ;;
    postgres*)
        kill_postgres
        random 300
        sleep "0.$(printf '%03d' "$drawn")" # what PostgreSQL left in the page cache is on its way to the disk
        crash
        ;;
    nbdfuse) kill -9 "$fuse" ;; # the server sees a client vanish, and goes on for the next
    esac
    bury_postgres
    wait "$bench" && die "pgbench did not notice that its database is gone"
    bench=''
    detach
    collect_ledger "$round"
    say "round $round: killed $kind after $delay ms and $flushes flushes"
    if [ -z "$server" ]; then "$diffdisk" check clone.vhdx >/dev/null || die "the clone is damaged"; fi
    up
    verify
    stop_postgres
    umount "$fs"
    e2fsck -fn "$loop" >e2fsck.txt 2>&1 || { cat e2fsck.txt; die "e2fsck finds errors"; }
    detach
    stop
done

serve clone.vhdx
attach
mount -t ext4 "$loop" "$fs"
"${as_postgres[@]}" "$bin/pg_checksums" --check -D "$data" >checksums.txt 2>&1 || { cat checksums.txt; die "data checksums are wrong"; }
say "$(grep -i 'blocks scanned' checksums.txt), $(grep -i 'bad checksums' checksums.txt)"
umount "$fs"
detach
stop
"$diffdisk" check clone.vhdx >/dev/null || die "the clone is damaged"
check_parent
say ok
