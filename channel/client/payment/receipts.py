"""Checks receipts against the record and stores them; a false one stops the channel (CLIENT-09)."""

from collections.abc import Callable, Collection
from functools import partial

from msgspec.structs import replace

from channel.client.payment.channel_pool import ChannelPool, Tab
from channel.client.payment.management import Presented
from channel.client.payment.request import PaidRequest
from channel.client.policy.usage import Counted
from channel.client.store.record import (
    adopt_receipt,
    count_received,
    read_receipt,
    take_receipt,
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

    async def accept(self, request: PaidRequest, text: str | None) -> None:
        """Count an answer that is not a stream, and accept its receipt.

        Only the server knows its usage; at most what the request may cost is counted. An answer
        without a receipt counts as one unit.

        Raises:
            ReceiptViolationError: The receipt is wrong; the channel is stopped.
        """
        receipt = None if text is None else await self._read(request.tab.key, text)
        units, usage = (None, None) if receipt is None else (receipt.units, receipt.usage)
        is_alone = request.tab.requests <= {request}
        await self._count(request, lambda: request.usage.take_answer(units, usage))
        request.begin_counting()
        if receipt is None or text is None:
            await request.tab.store(self._store)
        else:
            await self._adopt(request, receipt, text, is_final=is_alone)

    async def begin_stream(self, request: PaidRequest, text: str | None) -> None:
        """Accept the receipt in the headers of a stream, which counts nothing yet.

        Raises:
            ReceiptViolationError: It is wrong; the channel is stopped.
        """
        if text is not None:
            receipt = await self._read(request.tab.key, text)
            is_final = request.tab.requests <= {request}
            await self._adopt(request, receipt, text, is_final=is_final)

    async def end_stream(self, request: PaidRequest, data: str) -> None:
        """Accept the receipt at the end of a stream (SSE-04).

        Raises:
            ReceiptViolationError: It is wrong; the channel is stopped.
        """
        try:
            receipt = parse_receipt_json(data)
        except WireError as error:
            await self.stop(request.tab.key)
            raise ReceiptViolationError(
                field=RECEIPT_EVENT, said=f"unreadable ({error})", expected="a receipt"
            ) from error
        is_final = request.tab.requests <= {request}
        usage = receipt.usage or {}
        await self._count(request, lambda: request.usage.take_rest(usage))
        request.cost_max = 0
        await self._adopt(request, receipt, format_receipt(receipt), is_final=is_final)

    async def accept_presented(self, request: PaidRequest, presented: Presented) -> None:
        """Accept the receipt of a management request, if it has one; see `accept`."""
        if presented.receipt is not None:
            await self._adopt(request, presented.receipt, presented.receipt_text, is_final=False)

    async def adopt(
        self,
        tab: Tab,
        receipt: Receipt,
        text: str,
        *,
        challenge_ids: Collection[str] | None,
        spent_min: int,
        is_final: bool,
    ) -> None:
        """Check a receipt against the record, and store both; see `take_receipt` of `record`.

        Raises:
            ReceiptViolationError: It is wrong; the channel is stopped.
        """
        change = partial(
            take_receipt,
            receipt=receipt,
            text=text,
            challenge_ids=challenge_ids,
            spent_min=spent_min,
            is_final=is_final,
        )
        tab.change(partial(adopt_receipt, receipt=receipt, text=text, is_final=is_final))
        try:
            await tab.store(self._store, change)
        except ReceiptViolationError:
            await self.stop(tab.key)
            raise

    async def stop(self, key: ChannelKey) -> None:
        """Stop using the channel: the server contradicted itself."""
        await self._store.update(key, partial(replace, state="stopped"))
        self._pool.forget(key)

    async def _adopt(
        self, request: PaidRequest, receipt: Receipt, text: str, *, is_final: bool
    ) -> None:
        tab, is_ours = request.tab, request.is_key_ours
        await self.adopt(
            tab,
            receipt,
            text,
            challenge_ids=request.challenge_ids if is_ours else None,
            spent_min=request.spent_before.get(tab.key, 0) if is_ours else 0,
            is_final=is_final,
        )

    async def _count(self, request: PaidRequest, take: Callable[[], Counted | None]) -> None:
        """Count what a receipt states."""
        try:
            counted = take()
        except ReceiptViolationError:
            await self.stop(request.tab.key)
            raise
        if counted is not None:
            change = partial(count_received, value=counted.value, units=counted.units)
            request.tab.change(change)

    async def _read(self, key: ChannelKey, text: str) -> Receipt:
        try:
            return read_receipt(text)
        except ReceiptViolationError:
            await self.stop(key)
            raise
