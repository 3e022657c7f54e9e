"""Make it last. What a ledger promises is in `interface`; the backends only read and write rows."""
