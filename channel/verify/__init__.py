"""Authenticity checks: challenge ids, signed data, signatures, vouchers.

Pure: no clock, no chain, no randomness. When a check needs the chain (a wallet's own signature
check), the engine asks it and passes the answer as an argument.
"""
