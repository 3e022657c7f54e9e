-- select_channels --
-- Channels by their keys, with their revisions.
SELECT channel.id, channel.chain_id, channel.escrow, channel.channel_id,
       payer, payee, token, authorized_signer,
       deposit::text, settled::text, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted::text, spent::text, published::text, active_at,
       highest, at_or_below_spent, above_spent, reservations, revision
  FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS wanted (chain_id, escrow, channel_id)
  JOIN channel USING (chain_id, escrow, channel_id)

-- lock_channels --
-- Locks rows in one order everywhere, so that no two batches deadlock; returns their revisions.
SELECT id, revision FROM channel WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE

-- select_page --
-- Channels after a key, in key order.
SELECT id, chain_id, escrow, channel_id, payer, payee, token, authorized_signer,
       deposit::text, settled::text, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted::text, spent::text, published::text, active_at,
       highest, at_or_below_spent, above_spent, reservations
  FROM channel
 WHERE (chain_id, escrow, channel_id) > ($1, $2, $3) AND NOT ($5 AND is_finalized)
 ORDER BY chain_id, escrow, channel_id
 LIMIT $4

-- select_pending_closes --
-- Channels whose close was decided and is not mined.
SELECT id, chain_id, escrow, channel_id, payer, payee, token, authorized_signer,
       deposit::text, settled::text, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted::text, spent::text, published::text, active_at,
       highest, at_or_below_spent, above_spent, reservations
  FROM channel
 WHERE closing_with IS NOT NULL AND NOT is_finalized
 ORDER BY id
 LIMIT $1

-- select_foreign --
-- Channels that were settled or closed on chain, but not by this ledger.
SELECT id, chain_id, escrow, channel_id, payer, payee, token, authorized_signer,
       deposit::text, settled::text, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted::text, spent::text, published::text, active_at,
       highest, at_or_below_spent, above_spent, reservations
  FROM channel
 WHERE foreign_block <> 0
 ORDER BY id
 LIMIT $1

-- select_leased --
-- Keys of channels with a reservation whose lease has expired.
SELECT chain_id, escrow, channel_id
  FROM channel
 WHERE lease_expires_at <= $1
 ORDER BY lease_expires_at
 LIMIT $2

-- insert_channels --
-- New channels; leaves out those that another worker inserted meanwhile.
INSERT INTO channel (
       reservations, lease_expires_at, highest, at_or_below_spent, above_spent,
       accepted, spent, published, active_at,
       deposit, settled, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       chain_id, escrow, channel_id, payer, payee, token, authorized_signer)
SELECT reservations, lease_expires_at, highest, at_or_below_spent, above_spent,
       accepted::numeric, spent::numeric, published::numeric, active_at,
       deposit::numeric, settled::numeric, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       chain_id, escrow, channel_id, payer, payee, token, authorized_signer
  FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[],
              $6::text[], $7::text[], $8::text[], $9::bigint[],
              $10::text[], $11::text[], $12::bigint[], $13::boolean[], $14::bigint[],
              $15::boolean[], $16::bytea[], $17::bytea[], $18::bigint[],
              $19::bigint[], $20::bytea[], $21::bytea[],
              $22::bytea[], $23::bytea[], $24::bytea[], $25::bytea[])
    AS new (reservations, lease_expires_at, highest, at_or_below_spent, above_spent,
            accepted, spent, published, active_at,
            deposit, settled, close_requested_at, is_finalized, fact_block,
            is_closing, closing_with, close_tx, foreign_block,
            chain_id, escrow, channel_id, payer, payee, token, authorized_signer)
 ORDER BY chain_id, escrow, channel_id
    ON CONFLICT (chain_id, escrow, channel_id) DO NOTHING
RETURNING id, chain_id, escrow, channel_id

-- update_accounts --
-- The columns that a voucher or a payment changes.
UPDATE channel
   SET reservations = new.reservations, lease_expires_at = new.lease_expires_at,
       highest = new.highest, at_or_below_spent = new.at_or_below_spent,
       above_spent = new.above_spent, accepted = new.accepted::numeric,
       spent = new.spent::numeric, published = new.published::numeric,
       active_at = new.active_at, revision = channel.revision + 1
  FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bytea[],
              $7::text[], $8::text[], $9::text[], $10::bigint[])
    AS new (id, reservations, lease_expires_at, highest, at_or_below_spent, above_spent,
            accepted, spent, published, active_at)
 WHERE channel.id = new.id

-- update_channels --
-- Every column that can change.
UPDATE channel
   SET reservations = new.reservations, lease_expires_at = new.lease_expires_at,
       highest = new.highest, at_or_below_spent = new.at_or_below_spent,
       above_spent = new.above_spent, accepted = new.accepted::numeric,
       spent = new.spent::numeric, published = new.published::numeric,
       active_at = new.active_at, deposit = new.deposit::numeric,
       settled = new.settled::numeric, close_requested_at = new.close_requested_at,
       is_finalized = new.is_finalized, fact_block = new.fact_block,
       is_closing = new.is_closing, closing_with = new.closing_with, close_tx = new.close_tx,
       foreign_block = new.foreign_block,
       revision = channel.revision + 1
  FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bytea[],
              $7::text[], $8::text[], $9::text[], $10::bigint[],
              $11::text[], $12::text[], $13::bigint[], $14::boolean[], $15::bigint[],
              $16::boolean[], $17::bytea[], $18::bytea[], $19::bigint[])
    AS new (id, reservations, lease_expires_at, highest, at_or_below_spent, above_spent,
            accepted, spent, published, active_at,
            deposit, settled, close_requested_at, is_finalized, fact_block,
            is_closing, closing_with, close_tx, foreign_block)
 WHERE channel.id = new.id

-- select_requests --
-- The records of idempotency keys.
SELECT channel, route, idempotency_key,
       request_digest, reservation_id, claimed_at, expires_at, status, headers, body
  FROM unnest($1::bigint[], $2::text[], $3::text[]) AS wanted (channel, route, idempotency_key)
  JOIN paid_request USING (channel, route, idempotency_key)

-- upsert_requests --
-- Claims, and the answers to them.
INSERT INTO paid_request (channel, route, idempotency_key, request_digest, reservation_id,
                          claimed_at, expires_at, status, headers, body)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::bytea[],
                     $6::bigint[], $7::bigint[], $8::integer[], $9::bytea[], $10::bytea[])
    ON CONFLICT (channel, route, idempotency_key) DO UPDATE
   SET request_digest = excluded.request_digest, reservation_id = excluded.reservation_id,
       claimed_at = excluded.claimed_at, expires_at = excluded.expires_at,
       status = excluded.status, headers = excluded.headers, body = excluded.body

-- delete_requests --
-- These requests were not served: their keys may be used again.
DELETE FROM paid_request
 USING unnest($1::bigint[], $2::text[], $3::text[]) AS gone (channel, route, idempotency_key)
 WHERE paid_request.channel = gone.channel AND paid_request.route = gone.route
   AND paid_request.idempotency_key = gone.idempotency_key

-- delete_expired_requests --
-- A bounded number of the idempotency rows past their lifetime.
DELETE FROM paid_request
 WHERE ctid = ANY (ARRAY(SELECT ctid FROM paid_request WHERE expires_at <= $1 LIMIT $2))

-- select_answered --
-- A bounded number of channels with answers, in order: one index step for each.
SELECT channel
  FROM (WITH RECURSIVE walked (channel) AS (
        SELECT min(channel) FROM paid_request WHERE channel > $1 AND status IS NOT NULL
         UNION ALL
        SELECT (SELECT min(channel) FROM paid_request
                 WHERE channel > walked.channel AND status IS NOT NULL)
          FROM walked WHERE walked.channel IS NOT NULL)
        SELECT channel FROM walked WHERE channel IS NOT NULL LIMIT $2) AS found

-- forget_answers --
-- A bounded number of answers beyond the newest of each channel; their keys stay.
UPDATE paid_request SET status = NULL, headers = NULL, body = NULL
 WHERE ctid = ANY (ARRAY(
       SELECT older.ctid
         FROM unnest($1::bigint[]) AS answered (channel)
        CROSS JOIN LATERAL (SELECT ctid FROM paid_request
                             WHERE channel = answered.channel AND status IS NOT NULL
                             ORDER BY expires_at DESC OFFSET $2) AS older
        LIMIT $3))

-- forget_surplus --
-- A channel's oldest answers beyond a number of bytes; their keys stay.
UPDATE paid_request SET status = NULL, headers = NULL, body = NULL
 WHERE ctid = ANY (ARRAY(
       SELECT place
         FROM (SELECT ctid AS place, sum(octet_length(body) + octet_length(headers))
                      OVER (ORDER BY expires_at DESC, idempotency_key) AS held
                 FROM paid_request
                WHERE channel = $1 AND status IS NOT NULL) AS answers
        WHERE held > $2))

-- sum_answers --
-- The bytes of these channels' answers.
SELECT coalesce(sum(octet_length(body) + octet_length(headers)), 0)::bigint
  FROM paid_request
 WHERE channel = ANY ($1::bigint[]) AND status IS NOT NULL

-- forget_oldest --
-- The oldest answers until enough bytes are free, of a bounded number; returns the size of each.
UPDATE paid_request SET status = NULL, headers = NULL, body = NULL
  FROM (SELECT place, size, sum(size) OVER (ORDER BY expires_at, place) - size AS older
          FROM (SELECT ctid AS place, expires_at,
                       octet_length(body) + octet_length(headers) AS size
                  FROM paid_request
                 WHERE status IS NOT NULL
                 ORDER BY expires_at, ctid
                 LIMIT $1
                   FOR UPDATE SKIP LOCKED) AS found) AS oldest
 WHERE paid_request.ctid = oldest.place AND oldest.older < $2
RETURNING oldest.size

-- select_proofs --
-- The channels that consumed these logs.
SELECT consumed_proof.chain_id, tx_hash, log_index,
       channel.chain_id, channel.escrow, channel.channel_id
  FROM unnest($1::bigint[], $2::bytea[], $3::bigint[]) AS wanted (chain_id, tx_hash, log_index)
  JOIN consumed_proof USING (chain_id, tx_hash, log_index)
  JOIN channel ON channel.id = consumed_proof.channel

-- insert_proofs --
-- Consume logs as evidence, once and permanently.
INSERT INTO consumed_proof (chain_id, tx_hash, log_index, channel)
SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[])

-- notify --
-- Notify other workers of the changed channels, once this transaction is committed.
SELECT pg_notify($1, changed::text) FROM unnest($2::bigint[]) AS changed

-- select_revisions --
-- The revisions of watched channels, by their keys.
SELECT channel.chain_id, channel.escrow, channel.channel_id, channel.revision
  FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS wanted (chain_id, escrow, channel_id)
  JOIN channel USING (chain_id, escrow, channel_id)

-- select_time --
-- The time that all workers share.
SELECT extract(epoch FROM clock_timestamp())::float8

-- select_identity --
-- The ledger's id, and its location: a database and schema of a cluster.
SELECT ledger_id, EXISTS (SELECT 1 FROM ledger_marker WHERE name = $3),
       (SELECT oid FROM pg_database WHERE datname = current_database())::text
       || '/' || current_schema(),
       EXISTS (SELECT 1 FROM pg_locks
                WHERE locktype = 'advisory' AND granted AND classid = $1 AND objid = $2
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
  FROM ledger_identity

-- insert_marker --
-- Records that a marker exists outside the database.
INSERT INTO ledger_marker (name) VALUES ($1) ON CONFLICT DO NOTHING

-- select_settings --
-- The settings that decide whether a commit in this session is on disk.
SELECT current_setting('synchronous_commit'), current_setting('fsync'),
       current_setting('full_page_writes'), current_setting('data_sync_retry')

-- require_synchronous --
-- Makes commits in this session wait for the disk, despite the role's or database's settings.
SELECT set_config('synchronous_commit', 'on', false)
 WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')

-- select_position --
-- How far this cluster has written to disk: system, timeline, log position in bytes.
SELECT system_identifier,
       ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint,
       pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint
  FROM pg_control_system()

-- count_standbys --
-- The connected standbys, including those whose state this role may not see; the synchronous ones.
SELECT count(*) FILTER (WHERE state IS DISTINCT FROM 'backup'),
       count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')),
       current_setting('synchronous_standby_names') <> ''
  FROM pg_stat_replication

-- show --
-- Shows other sessions that a gateway serves with this database, until this session ends.
SELECT pg_advisory_lock_shared($1, $2)

-- insert_charges --
-- Entries of the accounts.
INSERT INTO charge (channel, at, reservation_id, outcome, is_stream, route, variant, usage,
                    response_id, amount)
SELECT channel, at, reservation_id, outcome, is_stream, route, variant, usage, response_id,
       amount::numeric
  FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::text[], $5::boolean[], $6::text[],
              $7::text[], $8::text[], $9::text[], $10::text[])
    AS new (channel, at, reservation_id, outcome, is_stream, route, variant, usage, response_id,
            amount)

-- add_balances --
-- More of a channel's `spent` has no row: listed nowhere, or deleted.
INSERT INTO charge_balance (channel, unlisted, pruned)
SELECT channel, unlisted::numeric, pruned::numeric
  FROM unnest($1::bigint[], $2::text[], $3::text[]) AS new (channel, unlisted, pruned)
 ORDER BY channel
    ON CONFLICT (channel) DO UPDATE
   SET unlisted = charge_balance.unlisted + excluded.unlisted,
       pruned = charge_balance.pruned + excluded.pruned

-- select_charges --
-- Entries of a time, in order, after an entry.
SELECT charge.id, at, reservation_id, outcome, is_stream, route, variant, usage, response_id,
       amount::text, chain_id, escrow, channel_id, payer, payee, token
  FROM charge JOIN channel ON channel.id = charge.channel
 WHERE at < $4 AND (at, charge.id) > ($1, $2) AND at >= $3
 ORDER BY at, charge.id
 LIMIT $5

-- find_charges --
-- The entries of a request.
SELECT charge.id, at, reservation_id, outcome, is_stream, route, variant, usage, response_id,
       amount::text, chain_id, escrow, channel_id, payer, payee, token
  FROM charge JOIN channel ON channel.id = charge.channel
 WHERE reservation_id = $1
 ORDER BY charge.id
 LIMIT $2

-- find_answers --
-- The entries of the answers that state an id.
SELECT charge.id, at, reservation_id, outcome, is_stream, route, variant, usage, response_id,
       amount::text, chain_id, escrow, channel_id, payer, payee, token
  FROM charge JOIN channel ON channel.id = charge.channel
 WHERE response_id = $1 AND response_id <> ''
 ORDER BY charge.id
 LIMIT $2

-- take_old_charges --
-- Deletes the oldest entries before a time, a bounded number, and returns them.
DELETE FROM charge
 USING channel
 WHERE channel.id = charge.channel
   AND charge.id = ANY (ARRAY(SELECT id FROM charge WHERE at < $1 ORDER BY at LIMIT $2))
RETURNING charge.id, charge.channel, at, outcome, route, variant, usage, amount::text, chain_id,
          payee, token, reservation_id IS NOT NULL

-- lock_days --
-- Lets one transaction at a time add up days.
SELECT pg_advisory_xact_lock($1)

-- select_day --
-- What was added up for a day.
SELECT requests, usage, amount::text
  FROM charge_day
 WHERE day = $1 AND chain_id = $2 AND payee = $3 AND token = $4 AND route = $5 AND variant = $6
   AND outcome = $7

-- upsert_day --
-- What is added up for a day from now on.
INSERT INTO charge_day (day, chain_id, payee, token, route, variant, outcome,
                        requests, usage, amount)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::numeric)
    ON CONFLICT (day, chain_id, payee, token, route, variant, outcome) DO UPDATE
   SET requests = excluded.requests, usage = excluded.usage, amount = excluded.amount

-- select_days --
-- What was added up for some days, in order.
SELECT day, chain_id, payee, token, route, variant, outcome, requests, usage, amount::text
  FROM charge_day
 WHERE day >= $1 AND day < $2
 ORDER BY day, chain_id, payee, token, route, variant, outcome

-- select_balances --
-- Every channel, and what its entries add up to.
SELECT channel.id, channel_id, spent::text, reservations,
       coalesce(unlisted, 0)::text, coalesce(pruned, 0)::text, coalesce(listed, 0)::text
  FROM channel
  LEFT JOIN charge_balance ON charge_balance.channel = channel.id
  LEFT JOIN (SELECT channel, sum(amount) AS listed FROM charge GROUP BY channel) AS entries
       ON entries.channel = channel.id
 ORDER BY channel.id

-- has_accounts --
-- Whether the tables have the accounts.
SELECT to_regclass('charge') IS NOT NULL

-- select_id --
-- The row of a channel.
SELECT id FROM channel WHERE chain_id = $1 AND escrow = $2 AND channel_id = $3

-- lock_unlisted --
-- What of a channel's `spent` was never listed; no other process changes it until the end.
SELECT unlisted::text FROM charge_balance WHERE channel = $1 FOR UPDATE

-- select_same_charge --
-- Whether an entry is there already.
SELECT 1 FROM charge
 WHERE at = $1 AND channel = $2 AND reservation_id IS NOT DISTINCT FROM $3
   AND amount = $4::text::numeric
