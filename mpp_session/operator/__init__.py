"""The operator's side: status of ledger and chain, recovery from an export."""
