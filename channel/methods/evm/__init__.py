"""Method `evm`: sessions in the escrow of `contracts/` (draft-evm-session-00)."""
