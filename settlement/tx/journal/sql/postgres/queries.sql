-- insert_transaction --
-- A transaction that is wanted.
INSERT INTO chain_transaction (
       chain_id, account, added_at, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason, mined_hash, is_success, block_number, block_hash, gas_used,
       gas_price_wei)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
RETURNING id

-- update_transaction --
-- What became of it.
UPDATE chain_transaction
   SET status = $1, nonce = $2, gas = $3, reason = $4, mined_hash = $5, is_success = $6,
       block_number = $7, block_hash = $8, gas_used = $9, gas_price_wei = $10
 WHERE id = $11

-- insert_version_row --
-- The bytes of a transaction, signed once more.
INSERT INTO transaction_version (
       transaction_id, version, tx_hash, max_fee_wei, tip_wei, raw, signed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)

-- select_transaction --
-- One transaction of a key.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = $1 AND account = $2 AND id = $3
   FOR NO KEY UPDATE

-- select_open --
-- What is still looked after, by nonce; what has none comes first.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = $1 AND account = $2 AND status < 6
 ORDER BY nonce NULLS FIRST, id

-- select_from --
-- What has this nonce or a higher one.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = $1 AND account = $2 AND nonce >= $3
 ORDER BY nonce

-- select_by_hash --
-- The transaction of which one version has this hash: the last, if one was given up before.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = $1 AND account = $2
   AND id IN (SELECT transaction_id FROM transaction_version WHERE tx_hash = $3)
 ORDER BY id DESC
 LIMIT 1

-- select_versions --
-- Every signing of transactions, the first one first.
SELECT transaction_id, tx_hash, max_fee_wei, tip_wei, raw, signed_at
  FROM transaction_version
 WHERE transaction_id = ANY($1::bigint[])
 ORDER BY transaction_id, version

-- select_next_nonce --
-- The nonce after the highest that was given.
SELECT coalesce(max(nonce) + 1, 0) FROM chain_transaction WHERE chain_id = $1 AND account = $2

-- select_ended_before --
-- Transactions that ended, wanted before a time, the oldest first; never the newest nonce's.
SELECT id FROM chain_transaction AS ended
 WHERE chain_id = $1 AND account = $2 AND status >= 6 AND added_at < $3
   AND (nonce IS NULL OR EXISTS (
       SELECT 1 FROM chain_transaction AS later
        WHERE later.chain_id = ended.chain_id AND later.account = ended.account
          AND later.nonce > ended.nonce))
 ORDER BY id
 LIMIT $4

-- delete_versions --
-- The bytes of these transactions.
DELETE FROM transaction_version WHERE transaction_id IN (SELECT unnest($1::bigint[]))

-- delete_transactions --
-- These transactions.
DELETE FROM chain_transaction WHERE id IN (SELECT unnest($1::bigint[]))

-- select_quarantine --
-- Channels the chain refuses for now.
SELECT chain_id, escrow, channel_id, reason, tries, since, retry_at
  FROM channel_quarantine
 WHERE chain_id = $1
 ORDER BY retry_at

-- select_quarantined --
-- One of them.
SELECT chain_id, escrow, channel_id, reason, tries, since, retry_at
  FROM channel_quarantine
 WHERE chain_id = $1 AND escrow = $2 AND channel_id = $3

-- upsert_quarantined --
-- It was refused, or refused again.
INSERT INTO channel_quarantine (chain_id, escrow, channel_id, reason, tries, since, retry_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (chain_id, escrow, channel_id) DO UPDATE
   SET reason = excluded.reason, tries = excluded.tries, retry_at = excluded.retry_at

-- delete_quarantined --
-- It was settled or closed, or its reason is gone.
DELETE FROM channel_quarantine WHERE chain_id = $1 AND escrow = $2 AND channel_id = $3

-- lock_lease --
-- The newest fence; no other settler can take the key before this transaction ends.
SELECT fence FROM settler_lease WHERE chain_id = $1 AND account = $2 FOR SHARE

-- take_lease --
-- Take the key if it is free, or its lease expired by the server's clock. One that ends later
-- than its length from now was written before that clock went back: it would not run out.
INSERT INTO settler_lease (chain_id, account, fence, holder, expires_at)
VALUES ($1, $2, 1, $3, extract(epoch FROM clock_timestamp()) + $4)
    ON CONFLICT (chain_id, account) DO UPDATE
   SET fence = settler_lease.fence + 1, holder = excluded.holder,
       expires_at = excluded.expires_at
 WHERE settler_lease.expires_at <= extract(epoch FROM clock_timestamp())
    OR settler_lease.expires_at > extract(epoch FROM clock_timestamp()) + $4
RETURNING fence

-- renew_lease --
-- Keep it.
UPDATE settler_lease SET expires_at = extract(epoch FROM clock_timestamp()) + $4
 WHERE chain_id = $1 AND account = $2 AND fence = $3
RETURNING fence

-- select_holder --
-- Who has the key now.
SELECT holder FROM settler_lease
 WHERE chain_id = $1 AND account = $2
   AND expires_at > extract(epoch FROM clock_timestamp())
   AND expires_at <= extract(epoch FROM clock_timestamp()) + $3

-- select_look --
-- Which block the settler saw last, and when.
SELECT block_number, block_hash, block_time, looked_at
  FROM settler_look
 WHERE chain_id = $1 AND account = $2

-- upsert_look --
-- It has looked.
INSERT INTO settler_look (chain_id, account, block_number, block_hash, block_time, looked_at)
VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (chain_id, account) DO UPDATE
   SET block_number = excluded.block_number, block_hash = excluded.block_hash,
       block_time = excluded.block_time, looked_at = excluded.looked_at

-- insert_distrusted --
-- An address whose contract took back a voucher; known already, it stays as it is.
INSERT INTO distrusted_signer (chain_id, address, since)
VALUES ($1, $2, $3)
ON CONFLICT (chain_id, address) DO NOTHING

-- select_distrusted --
-- The newest of them on a chain.
SELECT address FROM distrusted_signer WHERE chain_id = $1 ORDER BY since DESC LIMIT $2

-- select_since --
-- What was wanted since then and has a nonce, the newest first.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = $1 AND account = $2 AND nonce IS NOT NULL AND added_at >= $3
 ORDER BY nonce DESC
 LIMIT $4

-- select_order --
-- The newest order of a kind.
SELECT placed_at, ended_at, outcome
  FROM operator_order
 WHERE chain_id = $1 AND account = $2 AND name = $3

-- place_order --
-- It stands from now on; one that stands already keeps its time.
INSERT INTO operator_order (chain_id, account, name, placed_at, ended_at, outcome)
VALUES ($1, $2, $3, $4, NULL, '')
    ON CONFLICT (chain_id, account, name) DO UPDATE
   SET placed_at = excluded.placed_at, ended_at = NULL, outcome = ''
 WHERE operator_order.ended_at IS NOT NULL

-- end_order --
-- It was carried out or withdrawn.
UPDATE operator_order
   SET ended_at = $1, outcome = $2
 WHERE chain_id = $3 AND account = $4 AND name = $5 AND ended_at IS NULL
