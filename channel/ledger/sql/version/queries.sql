-- create_version --
-- The table with the version of a set of tables, in one row.
CREATE TABLE IF NOT EXISTS {table} (version INTEGER NOT NULL)

-- select_version --
-- The last migration that ran; no row when none did.
SELECT version FROM {table}

-- insert_version --
-- No migration has run.
INSERT INTO {table} (version) VALUES (0)

-- update_version --
-- A migration has run.
UPDATE {table} SET version = {version}
