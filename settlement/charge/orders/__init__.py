"""Charge orders, in the database of the ledger."""
