-- select_order --
-- One authorization.
SELECT order_id, chain_id, token, funder, amount, nonce, calldata, deadline, from_block,
       request_digest, owner, owned_until, wanted_at, gas_gwei, status, tx_hash, reason,
       response, is_served, paid_by
  FROM charge_order
 WHERE order_id = $1

-- select_open --
-- What the settler owes, the oldest first.
SELECT order_id, chain_id, token, funder, amount, nonce, calldata, deadline, from_block,
       request_digest, owner, owned_until, wanted_at, gas_gwei, status, tx_hash, reason,
       response, is_served, paid_by
  FROM charge_order
 WHERE chain_id = $1 AND token = $2 AND status IN (1, 2)
 ORDER BY wanted_at, order_id
 LIMIT $3

-- select_credit --
-- The oldest payment of this payer and amount that is not served, and that no request owns.
SELECT order_id, chain_id, token, funder, amount, nonce, calldata, deadline, from_block,
       request_digest, owner, owned_until, wanted_at, gas_gwei, status, tx_hash, reason,
       response, is_served, paid_by
  FROM charge_order
 WHERE chain_id = $1 AND token = $2 AND status = 3 AND is_served = 0
   AND funder = $3 AND amount = $4 AND owned_until <= $5
 ORDER BY wanted_at, order_id
 LIMIT 1

-- select_credits --
-- What is paid and not served, the oldest first.
SELECT order_id, chain_id, token, funder, amount, nonce, calldata, deadline, from_block,
       request_digest, owner, owned_until, wanted_at, gas_gwei, status, tx_hash, reason,
       response, is_served, paid_by
  FROM charge_order
 WHERE chain_id = $1 AND token = $2 AND status = 3 AND is_served = 0
 ORDER BY wanted_at, order_id
 LIMIT $3

-- select_made --
-- What was paid within a period and is no credit for another, by the time it was ordered.
SELECT order_id, chain_id, token, funder, amount, nonce, calldata, deadline, from_block,
       request_digest, owner, owned_until, wanted_at, gas_gwei, status, tx_hash, reason,
       response, is_served, paid_by
  FROM charge_order
 WHERE chain_id = $1 AND token = $2 AND wanted_at < $3 AND status = 3 AND paid_by IS NULL
   AND (wanted_at, order_id) > ($4, $5)
 ORDER BY wanted_at, order_id
 LIMIT $6

-- select_gas --
-- What the charges of a period may cost or did cost. What was not broadcast counts for nothing.
SELECT coalesce(sum(gas_gwei), 0)::bigint
  FROM charge_order
 WHERE chain_id = $1 AND token = $2 AND wanted_at > $3 AND status BETWEEN 1 AND 4

-- upsert_order --
-- It is claimed: for the first time, or by another request.
INSERT INTO charge_order (
       order_id, chain_id, token, funder, amount, nonce, calldata, deadline, from_block,
       request_digest, owner, owned_until, wanted_at, gas_gwei, status, tx_hash, reason,
       response, is_served, paid_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
        $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
    ON CONFLICT (order_id) DO UPDATE
   SET calldata = excluded.calldata, from_block = excluded.from_block,
       request_digest = excluded.request_digest, owner = excluded.owner,
       owned_until = excluded.owned_until, wanted_at = excluded.wanted_at,
       gas_gwei = excluded.gas_gwei, status = excluded.status, tx_hash = excluded.tx_hash,
       reason = excluded.reason, response = excluded.response, is_served = excluded.is_served,
       paid_by = excluded.paid_by

-- own_order --
-- Another request goes on with it; what the settler writes meanwhile stays.
UPDATE charge_order SET owner = $1, owned_until = $2 WHERE order_id = $3

-- place_order --
-- Its request succeeded: it must be sent.
UPDATE charge_order
   SET status = 1, response = $1, gas_gwei = $2, wanted_at = $3, owned_until = $4
 WHERE order_id = $5 AND owner = $6 AND status = 0

-- update_order --
-- What became of it. What has ended stays as it is. An answer to what is not paid is dropped.
UPDATE charge_order
   SET status = $1, tx_hash = $2, reason = $3, gas_gwei = coalesce($4::bigint, gas_gwei),
       response = CASE WHEN $5::smallint >= 4 THEN NULL ELSE response END
 WHERE order_id = $6 AND status IN (1, 2)

-- adopt_order --
-- It was refused, and another sender has made the transfer since.
UPDATE charge_order SET status = 3, tx_hash = $1, owned_until = 0
 WHERE order_id = $2 AND status IN (4, 5)

-- serve_order --
-- Its payer has the answer.
UPDATE charge_order SET is_served = 1, response = NULL, owned_until = 0
 WHERE order_id = $1 AND owner = $2 AND status = 3

-- delete_claim --
-- Its request failed before anything was ordered.
DELETE FROM charge_order WHERE order_id = $1 AND owner = $2 AND status = 0

-- release_order --
-- Another request may go on with it.
UPDATE charge_order SET owned_until = 0 WHERE order_id = $1 AND owner = $2

-- delete_ended --
-- The token refuses these authorizations by now. What was paid is kept for the accounts, longer,
-- and a payer's credit for ever.
DELETE FROM charge_order
 WHERE chain_id = $1 AND token = $2 AND wanted_at < $3 AND deadline < $4
   AND (status IN (0, 4, 5) OR (is_served = 1 AND wanted_at < $5))
