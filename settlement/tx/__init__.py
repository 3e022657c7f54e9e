"""Transactions: nonces, fees, signing, the journal, and following one until it is final."""
