-- Version 1: transactions and their versions, the lease on a key, channels in quarantine.
--
-- Wei are 16 bytes, big-endian. What each column means is written at its field in
-- settlement/tx/state.py; the numbers of a status and a purpose are those of the enums there.

CREATE TABLE chain_transaction (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id      BIGINT NOT NULL,
    account       BYTEA NOT NULL CHECK (length(account) = 20),
    added_at      BIGINT NOT NULL,
    -- what is wanted
    recipient     BYTEA CHECK (recipient IS NULL OR length(recipient) = 20),
    calldata      BYTEA NOT NULL,
    value_wei     BYTEA NOT NULL CHECK (length(value_wei) = 16),
    purpose       SMALLINT NOT NULL,
    budget_wei    BYTEA,
    deadline      BIGINT NOT NULL,
    -- what became of it
    status        SMALLINT NOT NULL,
    nonce         BIGINT,
    gas           BIGINT NOT NULL,
    reason        TEXT NOT NULL,
    mined_hash    BYTEA,
    is_success    BOOLEAN,
    block_number  BIGINT,
    block_hash    BYTEA,
    gas_used      BIGINT,
    gas_price_wei BYTEA,
    -- one transaction for each nonce of a key; one that was given up has none
    UNIQUE (chain_id, account, nonce)
);

CREATE INDEX chain_transaction_open ON chain_transaction (chain_id, account) WHERE status < 6;

CREATE TABLE transaction_version (
    transaction_id BIGINT NOT NULL REFERENCES chain_transaction (id),
    version        INTEGER NOT NULL,
    tx_hash        BYTEA NOT NULL CHECK (length(tx_hash) = 32),
    max_fee_wei    BYTEA NOT NULL CHECK (length(max_fee_wei) = 16),
    tip_wei        BYTEA NOT NULL CHECK (length(tip_wei) = 16),
    raw            BYTEA NOT NULL,
    signed_at      BIGINT NOT NULL,
    PRIMARY KEY (transaction_id, version)
);

CREATE INDEX transaction_version_by_hash ON transaction_version (tx_hash);

CREATE TABLE settler_lease (
    chain_id   BIGINT NOT NULL,
    account    BYTEA NOT NULL CHECK (length(account) = 20),
    -- rises with every holder; a holder of an older one is fenced off
    fence      BIGINT NOT NULL,
    holder     TEXT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (chain_id, account)
);

CREATE TABLE channel_quarantine (
    chain_id   BIGINT NOT NULL,
    escrow     BYTEA NOT NULL CHECK (length(escrow) = 20),
    channel_id BYTEA NOT NULL CHECK (length(channel_id) = 32),
    reason     TEXT NOT NULL,
    tries      BIGINT NOT NULL,
    since      BIGINT NOT NULL,
    retry_at   BIGINT NOT NULL,
    PRIMARY KEY (chain_id, escrow, channel_id)
);
