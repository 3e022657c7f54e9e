"""Receipts: held against the purse, stored, and a lie stops the channel (CLIENT-09)."""

from collections.abc import Callable, Collection

from msgspec.structs import replace

from channel.client.payment.channel_pool import ChannelPool
from channel.client.payment.presenting import Presented, read_receipt
from channel.client.payment.request import Purchase, Ticket
from channel.client.store.record import Account, adopt_receipt, count_received, require_receipt
from channel.client.store.sqlite import PaymentStore
from channel.errors import ReceiptViolationError, WireError
from channel.types import ChannelKey
from channel.wire.receipt import Receipt, format_receipt, parse_receipt_json
from channel.wire.sse import RECEIPT_EVENT

__all__ = ["ReceiptChecker"]


class ReceiptChecker:
    """Takes what servers say about our channels, as far as it can be."""

    def __init__(self, store: PaymentStore, pool: ChannelPool) -> None:
        self._store = store
        self._pool = pool

    async def accept(self, purchase: Purchase, ticket: Ticket, text: str | None) -> None:
        """Count an answer in one piece, and take its receipt.

        How many units it was only the server knows; more than the request may cost is not
        counted. An answer without a receipt counts as one unit.

        Raises:
            ReceiptViolationError: The receipt cannot be right; the channel is stopped.
        """
        receipt = None if text is None else await self._read(ticket.key, text)
        units = 1 if receipt is None or receipt.units is None else receipt.units
        units = min(units, ticket.hold.cost_max // ticket.price)

        def count(current: Account) -> Account:
            return count_received(current, value=units * ticket.price, units=units)

        is_alone = ticket.hold.is_alone
        ticket.hold.begin_counting()
        if receipt is None or text is None:
            ticket.tab.change(count)
            await ticket.tab.store(self._store)
        else:
            await self._adopt(purchase, ticket, receipt, text, is_final=is_alone, first=count)

    async def begin_stream(self, purchase: Purchase, ticket: Ticket, text: str | None) -> None:
        """Take the receipt in the headers of a stream, which counts nothing yet.

        Raises:
            ReceiptViolationError: It cannot be right; the channel is stopped.
        """
        if text is not None:
            receipt = await self._read(ticket.key, text)
            await self._adopt(purchase, ticket, receipt, text, is_final=ticket.hold.is_alone)

    async def end_stream(self, purchase: Purchase, ticket: Ticket, data: str) -> None:
        """Take the receipt at the end of a stream (SSE-04).

        Raises:
            ReceiptViolationError: It cannot be right; the channel is stopped.
        """
        try:
            receipt = parse_receipt_json(data)
        except WireError as error:
            await self.stop(ticket.key)
            raise ReceiptViolationError(
                field=RECEIPT_EVENT, said=f"unreadable ({error})", expected="a receipt"
            ) from error
        text = format_receipt(receipt)
        await self._adopt(purchase, ticket, receipt, text, is_final=ticket.hold.is_alone)

    async def accept_presented(
        self, purchase: Purchase, ticket: Ticket, presented: Presented
    ) -> None:
        """Take the receipt of a management request, if it has one; see `accept`."""
        ticket.answer(presented.offer)
        if presented.receipt is not None:
            await self._adopt(
                purchase, ticket, presented.receipt, presented.receipt_text, is_final=False
            )

    async def adopt(
        self,
        key: ChannelKey,
        receipt: Receipt,
        text: str,
        *,
        challenge_ids: Collection[str] | None,
        spent_min: int,
        is_final: bool,
        first: Callable[[Account], Account] = lambda current: current,
    ) -> None:
        """Hold a receipt against the purse and store it with what `first` makes of that.

        See `require_receipt` and `adopt_receipt` of `account`.

        Raises:
            ReceiptViolationError: It cannot be right; the channel is stopped.
        """
        tab = self._pool.find_tab(key) or self._pool.tab(await self._store.get(key))
        tab.change(lambda counts: adopt_receipt(first(counts), receipt, text, is_final=is_final))

        def change(current: Account) -> Account:
            require_receipt(current, receipt, challenge_ids=challenge_ids, spent_min=spent_min)
            return adopt_receipt(current, receipt, text, is_final=is_final)

        try:
            await tab.store(self._store, change)
        except ReceiptViolationError:
            await self.stop(key)
            raise

    async def stop(self, key: ChannelKey) -> None:
        """Use a channel no more: whoever it is with has contradicted himself."""
        await self._store.update(key, lambda current: replace(current, state="stopped"))
        self._pool.forget(key)

    async def _adopt(
        self,
        purchase: Purchase,
        ticket: Ticket,
        receipt: Receipt,
        text: str,
        *,
        is_final: bool,
        first: Callable[[Account], Account] = lambda current: current,
    ) -> None:
        is_ours = purchase.is_key_ours
        await self.adopt(
            ticket.key,
            receipt,
            text,
            challenge_ids=ticket.challenge_ids if is_ours else None,
            spent_min=ticket.spent_before.get(ticket.key, 0) if is_ours else 0,
            is_final=is_final,
            first=first,
        )

    async def _read(self, key: ChannelKey, text: str) -> Receipt:
        try:
            return read_receipt(text)
        except ReceiptViolationError:
            await self.stop(key)
            raise
