"""A server on paper time: books by the real rules, a pipe with no end, and callers that vanish.

It is as honest as ours: reserves before it serves, spends before it sends, takes a voucher and
reserves for its request in one step, and notices only after a while that a caller has left.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import httpx

from channel.errors import InsufficientBalanceError, ProblemError
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    OpenHash,
    TopUpHash,
)
from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.commands import (
    AcceptVoucher,
    Command,
    EndReservations,
    Extend,
    Observe,
    OpenChannel,
    Release,
    Reserve,
    Spend,
    StreamPolicy,
)
from channel.state.transitions import required_cumulative, transition
from channel.types import ChannelId, SignedVoucher, TxHash, VerifiedVoucher
from channel.verify.typed_data import keccak
from channel.wire.challenge import Challenge, format_challenge
from channel.wire.credential import select_credential
from channel.wire.encoding import format_timestamp
from channel.wire.payload import (
    ClosePayload,
)
from channel.wire.receipt import Receipt, format_receipt, format_receipt_json
from channel.wire.sse import NeedVoucher, format_event, format_need_voucher
from tests.channel.client.interleaving import DrawnLoop
from tests.channel.client.provider import CHAIN_ID, NOW, PaperChain, session_request

T = TypeVar("T")

JOKE_PRICE = 100
TOKEN_PRICE = 10
SERVER_STEP = 32
NOTICE_S = 2.0
LEASE_S = 10**10


class PaperShop(httpx.AsyncBaseTransport):
    """Sells jokes and streams of `tokens` units over the paper chain."""

    def __init__(self, loop: DrawnLoop, chain: PaperChain, *, tokens: int, loss: float) -> None:
        self.loop = loop
        self.chain = chain
        self.tokens = tokens
        self.loss = loss
        """How often an answer, or the rest of a stream, is lost."""
        self.states: dict[ChannelId, ChannelState] = {}
        self.changed = asyncio.Event()
        self.answers: dict[str, bytes] = {}
        self.signed: dict[ChannelId, int] = {}
        self.delivered: dict[ChannelId, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._count = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        gone = asyncio.Event()
        task = self._start(self._answer(request, gone))
        try:
            response = await asyncio.shield(task)
        except asyncio.CancelledError:
            gone.set()
            raise
        is_joke = request.method == "GET"
        if is_joke and response.status_code == 200 and self.loop.chance.random() < self.loss:
            raise httpx.ReadTimeout("the answer is lost")
        return response

    async def pause(self) -> None:
        await asyncio.sleep(self.loop.draw_s())

    def apply(self, channel_id: ChannelId, *commands: Command) -> ChannelState:
        state = self.states.get(channel_id)
        for command in commands:
            state = transition(state, command)
        assert state is not None
        self.states[channel_id] = state
        self.changed.set()
        self.changed = asyncio.Event()
        return state

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, request: httpx.Request, gone: asyncio.Event) -> httpx.Response:
        await self.pause()
        text = select_credential(request.headers.get_list("Authorization"))
        if text is None:
            return self.refuse(request, "payment-required", 402)
        credential = EVM.parse_credential(text)
        try:
            response = await self._serve(request, credential, gone)
        except ProblemError as error:
            response = self.refuse(request, error.problem_type, error.status, error)
        await self.pause()
        return response

    async def _serve(
        self, request: httpx.Request, credential: Any, gone: asyncio.Event
    ) -> httpx.Response:
        payload = credential.payload
        channel_id = payload.channel_id
        fact = self.chain.facts[channel_id]
        await self.pause()
        if channel_id in self.states:
            self.apply(channel_id, Observe(fact))
        if isinstance(payload, TopUpHash):
            return self.receipted(credential)
        verified = self._verify(payload.voucher)
        amount = verified.cumulative_amount
        self.signed[channel_id] = max(self.signed.get(channel_id, 0), amount)
        if isinstance(payload, ClosePayload):
            await self._close(channel_id, amount)
            return self.receipted(credential, tx_hash=TxHash(keccak(b"close")))
        first: Command = AcceptVoucher(verified, self.price(request)[2], int(NOW))
        if isinstance(payload, OpenHash):
            first = OpenChannel(fact, verified, int(NOW))
        if request.method == "HEAD":
            self.apply(channel_id, first)
            return self.receipted(credential)
        self.apply(channel_id, first)  # taken also where it does not suffice
        return await self._sell(request, credential, amount, gone)

    async def _sell(
        self, request: httpx.Request, credential: Any, amount: int, gone: asyncio.Event
    ) -> httpx.Response:
        channel_id = credential.payload.channel_id
        key = request.headers["Idempotency-Key"]
        if key in self.answers:
            return self.receipted(credential, body=self.answers[key], units=1)
        self._count += 1
        hold = self._count.to_bytes(16)
        unit_price, _, delta = self.price(request)
        self.apply(channel_id, _reserve(hold, unit_price, amount, delta))
        await self.pause()
        if request.method == "POST":
            return self._stream(credential, hold, gone)
        await self.pause()
        self.deliver(channel_id, JOKE_PRICE)
        self.apply(channel_id, Spend(hold, JOKE_PRICE), Release(hold))
        self.answers[key] = b"because"
        return self.receipted(credential, body=b"because", units=1)

    def deliver(self, channel_id: ChannelId, value: int) -> None:
        self.delivered[channel_id] = self.delivered.get(channel_id, 0) + value

    def _stream(self, credential: Any, hold: bytes, gone: asyncio.Event) -> httpx.Response:
        pipe: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._start(self._emit(credential, hold, pipe, gone))
        headers = {
            "Content-Type": "text/event-stream",
            "Payment-Receipt": format_receipt(self.receipt(credential)),
        }
        return httpx.Response(200, headers=headers, stream=_Pipe(self, pipe, gone))

    async def _emit(
        self, credential: Any, hold: bytes, pipe: asyncio.Queue[bytes | None], gone: asyncio.Event
    ) -> None:
        channel_id = credential.payload.channel_id
        left = asyncio.create_task(self._notice(gone))
        self.apply(
            channel_id, Release(hold), _reserve(hold, TOKEN_PRICE, 2**127, 0, is_stream=True)
        )
        taken = sent = 0
        try:
            while sent < self.tokens and not left.done():
                state = self.states[channel_id]
                held = state.find_reservation(hold)
                covered = 0 if held is None else held.amount // TOKEN_PRICE - taken
                if covered < 1:
                    try:
                        self.apply(
                            channel_id,
                            Spend(hold, taken * TOKEN_PRICE),
                            Extend(hold, TOKEN_PRICE, SERVER_STEP * TOKEN_PRICE, 0, LEASE_S),
                        )
                    except InsufficientBalanceError:
                        self.apply(channel_id, Spend(hold, taken * TOKEN_PRICE))
                        taken = 0
                        await self._ask(channel_id, pipe, left)
                        continue
                    taken = 0
                    continue
                taken += 1
                sent += 1
                self.deliver(channel_id, TOKEN_PRICE)
                pipe.put_nowait(
                    format_event(json.dumps({"choices": [{"delta": {"content": "t "}}]}))
                )
                if self.loop.chance.random() < 0.2:
                    await self.pause()
        except ProblemError:
            pass  # replaced, or the channel ends
        finally:
            state = self.states[channel_id]
            if state.find_reservation(hold) is not None:
                self.apply(channel_id, Spend(hold, taken * TOKEN_PRICE), Release(hold))
            receipt = self.receipt(credential, units=sent)
            pipe.put_nowait(format_event(format_receipt_json(receipt), "payment-receipt"))
            pipe.put_nowait(None)
            left.cancel()

    async def _ask(
        self, channel_id: ChannelId, pipe: asyncio.Queue[bytes | None], left: asyncio.Task[None]
    ) -> None:
        """Say what is needed, once for each amount, and wait until it is there."""
        announced = -1
        while not left.done():
            state = self.states[channel_id]
            if state.available >= TOKEN_PRICE or state.is_finalized:
                return
            if self.claim(state) != announced:
                announced = self.claim(state)
                need = NeedVoucher(
                    channel_id=channel_id,
                    required_cumulative=announced,
                    accepted=state.accepted,
                    deposit=state.deposit,
                )
                pipe.put_nowait(format_need_voucher(need))
            change = asyncio.create_task(self.changed.wait())
            await asyncio.wait({left, change}, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
            await self.pause()

    def claim(self, state: ChannelState) -> int:
        return required_cumulative(state, TOKEN_PRICE, 0)

    async def _notice(self, gone: asyncio.Event) -> None:
        await gone.wait()
        await asyncio.sleep(NOTICE_S * self.loop.chance.random())

    async def _close(self, channel_id: ChannelId, amount: int) -> None:
        state = self.apply(channel_id, EndReservations())
        assert amount >= state.spent, "a close below what was spent"
        self.chain.change(channel_id, is_finalized=True, settled=amount)

    def _verify(self, voucher: SignedVoucher) -> VerifiedVoucher:
        fact = self.chain.facts[voucher.channel_id]
        return EVM.verify_voucher(voucher, fact.key, fact.terms.signer)

    def price(self, request: httpx.Request) -> tuple[int, str, int]:
        if request.url.path == "/joke":
            return JOKE_PRICE, "request", 0
        return TOKEN_PRICE, "llm_chunk", 0

    def challenge(self, request: httpx.Request) -> Challenge:
        self._count += 1
        unit_price, unit_type, _ = self.price(request)
        asked = session_request(unit_price=unit_price, unit_type=unit_type, suggested_deposit=None)
        return Challenge(
            id=f"challenge-{self._count}",
            realm="api.example",
            method="evm",
            intent="session",
            request=EVM.format_request(asked),
            expires=format_timestamp(NOW + 300),
        )

    def refuse(
        self, request: httpx.Request, kind: str, status: int, error: ProblemError | None = None
    ) -> httpx.Response:
        body = {"type": f"https://paymentauth.org/problems/{kind}", "status": status}
        if isinstance(error, InsufficientBalanceError):
            body |= {
                "requiredCumulative": str(error.required_cumulative),
                "acceptedCumulative": str(error.accepted),
                "spent": str(error.spent),
                "deposit": str(error.deposit),
            }
        headers = {"Content-Type": "application/problem+json"}
        if status == 402:
            headers["WWW-Authenticate"] = format_challenge(self.challenge(request))
        if status in (409, 503):
            headers["Retry-After"] = "1"
        return httpx.Response(status, headers=headers, content=json.dumps(body))

    def receipt(self, credential: Any, **more: Any) -> Receipt:
        state = self.states[credential.payload.channel_id]
        return Receipt(
            method="evm",
            challenge_id=credential.challenge.id,
            channel_id=credential.payload.channel_id,
            chain_id=CHAIN_ID,
            accepted=state.accepted,
            spent=state.spent,
            timestamp=NOW,
            **more,
        )

    def receipted(self, credential: Any, *, body: bytes = b"", **more: Any) -> httpx.Response:
        headers = {"Payment-Receipt": format_receipt(self.receipt(credential, **more))}
        return httpx.Response(200, headers=headers, content=body)

    async def aclose(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _reserve(
    hold: bytes, unit_price: int, presented: int, delta: int, *, is_stream: bool = False
) -> Reserve:
    return Reserve(
        reservation_id=hold,
        kind=ReservationKind.STREAM if is_stream else ReservationKind.REQUEST,
        amount_min=unit_price,
        amount_max=SERVER_STEP * unit_price if is_stream else unit_price,
        presented=presented,
        min_voucher_delta=delta,
        lease_expires_at=LEASE_S,
        stream_policy=StreamPolicy.ALLOW,
    )


class _Pipe(httpx.AsyncByteStream):
    """What is on its way; may break, and is closed by who reads it."""

    def __init__(
        self, shop: PaperShop, pipe: asyncio.Queue[bytes | None], gone: asyncio.Event
    ) -> None:
        self._shop = shop
        self._pipe = pipe
        self._gone = gone

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chance = self._shop.loop.chance
        breaks_at = chance.randrange(150) if chance.random() < self._shop.loss else None
        count = 0
        while True:
            if chance.random() < 0.2:
                await self._shop.pause()
            chunk = await self._pipe.get()
            if chunk is None:
                return
            count += 1
            if count == breaks_at:
                self._gone.set()
                raise httpx.ReadError("the connection broke")
            yield chunk

    async def aclose(self) -> None:
        self._gone.set()
