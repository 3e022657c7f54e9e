"""One paid request of an agent: the answer's text, and its cost.

Used by the command `pay`. An agent in Python starts at `mpp_session.agent.client`.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import msgspec

from channel.client.funding.keys import VoucherKeys
from channel.client.http.transport import origin_of
from channel.client.policy.policy import Policy
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    BudgetExceededError,
    ConfigError,
    MppSessionError,
    StoreError,
    WireError,
)
from channel.limits import ANSWER_DEPTH_MAX, REFUSAL_CHARS_MAX
from channel.tariff import describe_rate
from channel.types import Address
from channel.wire.depth import is_shallow
from channel.wire.problem import parse_problem
from channel.wire.receipt import parse_receipt
from channel.wire.sse import CONTENT_TYPE, DONE, EventSplitter, parse_event
from mpp_session.agent.amounts import BASE_UNITS, TokenUnit
from mpp_session.agent.client import TIMEOUT_S, PayingClient, open_client
from mpp_session.errors import CommandError

__all__ = ["PaidOutcome", "Wallet", "describe_left", "make_folder", "pay"]


class Wallet(msgspec.Struct, frozen=True):
    """The account, the limits and the store for payments."""

    rpc_url: str
    private_key: bytes
    policy: Policy
    unit: TokenUnit
    """How to format amounts."""
    store: Path
    """Default file for what the agent signed."""
    contract: Address | None = None
    """The contract wallet that deposits, if the key belongs to its owner."""
    keys: VoucherKeys | None = None
    """Sign the vouchers, if the account does not."""

    def __repr__(self) -> str:
        return f"Wallet(rpc_url={self.rpc_url!r}, private_key=...)"

    def open(
        self, store: Path, *, timeout_s: float = TIMEOUT_S, answers_refusals: bool | None = None
    ) -> AbstractAsyncContextManager[PayingClient]:
        """Return a client that pays from it, to be entered. Arguments as `open_client`."""
        return open_client(
            rpc_url=self.rpc_url,
            private_key=self.private_key,
            policy=self.policy,
            store=store,
            wallet=self.contract,
            keys=self.keys,
            timeout_s=timeout_s,
            answers_refusals=answers_refusals,
        )


class PaidOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one request, in base units."""

    status: int
    text: str
    units: int = 0
    """Of the offer's main kind."""
    usage: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Units by kind as the receipt states them, where the offer has several rates."""
    prices: Sequence[str] = ()
    """The offer's rates as people read them."""
    paid: int = 0
    vouchers: int = 0
    deposit: int = 0
    """The deposit of the channel that paid."""
    refunded: int = 0
    """The refund of the close; 0 while the channel stays open."""
    channel_id: bytes | None = None
    open_tx: bytes | None = None
    """None if an existing channel was used."""
    close_tx: bytes | None = None

    @property
    def is_success(self) -> bool:
        """Whether the server answered with success."""
        return 200 <= self.status < 300  # noqa: PLR2004


async def pay(
    url: str,
    content: bytes | None,
    wallet: Wallet,
    *,
    method: str = "POST",
    store: Path,
    keep_open: bool,
    show: Callable[[str], None],
) -> PaidOutcome:
    """Send JSON or nothing, pay for the answer, and close the channel unless it is to stay open.

    `show` is called with each piece of a successful answer's text as it arrives.

    Raises:
        CommandError: The server cannot be reached or broke the protocol, or the payment would
            exceed the limits. The message says what is left in the channel, if anything is.
        ConfigError: See `open_client`.
    """
    await make_folder(store)
    try:
        async with wallet.open(store) as client:
            ask = _Ask(method, url, content)
            return await _pay(client, ask, keep_open=keep_open, show=show)
    except (ConfigError, StoreError):
        raise
    except httpx.InvalidURL as error:
        raise CommandError(f"{url}: {error}") from error
    except httpx.ConnectError as error:
        left = await describe_left(store, url, wallet.unit)
        raise CommandError(
            f"{url}: {error}. Start the server, or name the address that it says it listens on. "
            f"{left}"
        ) from error
    except httpx.HTTPError as error:
        left = await describe_left(store, url, wallet.unit)
        raise CommandError(f"{url}: {error or type(error).__name__}. {left}") from error
    except MppSessionError as error:
        words = _describe_refusal(error, wallet.unit)
        raise CommandError(f"{words} {await describe_left(store, url, wallet.unit)}") from error


async def make_folder(store: Path) -> None:
    """Make the folder of a payment store.

    Raises:
        CommandError: It cannot be made.
    """
    try:
        await asyncio.to_thread(store.parent.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{store.parent} cannot be created: {error.strerror}") from error


async def describe_left(store: Path, url: str, unit: TokenUnit) -> str:
    """Describe what is left in open channels of a server, and how to use or withdraw it.

    Empty if there are none.
    """
    payment_store = await PaymentStore.open(store)
    try:
        accounts = await payment_store.live_records(origin_of(httpx.URL(url)))
    finally:
        await payment_store.close()
    return " ".join(_describe(account, unit) for account in accounts)


def _describe_refusal(error: MppSessionError, unit: TokenUnit) -> str:
    """Return an error's words, with its amounts and flags as people read them (O-64)."""
    if isinstance(error, BudgetExceededError) and error.limit != "channels_per_origin_max":
        return (
            f"Paying {error.origin} would bring {error.limit} to {unit.format(error.asked)}; "
            f"the policy allows {unit.format(error.allowed)}."
        )
    words = str(error).replace("TokenLimits.unit_price_max", "--price-max")
    return words.replace("unit_price_max", "--price-max")


def _describe(account: ChannelRecord, unit: TokenUnit) -> str:
    name = f"channel 0x{account.key.channel_id.hex()}"
    if account.state == "opening":
        amount = unit.format(account.deposit)
        return f"A deposit of {amount} for {name} may still be mined: the next `pay` continues it."
    return (
        f"{unit.format(account.refund)} are left in {name}: the next `pay` uses them; "
        "`mpp-session withdraw` withdraws them without the server, for which the account "
        "needs ether."
    )


class _Ask(msgspec.Struct, frozen=True):
    """The request that is paid for."""

    method: str
    url: str
    content: bytes | None
    """JSON; None if it has no body."""


async def _pay(
    client: PayingClient,
    ask: _Ask,
    *,
    keep_open: bool,
    show: Callable[[str], None],
) -> PaidOutcome:
    before = {account.key: account for account in await client.payments.channels()}
    status, text = await _send(client, ask, show)
    used = [a for a in await client.payments.channels() if a != before.get(a.key)]
    if not used:
        return PaidOutcome(status=status, text=text)
    account = used[-1]
    usage = _read_usage(account)
    prices = await _read_prices(client, ask)
    is_closed = False
    if not keep_open:
        try:
            (account,) = await client.payments.close(account.key.channel_id)
            is_closed = True
        except MppSessionError:
            if 200 <= status < 300:  # noqa: PLR2004
                raise
            # the server's refusal is what matters; what is left is said beside it (O-60)
    earlier = before.get(account.key)
    return PaidOutcome(
        status=status,
        text=text,
        units=account.units - (earlier.units if earlier else 0),
        usage=usage,
        prices=prices,
        paid=account.spent - (earlier.spent if earlier else 0),
        vouchers=account.vouchers - (earlier.vouchers if earlier else 0),
        deposit=0 if account.state == "opening" else account.deposit,
        refunded=account.refund if is_closed else 0,
        channel_id=account.key.channel_id,
        open_tx=None if earlier else await client.payments.find_opening(account.key.channel_id),
        close_tx=account.end_tx,
    )


def _read_usage(account: ChannelRecord) -> Mapping[str, int]:
    try:
        return parse_receipt(account.receipt).usage or {}
    except WireError:
        return {}


async def _read_prices(client: PayingClient, ask: _Ask) -> Sequence[str]:
    """Return the rates of the offer that was just paid, which the client remembers."""
    try:
        request = client.build_request(ask.method, ask.url, content=ask.content)
        quote = await client.payments.quote(request)
    except (MppSessionError, httpx.HTTPError):
        return ()
    unit = quote.unit or BASE_UNITS
    return [describe_rate(rate, unit) for rate in quote.tariff.rates]


async def _send(client: PayingClient, ask: _Ask, show: Callable[[str], None]) -> tuple[int, str]:
    headers = {} if ask.content is None else {"content-type": "application/json"}
    async with client.stream(ask.method, ask.url, content=ask.content, headers=headers) as response:
        if not response.headers.get("content-type", "").startswith(CONTENT_TYPE):
            body = await response.aread()
            if not response.is_success:
                return response.status_code, _read_refusal(body)
            text = _read_answer(body)
            show(text)
            return response.status_code, text
        pieces = []
        splitter = EventSplitter()
        async for packet in response.aiter_bytes():
            for block in splitter.feed(packet):
                event = parse_event(block)
                piece = _read_chunk(event[1]) if event is not None else ""
                pieces.append(piece)
                show(piece)
        return response.status_code, "".join(pieces)


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    message: _Text | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


def _read_chunk(data: str) -> str:
    """Return the text of a chat completion chunk; return any other event unchanged."""
    if data == DONE:
        return ""
    completion = _decode(data.encode())
    return f"{data}\n" if completion is None else _join(completion)


def _read_answer(body: bytes) -> str:
    completion = _decode(body)
    return body.decode("utf-8", "replace") if completion is None else _join(completion)


def _read_refusal(body: bytes) -> str:
    """Return a server's message, a problem's detail if it has one, shortened to one line."""
    problem = parse_problem(body)
    words = None if problem is None else problem.detail or problem.title
    return (words or body.decode("utf-8", "replace"))[:REFUSAL_CHARS_MAX]


def _decode(text: bytes) -> _Completion | None:
    if not is_shallow(text, ANSWER_DEPTH_MAX):
        return None
    try:
        return msgspec.json.decode(text, type=_Completion)
    except msgspec.DecodeError:
        return None


def _join(completion: _Completion) -> str:
    parts = [choice.delta or choice.message for choice in completion.choices]
    return "".join(part.content or "" for part in parts if part is not None)
