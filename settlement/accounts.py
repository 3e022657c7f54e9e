"""Keys of accounts, by eth_account: to be imported from here, and from nowhere else outside.

Importing eth_account by itself lifts the recursion limit of the process; this package puts it
back first (see `settlement/__init__.py`).
"""

from eth_account import Account
from eth_account.signers.local import LocalAccount

__all__ = ["Account", "LocalAccount"]
