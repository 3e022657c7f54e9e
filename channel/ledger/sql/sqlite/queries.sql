-- select_channel --
-- One channel by its key.
SELECT id, chain_id, escrow, channel_id, payer, payee, token, authorized_signer,
       deposit, settled, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted, spent, published, active_at,
       highest, at_or_below_spent, above_spent, reservations
  FROM channel
 WHERE chain_id = ? AND escrow = ? AND channel_id = ?

-- select_page --
-- Channels after a key, in key order.
SELECT id, chain_id, escrow, channel_id, payer, payee, token, authorized_signer,
       deposit, settled, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted, spent, published, active_at,
       highest, at_or_below_spent, above_spent, reservations
  FROM channel
 WHERE (chain_id, escrow, channel_id) > (?, ?, ?)
 ORDER BY chain_id, escrow, channel_id
 LIMIT ?

-- select_open_page --
-- The same, without finalized channels.
SELECT id, chain_id, escrow, channel_id, payer, payee, token, authorized_signer,
       deposit, settled, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted, spent, published, active_at,
       highest, at_or_below_spent, above_spent, reservations
  FROM channel
 WHERE (chain_id, escrow, channel_id) > (?, ?, ?) AND is_finalized = 0
 ORDER BY chain_id, escrow, channel_id
 LIMIT ?

-- select_pending_closes --
-- Channels whose close was decided and is not mined.
SELECT id, chain_id, escrow, channel_id, payer, payee, token, authorized_signer,
       deposit, settled, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted, spent, published, active_at,
       highest, at_or_below_spent, above_spent, reservations
  FROM channel
 WHERE closing_with IS NOT NULL AND is_finalized = 0
 ORDER BY id
 LIMIT ?

-- select_foreign --
-- Channels that were settled or closed on chain, but not by this ledger.
SELECT id, chain_id, escrow, channel_id, payer, payee, token, authorized_signer,
       deposit, settled, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       accepted, spent, published, active_at,
       highest, at_or_below_spent, above_spent, reservations
  FROM channel
 WHERE foreign_block != 0
 ORDER BY id
 LIMIT ?

-- select_leased --
-- Keys of channels with a reservation whose lease has expired.
SELECT chain_id, escrow, channel_id
  FROM channel
 WHERE lease_expires_at <= ?
 ORDER BY lease_expires_at
 LIMIT ?

-- insert_channel --
-- A new channel.
INSERT INTO channel (
       reservations, lease_expires_at,
       highest, at_or_below_spent, above_spent, accepted, spent, published, active_at,
       deposit, settled, close_requested_at, is_finalized, fact_block,
       is_closing, closing_with, close_tx, foreign_block,
       chain_id, escrow, channel_id, payer, payee, token, authorized_signer)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- update_accounts --
-- The columns that a voucher or a payment changes, when no reservation begins or ends.
UPDATE channel
   SET reservations = ?,
       highest = ?, at_or_below_spent = ?, above_spent = ?,
       accepted = ?, spent = ?, published = ?, active_at = ?
 WHERE id = ?

-- update_leases --
-- The same, with the indexed lease.
UPDATE channel
   SET reservations = ?, lease_expires_at = ?,
       highest = ?, at_or_below_spent = ?, above_spent = ?,
       accepted = ?, spent = ?, published = ?, active_at = ?
 WHERE id = ?

-- update_channel --
-- Every column that can change.
UPDATE channel
   SET reservations = ?, lease_expires_at = ?,
       highest = ?, at_or_below_spent = ?, above_spent = ?,
       accepted = ?, spent = ?, published = ?, active_at = ?,
       deposit = ?, settled = ?, close_requested_at = ?, is_finalized = ?, fact_block = ?,
       is_closing = ?, closing_with = ?, close_tx = ?, foreign_block = ?
 WHERE id = ?

-- select_request --
-- The record of an idempotency key.
SELECT request_digest, reservation_id, claimed_at, expires_at, status, headers, body
  FROM paid_request
 WHERE channel = ? AND route = ? AND idempotency_key = ?

-- upsert_request --
-- A claim, or the answer to it.
INSERT INTO paid_request (channel, route, idempotency_key, request_digest, reservation_id,
                          claimed_at, expires_at, status, headers, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (channel, route, idempotency_key) DO UPDATE
   SET request_digest = excluded.request_digest, reservation_id = excluded.reservation_id,
       claimed_at = excluded.claimed_at, expires_at = excluded.expires_at,
       status = excluded.status, headers = excluded.headers, body = excluded.body

-- delete_request --
-- The request was not served: its key may be used again.
DELETE FROM paid_request WHERE channel = ? AND route = ? AND idempotency_key = ?

-- delete_expired_requests --
-- A bounded number of the idempotency rows past their lifetime.
DELETE FROM paid_request
 WHERE id IN (SELECT id FROM paid_request WHERE expires_at <= ? LIMIT ?)

-- select_answered --
-- A bounded number of channels with answers, in order: one index step for each.
SELECT channel
  FROM (WITH RECURSIVE walked (channel) AS (
        SELECT min(channel) FROM paid_request WHERE channel > ?1 AND status IS NOT NULL
         UNION ALL
        SELECT (SELECT min(channel) FROM paid_request
                 WHERE channel > walked.channel AND status IS NOT NULL)
          FROM walked WHERE walked.channel IS NOT NULL)
        SELECT channel FROM walked WHERE channel IS NOT NULL LIMIT ?2) AS found

-- forget_answers --
-- A bounded number of a channel's answers beyond the newest; their keys stay.
UPDATE paid_request SET status = NULL, headers = NULL, body = NULL
 WHERE id IN (SELECT id FROM paid_request
               WHERE channel = ? AND status IS NOT NULL
               ORDER BY expires_at DESC
               LIMIT ? OFFSET ?)

-- forget_surplus --
-- A channel's oldest answers beyond a number of bytes; their keys stay.
UPDATE paid_request SET status = NULL, headers = NULL, body = NULL
 WHERE id IN (SELECT id
                FROM (SELECT id, sum(length(body) + length(headers))
                                 OVER (ORDER BY expires_at DESC, id DESC) AS held
                        FROM paid_request
                       WHERE channel = ? AND status IS NOT NULL)
               WHERE held > ?)

-- sum_answers --
-- The bytes of these channels' answers.
SELECT coalesce(sum(length(body) + length(headers)), 0)
  FROM paid_request
 WHERE channel IN (SELECT value FROM json_each(?)) AND status IS NOT NULL

-- select_oldest --
-- The oldest answers, and the size of each.
SELECT id, length(body) + length(headers)
  FROM paid_request
 WHERE status IS NOT NULL
 ORDER BY expires_at
 LIMIT ?

-- forget_these --
-- Deletes these answers; their keys stay.
UPDATE paid_request SET status = NULL, headers = NULL, body = NULL
 WHERE id IN (SELECT value FROM json_each(?))

-- select_proof --
-- The channel that consumed a transaction's log.
SELECT channel.chain_id, channel.escrow, channel.channel_id
  FROM consumed_proof JOIN channel ON channel.id = consumed_proof.channel
 WHERE consumed_proof.chain_id = ? AND tx_hash = ? AND log_index = ?

-- insert_proof --
-- Consumes a transaction's log as evidence, once and permanently.
INSERT INTO consumed_proof (chain_id, tx_hash, log_index, channel) VALUES (?, ?, ?, ?)

-- select_identity --
-- The ledger's id.
SELECT ledger_id, EXISTS (SELECT 1 FROM ledger_marker WHERE name = ?) FROM ledger_identity

-- insert_marker --
-- Records that a marker exists outside the database.
INSERT INTO ledger_marker (name) VALUES (?) ON CONFLICT DO NOTHING

-- insert_charge --
-- An entry of the accounts.
INSERT INTO charge (channel, at, reservation_id, outcome, is_stream, route, variant, usage,
                    response_id, amount)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- select_balance --
-- What of a channel's `spent` has no row.
SELECT unlisted, pruned FROM charge_balance WHERE channel = ?

-- upsert_balance --
-- What of a channel's `spent` has no row from now on.
INSERT INTO charge_balance (channel, unlisted, pruned) VALUES (?, ?, ?)
    ON CONFLICT (channel) DO UPDATE
   SET unlisted = excluded.unlisted, pruned = excluded.pruned

-- select_charges --
-- Entries of a time, in order, after an entry.
SELECT charge.id, at, reservation_id, outcome, is_stream, route, variant, usage, response_id,
       amount, chain_id, escrow, channel_id, payer, payee, token
  FROM charge JOIN channel ON channel.id = charge.channel
 WHERE at < ?4 AND (at, charge.id) > (?1, ?2) AND at >= ?3
 ORDER BY at, charge.id
 LIMIT ?5

-- find_charges --
-- The entries of a request.
SELECT charge.id, at, reservation_id, outcome, is_stream, route, variant, usage, response_id,
       amount, chain_id, escrow, channel_id, payer, payee, token
  FROM charge JOIN channel ON channel.id = charge.channel
 WHERE reservation_id = ?
 ORDER BY charge.id
 LIMIT ?

-- find_answers --
-- The entries of the answers that state an id.
SELECT charge.id, at, reservation_id, outcome, is_stream, route, variant, usage, response_id,
       amount, chain_id, escrow, channel_id, payer, payee, token
  FROM charge JOIN channel ON channel.id = charge.channel
 WHERE response_id = ? AND response_id <> ''
 ORDER BY charge.id
 LIMIT ?

-- select_old_charges --
-- The oldest entries before a time, a bounded number.
SELECT charge.id, channel, at, outcome, route, variant, usage, amount, chain_id, payee, token,
       reservation_id IS NOT NULL
  FROM charge JOIN channel ON channel.id = charge.channel
 WHERE at < ?
 ORDER BY at
 LIMIT ?

-- delete_charges --
-- Deletes these entries: they are added up in charge_day.
DELETE FROM charge WHERE id IN (SELECT value FROM json_each(?))

-- select_day --
-- What was added up for a day.
SELECT requests, usage, amount
  FROM charge_day
 WHERE day = ? AND chain_id = ? AND payee = ? AND token = ? AND route = ? AND variant = ?
   AND outcome = ?

-- upsert_day --
-- What is added up for a day from now on.
INSERT INTO charge_day (day, chain_id, payee, token, route, variant, outcome,
                        requests, usage, amount)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (day, chain_id, payee, token, route, variant, outcome) DO UPDATE
   SET requests = excluded.requests, usage = excluded.usage, amount = excluded.amount

-- select_days --
-- What was added up for some days, in order.
SELECT day, chain_id, payee, token, route, variant, outcome, requests, usage, amount
  FROM charge_day
 WHERE day >= ? AND day < ?
 ORDER BY day, chain_id, payee, token, route, variant, outcome

-- select_amounts --
-- The amount of every entry.
SELECT channel, amount FROM charge

-- select_balances --
-- Every channel with what its entries must add up to.
SELECT channel.id, channel_id, spent, reservations, unlisted, pruned
  FROM channel LEFT JOIN charge_balance ON charge_balance.channel = channel.id
 ORDER BY channel.id

-- has_accounts --
-- Whether the tables have the accounts.
SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'charge'

-- select_same_charge --
-- Whether an entry is there already.
SELECT 1 FROM charge WHERE at = ? AND channel = ? AND reservation_id IS ? AND amount = ?
