-- Version 3: signers and payers whose contract took back a voucher that it had vouched for.

CREATE TABLE distrusted_signer (
    chain_id BIGINT NOT NULL,
    address  BYTEA NOT NULL CHECK (length(address) = 20),
    since    BIGINT NOT NULL,
    PRIMARY KEY (chain_id, address)
);
