-- Deposits by signature.
ALTER TABLE account ADD COLUMN opening TEXT;
ALTER TABLE account ADD COLUMN top_up TEXT
