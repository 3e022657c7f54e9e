-- Version 4: what was settled or closed on chain with the payee's key, and not by these books.

ALTER TABLE channel ADD COLUMN foreign_block BIGINT NOT NULL DEFAULT 0;

CREATE INDEX channel_by_foreign_block ON channel (foreign_block) WHERE foreign_block <> 0;
