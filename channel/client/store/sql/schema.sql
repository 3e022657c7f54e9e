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
