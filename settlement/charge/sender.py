"""The settler's side of charges: broadcasts the transfers that workers ordered."""

from collections.abc import Callable

from channel.types import Address, TxHash
from settlement.charge.orders.interface import ChargeOrder, ChargeOrders
from settlement.charge.transfer import find_transfer
from settlement.tx.journal.interface import Journal
from settlement.tx.manager import TxManager
from settlement.tx.order_sender import WANTED_LOOK_S, OrderSender

__all__ = ["ChargeSender"]


class ChargeSender(OrderSender[ChargeOrder]):
    """Broadcasts the open charges of one token and payee, from one key."""

    def __init__(
        self,
        orders: ChargeOrders,
        sender: TxManager,
        journal: Journal,
        *,
        token: Address,
        payee: Address,
        look_s: float = WANTED_LOOK_S,
        earliest: Callable[[], int] | None = None,
    ) -> None:
        """See `OrderSender`."""
        super().__init__(
            orders,
            sender,
            journal,
            to=token,
            what="a charge",
            look_s=look_s,
            earliest=earliest,
        )
        self._rpc = sender.rpc
        self._payee = payee

    async def _find_made(self, order: ChargeOrder) -> TxHash | None:
        return await find_transfer(
            self._rpc,
            self._to,
            payer=order.funder,
            payee=self._payee,
            amount=order.amount,
            nonce=order.nonce,
            from_block=order.from_block,
        )
