-- What is usual for agents, in the wallet's file. The row without an origin is the agent's, over
-- all origins.

CREATE TABLE IF NOT EXISTS watch_profile (
    agent    TEXT  NOT NULL,
    origin   TEXT  NOT NULL,
    token    TEXT  NOT NULL,  -- chain and address
    at       REAL  NOT NULL,  -- Unix seconds
    profile  BLOB  NOT NULL,
    PRIMARY KEY (agent, origin, token)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS watch_breaker (
    agent   TEXT  NOT NULL,
    origin  TEXT  NOT NULL,
    at      REAL  NOT NULL,
    state   BLOB  NOT NULL,
    PRIMARY KEY (agent, origin)
) STRICT, WITHOUT ROWID;
