-- Version 7: the accounts. One row for each paid request, and for what else raised `spent`.
--
-- For each channel, spent = unlisted + pruned + the sum of its rows in charge + what its running
-- reservations have spent. What each column means is written at its field in channel/state/charges.py.

CREATE TABLE charge (
    id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel        BIGINT NOT NULL REFERENCES channel (id),
    -- Unix seconds of the commit
    at             BIGINT NOT NULL,
    -- NULL when it was no request
    reservation_id BYTEA,
    outcome        TEXT NOT NULL,
    is_stream      BOOLEAN NOT NULL,
    route          TEXT NOT NULL,
    variant        TEXT NOT NULL,
    -- JSON, units by kind; NULL when they are unknown
    usage          TEXT,
    response_id    TEXT NOT NULL,
    amount         NUMERIC(39,0) NOT NULL
);

CREATE INDEX charge_by_time ON charge (at);

-- A reservation's id begins with its time, so that new entries of this index share a page.
CREATE INDEX charge_by_reservation ON charge (reservation_id) WHERE reservation_id IS NOT NULL;

-- What of a channel's `spent` has no row in charge.
CREATE TABLE charge_balance (
    channel  BIGINT NOT NULL PRIMARY KEY REFERENCES channel (id),
    -- spent before this table was there, before the channel was here, or while charges were off
    unlisted NUMERIC(39,0) NOT NULL,
    -- in charge_day: its rows were deleted
    pruned   NUMERIC(39,0) NOT NULL
);

INSERT INTO charge_balance (channel, unlisted, pruned)
SELECT id, spent, 0 FROM channel WHERE spent <> 0;

-- Deleted rows of charge, added up by day (of Unix time, in UTC).
CREATE TABLE charge_day (
    day      BIGINT NOT NULL,
    chain_id BIGINT NOT NULL,
    payee    BYTEA NOT NULL,
    token    BYTEA NOT NULL,
    route    TEXT NOT NULL,
    variant  TEXT NOT NULL,
    outcome  TEXT NOT NULL,
    requests BIGINT NOT NULL,
    usage    TEXT NOT NULL,
    amount   NUMERIC(39,0) NOT NULL,
    PRIMARY KEY (day, chain_id, payee, token, route, variant, outcome)
);
