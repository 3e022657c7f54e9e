"""Other ways to pay than the session: `evm` charge and x402 exact, on routes with a fixed price."""
