-- load_account --
-- One channel. Without an agent, here and below: of all agents.
SELECT * FROM account
WHERE chain_id = :chain_id AND escrow = :escrow AND channel_id = :channel_id
    AND (:agent IS NULL OR agent = :agent);

-- load_accounts --
-- Every channel, oldest first.
SELECT * FROM account WHERE :agent IS NULL OR agent = :agent ORDER BY rowid;

-- load_live_accounts --
-- An origin's channels that still hold a deposit, oldest first.
SELECT * FROM account
WHERE origin = :origin AND state <> 'closed' AND (:agent IS NULL OR agent = :agent)
ORDER BY rowid;

-- load_locked_accounts --
-- Every channel of a token that still holds a deposit.
SELECT * FROM account
WHERE chain_id = :chain_id AND token = :token AND state <> 'closed';

-- store_account --
-- Writes a channel; the terms it was opened with never change.
INSERT INTO account VALUES (
    :chain_id, :escrow, :channel_id, :origin, :url, :payer, :payee, :token, :authorized_signer,
    :salt, :state, :deposit, :opened_at, :open_tx, :end_tx, :signed, :vouchers, :received, :units,
    :lost, :accepted, :spent, :receipt, :settled, :close_requested_at,
    :opening, :top_up, :waived, :goal, coalesce(:agent, '')
)
ON CONFLICT (chain_id, escrow, channel_id) DO UPDATE SET
    url = excluded.url,
    state = excluded.state,
    deposit = excluded.deposit,
    open_tx = excluded.open_tx,
    end_tx = excluded.end_tx,
    signed = excluded.signed,
    vouchers = excluded.vouchers,
    received = excluded.received,
    units = excluded.units,
    lost = excluded.lost,
    accepted = excluded.accepted,
    spent = excluded.spent,
    receipt = excluded.receipt,
    settled = excluded.settled,
    close_requested_at = excluded.close_requested_at,
    opening = excluded.opening,
    top_up = excluded.top_up,
    waived = excluded.waived,
    goal = excluded.goal;

-- store_signed --
-- Writes what was signed, which is all that a voucher changes.
UPDATE account SET signed = :signed, vouchers = :vouchers
WHERE chain_id = :chain_id AND escrow = :escrow AND channel_id = :channel_id;

-- load_minutes --
-- What was signed for an origin, from a minute on.
SELECT minute, amount FROM signed_minute
WHERE origin = :origin AND chain_id = :chain_id AND token = :token AND minute >= :since;

-- load_minutes_total --
-- What was signed for all origins together, from a minute on.
SELECT amount FROM signed_minute
WHERE chain_id = :chain_id AND token = :token AND minute >= :since;

-- store_minute --
-- Writes the sum of a minute.
INSERT OR REPLACE INTO signed_minute VALUES (:origin, :chain_id, :token, :minute, :amount);

-- delete_minutes --
-- Deletes the minutes that no window reaches any more.
DELETE FROM signed_minute WHERE minute < :since;

-- load_charges --
-- Every charge, oldest first.
SELECT * FROM charge WHERE :agent IS NULL OR agent = :agent ORDER BY rowid;

-- load_charges_for --
-- The charges of a request, oldest first.
SELECT * FROM charge
WHERE purchase = :purchase AND (:agent IS NULL OR agent = :agent)
ORDER BY rowid;

-- store_charge --
-- Writes a charge. One that was only planned may be planned anew for another request.
INSERT INTO charge VALUES (
    :chain_id, :token, :payer, :nonce, :purchase, :origin, :url, :way, :payee, :amount, :signed_at,
    :valid_before, :idempotency_key, :is_key_given, :header, :credential, :state, :reference,
    coalesce(:agent, '')
)
ON CONFLICT (chain_id, token, payer, nonce) DO UPDATE SET
    purchase = excluded.purchase,
    origin = excluded.origin,
    url = excluded.url,
    way = excluded.way,
    payee = excluded.payee,
    amount = excluded.amount,
    signed_at = excluded.signed_at,
    valid_before = excluded.valid_before,
    idempotency_key = excluded.idempotency_key,
    is_key_given = excluded.is_key_given,
    header = excluded.header,
    credential = excluded.credential,
    state = excluded.state,
    reference = excluded.reference;

-- has_charge --
-- Whether this authorization was signed before, and not only planned, or another agent plans it.
SELECT 1 FROM charge
WHERE chain_id = :chain_id AND token = :token AND payer = :payer AND nonce = :nonce
    AND (state <> 'planned' OR agent <> :agent);

-- delete_charges --
-- Deletes the charges that are over for longer than any window.
DELETE FROM charge WHERE state IN ('done', 'over') AND signed_at < :since;

-- has_paid --
-- Whether an origin has a channel, or was paid for a request since a time.
SELECT 1 FROM account
WHERE origin = :origin AND state <> 'closed' AND (:agent IS NULL OR agent = :agent)
UNION ALL
SELECT 1 FROM charge
WHERE origin = :origin AND signed_at >= :since AND (:agent IS NULL OR agent = :agent)
LIMIT 1;
