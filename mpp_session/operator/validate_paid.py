"""Pays a server for one request on a test chain, and checks what it got: receipt, charge, refund.

The client that pays checks every receipt itself and stops a channel whose server contradicts
itself; what it refuses is a fault here. `validate` checks the server without money first.
"""

import secrets
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

import httpx
from msgspec.structs import replace

from channel.client.http.transport import origin_of
from channel.client.store.record import ChannelRecord
from channel.errors import MppSessionError, PaymentOutcomeUnknownError, WireError
from channel.wire.receipt import Receipt, parse_receipt
from channel.wire.sse import CONTENT_TYPE
from mpp_session.agent.client import PayingClient
from mpp_session.errors import CommandError
from mpp_session.operator.doctor import Verdict
from mpp_session.operator.validate import Examined, Subject
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc

__all__ = ["TEST_CHAINS", "examine_paid", "require_test_chain"]

TEST_CHAINS: Final = frozenset(
    {
        *(1337, 31337),  # Anvil, Hardhat, Geth in development
        11155111,  # Sepolia
        17000,  # Holesky
        560048,  # Hoodi
        84532,  # Base Sepolia
        421614,  # Arbitrum Sepolia
        11155420,  # OP Sepolia
        80002,  # Polygon Amoy
        43113,  # Avalanche Fuji
        59141,  # Linea Sepolia
        42431,  # Tempo Moderato
    }
)
"""Chains whose coins cost nothing."""

_KEY: Final = "idempotency-key"
_CHECKS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("payment", ("OPEN-04", "VCH-05", "CLIENT-08")),
    ("receipt", ("RCPT-01", "RCPT-02", "RCPT-05", "CLIENT-09", "CORE-06")),
    ("stream", ("SSE-01", "SSE-04", "SSE-05")),
    ("idempotency", ("IDEM-02", "IDEM-05")),
    ("close", ("CLOSE-01", "CLOSE-06")),
    ("refund", ("CONTRACT-04",)),
)
_REQUIREMENTS: Final = dict(_CHECKS)


def require_test_chain(chain_id: int, *, is_any_allowed: bool) -> None:
    """Refuse to pay where money may be real.

    Raises:
        CommandError: It is no test chain, and other chains are not allowed.
    """
    if chain_id not in TEST_CHAINS and not is_any_allowed:
        raise CommandError(
            f"chain {chain_id} is not a known test chain, so --pay may cost real money; name a "
            "test chain, or give --any-chain"
        )


class _Paid(NamedTuple):
    """One answer that was paid for."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def is_stream(self) -> bool:
        media: str = self.headers.get("content-type", "")
        return media.lower().startswith(CONTENT_TYPE)


class _FaultError(Exception):
    """What a check found is not good."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found = found
        self.remedy = remedy


async def examine_paid(
    subject: Subject, client: PayingClient, *, rpc_url: str
) -> AsyncIterator[Examined]:
    """Yield the checks of one paid request, its repetition, and the end of the channel.

    The channel is closed at the end, also where a check before it found a fault.

    Args:
        subject: The request to pay for.
        client: Pays, within its policy, with a store of its own.
        rpc_url: A node of the chain, for the refund.
    """
    shopper = _Shopper(subject, client, rpc_url)
    looks = (
        shopper.pay,
        shopper.read_receipt,
        shopper.look_at_stream,
        shopper.repeat,
        shopper.close,
        shopper.look_at_refund,
    )
    failed = ""
    for (name, requirements), look in zip(_CHECKS, looks, strict=True):
        # a deposit that was made is taken back
        if failed and (name != "close" or shopper.record is None):
            yield Examined(name, Verdict.SKIPPED, f"{failed} failed", requirements=requirements)
            continue
        try:
            found, remedy = await look(), ""
            verdict = Verdict.OK if found else Verdict.SKIPPED
        except _FaultError as fault:
            found, remedy, verdict = fault.found, fault.remedy, Verdict.FAULT
        except (MppSessionError, httpx.HTTPError) as error:
            found, verdict = f"{type(error).__name__}: {error}", Verdict.FAULT
            remedy = _REMEDIES[name]
        failed = failed or (name if verdict is Verdict.FAULT else "")
        yield Examined(name, verdict, found or "the answer is no stream", remedy, requirements)


_REMEDIES: Final = {
    "payment": "see docs/reference/errors.md for what the client refused; --price-max and "
    "--deposit-max raise its limits",
    "receipt": "send a receipt whose amounts follow from the vouchers",
    "stream": "send the final receipt as the event payment-receipt",
    "idempotency": "store the answer under (channel, route, key), and send it again",
    "close": "start the settler; the deposit comes back by `mpp-session withdraw`",
    "refund": "look at the closing transaction",
}


class _Shopper:
    """Does the checks in their order; each needs those before it."""

    def __init__(self, subject: Subject, client: PayingClient, rpc_url: str) -> None:
        self._subject = subject
        self._client = client
        self._rpc_url = rpc_url
        self._key = ""
        self._paid: _Paid
        self._receipt: Receipt
        self.record: ChannelRecord | None = None

    async def pay(self) -> str:
        """Pay for the request, with a key that is known."""
        before = {one.key: one for one in await self._client.payments.channels()}
        self._key = f"validate-{secrets.token_urlsafe(12)}"
        try:
            self._paid = await self._send()
        finally:
            used = [
                one
                for one in await self._client.payments.channels()
                if one != before.get(one.key) and one.origin == self._origin
            ]
            self.record = used[-1] if used else None
        if not 200 <= self._paid.status < 300:  # noqa: PLR2004
            said = self._paid.body[:200].decode(errors="replace")
            raise _FaultError(
                f"{self._paid.status} after payment: {said}", "serve what was paid for"
            )
        if self.record is None:
            raise _FaultError(
                "served, and nothing was paid", "put the payment gate before this route"
            )
        earlier = before.get(self.record.key)
        cost = self.record.spent - (earlier.spent if earlier else 0)
        if cost <= 0:
            raise _FaultError("served, and the receipt charges nothing", "charge before serving")
        return (
            f"{cost} base units for {len(self._paid.body)} bytes, {self.record.vouchers} vouchers"
        )

    async def read_receipt(self) -> str:
        """Hold the receipt against the channel; the client has held it against its vouchers."""
        record = await self._now()
        text = self._paid.headers.get("payment-receipt")
        remedy = "send Payment-Receipt with every paid answer"
        if text is None:
            raise _FaultError("the paid answer has no Payment-Receipt", remedy)
        try:
            receipt = parse_receipt(text)
        except WireError as error:
            raise _FaultError(f"the receipt cannot be read: {error}", remedy) from None
        if (receipt.channel_id, receipt.chain_id) != (record.key.channel_id, record.key.chain_id):
            raise _FaultError("the receipt is of another channel", remedy)
        if not receipt.spent <= receipt.accepted <= record.deposit:
            raise _FaultError(
                f"spent {receipt.spent}, accepted {receipt.accepted}, deposit {record.deposit}",
                "charge no more than was accepted, and accept no more than the deposit",
            )
        control = self._paid.headers.get("cache-control", "").lower()
        if "private" not in control:
            raise _FaultError(
                f"a receipt with Cache-Control {control!r}", "add `private` to Cache-Control"
            )
        return f"spent {receipt.spent} of {receipt.accepted} accepted"

    async def look_at_stream(self) -> str:
        """Look at how a stream was metered; empty if the answer is none."""
        if not self._paid.is_stream:
            return ""
        record = await self._now()
        final = parse_receipt(record.receipt)
        events = self._paid.body.count(b"\n\n")
        if final.spent != record.spent or record.received > record.spent + record.waived:
            raise _FaultError(
                f"{record.received} arrived by this client's count, the last receipt charges "
                f"{final.spent}",
                _REMEDIES["stream"],
            )
        return f"{events} events, {record.vouchers} vouchers, charged {final.spent}"

    async def repeat(self) -> str:
        """Send the same request under the same key: it is served from what was stored, or not."""
        before = await self._now()
        try:
            again = await self._send()
        except PaymentOutcomeUnknownError:  # 409: a stream need not be kept (IDEM-05)
            if not self._paid.is_stream:
                raise
            again = _Paid(httpx.codes.CONFLICT, httpx.Headers(), b"")
        after = await self._now()
        if after.spent != before.spent:
            raise _FaultError(
                f"the same Idempotency-Key was charged again: {after.spent - before.spent}",
                _REMEDIES["idempotency"],
            )
        is_same = again.body == self._paid.body and again.status == self._paid.status
        if not is_same and not (self._paid.is_stream or again.status == httpx.codes.CONFLICT):
            raise _FaultError(
                f"the same Idempotency-Key gets another answer, with status {again.status}",
                _REMEDIES["idempotency"],
            )
        return "the same answer, not charged" if is_same else f"{again.status}, not charged"

    async def close(self) -> str:
        """Close the channel with the server."""
        record = await self._now()
        (self.record,) = await self._client.payments.close(record.key.channel_id)
        if self.record.end_tx is None:
            raise _FaultError("closed, and the receipt names no transaction", "send txHash")
        return f"0x{self.record.end_tx.hex()}"

    async def look_at_refund(self) -> str:
        """Read the channel on chain: what was spent is paid, and the rest is back."""
        record = await self._now()
        async with await Rpc.connect(self._rpc_url, chain_id=record.key.chain_id) as rpc:
            fact = await EscrowReader(rpc, record.key.escrow).read_channel(record.key.channel_id)
        if fact is None or not fact.is_finalized:
            raise _FaultError("the channel is still open on chain", _REMEDIES["close"])
        if fact.settled != record.spent:
            raise _FaultError(
                f"the payee got {fact.settled}, and the receipts charge {record.spent}",
                "close at the amount that the payer signs for it",
            )
        return f"{record.deposit - fact.settled} of {record.deposit} came back"

    @property
    def _origin(self) -> str:
        return origin_of(httpx.URL(self._subject.url))

    async def _now(self) -> ChannelRecord:
        for one in await self._client.payments.channels():
            if self.record is not None and one.key == self.record.key:
                self.record = one
                return one
        raise _FaultError("no channel was opened", _REMEDIES["payment"])

    async def _send(self) -> _Paid:
        subject = replace(self._subject, headers={**self._subject.headers, _KEY: self._key})
        async with self._client.stream(
            subject.method, subject.url, content=subject.content, headers=subject.headers_with()
        ) as response:
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
            return _Paid(response.status_code, response.headers, bytes(body))
