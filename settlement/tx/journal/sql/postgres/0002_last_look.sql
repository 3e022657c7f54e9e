-- Version 2: which block the settler saw last, and when.

CREATE TABLE settler_look (
    chain_id     BIGINT NOT NULL,
    account      BYTEA NOT NULL CHECK (length(account) = 20),
    block_number BIGINT NOT NULL,
    block_hash   BYTEA NOT NULL CHECK (length(block_hash) = 32),
    block_time   BIGINT NOT NULL,
    looked_at    BIGINT NOT NULL,
    PRIMARY KEY (chain_id, account)
);
