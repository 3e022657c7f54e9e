-- Version 5: which ledger this is, for the marker outside it (channel/ledger/marker.py).

CREATE TABLE ledger_identity (
    ledger_id TEXT NOT NULL,
    -- whether there was ever a marker of it outside
    is_marked INTEGER NOT NULL
) STRICT;

INSERT INTO ledger_identity (ledger_id, is_marked) VALUES (lower(hex(randomblob(16))), 0);
