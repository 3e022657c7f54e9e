-- Version 1: authorizations that payers signed for single payments.
--
-- What each column means is written at its field in settlement/charge/orders/interface.py; the
-- numbers of a status are those of the enum in settlement/tx/orders.py, and 0 for a claim.

CREATE TABLE charge_order (
    order_id       BYTEA NOT NULL PRIMARY KEY CHECK (length(order_id) = 32),
    chain_id       BIGINT NOT NULL,
    token          BYTEA NOT NULL CHECK (length(token) = 20),
    funder         BYTEA NOT NULL CHECK (length(funder) = 20),
    amount         BYTEA NOT NULL CHECK (length(amount) = 32),
    nonce          BYTEA NOT NULL CHECK (length(nonce) = 32),
    calldata       BYTEA NOT NULL,
    deadline       BIGINT NOT NULL,
    from_block     BIGINT NOT NULL,
    request_digest BYTEA NOT NULL CHECK (length(request_digest) = 32),
    owner          BYTEA NOT NULL CHECK (length(owner) = 16),
    owned_until    BIGINT NOT NULL,
    wanted_at      BIGINT NOT NULL,
    gas_gwei       BIGINT NOT NULL,
    status         SMALLINT NOT NULL,
    tx_hash        BYTEA CHECK (tx_hash IS NULL OR length(tx_hash) = 32),
    reason         TEXT NOT NULL,
    response       BYTEA,
    is_served      SMALLINT NOT NULL,
    paid_by        BYTEA CHECK (paid_by IS NULL OR length(paid_by) = 32)
);

CREATE INDEX charge_order_open ON charge_order (chain_id, token) WHERE status IN (1, 2);
CREATE INDEX charge_order_credit ON charge_order (chain_id, token, funder)
    WHERE status = 3 AND is_served = 0;
CREATE INDEX charge_order_period ON charge_order (chain_id, token, wanted_at);
