"""What the agent may sign, decided without I/O: limits, budgets, counts, refusals."""
