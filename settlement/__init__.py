"""The on-chain engine: reads, opens, settles and closes channels in the escrow."""

import sys
from importlib import import_module

# py_ecc, a dependency of eth_account, lifts the recursion limit of the whole process a
# hundredfold when it is imported. On Python 3.11 a request body of nested brackets would then
# overflow the C stack and end the gateway (F-02), so the limit is put back before anyone parses.
_recursion_limit = sys.getrecursionlimit()
import_module("eth_account")
sys.setrecursionlimit(_recursion_limit)
