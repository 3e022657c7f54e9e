-- Several agents of one wallet share a file.
ALTER TABLE account ADD COLUMN agent TEXT NOT NULL DEFAULT ''
