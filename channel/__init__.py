"""The off-chain engine: vouchers in, receipts out, every accepted unit on disk.

Import from the modules themselves (`channel.http`, `channel.client`, ...): this package
holds no names of its own, so that importing one layer never pulls in another.
"""
