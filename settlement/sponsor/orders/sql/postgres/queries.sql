-- select_order --
-- One deposit.
SELECT order_id, chain_id, escrow, channel_id, funder, calldata, deadline, gas_gwei, wanted_at,
       status, tx_hash, reason, voucher, is_known
  FROM deposit_order
 WHERE order_id = $1

-- select_open --
-- What the settler owes, the oldest first.
SELECT order_id, chain_id, escrow, channel_id, funder, calldata, deadline, gas_gwei, wanted_at,
       status, tx_hash, reason, voucher, is_known
  FROM deposit_order
 WHERE chain_id = $1 AND escrow = $2 AND status < 3
 ORDER BY wanted_at, order_id
 LIMIT $3

-- select_unknown --
-- Openings that were made a while ago, and of which the books may not know.
SELECT order_id, chain_id, escrow, channel_id, funder, calldata, deadline, gas_gwei, wanted_at,
       status, tx_hash, reason, voucher, is_known
  FROM deposit_order
 WHERE chain_id = $1 AND escrow = $2 AND status = 3 AND is_known = 0 AND wanted_at < $3
 ORDER BY wanted_at, order_id
 LIMIT $4

-- update_known --
-- The books know the channel.
UPDATE deposit_order SET is_known = 1 WHERE order_id = $1

-- select_usage --
-- What the deposits of a period may cost or did cost, and how many of them one funder had. What was
-- not broadcast counts for nothing, nor what others made: no signature proves its funder.
SELECT coalesce(sum(gas_gwei), 0)::bigint,
       coalesce(sum(CASE WHEN funder = $1 AND gas_gwei > 0 THEN 1 ELSE 0 END), 0)
  FROM deposit_order
 WHERE chain_id = $2 AND escrow = $3 AND wanted_at > $4 AND status <> 5

-- upsert_order --
-- It is wanted, for the first time or again: as it was signed this time.
INSERT INTO deposit_order (
       order_id, chain_id, escrow, channel_id, funder, calldata, deadline, gas_gwei, wanted_at,
       status, tx_hash, reason, voucher, is_known)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
    ON CONFLICT (order_id) DO UPDATE
   SET calldata = excluded.calldata, gas_gwei = excluded.gas_gwei,
       wanted_at = excluded.wanted_at, status = excluded.status, tx_hash = excluded.tx_hash,
       reason = excluded.reason, voucher = excluded.voucher
 WHERE deposit_order.status = 5

-- update_order --
-- What became of it. What has ended stays as it is.
UPDATE deposit_order
   SET status = $1, tx_hash = $2, reason = $3, gas_gwei = coalesce($4::bigint, gas_gwei)
 WHERE order_id = $5 AND status < 3

-- delete_ended --
-- No client asks for them any more.
DELETE FROM deposit_order WHERE chain_id = $1 AND escrow = $2 AND wanted_at < $3 AND status >= 3
