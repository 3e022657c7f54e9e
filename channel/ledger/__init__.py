"""Durable storage for channel state. `interface` states the guarantees; backends store rows."""
