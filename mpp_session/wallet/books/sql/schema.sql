-- What the wallet counts and what its owner has stopped. Amounts are 16 bytes, big-endian.

-- The policy that decided last: an older one is never taken again.
CREATE TABLE IF NOT EXISTS policy_in_force (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    revision  INTEGER NOT NULL,
    hash      TEXT    NOT NULL,
    since     REAL    NOT NULL  -- Unix seconds
) STRICT;

CREATE TABLE IF NOT EXISTS stop (
    kind    TEXT NOT NULL,  -- freeze or revoke
    scope   TEXT NOT NULL,  -- such as `all` or `agent NAME`
    at      REAL NOT NULL,
    by      TEXT NOT NULL,
    reason  TEXT NOT NULL,
    PRIMARY KEY (kind, scope)
) STRICT, WITHOUT ROWID;

-- One sum that decisions read. With a window, `total` is that of its buckets from `since` on.
CREATE TABLE IF NOT EXISTS counter (
    id           INTEGER PRIMARY KEY,
    what         TEXT    NOT NULL,  -- spent, locked or requests
    scope        TEXT    NOT NULL,
    token        TEXT    NOT NULL,
    window_s     INTEGER NOT NULL,  -- 0 counts for ever
    total        BLOB    NOT NULL,
    since        INTEGER NOT NULL,  -- a bucket
    head         INTEGER NOT NULL,  -- the bucket that was added to last
    head_amount  BLOB    NOT NULL,  -- of it, until another bucket is added to
    UNIQUE (what, scope, token, window_s)
) STRICT;

-- What was added to a sum in one sixtieth of its window, but for the last one.
CREATE TABLE IF NOT EXISTS bucket (
    counter  INTEGER NOT NULL,
    bucket   INTEGER NOT NULL,  -- Unix seconds / seconds of a bucket
    amount   BLOB    NOT NULL,
    PRIMARY KEY (counter, bucket)
) STRICT, WITHOUT ROWID;

-- Which agent opened a channel, and what for.
CREATE TABLE IF NOT EXISTS channel_purpose (
    id               INTEGER PRIMARY KEY,
    chain_id         INTEGER NOT NULL,
    escrow           BLOB    NOT NULL,
    channel_id       BLOB    NOT NULL,
    agent            TEXT    NOT NULL,
    origin           TEXT    NOT NULL,
    task             TEXT    NOT NULL,
    rule             TEXT    NOT NULL,
    envelopes        TEXT    NOT NULL,  -- a JSON list, from the agent's own up to the root
    approval         TEXT    NOT NULL,  -- its id, or empty
    policy_revision  INTEGER NOT NULL,
    opened_at        REAL    NOT NULL,
    is_live          INTEGER NOT NULL,  -- until it has ended on chain
    UNIQUE (chain_id, escrow, channel_id)
) STRICT;

CREATE INDEX IF NOT EXISTS live_channel ON channel_purpose (agent, origin) WHERE is_live = 1;

-- The part of a live channel's cumulative amount that was added to a sum, in one bucket.
CREATE TABLE IF NOT EXISTS envelope_entry (
    channel  INTEGER NOT NULL,
    counter  INTEGER NOT NULL,
    bucket   INTEGER NOT NULL,
    first    BLOB    NOT NULL,
    last     BLOB,  -- NULL: up to what the channel has signed
    PRIMARY KEY (channel, counter, bucket, first)
) STRICT, WITHOUT ROWID;

-- What of a live channel's deposit was added to a sum.
CREATE TABLE IF NOT EXISTS envelope_lock (
    channel  INTEGER NOT NULL,
    counter  INTEGER NOT NULL,
    amount   BLOB    NOT NULL,
    PRIMARY KEY (channel, counter)
) STRICT, WITHOUT ROWID;

-- What an agent has committed money to before.
CREATE TABLE IF NOT EXISTS paid (
    agent  TEXT NOT NULL,
    what   TEXT NOT NULL,  -- origin, recipient or chain
    value  TEXT NOT NULL,
    PRIMARY KEY (agent, what, value)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS agent_seen (
    agent  TEXT PRIMARY KEY,
    at     INTEGER NOT NULL  -- Unix seconds / 60
) STRICT, WITHOUT ROWID
