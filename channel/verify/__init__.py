"""Is it genuine? Challenge ids, body digests, signed data, signatures, vouchers.

Pure: no clock, no chain, no randomness. What needs the chain (a wallet's own signature check) is
asked by the engine, and its answer comes back in as an argument.
"""
