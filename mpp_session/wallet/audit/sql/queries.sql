-- refuse_changes --
-- A hint for people who edit the file.
CREATE TRIGGER IF NOT EXISTS trail_keeps BEFORE UPDATE ON trail
BEGIN SELECT RAISE(ABORT, 'the audit trail is never changed'); END;

-- refuse_deletions --
-- The same hint for people who shorten it.
CREATE TRIGGER IF NOT EXISTS trail_grows BEFORE DELETE ON trail
BEGIN SELECT RAISE(ABORT, 'the audit trail is never shortened'); END;

-- load_last --
-- What the next record follows.
SELECT seq, hash FROM trail ORDER BY seq DESC LIMIT 1;

-- add --
-- The next record.
INSERT INTO trail (seq, record, hash) VALUES (?, ?, ?);

-- try_trail --
-- Fails where the file has no trail.
SELECT seq, record, hash FROM trail LIMIT 1;

-- load --
-- One record.
SELECT seq, record, hash FROM trail WHERE seq = ?;

-- load_after --
-- The records after a number, in order.
SELECT seq, record, hash FROM trail WHERE seq > ? ORDER BY seq;

-- load_hashes --
-- The hashes after a number, for a checkpoint.
SELECT seq, hash FROM trail WHERE seq > ? ORDER BY seq;

-- load_bytes --
-- All records as they are stored, also text that is not UTF-8. NULL is not a text.
SELECT seq, CASE WHEN typeof(record) = 'text' THEN CAST(record AS BLOB) END, hash FROM trail
ORDER BY seq;

-- count --
-- How many records the trail has.
SELECT count(*) FROM trail;

-- has_index --
-- Whether the index was ever made.
SELECT 1 FROM sqlite_schema WHERE name = 'place';

-- load_place --
-- The last record that is indexed.
SELECT trail, seq, hash, version FROM place;

-- delete_place --
-- Makes room for another one.
DELETE FROM place;

-- add_place --
-- The last record that is indexed now.
INSERT INTO place VALUES (?, ?, ?, ?);

-- add_entry --
-- What searches select a record by.
INSERT INTO entries VALUES (?, ?, ?, ?);

-- add_link --
-- An identifier that a record holds.
INSERT INTO links VALUES (?, ?, ?);

-- add_words --
-- The texts of a record.
INSERT INTO words (rowid, text) VALUES (?, ?);

-- find_named --
-- The records that hold an identifier.
SELECT name, seq FROM links WHERE id = ?;

-- find_identifiers --
-- The identifiers that a record holds as a member.
SELECT id FROM links WHERE seq = ? AND name = ?;

-- search --
-- The newest records that fit.
SELECT seq FROM entries
WHERE (:words = '' OR seq IN (SELECT rowid FROM words WHERE words MATCH :words))
    AND (:agent IS NULL OR agent = :agent)
    AND (:kind IS NULL OR kind = :kind)
    AND (:since IS NULL OR at >= :since)
ORDER BY seq DESC LIMIT :count;
