-- Version 2: finds the closes that were decided and are not mined, however many channels there are.

CREATE INDEX channel_by_owed_close ON channel (id)
 WHERE closing_with IS NOT NULL AND is_finalized = 0;
