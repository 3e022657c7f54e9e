-- The index of the trail, in a file of its own. It is made anew for another trail.

DROP TABLE IF EXISTS place;

DROP TABLE IF EXISTS entries;

DROP TABLE IF EXISTS links;

DROP TABLE IF EXISTS words;

-- The last record that is indexed.
CREATE TABLE IF NOT EXISTS place (trail TEXT, seq INTEGER, hash BLOB, version INTEGER);

CREATE TABLE IF NOT EXISTS entries (seq INTEGER PRIMARY KEY, at REAL, kind TEXT, agent TEXT);

CREATE TABLE IF NOT EXISTS links (id TEXT, seq INTEGER, name TEXT, PRIMARY KEY (id, seq, name))
    WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS links_of ON links (seq, name, id);

CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(text, content='');
