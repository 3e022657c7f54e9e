-- load_stops --
-- Everything that the owner has stopped.
SELECT kind, scope, at, by, reason FROM stop;

-- add_stop --
-- Stops it; what is stopped already keeps its first reason.
INSERT OR IGNORE INTO stop VALUES (:kind, :scope, :at, :by, :reason);

-- delete_stop --
-- Goes on after a freeze.
DELETE FROM stop WHERE kind = 'freeze' AND scope = :scope;

-- load_policy --
-- The policy that decided last.
SELECT revision, hash FROM policy_in_force;

-- store_policy --
-- Another policy decides from now on.
INSERT OR REPLACE INTO policy_in_force VALUES (1, :revision, :hash, :since);

-- find_counter --
-- One sum by its name.
SELECT id, total, since FROM counter WHERE what = ? AND scope = ? AND token = ? AND window_s = ?;

-- find_windows --
-- The sums of one name over any window.
SELECT id, window_s, total FROM counter WHERE what = ? AND scope = ? AND token = ?;

-- load_counters --
-- The sums of one scope, and of the scopes within it.
SELECT id, what, scope, token, window_s, total, since FROM counter
WHERE scope = :scope OR substr(scope, 1, length(:scope) + 1) = :scope || ' ';

-- add_counter --
-- A new sum.
INSERT INTO counter (what, scope, token, window_s, total, since) VALUES (?, ?, ?, ?, ?, ?);

-- update_counter --
-- Writes a sum.
UPDATE counter SET total = ?, since = ? WHERE id = ?;

-- load_buckets --
-- The amounts of a span of time.
SELECT bucket, amount FROM bucket WHERE counter = ? AND bucket >= ? AND bucket < ? ORDER BY bucket;

-- add_bucket --
-- Adds to an amount.
INSERT INTO bucket VALUES (?, ?, ?)
ON CONFLICT (counter, bucket) DO UPDATE SET amount = plus(amount, excluded.amount);

-- take_bucket --
-- Takes from an amount.
UPDATE bucket SET amount = minus(amount, ?) WHERE counter = ? AND bucket = ?;

-- delete_buckets --
-- Forgets what no window reaches any more.
DELETE FROM bucket WHERE counter = ? AND bucket < ?;

-- add_entry --
-- Adds to what a channel added to a sum.
INSERT INTO envelope_entry VALUES (?, ?, ?, ?)
ON CONFLICT (channel, counter, bucket) DO UPDATE SET amount = plus(amount, excluded.amount);

-- store_entry --
-- Writes it.
INSERT OR REPLACE INTO envelope_entry VALUES (?, ?, ?, ?);

-- load_entries --
-- What a channel added to the sums of one kind.
SELECT counter, bucket, amount, window_s, total, since
FROM envelope_entry JOIN counter ON id = counter
WHERE channel = ? AND what = ?
ORDER BY counter, bucket;

-- load_old_entries --
-- What a window has left behind.
SELECT bucket, amount FROM envelope_entry
WHERE channel = ? AND counter = ? AND bucket >= 0 AND bucket < ?;

-- delete_old_entries --
-- The same, once it is added to bucket -1.
DELETE FROM envelope_entry WHERE channel = ? AND counter = ? AND bucket >= 0 AND bucket < ?;

-- delete_entries --
-- A channel has ended.
DELETE FROM envelope_entry WHERE channel = ?;

-- find_channel --
-- The number of a channel in these books.
SELECT id, is_live FROM channel_purpose WHERE chain_id = ? AND escrow = ? AND channel_id = ?;

-- add_channel --
-- Who opened a channel, and what for.
INSERT INTO channel_purpose (
    chain_id, escrow, channel_id, agent, origin, task, rule, envelopes, approval, policy_revision,
    opened_at, is_live
) VALUES (
    :chain_id, :escrow, :channel_id, :agent, :origin, :task, :rule, :envelopes, :approval,
    :policy_revision, :opened_at, 1
);

-- end_channel --
-- A channel has ended, or is there again.
UPDATE channel_purpose SET is_live = ? WHERE id = ?;

-- count_channels --
-- Live channels of an agent with an origin.
SELECT count(*) FROM channel_purpose WHERE agent = ? AND origin = ? AND is_live = 1;

-- load_channels --
-- Every channel with what it is for.
SELECT * FROM channel_purpose ORDER BY id;

-- count_live --
-- Live channels by agent.
SELECT agent, count(*) AS channels FROM channel_purpose WHERE is_live = 1 GROUP BY agent;

-- load_ended --
-- Channels that ended, which these books do not know yet.
SELECT account.chain_id, account.escrow, account.channel_id, account.settled, channel_purpose.agent
FROM channel_purpose JOIN account USING (chain_id, escrow, channel_id)
WHERE is_live = 1 AND state = 'closed';

-- has_paid --
-- What an agent has paid before, of an origin, a recipient and a chain.
SELECT what FROM paid
WHERE agent = :agent AND (
    (what = 'origin' AND value = :origin)
    OR (what = 'recipient' AND value = :recipient)
    OR (what = 'chain' AND value = :chain)
);

-- note_paid --
-- It has paid it now.
INSERT OR IGNORE INTO paid VALUES (?, ?, ?);

-- note_seen --
-- An agent has asked.
INSERT INTO agent_seen VALUES (:agent, :at)
ON CONFLICT (agent) DO UPDATE SET at = excluded.at WHERE at < excluded.at;

-- load_seen --
-- When agents asked last.
SELECT agent, at FROM agent_seen
;

-- load_spent --
-- What agents signed in channels, or paid in those that ended, and what they were charged.
SELECT agent, chain_id, token, CASE state WHEN 'closed' THEN settled ELSE signed END AS amount
FROM account
UNION ALL
SELECT agent, chain_id, token, amount FROM charge
