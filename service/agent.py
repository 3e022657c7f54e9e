"""One paid request as an agent makes it: what was said, and what it cost.

Used by the command `pay`; whoever writes an agent of their own starts at `service.client`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import msgspec

from channel.client.keys import VoucherKeys
from channel.client.policy import Policy
from channel.types import Address
from channel.wire.depth import is_shallow
from channel.wire.sse import CONTENT_TYPE, EventSplitter, parse_event
from service.amounts import TokenUnit
from service.client import PayingClient, open_client
from service.errors import CommandError

__all__ = ["PaidOutcome", "Wallet", "pay"]

_DEPTH_MAX: Final = 64


class Wallet(msgspec.Struct, frozen=True):
    """With what, and within which limits, is paid."""

    rpc_url: str
    private_key: bytes
    policy: Policy
    unit: TokenUnit
    """How amounts are shown."""
    store: Path
    """Where the agent keeps what it signed, unless told otherwise."""
    contract: Address | None = None
    """The contract wallet that deposits, if the key is its owner's."""
    keys: VoucherKeys | None = None
    """Who signs vouchers, if not the account."""

    def __repr__(self) -> str:
        return f"Wallet(rpc_url={self.rpc_url!r}, private_key=...)"


class PaidOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one request, in base units."""

    status: int
    text: str
    units: int = 0
    paid: int = 0
    vouchers: int = 0
    deposit: int = 0
    """Of the channel it was paid from."""
    refunded: int = 0
    """What came back with the close; 0 while the channel stays open."""
    channel_id: bytes | None = None
    open_tx: bytes | None = None
    """None when a channel from before was used."""
    close_tx: bytes | None = None

    @property
    def is_success(self) -> bool:
        """Whether the server answered with success."""
        return 200 <= self.status < 300  # noqa: PLR2004


async def pay(
    url: str,
    content: bytes,
    wallet: Wallet,
    *,
    store: Path,
    keep_open: bool,
    show: Callable[[str], None],
) -> PaidOutcome:
    """POST JSON, pay for the answer, and close the channel unless it is to stay open.

    `show` is called with each piece of text as it arrives.

    Raises:
        AgentError: Paying would be against the limits, or the server was caught lying.
        CommandError: The server cannot be reached.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    async with open_client(
        rpc_url=wallet.rpc_url,
        private_key=wallet.private_key,
        policy=wallet.policy,
        store=store,
        wallet=wallet.contract,
        keys=wallet.keys,
    ) as client:
        before = {account.key: account for account in await client.payments.channels()}
        try:
            status, text = await _ask(client, url, content, show)
        except httpx.HTTPError as error:
            raise CommandError(f"{url}: {error or type(error).__name__}") from error
        used = [a for a in await client.payments.channels() if a != before.get(a.key)]
        if not used:
            return PaidOutcome(status=status, text=text)
        account = used[-1]
        if not keep_open:
            (account,) = await client.payments.close(account.key.channel_id)
        earlier = before.get(account.key)
        return PaidOutcome(
            status=status,
            text=text,
            units=account.units - (earlier.units if earlier else 0),
            paid=account.spent - (earlier.spent if earlier else 0),
            vouchers=account.vouchers - (earlier.vouchers if earlier else 0),
            deposit=account.deposit,
            refunded=0 if keep_open else account.refund,
            channel_id=account.key.channel_id,
            open_tx=(
                None if earlier else await client.payments.find_opening(account.key.channel_id)
            ),
            close_tx=account.end_tx,
        )


async def _ask(
    client: PayingClient, url: str, content: bytes, show: Callable[[str], None]
) -> tuple[int, str]:
    headers = {"content-type": "application/json"}
    async with client.stream("POST", url, content=content, headers=headers) as response:
        if not response.headers.get("content-type", "").startswith(CONTENT_TYPE):
            text = _read_answer(await response.aread())
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
    """Return the text of a chunk of a chat completion, and any other event as it is."""
    if data == "[DONE]":
        return ""
    completion = _decode(data.encode())
    return f"{data}\n" if completion is None else _join(completion)


def _read_answer(body: bytes) -> str:
    completion = _decode(body)
    return body.decode("utf-8", "replace") if completion is None else _join(completion)


def _decode(text: bytes) -> _Completion | None:
    if not is_shallow(text, _DEPTH_MAX):
        return None
    try:
        return msgspec.json.decode(text, type=_Completion)
    except msgspec.DecodeError:
        return None


def _join(completion: _Completion) -> str:
    parts = [choice.delta or choice.message for choice in completion.choices]
    return "".join(part.content or "" for part in parts if part is not None)
