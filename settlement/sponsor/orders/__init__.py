"""Deposits we have promised to submit, in the ledger's database: `interface` says what it means."""
