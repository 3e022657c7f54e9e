"""The rules of a channel, as pure functions of values.

No clock, no I/O, no randomness: the caller passes state, time and random values as arguments.
Both ledgers call `transition`, and no other code decides about a channel.
"""
