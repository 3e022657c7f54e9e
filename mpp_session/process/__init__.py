"""Processes: settler, watchtower, their leader lease, signals, logs and clock."""
