"""The agent's side: the paying client, its keys, and withdrawal without the server."""
