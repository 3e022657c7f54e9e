"""Approvals: a question about one payment, who answers it, and what the answer allows.

`store` keeps the records inside the wallet's own transactions, `terms` says what an approval is
bound to, `votes` when enough people have agreed. `webhook` and `site` ask people and take answers.
"""
