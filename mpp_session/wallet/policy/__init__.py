"""The wallet's policy: a file that people write, and pure decisions by it."""

from mpp_session.wallet.policy.client import client_policy
from mpp_session.wallet.policy.compiled import WalletPolicy
from mpp_session.wallet.policy.compiling import load_policy, parse_policy
from mpp_session.wallet.policy.deciding import counters_for, decide
from mpp_session.wallet.policy.reaching import refuse_reach

__all__ = [
    "WalletPolicy",
    "client_policy",
    "counters_for",
    "decide",
    "load_policy",
    "parse_policy",
    "refuse_reach",
]
