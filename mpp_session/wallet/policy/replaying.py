"""Decides recorded asks again by another policy, to see what a change would have changed (pure)."""

from collections.abc import Iterable, Iterator

import msgspec

from mpp_session.wallet.policy.compiled import WalletPolicy
from mpp_session.wallet.policy.deciding import decide
from mpp_session.wallet.types import Ask, Decision, Snapshot

__all__ = ["Changed", "replay"]

_ORDER = {"deny": 0, "ask": 1, "allow": 2}


class Changed(msgspec.Struct, frozen=True):
    """An ask that this policy decides in another way."""

    ask: Ask
    before: Decision
    after: Decision

    @property
    def is_looser(self) -> bool:
        """Whether more is allowed than was."""
        return _ORDER[self.after.action] > _ORDER[self.before.action]


def replay(
    policy: WalletPolicy, asks: Iterable[tuple[Ask, Snapshot | None, Decision]]
) -> Iterator[Changed]:
    """Yield the asks for which action or code differ from what was decided.

    Args:
        policy: The policy to try.
        asks: Each with the snapshot that it was decided by, None for empty books, and the decision.
            The sums stay as they were, also after an ask that this policy would have refused.
    """
    for ask, snapshot, before in asks:
        after = decide(policy, ask, Snapshot() if snapshot is None else snapshot)
        if (after.action, after.code) != (before.action, before.code):
            yield Changed(ask, before, after)
