"""Deposit orders, stored in the ledger's database; see `interface`."""
