"""The escrow contract: reads, payouts, deposits, and what a token must be."""
