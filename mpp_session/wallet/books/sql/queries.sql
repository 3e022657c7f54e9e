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

-- load_counter --
-- One sum.
SELECT id, total, since, head, head_amount FROM counter WHERE id = ?;

-- load_known --
-- The same, if it still is the sum of that name: what first stored it may have been undone.
SELECT id, total, since, head, head_amount FROM counter
WHERE id = ? AND what = ? AND scope = ? AND token = ? AND window_s = ?;

-- find_counter --
-- One sum by its name.
SELECT id, total, since, head, head_amount FROM counter
WHERE what = ? AND scope = ? AND token = ? AND window_s = ?;

-- find_windows --
-- The sums of one name over any window.
SELECT window_s, id, total, since, head, head_amount FROM counter
WHERE what = ? AND scope = ? AND token = ?;

-- load_tasks --
-- The sums of an envelope's tasks.
SELECT scope, token FROM counter
WHERE what = 'spent' AND window_s = 0 AND substr(scope, 1, length(:task)) = :task
ORDER BY scope;

-- add_counter --
-- A new sum.
INSERT INTO counter (what, scope, token, window_s, total, since, head, head_amount)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- update_counter --
-- Writes a sum.
UPDATE counter SET total = ?, since = ?, head = ?, head_amount = ? WHERE id = ?;

-- take_locked --
-- Takes from a sum of deposits.
UPDATE counter SET total = minus(total, ?) WHERE id = ?;

-- give_locked --
-- Adds to a sum of deposits.
UPDATE counter SET total = plus(total, ?) WHERE id = ?;

-- load_buckets --
-- The amounts of a span of time.
SELECT bucket, amount FROM bucket WHERE counter = ? AND bucket >= ? AND bucket < ?;

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
-- A channel's amounts are added to a sum from here on.
INSERT OR REPLACE INTO envelope_entry VALUES (?, ?, ?, ?, NULL);

-- end_entry --
-- From here on they are not.
UPDATE envelope_entry SET last = ? WHERE channel = ? AND counter = ? AND bucket = ? AND last IS NULL;

-- end_entries --
-- From here on they are added to nothing.
UPDATE envelope_entry SET last = ? WHERE channel = ? AND last IS NULL;

-- load_entries --
-- What a channel's amounts were added to.
SELECT counter, bucket, first, last, window_s FROM envelope_entry JOIN counter ON id = counter
WHERE channel = ?;

-- delete_old_entries --
-- Forgets what no window reaches any more.
DELETE FROM envelope_entry WHERE channel = ? AND counter = ? AND bucket < ?;

-- delete_entries --
-- A channel has ended.
DELETE FROM envelope_entry WHERE channel = ?;

-- add_lock --
-- Adds to what of a deposit was added to a sum.
INSERT INTO envelope_lock VALUES (?, ?, ?)
ON CONFLICT (channel, counter) DO UPDATE SET amount = plus(amount, excluded.amount);

-- store_lock --
-- Writes it.
INSERT OR REPLACE INTO envelope_lock VALUES (?, ?, ?);

-- load_locks --
-- What of a deposit was added to sums.
SELECT counter, amount FROM envelope_lock WHERE channel = ?;

-- delete_locks --
-- A channel has ended.
DELETE FROM envelope_lock WHERE channel = ?;

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

-- load_live --
-- Channels that have not ended.
SELECT channel_purpose.id, channel_purpose.agent, channel_purpose.origin, account.chain_id,
    account.escrow, account.channel_id, token, payee
FROM channel_purpose JOIN account USING (chain_id, escrow, channel_id)
WHERE is_live = 1;

-- load_ended --
-- Channels that ended, which these books do not know yet.
SELECT account.chain_id, account.escrow, account.channel_id, account.signed, account.settled,
    channel_purpose.agent
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
