-- What an agent has signed, and what came of it. Amounts are 16 bytes, big-endian.

CREATE TABLE IF NOT EXISTS account (
    chain_id            INTEGER NOT NULL,
    escrow              BLOB    NOT NULL,
    channel_id          BLOB    NOT NULL,
    origin              TEXT    NOT NULL,
    url                 TEXT    NOT NULL,
    payer               BLOB    NOT NULL,
    payee               BLOB    NOT NULL,
    token               BLOB    NOT NULL,
    authorized_signer   BLOB    NOT NULL,
    salt                BLOB    NOT NULL,
    state               TEXT    NOT NULL,  -- opening -> open -> closing -> closed, or stopped
    deposit             BLOB    NOT NULL,
    opened_at           INTEGER NOT NULL,  -- Unix seconds
    open_tx             BLOB,
    end_tx              BLOB,
    signed              BLOB    NOT NULL,  -- never falls
    vouchers            INTEGER NOT NULL,
    received            BLOB    NOT NULL,
    units               INTEGER NOT NULL,
    lost                BLOB    NOT NULL,
    accepted            BLOB    NOT NULL,
    spent               BLOB    NOT NULL,
    receipt             TEXT    NOT NULL,
    settled             BLOB    NOT NULL,
    close_requested_at  INTEGER NOT NULL,
    opening             TEXT,  -- signed deposits, as the wire spells them
    top_up              TEXT,
    waived              BLOB    NOT NULL DEFAULT x'00000000000000000000000000000000',
    goal                BLOB    NOT NULL DEFAULT x'00000000000000000000000000000000',
    agent               TEXT    NOT NULL DEFAULT '',  -- whose it is, if several share the file
    PRIMARY KEY (chain_id, escrow, channel_id)
) STRICT;

-- What was signed for one origin in one minute: the rolling budget is a sum over these.
CREATE TABLE IF NOT EXISTS signed_minute (
    origin    TEXT    NOT NULL,
    chain_id  INTEGER NOT NULL,
    token     BLOB    NOT NULL,
    minute    INTEGER NOT NULL,  -- Unix seconds / 60
    amount    BLOB    NOT NULL,
    PRIMARY KEY (origin, chain_id, token, minute)
) STRICT;

-- Payments for one request, by EIP-3009.
CREATE TABLE IF NOT EXISTS charge (
    chain_id         INTEGER NOT NULL,
    token            BLOB    NOT NULL,
    payer            BLOB    NOT NULL,
    nonce            BLOB    NOT NULL,
    purchase         BLOB    NOT NULL,  -- digest of the request
    origin           TEXT    NOT NULL,
    url              TEXT    NOT NULL,
    way              TEXT    NOT NULL,  -- charge or x402
    payee            BLOB    NOT NULL,
    amount           BLOB    NOT NULL,
    signed_at        INTEGER NOT NULL,  -- Unix seconds
    valid_before     INTEGER NOT NULL,
    idempotency_key  TEXT    NOT NULL,
    is_key_given     INTEGER NOT NULL,
    header           TEXT    NOT NULL,
    credential       TEXT    NOT NULL,
    state            TEXT    NOT NULL,  -- planned -> sent -> done, or over
    reference        TEXT    NOT NULL,
    agent            TEXT    NOT NULL DEFAULT '',
    PRIMARY KEY (chain_id, token, payer, nonce)
) STRICT;

CREATE INDEX IF NOT EXISTS charge_by_purchase ON charge (purchase);
