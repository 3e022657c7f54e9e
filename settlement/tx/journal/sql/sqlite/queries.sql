-- insert_transaction --
-- A transaction that is wanted.
INSERT INTO chain_transaction (
       chain_id, account, added_at, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason, mined_hash, is_success, block_number, block_hash, gas_used,
       gas_price_wei)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- update_transaction --
-- What became of it.
UPDATE chain_transaction
   SET status = ?, nonce = ?, gas = ?, reason = ?, mined_hash = ?, is_success = ?,
       block_number = ?, block_hash = ?, gas_used = ?, gas_price_wei = ?
 WHERE id = ?

-- insert_version_row --
-- The bytes of a transaction, signed once more.
INSERT INTO transaction_version (
       transaction_id, version, tx_hash, max_fee_wei, tip_wei, raw, signed_at)
VALUES (?, ?, ?, ?, ?, ?, ?)

-- select_transaction --
-- One transaction of a key.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = ? AND account = ? AND id = ?

-- select_open --
-- What is still looked after, by nonce; what has none comes first.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = ? AND account = ? AND status < 6
 ORDER BY nonce NULLS FIRST, id

-- select_from --
-- What has this nonce or a higher one.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = ? AND account = ? AND nonce >= ?
 ORDER BY nonce

-- select_by_hash --
-- The transaction of which one version has this hash: the last, if one was given up before.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = ? AND account = ?
   AND id IN (SELECT transaction_id FROM transaction_version WHERE tx_hash = ?)
 ORDER BY id DESC
 LIMIT 1

-- select_versions --
-- Every signing of a transaction, the first one first.
SELECT transaction_id, tx_hash, max_fee_wei, tip_wei, raw, signed_at
  FROM transaction_version
 WHERE transaction_id = ?
 ORDER BY version

-- select_next_nonce --
-- The nonce after the highest that was given.
SELECT coalesce(max(nonce) + 1, 0) FROM chain_transaction WHERE chain_id = ? AND account = ?

-- select_lease --
-- Who has the key, under which fence, until when.
SELECT fence, holder, expires_at, has_lock FROM settler_lease WHERE chain_id = ? AND account = ?

-- upsert_lease --
-- Take the key.
INSERT INTO settler_lease (chain_id, account, fence, holder, has_lock, expires_at)
VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (chain_id, account) DO UPDATE
   SET fence = excluded.fence, holder = excluded.holder, has_lock = excluded.has_lock,
       expires_at = excluded.expires_at

-- update_lease --
-- Keep it, or give it back by letting it run out.
UPDATE settler_lease SET expires_at = ? WHERE chain_id = ? AND account = ? AND fence = ?

-- select_ended_before --
-- Transactions that ended, wanted before a time, the oldest first; never the newest nonce's.
SELECT id FROM chain_transaction AS ended
 WHERE chain_id = ? AND account = ? AND status >= 6 AND added_at < ?
   AND (nonce IS NULL OR EXISTS (
       SELECT 1 FROM chain_transaction AS later
        WHERE later.chain_id = ended.chain_id AND later.account = ended.account
          AND later.nonce > ended.nonce))
 ORDER BY id
 LIMIT ?

-- delete_versions --
-- The bytes of these transactions.
DELETE FROM transaction_version WHERE transaction_id IN (SELECT value FROM json_each(?))

-- delete_transactions --
-- These transactions.
DELETE FROM chain_transaction WHERE id IN (SELECT value FROM json_each(?))

-- select_quarantine --
-- Channels the chain refuses for now.
SELECT chain_id, escrow, channel_id, reason, tries, since, retry_at
  FROM channel_quarantine
 WHERE chain_id = ?
 ORDER BY retry_at

-- select_quarantined --
-- One of them.
SELECT chain_id, escrow, channel_id, reason, tries, since, retry_at
  FROM channel_quarantine
 WHERE chain_id = ? AND escrow = ? AND channel_id = ?

-- upsert_quarantined --
-- It was refused, or refused again.
INSERT INTO channel_quarantine (chain_id, escrow, channel_id, reason, tries, since, retry_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (chain_id, escrow, channel_id) DO UPDATE
   SET reason = excluded.reason, tries = excluded.tries, retry_at = excluded.retry_at

-- delete_quarantined --
-- It was settled or closed, or its reason is gone.
DELETE FROM channel_quarantine WHERE chain_id = ? AND escrow = ? AND channel_id = ?

-- select_look --
-- Which block the settler saw last, and when.
SELECT block_number, block_hash, block_time, looked_at
  FROM settler_look
 WHERE chain_id = ? AND account = ?

-- upsert_look --
-- It has looked.
INSERT INTO settler_look (chain_id, account, block_number, block_hash, block_time, looked_at)
VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (chain_id, account) DO UPDATE
   SET block_number = excluded.block_number, block_hash = excluded.block_hash,
       block_time = excluded.block_time, looked_at = excluded.looked_at

-- insert_distrusted --
-- An address whose contract took back a voucher; known already, it stays as it is.
INSERT INTO distrusted_signer (chain_id, address, since)
VALUES (?, ?, ?)
ON CONFLICT (chain_id, address) DO NOTHING

-- select_distrusted --
-- The newest of them on a chain.
SELECT address FROM distrusted_signer WHERE chain_id = ? ORDER BY since DESC LIMIT ?

-- select_since --
-- What was wanted since then and has a nonce, the newest first.
SELECT id, recipient, calldata, value_wei, purpose, budget_wei, deadline,
       status, nonce, gas, reason,
       mined_hash, is_success, block_number, block_hash, gas_used, gas_price_wei
  FROM chain_transaction
 WHERE chain_id = ? AND account = ? AND nonce IS NOT NULL AND added_at >= ?
 ORDER BY nonce DESC
 LIMIT ?

-- select_order --
-- The newest order of a kind.
SELECT placed_at, ended_at, outcome
  FROM operator_order
 WHERE chain_id = ? AND account = ? AND name = ?

-- place_order --
-- It stands from now on; one that stands already keeps its time.
INSERT INTO operator_order (chain_id, account, name, placed_at, ended_at, outcome)
VALUES (?, ?, ?, ?, NULL, '')
    ON CONFLICT (chain_id, account, name) DO UPDATE
   SET placed_at = excluded.placed_at, ended_at = NULL, outcome = ''
 WHERE operator_order.ended_at IS NOT NULL

-- end_order --
-- It was carried out or withdrawn.
UPDATE operator_order
   SET ended_at = ?, outcome = ?
 WHERE chain_id = ? AND account = ? AND name = ? AND ended_at IS NULL
