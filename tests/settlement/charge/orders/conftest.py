"""Charges on each database: every test of the promise runs on both (habit 10)."""

from tests.settlement.tx.journal.conftest import journal_url

__all__ = ["journal_url"]
