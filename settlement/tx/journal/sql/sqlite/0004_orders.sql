-- Version 4: what the operator ordered while the programs run: a settle, a pause of sales.

CREATE TABLE operator_order (
    chain_id  INTEGER NOT NULL,
    account   BLOB NOT NULL CHECK (length(account) = 20),
    name      TEXT NOT NULL,
    placed_at INTEGER NOT NULL,
    -- when it was carried out or withdrawn; NULL while it stands
    ended_at  INTEGER,
    outcome   TEXT NOT NULL,
    PRIMARY KEY (chain_id, account, name)
) STRICT, WITHOUT ROWID;
