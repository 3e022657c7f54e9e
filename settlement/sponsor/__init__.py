"""Deposits that the provider sends for payers without gas."""
