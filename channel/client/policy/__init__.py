"""Decides without I/O what the agent may sign: limits, budgets, counts, refusals."""
