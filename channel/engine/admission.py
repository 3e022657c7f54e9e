"""What an operator bounds beyond the rules of a channel: how much is owed to us, in all.

The engine asks before it takes on more; who answers knows the chain, which the engine does not.
Nothing durable depends on it: it can only refuse.
"""

from typing import Protocol

from channel.types import ChannelKey

__all__ = ["Admission", "Unbounded"]


class Admission(Protocol):
    """Says no when more would be at risk than may be."""

    def require_room(
        self, key: ChannelKey, cumulative_amount: int, *, accepted: int, settled: int
    ) -> int:
        """Make room for a voucher that is about to be accepted; return how much it takes.

        Its deposit was seen on chain: else strangers could fill the room with promises.

        Raises:
            ExposureLimitError: More would be unsettled than the operator allows.
        """

    def give_back(self, room: int) -> None:
        """Free what `require_room` returned: the voucher was not accepted after all."""

    def require_openings(self) -> None:
        """Check that a channel that is not known yet may be taken (F-65).

        Raises:
            OpeningsPausedError: Too little gas to defend one more.
        """


class Unbounded:
    """Takes everything: for tests, and where nobody watches the chain."""

    def require_room(
        self,
        key: ChannelKey,  # noqa: ARG002 - whoever it is
        cumulative_amount: int,  # noqa: ARG002
        *,
        accepted: int,  # noqa: ARG002
        settled: int,  # noqa: ARG002
    ) -> int:
        """See `Admission.require_room`."""
        return 0

    def give_back(self, room: int) -> None:
        """See `Admission.give_back`."""

    def require_openings(self) -> None:
        """See `Admission.require_openings`."""
