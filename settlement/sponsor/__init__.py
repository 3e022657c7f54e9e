"""Sponsored deposits: the provider sends them for payers without gas."""
