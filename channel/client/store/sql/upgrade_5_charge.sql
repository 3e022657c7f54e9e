-- The same for the charges, which version 4 introduced.
ALTER TABLE charge ADD COLUMN agent TEXT NOT NULL DEFAULT ''
