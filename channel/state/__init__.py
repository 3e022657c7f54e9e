"""Is it allowed? The rules of a channel as pure functions of values.

No clock, no I/O, no randomness: what the past, the time and chance were are arguments. Both
ledgers call `transition`; nobody else decides.
"""
