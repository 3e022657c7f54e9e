"""The wallet: keys, policy, budgets, approvals and the audit trail, below the agents that pay."""
