"""The wallet's books: one SQLite file with every agent's channels, sums and stops, and its guard.

`lock` keeps the file to one process, `asks` says what a commitment asks for, `sums` counts it,
`guard` decides about it in the transaction that commits it, `books` opens it all for its owner.
"""
