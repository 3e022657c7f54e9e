"""The wallet's process: a door for each agent, one for its owner, and the requests it makes."""
