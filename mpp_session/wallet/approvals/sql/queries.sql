-- add --
-- A new question.
INSERT INTO approval VALUES (
    :id, :agent, 'pending', :created_at, :expires_at, NULL, :terms_hash, :subject_hash,
    :window_hash, :channel_hash, :question, 'once', :zero, :zero, NULL, '', NULL, NULL, ''
);

-- load --
-- One record.
SELECT * FROM approval WHERE id = :id;

-- load_by_state --
-- All records of a state, oldest first.
SELECT * FROM approval WHERE state = :state ORDER BY created_at, rowid;

-- load_recent --
-- The newest records.
SELECT * FROM approval ORDER BY created_at DESC, rowid DESC LIMIT :count;

-- load_usable --
-- What may cover an ask of an agent: what is approved, what its request has begun to use, and what
-- was used up by deposits into its channel.
SELECT * FROM approval
WHERE agent = :agent
  AND (
    state = 'approved'
    OR (state IN ('used', 'expired') AND used_by_request = :request_id)
    OR (state = 'used' AND used_by_channel = :channel_id)
  )
ORDER BY created_at, rowid;

-- load_same --
-- What was asked about the same subject.
SELECT * FROM approval WHERE subject_hash = :subject_hash ORDER BY created_at, rowid;

-- count_pending --
-- How many questions of an agent wait, and until when the first of them does. One that the agent
-- took back counts until its answer would have been due, or people could be asked without a bound.
SELECT count(*) AS number, min(coalesce(again_at, expires_at)) AS first_at FROM approval
WHERE agent = :agent AND (state = 'pending' OR (state = 'withdrawn' AND again_at > :now));

-- load_open --
-- What can still be answered or used.
SELECT * FROM approval WHERE state IN ('pending', 'approved') ORDER BY created_at, rowid;

-- change --
-- Everything about a record that may change.
UPDATE approval SET
    state = :state, expires_at = :expires_at, again_at = :again_at, scope = :scope,
    approved = :approved, used = :used, decided_at = :decided_at, comment = :comment,
    used_at = :used_at, used_by_channel = :used_by_channel, used_by_request = :used_by_request
WHERE id = :id;

-- vote --
-- One answer, which replaces an earlier one of the same voter.
INSERT OR REPLACE INTO approval_vote VALUES (
    :approval, :kind, :voter, :verdict, :amount, :scope, :comment, :at
);

-- load_votes --
-- The answers to one question, oldest first.
SELECT * FROM approval_vote WHERE approval = :approval ORDER BY at, kind, voter;

-- note --
-- That a message about a question was sent, or was given up.
INSERT OR REPLACE INTO approval_notice VALUES (:approval, :channel, :at, :status);

-- load_notices --
-- The messages about one question.
SELECT * FROM approval_notice WHERE approval = :approval ORDER BY at, channel;

-- take_token --
-- A one-time token is used; no row is returned if it was used before.
INSERT OR IGNORE INTO approval_token VALUES (:digest, :at) RETURNING at;

-- forget_votes --
-- Answers to questions that are forgotten.
DELETE FROM approval_vote WHERE approval IN (
    SELECT id FROM approval WHERE created_at < :before AND state NOT IN ('pending', 'approved')
);

-- forget_notices --
-- Messages about questions that are forgotten.
DELETE FROM approval_notice WHERE approval IN (
    SELECT id FROM approval WHERE created_at < :before AND state NOT IN ('pending', 'approved')
);

-- forget_tokens --
-- Tokens that have expired long ago.
DELETE FROM approval_token WHERE at < :before;

-- forget --
-- Records that ended long ago.
DELETE FROM approval WHERE created_at < :before AND state NOT IN ('pending', 'approved');
