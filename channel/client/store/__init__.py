"""The agent's payment store: what was signed, durable before it is sent."""
