"""The operator's limits beyond the rules of one channel: how much may be owed in total.

The engine asks before it accepts more. The implementation knows the chain, the engine does not.
Nothing durable depends on the answer: an implementation can only refuse.
"""

from typing import Protocol

from channel.state.channel_state import ChannelState
from channel.types import VerifiedVoucher

__all__ = ["Admission", "Unbounded"]


class Admission(Protocol):
    """Refuses everything that would exceed the operator's limits."""

    def require_promise(self, voucher: VerifiedVoucher, known: ChannelState) -> None:
        """Check that a voucher may be accepted on a channel, as just read, and count it.

        Raises:
            ExposureLimitError: More would be unsettled than the operator allows on the channel,
                for its signer, or for vouchers that only a contract verifies.
        """

    def take_room(self, amount: int) -> None:
        """Count an amount that is about to be reserved, over all channels.

        A voucher alone takes no room: it costs its payer nothing, so one payer could use up the
        room of all others. A reserved amount may be delivered, and is owed then.

        Raises:
            ExposureLimitError: More would be delivered and unsettled than the operator allows.
        """

    def give_back(self, amount: int) -> None:
        """Free what `take_room` counted and what is neither delivered nor reserved any more."""

    def require_openings(self) -> None:
        """Check that the ledger may take an unknown channel (F-65).

        Raises:
            OpeningsPausedError: Not enough gas to defend one more.
            ChainUnavailableError: As for `require_deposits`.
        """

    def require_deposits(self) -> None:
        """Check that a node's statement about a deposit can be trusted.

        Raises:
            ChainUnavailableError: The nodes disagree.
        """


class Unbounded:
    """Allows everything: for tests, and where no process watches the chain."""

    def require_promise(self, voucher: VerifiedVoucher, known: ChannelState) -> None:
        """See `Admission.require_promise`."""

    def take_room(self, amount: int) -> None:
        """See `Admission.take_room`."""

    def give_back(self, amount: int) -> None:
        """See `Admission.give_back`."""

    def require_openings(self) -> None:
        """See `Admission.require_openings`."""

    def require_deposits(self) -> None:
        """See `Admission.require_deposits`."""
