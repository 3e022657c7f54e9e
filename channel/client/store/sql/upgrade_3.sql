-- What a server's receipts did not charge, and what a deposit comes to once all is mined.
ALTER TABLE account ADD COLUMN waived BLOB NOT NULL
    DEFAULT x'00000000000000000000000000000000';
ALTER TABLE account ADD COLUMN goal BLOB NOT NULL
    DEFAULT x'00000000000000000000000000000000'
