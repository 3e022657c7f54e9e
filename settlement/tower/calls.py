"""The only calls a tower can make (`PayoutCalls`): settles signed ahead."""

from collections.abc import Sequence

from channel.errors import InvariantError
from channel.types import Address, ChannelId
from settlement.presigned.authorization import PresignedSettle
from settlement.tx.state import Purpose
from settlement.types import BatchEntry

__all__ = ["PresignedCalls"]


class PresignedCalls:
    """The only calls a tower can make: settles that were signed ahead, one at a time."""

    def __init__(self, payee: Address) -> None:
        self.payee = payee
        self._held: dict[tuple[ChannelId, int], PresignedSettle] = {}

    def hold(self, settle: PresignedSettle) -> None:
        """Be able to send this one."""
        self._held[settle.key.channel_id, settle.cumulative_amount] = settle

    def drop(self, settle: PresignedSettle) -> None:
        """Forget this one."""
        self._held.pop((settle.key.channel_id, settle.cumulative_amount), None)

    async def build(self, purpose: Purpose, entries: Sequence[BatchEntry]) -> bytes:
        """Return the call for one entry.

        Raises:
            InvariantError: A close, a batch, or what was not signed ahead: a bug.
        """
        if purpose is not Purpose.SETTLE or len(entries) != 1:
            raise InvariantError("a tower can only settle, one channel at a time")
        settle = self._held.get((entries[0].channel_id, entries[0].cumulative_amount))
        if settle is None:
            raise InvariantError("a tower can only settle what was signed ahead")
        return settle.calldata()
