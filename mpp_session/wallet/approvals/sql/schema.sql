-- Approvals in the wallet's file. Amounts are 16 bytes, big-endian.

CREATE TABLE IF NOT EXISTS approval (
    id               TEXT    NOT NULL PRIMARY KEY,
    agent            TEXT    NOT NULL,
    state            TEXT    NOT NULL,  -- State of record.py
    created_at       REAL    NOT NULL,  -- Unix seconds
    expires_at       REAL    NOT NULL,
    again_at         REAL,
    terms_hash       BLOB    NOT NULL,
    subject_hash     BLOB    NOT NULL,
    window_hash      BLOB    NOT NULL,
    channel_hash     BLOB    NOT NULL,
    question         BLOB    NOT NULL,  -- JSON, never changed
    scope            TEXT    NOT NULL,
    approved         BLOB    NOT NULL,
    used             BLOB    NOT NULL,
    decided_at       REAL,
    comment          TEXT    NOT NULL,
    used_at          REAL,
    used_by_channel  BLOB,
    used_by_request  TEXT    NOT NULL
) STRICT;

CREATE INDEX IF NOT EXISTS approval_by_agent ON approval (agent, state);

CREATE INDEX IF NOT EXISTS approval_by_subject ON approval (subject_hash);

CREATE INDEX IF NOT EXISTS approval_by_state ON approval (state, expires_at);

CREATE TABLE IF NOT EXISTS approval_vote (
    approval  TEXT  NOT NULL,
    kind      TEXT  NOT NULL,  -- person or agent
    voter     TEXT  NOT NULL,
    verdict   TEXT  NOT NULL,
    amount    BLOB  NOT NULL,
    scope     TEXT  NOT NULL,
    comment   TEXT  NOT NULL,
    at        REAL  NOT NULL,
    PRIMARY KEY (approval, kind, voter)
) STRICT;

CREATE TABLE IF NOT EXISTS approval_notice (
    approval  TEXT  NOT NULL,
    channel   TEXT  NOT NULL,
    at        REAL  NOT NULL,
    status    TEXT  NOT NULL,
    PRIMARY KEY (approval, channel)
) STRICT;

-- Digests of one-time tokens that were taken.
CREATE TABLE IF NOT EXISTS approval_token (
    digest  BLOB  NOT NULL PRIMARY KEY,
    at      REAL  NOT NULL
) STRICT
