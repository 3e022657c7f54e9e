"""Long-running processes: settler, watchtower, the leader's lease, signals, logs and clock."""
