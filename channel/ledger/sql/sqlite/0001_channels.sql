-- Version 1: channels, paid requests, consumed proofs.
--
-- An amount is 16 bytes, big-endian, so that memcmp orders it and uint128 fits (a SQLite number
-- would lose digits). A ladder voucher is an amount followed by its signature. What each column
-- means is written at its field in channel/state/channel_state.py.

CREATE TABLE channel (
    id                 INTEGER PRIMARY KEY,
    chain_id           INTEGER NOT NULL,
    escrow             BLOB NOT NULL CHECK (length(escrow) = 20),
    channel_id         BLOB NOT NULL CHECK (length(channel_id) = 32),
    payer              BLOB NOT NULL CHECK (length(payer) = 20),
    payee              BLOB NOT NULL CHECK (length(payee) = 20),
    token              BLOB NOT NULL CHECK (length(token) = 20),
    authorized_signer  BLOB NOT NULL CHECK (length(authorized_signer) = 20),
    -- as the chain said at fact_block
    deposit            BLOB NOT NULL CHECK (length(deposit) = 16),
    settled            BLOB NOT NULL CHECK (length(settled) = 16),
    close_requested_at INTEGER NOT NULL,
    is_finalized       INTEGER NOT NULL,
    fact_block         INTEGER NOT NULL,
    -- our own close
    is_closing         INTEGER NOT NULL,
    closing_with       BLOB,
    close_tx           BLOB NOT NULL,
    -- written with nearly every voucher: kept together and last but short
    accepted           BLOB NOT NULL CHECK (length(accepted) = 16),
    spent              BLOB NOT NULL CHECK (length(spent) = 16 AND spent <= accepted),
    published          BLOB NOT NULL CHECK (length(published) = 16),
    active_at          INTEGER NOT NULL,
    highest            BLOB NOT NULL,
    at_or_below_spent  BLOB,
    above_spent  BLOB,
    reservations       BLOB,
    -- the earliest lease in `reservations`, NULL when there is none
    lease_expires_at   INTEGER,
    UNIQUE (chain_id, escrow, channel_id)
) STRICT;

CREATE INDEX channel_by_lease ON channel (lease_expires_at) WHERE lease_expires_at IS NOT NULL;

CREATE TABLE paid_request (
    id              INTEGER PRIMARY KEY,
    channel         INTEGER NOT NULL REFERENCES channel (id),
    route           TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    request_digest  BLOB NOT NULL,
    reservation_id  BLOB NOT NULL,
    claimed_at      INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    -- the stored answer; all three NULL while the request is being served
    status          INTEGER,
    headers         BLOB,
    body            BLOB,
    UNIQUE (channel, route, idempotency_key)
) STRICT;

CREATE INDEX paid_request_by_expiry ON paid_request (expires_at);

CREATE TABLE consumed_proof (
    chain_id  INTEGER NOT NULL,
    tx_hash   BLOB NOT NULL CHECK (length(tx_hash) = 32),
    log_index INTEGER NOT NULL,
    channel   INTEGER NOT NULL REFERENCES channel (id),
    PRIMARY KEY (chain_id, tx_hash, log_index)
) STRICT, WITHOUT ROWID;
