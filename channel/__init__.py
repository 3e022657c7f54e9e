"""The off-chain engine: verifies vouchers, keeps the ledger, returns receipts.

Import from the modules themselves (`channel.http`, `channel.client`, ...). This package exports
no names, so that importing one layer never imports another.
"""
