"""A development chain: Anvil with the escrow, Permit2 and USDC deployed."""
