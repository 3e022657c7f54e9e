-- Version 3: signers and payers whose contract took back a voucher that it had vouched for.

CREATE TABLE distrusted_signer (
    chain_id INTEGER NOT NULL,
    address  BLOB NOT NULL CHECK (length(address) = 20),
    since    INTEGER NOT NULL,
    PRIMARY KEY (chain_id, address)
) STRICT, WITHOUT ROWID;
