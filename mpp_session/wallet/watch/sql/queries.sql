-- load_profile --
-- One profile.
SELECT profile FROM watch_profile WHERE agent = ? AND origin = ? AND token = ?;

-- load_agents --
-- The profile of each agent over all origins.
SELECT agent, origin, token, profile FROM watch_profile
WHERE origin = '' ORDER BY agent, origin, token;

-- load_agent --
-- All profiles of one agent.
SELECT agent, origin, token, profile FROM watch_profile
WHERE agent = ? ORDER BY agent, origin, token;

-- store_profile --
-- What an agent's ask changed.
INSERT INTO watch_profile (agent, origin, token, at, profile) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET at = excluded.at, profile = excluded.profile;

-- forget_profiles --
-- Keeps the profiles that an agent used last.
DELETE FROM watch_profile WHERE agent = :agent AND origin <> '' AND at <=
    (SELECT at FROM watch_profile WHERE agent = :agent
     AND origin <> '' ORDER BY at DESC LIMIT 1 OFFSET :kept);

-- load_state --
-- One breaker.
SELECT state FROM watch_breaker WHERE agent = ? AND origin = ?;

-- store_state --
-- What an outcome changed.
INSERT INTO watch_breaker (agent, origin, at, state) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET at = excluded.at, state = excluded.state;

-- forget_states --
-- Keeps the breakers that an agent used last.
DELETE FROM watch_breaker WHERE agent = :agent AND origin <> '' AND at <=
    (SELECT at FROM watch_breaker WHERE agent = :agent
     AND origin <> '' ORDER BY at DESC LIMIT 1 OFFSET :kept);
