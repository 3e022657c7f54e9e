-- Version 1: channels, paid requests, consumed proofs.
--
-- An amount is NUMERIC(39,0), which holds uint128. A ladder voucher is one value: an amount of 16
-- bytes, big-endian, followed by its signature. What each column means is written at its field in
-- channel/state/channel_state.py. `revision` rises with every change of a row, so that a worker
-- which holds a state in memory can tell from the row it locks whether that is still the newest.

CREATE TABLE channel (
    id                 BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    revision           BIGINT NOT NULL DEFAULT 1,
    chain_id           BIGINT NOT NULL,
    escrow             BYTEA NOT NULL CHECK (length(escrow) = 20),
    channel_id         BYTEA NOT NULL CHECK (length(channel_id) = 32),
    payer              BYTEA NOT NULL CHECK (length(payer) = 20),
    payee              BYTEA NOT NULL CHECK (length(payee) = 20),
    token              BYTEA NOT NULL CHECK (length(token) = 20),
    authorized_signer  BYTEA NOT NULL CHECK (length(authorized_signer) = 20),
    -- as the chain said at fact_block
    deposit            NUMERIC(39,0) NOT NULL,
    settled            NUMERIC(39,0) NOT NULL,
    close_requested_at BIGINT NOT NULL,
    is_finalized       BOOLEAN NOT NULL,
    fact_block         BIGINT NOT NULL,
    -- our own close
    is_closing         BOOLEAN NOT NULL,
    closing_with       BYTEA,
    close_tx           BYTEA NOT NULL,
    -- written with nearly every voucher
    accepted           NUMERIC(39,0) NOT NULL,
    spent              NUMERIC(39,0) NOT NULL CHECK (0 <= spent AND spent <= accepted),
    published          NUMERIC(39,0) NOT NULL CHECK (settled <= published),
    active_at          BIGINT NOT NULL,
    highest            BYTEA NOT NULL,
    at_or_below_spent  BYTEA,
    above_spent        BYTEA,
    reservations       BYTEA,
    -- the earliest lease in `reservations`, NULL when there is none
    lease_expires_at   BIGINT,
    UNIQUE (chain_id, escrow, channel_id)
) WITH (fillfactor = 50); -- room on the page for the next version of a row

CREATE INDEX channel_by_lease ON channel (lease_expires_at) WHERE lease_expires_at IS NOT NULL;

CREATE TABLE paid_request (
    channel         BIGINT NOT NULL REFERENCES channel (id),
    route           TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    request_digest  BYTEA NOT NULL,
    reservation_id  BYTEA NOT NULL,
    claimed_at      BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    -- the stored answer; all three NULL while the request is being served
    status          INTEGER,
    headers         BYTEA,
    body            BYTEA,
    PRIMARY KEY (channel, route, idempotency_key)
);

CREATE INDEX paid_request_by_expiry ON paid_request (expires_at);

CREATE TABLE consumed_proof (
    chain_id  BIGINT NOT NULL,
    tx_hash   BYTEA NOT NULL CHECK (length(tx_hash) = 32),
    log_index BIGINT NOT NULL,
    channel   BIGINT NOT NULL REFERENCES channel (id),
    PRIMARY KEY (chain_id, tx_hash, log_index)
);
