-- Version 8: a request is found by the id that its answer stated.

CREATE INDEX charge_by_response ON charge (response_id) WHERE response_id <> '';
