-- Version 1: authorizations that payers signed for single payments.
--
-- What each column means is written at its field in settlement/charge/orders/interface.py; the
-- numbers of a status are those of the enum in settlement/tx/orders.py, and 0 for a claim.

CREATE TABLE charge_order (
    order_id       BLOB NOT NULL PRIMARY KEY CHECK (length(order_id) = 32),
    chain_id       INTEGER NOT NULL,
    token          BLOB NOT NULL CHECK (length(token) = 20),
    funder         BLOB NOT NULL CHECK (length(funder) = 20),
    amount         BLOB NOT NULL CHECK (length(amount) = 32),
    nonce          BLOB NOT NULL CHECK (length(nonce) = 32),
    calldata       BLOB NOT NULL,
    deadline       INTEGER NOT NULL,
    from_block     INTEGER NOT NULL,
    request_digest BLOB NOT NULL CHECK (length(request_digest) = 32),
    owner          BLOB NOT NULL CHECK (length(owner) = 16),
    owned_until    INTEGER NOT NULL,
    wanted_at      INTEGER NOT NULL,
    gas_gwei       INTEGER NOT NULL,
    status         INTEGER NOT NULL,
    tx_hash        BLOB CHECK (tx_hash IS NULL OR length(tx_hash) = 32),
    reason         TEXT NOT NULL,
    response       BLOB,
    is_served      INTEGER NOT NULL,
    paid_by        BLOB CHECK (paid_by IS NULL OR length(paid_by) = 32)
) STRICT, WITHOUT ROWID;

CREATE INDEX charge_order_open ON charge_order (chain_id, token) WHERE status IN (1, 2);
CREATE INDEX charge_order_credit ON charge_order (chain_id, token, funder)
    WHERE status = 3 AND is_served = 0;
CREATE INDEX charge_order_period ON charge_order (chain_id, token, wanted_at);
