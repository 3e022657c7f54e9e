-- Version 1: deposits that we have promised to submit for their funders.
--
-- What each column means is written at its field in settlement/sponsor/orders/interface.py; the numbers
-- of a status are those of the enum there.

CREATE TABLE deposit_order (
    order_id   BLOB NOT NULL PRIMARY KEY CHECK (length(order_id) = 32),
    chain_id   INTEGER NOT NULL,
    escrow     BLOB NOT NULL CHECK (length(escrow) = 20),
    channel_id BLOB NOT NULL CHECK (length(channel_id) = 32),
    funder     BLOB NOT NULL CHECK (length(funder) = 20),
    calldata   BLOB NOT NULL,
    deadline   BLOB NOT NULL CHECK (length(deadline) = 32),
    gas_gwei   INTEGER NOT NULL,
    wanted_at  INTEGER NOT NULL,
    status     INTEGER NOT NULL,
    tx_hash    BLOB CHECK (tx_hash IS NULL OR length(tx_hash) = 32),
    reason     TEXT NOT NULL,
    -- of an opening: its first voucher, with which the books take the channel if its payer is gone
    voucher    BLOB CHECK (voucher IS NULL OR length(voucher) >= 16),
    is_known   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX deposit_order_open ON deposit_order (chain_id, escrow) WHERE status < 3;
CREATE INDEX deposit_order_unknown ON deposit_order (chain_id, escrow)
    WHERE status = 3 AND is_known = 0;
CREATE INDEX deposit_order_period ON deposit_order (chain_id, escrow, wanted_at);
