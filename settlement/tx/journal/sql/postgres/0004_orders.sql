-- Version 4: what the operator ordered while the programs run: a settle, a pause of sales.

CREATE TABLE operator_order (
    chain_id  BIGINT NOT NULL,
    account   BYTEA NOT NULL CHECK (length(account) = 20),
    name      TEXT NOT NULL,
    placed_at BIGINT NOT NULL,
    -- when it was carried out or withdrawn; NULL while it stands
    ended_at  BIGINT,
    outcome   TEXT NOT NULL,
    PRIMARY KEY (chain_id, account, name)
);
