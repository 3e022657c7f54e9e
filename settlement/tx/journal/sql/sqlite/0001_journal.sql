-- Version 1: transactions and their versions, the lease on a key, channels in quarantine.
--
-- Wei are 16 bytes, big-endian. What each column means is written at its field in
-- settlement/tx/state.py; the numbers of a status and a purpose are those of the enums there.

CREATE TABLE chain_transaction (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    chain_id      INTEGER NOT NULL,
    account       BLOB NOT NULL CHECK (length(account) = 20),
    added_at      INTEGER NOT NULL,
    -- what is wanted
    recipient     BLOB CHECK (recipient IS NULL OR length(recipient) = 20),
    calldata      BLOB NOT NULL,
    value_wei     BLOB NOT NULL CHECK (length(value_wei) = 16),
    purpose       INTEGER NOT NULL,
    budget_wei    BLOB,
    deadline      INTEGER NOT NULL,
    -- what became of it
    status        INTEGER NOT NULL,
    nonce         INTEGER,
    gas           INTEGER NOT NULL,
    reason        TEXT NOT NULL,
    mined_hash    BLOB,
    is_success    INTEGER,
    block_number  INTEGER,
    block_hash    BLOB,
    gas_used      INTEGER,
    gas_price_wei BLOB,
    -- one transaction for each nonce of a key; one that was given up has none
    UNIQUE (chain_id, account, nonce)
) STRICT;

CREATE INDEX chain_transaction_open ON chain_transaction (chain_id, account) WHERE status < 6;

CREATE TABLE transaction_version (
    transaction_id INTEGER NOT NULL REFERENCES chain_transaction (id),
    version        INTEGER NOT NULL,
    tx_hash        BLOB NOT NULL CHECK (length(tx_hash) = 32),
    max_fee_wei    BLOB NOT NULL CHECK (length(max_fee_wei) = 16),
    tip_wei        BLOB NOT NULL CHECK (length(tip_wei) = 16),
    raw            BLOB NOT NULL,
    signed_at      INTEGER NOT NULL,
    PRIMARY KEY (transaction_id, version)
) STRICT, WITHOUT ROWID;

CREATE INDEX transaction_version_by_hash ON transaction_version (tx_hash);

CREATE TABLE settler_lease (
    chain_id   INTEGER NOT NULL,
    account    BLOB NOT NULL CHECK (length(account) = 20),
    -- rises with every holder; a holder of an older one is fenced off
    fence      INTEGER NOT NULL,
    holder     TEXT NOT NULL,
    -- whether the holder also has the lock file, which its death frees before the lease runs out
    has_lock   INTEGER NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (chain_id, account)
) STRICT, WITHOUT ROWID;

CREATE TABLE channel_quarantine (
    chain_id   INTEGER NOT NULL,
    escrow     BLOB NOT NULL CHECK (length(escrow) = 20),
    channel_id BLOB NOT NULL CHECK (length(channel_id) = 32),
    reason     TEXT NOT NULL,
    tries      INTEGER NOT NULL,
    since      INTEGER NOT NULL,
    retry_at   INTEGER NOT NULL,
    PRIMARY KEY (chain_id, escrow, channel_id)
) STRICT, WITHOUT ROWID;
