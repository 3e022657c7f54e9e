"""The audit trail: what was asked, decided, paid and settled, so that a change of it is found.

Each record holds the hash of the record before (`trail`), and signed checkpoints outside of the
database hold the root of a Merkle tree over all records (`checkpoints`). `verify` compares both.
"""
