"""The agent's programs: the paying client, its keys, and leaving without the server."""
