-- One transfer between two accounts, and its line in the ledger. `n` counts what this client did in this round; accounts are locked in
-- one order, so that nothing deadlocks and every script that began ends in an acknowledged commit or a broken connection.
\set n :n + 1
\set a random(1, 50000)
\set b random(50001, 100000)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance - :delta WHERE aid = :a;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :b;
INSERT INTO ledger (round, client, n, a, b, delta) VALUES (:round, :client_id, :n, :a, :b, :delta);
COMMIT;
