-- create_version --
-- Where the version of a set of tables is kept, in one row.
CREATE TABLE IF NOT EXISTS {table} (version INTEGER NOT NULL)

-- select_version --
-- How far its migrations ran; no row when none did.
SELECT version FROM {table}

-- insert_version --
-- None ran yet.
INSERT INTO {table} (version) VALUES (0)

-- update_version --
-- This one has run.
UPDATE {table} SET version = {version}
