"""A customer who buys without a pause while gateways die, and counts what arrives."""

import asyncio
import random
from collections.abc import Sequence

import httpx
import msgspec

from channel.wire.receipt import Receipt, parse_receipt, parse_receipt_json
from tests.e2e.customers import Customer, read_events
from tests.e2e.gateways import PRICE

__all__ = ["Shopper"]


class Shopper:
    """One channel that buys streams and answers in one piece by turns, at any of the gateways."""

    def __init__(
        self, customer: Customer, name: str, urls: Sequence[str], *, units: int, step_units: int
    ) -> None:
        """`units` is what the model answers; `step_units` what a stream holds ahead."""
        self.customer = customer
        self.name = name
        self.received = 0
        """Units that arrived, of streams and of answers."""
        self.broken = 0
        """Streams that the gateway took and that ended without a receipt, or without a word."""
        self.lost = 0
        """Requests whose outcome the gateway cannot know: it says that it charged nothing."""
        self.repeated = 0
        """Answers that came only for a repeat of their key."""
        self.acknowledged = 0
        """The greatest voucher that a gateway said it took."""
        self._urls = urls
        self._units = units
        self._step_units = step_units
        self._slack = step_units + units
        self._amount = 0
        self._chance = random.Random(name)  # noqa: S311 -- repeatable, not secret

    async def run(self, stopping: asyncio.Event) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            if number % 3:
                await self._read_stream()
            else:
                await self._ask(f"{self.name} {number}")

    def _raise_amount(self, units: int) -> None:
        self._amount += units * PRICE

    async def _read_stream(self) -> None:
        self._raise_amount(self._units)
        amount, may_have_begun, has_receipt = self._amount, True, False
        try:
            async with self.customer.stream(
                self._chance.choice(self._urls), amount, user=self.name
            ) as answer:
                may_have_begun = answer.status_code == 200
                if may_have_begun:
                    self._acknowledge(amount)
                    has_receipt = await self._read(answer)
                else:
                    await self._wait(await answer.aread())
        except httpx.TransportError as error:
            may_have_begun = not isinstance(error, httpx.ConnectError)
            await asyncio.sleep(0.01)
        if not has_receipt:
            self.broken += may_have_begun
            self._raise_amount(self._slack)  # what the dead one holds is not free yet

    async def _read(self, answer: httpx.Response) -> bool:
        """Count what arrives, and pay for more wherever; return whether there was a receipt."""
        async for name, data in read_events(answer):
            self.received += '"content"' in data
            if name == "payment-need-voucher":
                need = int(msgspec.json.decode(data)["requiredCumulative"])
                self._amount = max(self._amount, need) + self._slack * PRICE
                await self._feed(self._amount)
            elif name == "payment-receipt":
                self._require_counted(parse_receipt_json(data))
                return True
        return False

    async def _feed(self, amount: int) -> None:
        """Bring a voucher to some gateway; the stream may have died meanwhile."""
        for _ in range(5):
            try:
                answer = await self.customer.manage(
                    self._chance.choice(self._urls), self.customer.payer.voucher(amount)
                )
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == 200:
                self._acknowledge(amount)
                return
            await self._wait(answer.content)

    async def _ask(self, key: str) -> None:
        """Ask until it is known what became of it."""
        self._raise_amount(self._units)
        tries = 0
        while True:
            tries += 1
            amount = self._amount
            try:
                answer = await self.customer.buy(
                    self._chance.choice(self._urls),
                    amount,
                    headers={"idempotency-key": key},
                    max_tokens=self._units,
                    user=self.name,
                )
            except httpx.TransportError:
                self._raise_amount(self._slack)
                await asyncio.sleep(0.01)
                continue
            if answer.status_code == 200:
                receipt = parse_receipt(answer.headers["payment-receipt"])
                assert tries > 1 or receipt.accepted >= amount
                self._acknowledge(receipt.accepted)  # a repeated answer takes no voucher
                self.received += self._units
                self.repeated += tries > 1
                self._require_counted(receipt)
                return
            if answer.json()["type"].endswith("/outcome-unknown"):
                self.lost += 1
                return
            await self._wait(answer.content)

    def _require_counted(self, receipt: Receipt) -> None:
        """What arrived is spent, but for what dead streams hold until their lease runs out."""
        held = self.broken * self._step_units
        assert receipt.spent >= (self.received - held) * PRICE

    def _acknowledge(self, amount: int) -> None:
        self.acknowledged = max(self.acknowledged, amount)

    async def _wait(self, problem: bytes) -> None:
        """Refused: for want of money that a dead gateway still holds, or for a moment."""
        kind = str(msgspec.json.decode(problem)["type"]).rpartition("/")[2]
        assert kind in {
            "insufficient-balance",
            "request-in-flight",
            "payment-unavailable",
        }, problem
        self._raise_amount(self._slack)
        await asyncio.sleep(0.05)
