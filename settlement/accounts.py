"""Encrypted keys, by eth_account: to be imported from here, late, and from nowhere else.

Only whoever opens a keystore needs it, and it takes half a second to import. What is worse, py_ecc
below it lifts the recursion limit of the whole process a hundredfold. On Python 3.11 a request
body of nested brackets would then overflow the C stack and end the gateway (F-02), so the limit is
put back before anyone parses.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["Account", "decrypt_key"]

_recursion_limit = sys.getrecursionlimit()
Account: Any = import_module("eth_account").Account
sys.setrecursionlimit(_recursion_limit)


def decrypt_key(keystore: Mapping[str, Any], password: str) -> bytes:
    """Return the private key in a Web3 secret storage. Slow on purpose: use a thread.

    Raises:
        ValueError, TypeError, KeyError, NotImplementedError: It is none, or has another password.
    """
    return bytes(Account.decrypt(keystore, password))
