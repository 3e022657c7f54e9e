-- Version 1: channels, paid requests, consumed proofs.
--
-- An amount is NUMERIC(39,0), which holds uint128. A ladder voucher is one value: an amount of 16
-- bytes, big-endian, followed by its signature. What each column means is written at its field in
-- channel/state/channel_state.py. `revision` rises with every change of a row, so that a worker
-- which holds a state in memory can tell from the row it locks whether that is still the newest.

CREATE TABLE channel (
    id                 BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    revision           BIGINT NOT NULL DEFAULT 1,
    chain_id           BIGINT NOT NULL,
    escrow             BYTEA NOT NULL CHECK (length(escrow) = 20),
    channel_id         BYTEA NOT NULL CHECK (length(channel_id) = 32),
    payer              BYTEA NOT NULL CHECK (length(payer) = 20),
    payee              BYTEA NOT NULL CHECK (length(payee) = 20),
    token              BYTEA NOT NULL CHECK (length(token) = 20),
    authorized_signer  BYTEA NOT NULL CHECK (length(authorized_signer) = 20),
    -- as the chain said at fact_block
    deposit            NUMERIC(39,0) NOT NULL,
    settled            NUMERIC(39,0) NOT NULL,
    close_requested_at BIGINT NOT NULL,
    is_finalized       BOOLEAN NOT NULL,
    fact_block         BIGINT NOT NULL,
    -- our own close
    is_closing         BOOLEAN NOT NULL,
    closing_with       BYTEA,
    close_tx           BYTEA NOT NULL,
    -- written with nearly every voucher
    accepted           NUMERIC(39,0) NOT NULL,
    spent              NUMERIC(39,0) NOT NULL CHECK (0 <= spent AND spent <= accepted),
    published          NUMERIC(39,0) NOT NULL CHECK (settled <= published),
    active_at          BIGINT NOT NULL,
    highest            BYTEA NOT NULL,
    at_or_below_spent  BYTEA,
    above_spent        BYTEA,
    reservations       BYTEA,
    -- the earliest lease in `reservations`, NULL when there is none
    lease_expires_at   BIGINT,
    UNIQUE (chain_id, escrow, channel_id)
) WITH (fillfactor = 50); -- room on the page for the next version of a row

CREATE INDEX channel_by_lease ON channel (lease_expires_at) WHERE lease_expires_at IS NOT NULL;

CREATE TABLE paid_request (
    channel         BIGINT NOT NULL REFERENCES channel (id),
    route           TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    request_digest  BYTEA NOT NULL,
    reservation_id  BYTEA NOT NULL,
    claimed_at      BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL,
    -- the stored answer; all three NULL while the request is being served
    status          INTEGER,
    headers         BYTEA,
    body            BYTEA,
    PRIMARY KEY (channel, route, idempotency_key)
);

CREATE INDEX paid_request_by_expiry ON paid_request (expires_at);

CREATE TABLE consumed_proof (
    chain_id  BIGINT NOT NULL,
    tx_hash   BYTEA NOT NULL CHECK (length(tx_hash) = 32),
    log_index BIGINT NOT NULL,
    channel   BIGINT NOT NULL REFERENCES channel (id),
    PRIMARY KEY (chain_id, tx_hash, log_index)
);

CREATE TABLE ledger_schema (version INTEGER NOT NULL);
INSERT INTO ledger_schema VALUES (8);
INSERT INTO channel (revision, chain_id, escrow, channel_id, payer, payee, token, authorized_signer, deposit, settled, close_requested_at, is_finalized, fact_block, is_closing, closing_with, close_tx, accepted, spent, published, active_at, highest, at_or_below_spent, above_spent, reservations, lease_expires_at) VALUES ('1', '31337', E'\\xe5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5', E'\\x0000000000000000000000000000000000000000000000000000000000000000', E'\\xa1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1', E'\\xb2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2', E'\\xc3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3', E'\\x0000000000000000000000000000000000000000', '1000', '0', '0', 'false', '100', 'false', NULL, E'\\x', '10', '0', '0', '1800000000', E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', NULL, E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', NULL, NULL);
INSERT INTO channel (revision, chain_id, escrow, channel_id, payer, payee, token, authorized_signer, deposit, settled, close_requested_at, is_finalized, fact_block, is_closing, closing_with, close_tx, accepted, spent, published, active_at, highest, at_or_below_spent, above_spent, reservations, lease_expires_at) VALUES ('2', '31337', E'\\xe5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5', E'\\x0000000000000000000000000000000000000000000000000000000000000001', E'\\xa1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1', E'\\xb2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2', E'\\xc3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3', E'\\x0000000000000000000000000000000000000000', '1000', '0', '0', 'false', '100', 'false', NULL, E'\\x', '20', '0', '0', '1800000000', E'\\x00000000000000000000000000000014000000000000000000000000000000140000000000000000000000000000001400000000000000000000000000000014000000000000000000000000000000141b', NULL, E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', E'\\x020001000000006b49d23c0000000000000000000000000000000572010001000000006b49d23c0000000000000000000000000000000773', '1800000060');
INSERT INTO channel (revision, chain_id, escrow, channel_id, payer, payee, token, authorized_signer, deposit, settled, close_requested_at, is_finalized, fact_block, is_closing, closing_with, close_tx, accepted, spent, published, active_at, highest, at_or_below_spent, above_spent, reservations, lease_expires_at) VALUES ('2', '31337', E'\\xe5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5', E'\\x0000000000000000000000000000000000000000000000000000000000000002', E'\\xa1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1', E'\\xb2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2', E'\\xc3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3', E'\\x0000000000000000000000000000000000000000', '1000', '10', '0', 'true', '120', 'true', E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', E'\\x7474747474747474747474747474747474747474747474747474747474747474', '10', '0', '10', '1800000000', E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', NULL, E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', NULL, NULL);
INSERT INTO channel (revision, chain_id, escrow, channel_id, payer, payee, token, authorized_signer, deposit, settled, close_requested_at, is_finalized, fact_block, is_closing, closing_with, close_tx, accepted, spent, published, active_at, highest, at_or_below_spent, above_spent, reservations, lease_expires_at) VALUES ('2', '31337', E'\\xe5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5', E'\\x0000000000000000000000000000000000000000000000000000000000000003', E'\\xa1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1', E'\\xb2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2', E'\\xc3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3', E'\\x0000000000000000000000000000000000000000', '1000', '0', '0', 'false', '100', 'true', NULL, E'\\x', '10', '0', '0', '1800000000', E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', NULL, E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', NULL, NULL);
INSERT INTO channel (revision, chain_id, escrow, channel_id, payer, payee, token, authorized_signer, deposit, settled, close_requested_at, is_finalized, fact_block, is_closing, closing_with, close_tx, accepted, spent, published, active_at, highest, at_or_below_spent, above_spent, reservations, lease_expires_at) VALUES ('3', '31337', E'\\xe5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5', E'\\x0000000000000000000000000000000000000000000000000000000000000004', E'\\xa1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1', E'\\xb2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2', E'\\xc3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3', E'\\x0000000000000000000000000000000000000000', '1000', '0', '0', 'false', '100', 'false', NULL, E'\\x', '20', '10', '0', '1800000000', E'\\x00000000000000000000000000000014000000000000000000000000000000140000000000000000000000000000001400000000000000000000000000000014000000000000000000000000000000141b', E'\\x0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a0000000000000000000000000000000a1b', E'\\x00000000000000000000000000000014000000000000000000000000000000140000000000000000000000000000001400000000000000000000000000000014000000000000000000000000000000141b', NULL, NULL);
INSERT INTO channel (revision, chain_id, escrow, channel_id, payer, payee, token, authorized_signer, deposit, settled, close_requested_at, is_finalized, fact_block, is_closing, closing_with, close_tx, accepted, spent, published, active_at, highest, at_or_below_spent, above_spent, reservations, lease_expires_at) VALUES ('1', '31337', E'\\x0000000000000000000000000000000000000000', E'\\x0000000000000000000000000000000000000000000000000000000000000001', E'\\xa1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1', E'\\xb2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2', E'\\xc3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3', E'\\x0000000000000000000000000000000000000000', '340282366920938463463374607431768211455', '0', '0', 'false', '100', 'false', NULL, E'\\x', '340282366920938463463374607431768211455', '0', '0', '1800000000', E'\\xffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff1b', NULL, E'\\xffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff1b', NULL, NULL);
INSERT INTO paid_request (channel, route, idempotency_key, request_digest, reservation_id, claimed_at, expires_at, status, headers, body) VALUES ('5', 'POST /v1/answers', 'key-1', E'\\x6464646464646464646464646464646464646464646464646464646464646464', E'\\x72', '1800000000', '1800086400', '200', E'\\x9292c40c636f6e74656e742d74797065c40a746578742f706c61696e92c40178c402ff00', E'\\x003432');
INSERT INTO consumed_proof (chain_id, tx_hash, log_index, channel) VALUES ('31337', E'\\x7474747474747474747474747474747474747474747474747474747474747474', '3', '5');
CREATE INDEX channel_by_owed_close ON channel (id)
 WHERE closing_with IS NOT NULL AND NOT is_finalized;
CREATE INDEX paid_request_by_answer ON paid_request (channel, expires_at)
 WHERE status IS NOT NULL;
ALTER TABLE channel ADD COLUMN foreign_block BIGINT NOT NULL DEFAULT 0;
CREATE INDEX channel_by_foreign_block ON channel (foreign_block) WHERE foreign_block <> 0;
CREATE TABLE ledger_identity (
    ledger_id TEXT NOT NULL);
INSERT INTO ledger_identity VALUES ('00112233445566778899aabbccddeeff');
CREATE TABLE ledger_marker (name TEXT NOT NULL PRIMARY KEY);
INSERT INTO ledger_marker VALUES ('1-payee');
CREATE TABLE charge (
    id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel        BIGINT NOT NULL REFERENCES channel (id),
    at             BIGINT NOT NULL,
    reservation_id BYTEA,
    outcome        TEXT NOT NULL,
    is_stream      BOOLEAN NOT NULL,
    route          TEXT NOT NULL,
    variant        TEXT NOT NULL,
    usage          TEXT,
    response_id    TEXT NOT NULL,
    amount         NUMERIC(39,0) NOT NULL
);
CREATE INDEX charge_by_time ON charge (at);
CREATE INDEX charge_by_reservation ON charge (reservation_id) WHERE reservation_id IS NOT NULL;
CREATE INDEX charge_by_response ON charge (response_id) WHERE response_id <> '';
CREATE TABLE charge_balance (
    channel  BIGINT NOT NULL PRIMARY KEY REFERENCES channel (id),
    unlisted NUMERIC(39,0) NOT NULL,
    pruned   NUMERIC(39,0) NOT NULL
);
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
INSERT INTO charge (channel, at, reservation_id, outcome, is_stream, route, variant, usage, response_id, amount) VALUES ('5', '1800000000', E'\\x72', 'done', 'false', 'POST /v1/answers', 'small', '{"output_token":10}', '', '10');
