-- Version 6: there is a marker for each payee that the ledger is of, not one for all of them.

CREATE TABLE ledger_marker (name TEXT NOT NULL PRIMARY KEY) STRICT;

ALTER TABLE ledger_identity DROP COLUMN is_marked;
