"""Checks receipts against the record and stores them; a false one stops the channel (CLIENT-09)."""

from collections.abc import Callable, Collection

from msgspec.structs import replace

from channel.client.payment.channel_pool import ChannelPool
from channel.client.payment.management import Presented, read_receipt
from channel.client.payment.request import PaidRequest, Payment
from channel.client.store.record import (
    ChannelRecord,
    adopt_receipt,
    count_received,
    require_receipt,
)
from channel.client.store.sqlite import PaymentStore
from channel.errors import ReceiptViolationError, WireError
from channel.types import ChannelKey
from channel.wire.receipt import Receipt, format_receipt, parse_receipt_json
from channel.wire.sse import RECEIPT_EVENT

__all__ = ["ReceiptChecker"]


class ReceiptChecker:
    """Accepts servers' statements about channels, as far as they are possible."""

    def __init__(self, store: PaymentStore, pool: ChannelPool) -> None:
        self._store = store
        self._pool = pool

    async def accept(self, paid_request: PaidRequest, payment: Payment, text: str | None) -> None:
        """Count an answer that is not a stream, and accept its receipt.

        Only the server knows the number of units; at most what the request may cost is counted. An
        answer without a receipt counts as one unit.

        Raises:
            ReceiptViolationError: The receipt is wrong; the channel is stopped.
        """
        receipt = None if text is None else await self._read(payment.key, text)
        units = 1 if receipt is None or receipt.units is None else receipt.units
        units = min(units, payment.hold.cost_max // payment.price)

        def count(current: ChannelRecord) -> ChannelRecord:
            return count_received(current, value=units * payment.price, units=units)

        is_alone = payment.hold.is_alone
        payment.hold.begin_counting()
        if receipt is None or text is None:
            payment.tab.change(count)
            await payment.tab.store(self._store)
        else:
            await self._adopt(paid_request, payment, receipt, text, is_final=is_alone, first=count)

    async def begin_stream(
        self, paid_request: PaidRequest, payment: Payment, text: str | None
    ) -> None:
        """Accept the receipt in the headers of a stream, which counts nothing yet.

        Raises:
            ReceiptViolationError: It is wrong; the channel is stopped.
        """
        if text is not None:
            receipt = await self._read(payment.key, text)
            await self._adopt(paid_request, payment, receipt, text, is_final=payment.hold.is_alone)

    async def end_stream(self, paid_request: PaidRequest, payment: Payment, data: str) -> None:
        """Accept the receipt at the end of a stream (SSE-04).

        Raises:
            ReceiptViolationError: It is wrong; the channel is stopped.
        """
        try:
            receipt = parse_receipt_json(data)
        except WireError as error:
            await self.stop(payment.key)
            raise ReceiptViolationError(
                field=RECEIPT_EVENT, said=f"unreadable ({error})", expected="a receipt"
            ) from error
        text = format_receipt(receipt)
        await self._adopt(paid_request, payment, receipt, text, is_final=payment.hold.is_alone)

    async def accept_presented(
        self, paid_request: PaidRequest, payment: Payment, presented: Presented
    ) -> None:
        """Accept the receipt of a management request, if it has one; see `accept`."""
        payment.answer(presented.offer)
        if presented.receipt is not None:
            await self._adopt(
                paid_request, payment, presented.receipt, presented.receipt_text, is_final=False
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
        first: Callable[[ChannelRecord], ChannelRecord] = lambda current: current,
    ) -> None:
        """Check a receipt against the record, and store it with the change that `first` makes.

        See `require_receipt` and `adopt_receipt` of `record`.

        Raises:
            ReceiptViolationError: It is wrong; the channel is stopped.
        """
        tab = self._pool.find_tab(key) or self._pool.tab(await self._store.get(key))
        tab.change(lambda counts: adopt_receipt(first(counts), receipt, text, is_final=is_final))

        def change(current: ChannelRecord) -> ChannelRecord:
            require_receipt(current, receipt, challenge_ids=challenge_ids, spent_min=spent_min)
            return adopt_receipt(current, receipt, text, is_final=is_final)

        try:
            await tab.store(self._store, change)
        except ReceiptViolationError:
            await self.stop(key)
            raise

    async def stop(self, key: ChannelKey) -> None:
        """Stop using the channel: the server contradicted itself."""
        await self._store.update(key, lambda current: replace(current, state="stopped"))
        self._pool.forget(key)

    async def _adopt(
        self,
        paid_request: PaidRequest,
        payment: Payment,
        receipt: Receipt,
        text: str,
        *,
        is_final: bool,
        first: Callable[[ChannelRecord], ChannelRecord] = lambda current: current,
    ) -> None:
        is_ours = paid_request.is_key_ours
        await self.adopt(
            payment.key,
            receipt,
            text,
            challenge_ids=payment.challenge_ids if is_ours else None,
            spent_min=payment.spent_before.get(payment.key, 0) if is_ours else 0,
            is_final=is_final,
            first=first,
        )

    async def _read(self, key: ChannelKey, text: str) -> Receipt:
        try:
            return read_receipt(text)
        except ReceiptViolationError:
            await self.stop(key)
            raise
