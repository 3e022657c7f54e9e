"""What an operator bounds beyond the rules of a channel: how much is owed to us, in all.

The engine asks before it takes on more; who answers knows the chain, which the engine does not.
Nothing durable depends on it: it can only refuse.
"""

from typing import Protocol

from channel.state.channel_state import ChannelState
from channel.types import VerifiedVoucher

__all__ = ["Admission", "Unbounded"]


class Admission(Protocol):
    """Says no when more would be at risk than may be."""

    def require_promise(self, voucher: VerifiedVoucher, known: ChannelState) -> None:
        """Check that a voucher may be accepted on a channel, as it was just read, and count it.

        Raises:
            ExposureLimitError: More would be unsettled than the operator allows on the channel,
                for its signer, or for vouchers that only a contract vouches for.
        """

    def take_room(self, amount: int) -> None:
        """Count what is about to be held for a request or a stream, on all channels together.

        A promise alone takes no room: it costs its payer nothing, and with it anybody could keep
        every other one out. What is held may be delivered, and then it is owed.

        Raises:
            ExposureLimitError: More would be delivered and unsettled than the operator allows.
        """

    def give_back(self, amount: int) -> None:
        """Free what `take_room` counted and was neither delivered nor is held any more."""

    def require_openings(self) -> None:
        """Check that a channel that is not known yet may be taken (F-65).

        Raises:
            OpeningsPausedError: Too little gas to defend one more.
            ChainUnavailableError: As `require_deposits`.
        """

    def require_deposits(self) -> None:
        """Check that what a node says of a deposit can be believed.

        Raises:
            ChainUnavailableError: The nodes disagree.
        """


class Unbounded:
    """Takes everything: for tests, and where nobody watches the chain."""

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
