-- Version 7: the accounts. One row for each paid request, and for what else raised `spent`.
--
-- For each channel, spent = unlisted + pruned + the sum of its rows in charge + what its running
-- reservations have spent. What each column means is written at its field in channel/state/charges.py.

CREATE TABLE charge (
    id             INTEGER PRIMARY KEY,
    channel        INTEGER NOT NULL REFERENCES channel (id),
    -- Unix seconds of the commit
    at             INTEGER NOT NULL,
    -- NULL when it was no request
    reservation_id BLOB,
    outcome        TEXT NOT NULL,
    is_stream      INTEGER NOT NULL,
    route          TEXT NOT NULL,
    variant        TEXT NOT NULL,
    -- JSON, units by kind; NULL when they are unknown
    usage          TEXT,
    response_id    TEXT NOT NULL,
    amount         BLOB NOT NULL CHECK (length(amount) = 16)
) STRICT;

CREATE INDEX charge_by_time ON charge (at);

-- A reservation's id begins with its time, so that new entries of this index share a page.
CREATE INDEX charge_by_reservation ON charge (reservation_id) WHERE reservation_id IS NOT NULL;

-- What of a channel's `spent` has no row in charge.
CREATE TABLE charge_balance (
    channel  INTEGER NOT NULL PRIMARY KEY REFERENCES channel (id),
    -- spent before this table was there, before the channel was here, or while charges were off
    unlisted BLOB NOT NULL CHECK (length(unlisted) = 16),
    -- in charge_day: its rows were deleted
    pruned   BLOB NOT NULL CHECK (length(pruned) = 16)
) STRICT;

INSERT INTO charge_balance (channel, unlisted, pruned)
SELECT id, spent, zeroblob(16) FROM channel WHERE spent <> zeroblob(16);

-- Deleted rows of charge, added up by day (of Unix time, in UTC).
CREATE TABLE charge_day (
    day      INTEGER NOT NULL,
    chain_id INTEGER NOT NULL,
    payee    BLOB NOT NULL,
    token    BLOB NOT NULL,
    route    TEXT NOT NULL,
    variant  TEXT NOT NULL,
    outcome  TEXT NOT NULL,
    requests INTEGER NOT NULL,
    usage    TEXT NOT NULL,
    amount   BLOB NOT NULL CHECK (length(amount) = 16),
    PRIMARY KEY (day, chain_id, payee, token, route, variant, outcome)
) STRICT, WITHOUT ROWID;
