-- What a server's receipts did not charge.
ALTER TABLE account ADD COLUMN waived BLOB NOT NULL
    DEFAULT x'00000000000000000000000000000000'
