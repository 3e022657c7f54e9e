-- The audit trail in the wallet's file.

CREATE TABLE IF NOT EXISTS trail (
    seq     INTEGER PRIMARY KEY,
    record  TEXT NOT NULL,  -- canonical JSON
    hash    BLOB NOT NULL
);
