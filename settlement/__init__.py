"""The on-chain engine: reads, opens, settles and closes channels in the escrow."""
