"""The only calls a tower can make (`PayoutCalls`): presigned settles."""

from collections.abc import Sequence

from channel.errors import InvariantError
from channel.types import Address, ChannelId
from settlement.presigned.authorization import PresignedSettle
from settlement.tx.state import Purpose
from settlement.types import BatchEntry

__all__ = ["PresignedCalls"]


class PresignedCalls:
    """The only calls a tower can make: presigned settles, one at a time."""

    def __init__(self, payee: Address) -> None:
        self.payee = payee
        self._held: dict[tuple[ChannelId, int], PresignedSettle] = {}

    def hold(self, settle: PresignedSettle) -> None:
        """Allow this settle to be sent."""
        self._held[settle.key.channel_id, settle.cumulative_amount] = settle

    def drop(self, settle: PresignedSettle) -> None:
        """Forget this settle."""
        self._held.pop((settle.key.channel_id, settle.cumulative_amount), None)

    async def build(self, purpose: Purpose, entries: Sequence[BatchEntry]) -> bytes:
        """Return the call for one entry.

        Raises:
            InvariantError: A bug: a close, a batch, or a settle that is not held.
        """
        if purpose is not Purpose.SETTLE or len(entries) != 1:
            raise InvariantError("a tower can only settle, one channel at a time")
        settle = self._held.get((entries[0].channel_id, entries[0].cumulative_amount))
        if settle is None:
            raise InvariantError("a tower can only settle what was signed ahead")
        return settle.calldata()
