-- Version 3: finds a channel's newest answers, however many requests there are.

CREATE INDEX paid_request_by_answer ON paid_request (channel, expires_at)
 WHERE status IS NOT NULL;
