-- Version 2: which block the settler saw last, and when.

CREATE TABLE settler_look (
    chain_id     INTEGER NOT NULL,
    account      BLOB NOT NULL CHECK (length(account) = 20),
    block_number INTEGER NOT NULL,
    block_hash   BLOB NOT NULL CHECK (length(block_hash) = 32),
    block_time   INTEGER NOT NULL,
    looked_at    INTEGER NOT NULL,
    PRIMARY KEY (chain_id, account)
) STRICT, WITHOUT ROWID;
