"""The settler's side of sponsored deposits: broadcasts the workers' orders and follows them."""

from collections.abc import Callable

from channel.types import TxHash
from settlement.escrow.already_made import find_made
from settlement.escrow.deposit_calls import parse_deposit_call
from settlement.escrow.reader import EscrowReader
from settlement.sponsor.orders.interface import DepositOrder, DepositOrders
from settlement.sponsor.worker import CLOSE_PENDING
from settlement.tx.journal.interface import Journal
from settlement.tx.manager import TxManager
from settlement.tx.order_sender import WANTED_LOOK_S, OrderSender

__all__ = ["DepositSender"]


class DepositSender(OrderSender[DepositOrder]):
    """Broadcasts the open deposits into one escrow, from one key."""

    def __init__(
        self,
        orders: DepositOrders,
        reader: EscrowReader,
        sender: TxManager,
        journal: Journal,
        *,
        look_s: float = WANTED_LOOK_S,
        earliest: Callable[[], int] | None = None,
    ) -> None:
        """See `OrderSender`."""
        super().__init__(
            orders,
            sender,
            journal,
            to=reader.escrow,
            what="a deposit",
            look_s=look_s,
            earliest=earliest,
        )
        self._reader = reader

    async def _why_not(self, order: DepositOrder) -> str | None:
        fact = await self._reader.read_channel(order.key.channel_id)
        has_close = fact is not None and fact.close_requested_at  # requested since (O-34)
        return CLOSE_PENDING if has_close else None

    async def _find_made(self, order: DepositOrder) -> TxHash | None:
        call = parse_deposit_call(order.calldata)
        return await find_made(self._reader, order.key.channel_id, call)
