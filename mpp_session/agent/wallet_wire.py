"""What an agent and its wallet say to each other over HTTP: names, paths and values.

    POST / HTTP/1.1
    Wallet-Token: mpp_...
    Wallet-Target: https://api.example/search?q=channels
    Wallet-Purpose: eyJ0YXNrIjoicmVwb3J0In0

The wallet sends this request to its target and pays for it. Everything but the fields that begin
with `Wallet-` passes through, in both directions.
"""

import base64
import binascii
import unicodedata
from pathlib import Path
from typing import Final, Literal, TypeVar

import httpx
import msgspec
from msgspec.structs import asdict, fields, replace

from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.errors import ConfigError, WireError
from channel.limits import (
    WALLET_PURPOSE_BYTES_MAX,
    WALLET_TEXT_CHARS_MAX,
    WALLET_TIMEOUT_S_MAX,
)
from channel.types import ChannelId
from mpp_session.agent.purpose import Purpose
from mpp_session.agent.wallet_errors import WalletFailure

__all__ = [
    "APPROVALS",
    "BUDGETS",
    "FAILURE",
    "FAILURES",
    "HOP",
    "PAYMENTS",
    "PREFIX",
    "PURPOSE_FIELD",
    "REQUEST",
    "TARGET",
    "TIMEOUT",
    "TOKEN",
    "ApprovalAnswer",
    "ApprovalState",
    "BudgetLeft",
    "Hop",
    "QuoteRequest",
    "ShownApproval",
    "WalletAddress",
    "WalletProblem",
    "Which",
    "format_hop",
    "format_purpose",
    "hide_credential",
    "pack_channel",
    "parse_hop",
    "parse_purpose",
    "parse_timeout",
    "parse_wallet",
    "unpack_channel",
]

PREFIX: Final = "wallet-"
"""How every field begins that is between an agent and its wallet."""
TOKEN: Final = "Wallet-Token"  # noqa: S105 -- a name
TARGET: Final = "Wallet-Target"
PURPOSE_FIELD: Final = "Wallet-Purpose"
HOP: Final = "Wallet-Hop"
"""Goes with every answer, and back with the request to which it redirects."""
TIMEOUT: Final = "Wallet-Timeout"
"""How many seconds the agent waits for bytes of the target; the wallet's work comes on top."""
REQUEST: Final = "Wallet-Request"
"""Of an answer that passes through: its id, by which the wallet says why it broke off."""
FAILURE: Final = "Wallet-Failure"
"""Of the wallet's own answer: the failure's name. A server's answer never has it."""

PAYMENTS: Final = "/payments"
APPROVALS: Final = "/approvals"
BUDGETS: Final = "/budgets"
FAILURES: Final = "/failures"

_UNIX: Final = "unix:"
_BREAKING: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories of what breaks a line or a terminal."""

_T = TypeVar("_T")

_SIGNED: Final = frozenset({"opening", "top_up"})
_Packed = msgspec.defstruct(
    "PackedChannel",
    [(one.name, one.type) for one in fields(ChannelRecord) if one.name not in _SIGNED],
    kw_only=True,
    forbid_unknown_fields=True,
)


class WalletProblem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a wallet's own answer: a problem (RFC 9457), and the failure in it."""

    type: str
    title: str
    status: int
    detail: str
    failure: WalletFailure
    code: str | None = None
    field: str | None = None
    asked: int | str | None = None
    allowed: int | str | None = None
    rule: str | None = None
    retry_at: float | None = None
    approval_id: str | None = None


class Hop(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a redirected request must keep of the one before it."""

    origin: str
    """Which the caller asked first: another one is not paid."""
    key: str = ""
    charged: bytes = b""
    """Digest of the request that was paid for, if one was."""


class Which(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Channels: one by its id, those of a server by its URL, or all."""

    channel_id: ChannelId | None = None
    url: str | None = None


class QuoteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request that may be made."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes = b""


class BudgetLeft(msgspec.Struct, frozen=True, kw_only=True):
    """One sum that bounds what an agent may pay; amounts in base units."""

    scope: str
    """Whose sum it is, such as `envelope research`."""
    what: str
    """`spent`, `locked` or `requests`."""
    used: int
    limit: int
    token: str = ""
    """Alias of the token in the policy; empty for `requests`."""
    window_s: int | None = None
    """Rolling; None counts for ever."""

    @property
    def left(self) -> int:
        """What may still be added."""
        return max(0, self.limit - self.used)


class ApprovalState(msgspec.Struct, frozen=True, kw_only=True):
    """One question to a person or a supervisor, as the agent that caused it sees it."""

    id: str
    state: str
    """`pending`, `approved`, `denied`, `expired`, `used` or `withdrawn`."""
    expires_at: float = 0.0
    comment: str = ""


class ApprovalAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer to a question, of the owner or of a supervising agent."""

    verdict: Literal["approve", "deny", "withdraw"]
    amount: str | None = None
    """In whole tokens, such as `2.50 usdc`; what was asked if None."""
    scope: Literal["once", "channel", "window"] = "once"
    comment: str = ""


class ShownApproval(msgspec.Struct, frozen=True, kw_only=True):
    """A question as those read it who may answer it. Amounts in base units."""

    id: str
    state: str
    question: str
    agent: str
    amount: int
    approved: int
    used: int
    scope: str
    expires_at: float
    facts: list[tuple[str, str]]
    untrusted: list[tuple[str, str]]
    """Texts of the agent that asks: they are not checked."""


class WalletAddress(msgspec.Struct, frozen=True):
    """Where a wallet listens."""

    path: str | None = None
    """Of its Unix socket."""
    url: str = "http://wallet"
    """Of its port; only a name where it has a socket."""


def parse_wallet(text: str) -> WalletAddress:
    """Return the address of a wallet: `unix:PATH`, or `http://127.0.0.1:PORT`.

    Raises:
        ConfigError: It is neither, or the port is not on this machine.
    """
    if text.startswith(_UNIX):
        path = text.removeprefix(_UNIX)
        if path:
            return WalletAddress(str(Path(path).absolute()))
    else:
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL:
            url = httpx.URL()
        is_plain = url.scheme == "http" and url.path in {"", "/"} and not url.userinfo
        if is_plain and url.port and url.host in {"127.0.0.1", "::1", "localhost"}:
            return WalletAddress(url=text.rstrip("/"))
    raise ConfigError(
        f"expected a wallet as unix:/path/wallet.sock or http://127.0.0.1:PORT, found {text!r}"
    )


def format_purpose(purpose: Purpose) -> str:
    """Return a purpose as the value of a header field: base64url of JSON."""
    return base64.urlsafe_b64encode(msgspec.json.encode(purpose)).decode().rstrip("=")


def parse_purpose(text: str) -> Purpose:
    """Return the purpose in a header field.

    Raises:
        WireError: It is too long, cannot be read, or holds characters that no line shows.
    """
    if len(text) > WALLET_PURPOSE_BYTES_MAX:
        raise WireError(
            f"expected at most {WALLET_PURPOSE_BYTES_MAX} bytes of {PURPOSE_FIELD}, found "
            f"{len(text)}"
        )
    purpose = _decode(text, Purpose, PURPOSE_FIELD)
    words = [getattr(purpose, name) for name in Purpose.__struct_fields__ if name != "alternatives"]
    for other in purpose.alternatives:
        words += [other.origin, other.price, other.why_not]
    for word in words:
        if len(word) > WALLET_TEXT_CHARS_MAX:
            raise WireError(
                f"expected at most {WALLET_TEXT_CHARS_MAX} characters in each text of "
                f"{PURPOSE_FIELD}, found {len(word)}"
            )
        if any(unicodedata.category(char) in _BREAKING for char in word):
            raise WireError(
                f"{PURPOSE_FIELD} holds a control character or a line break: send one line of text"
            )
    return purpose


def parse_timeout(text: str) -> float:
    """Return for how many seconds bytes of a target are awaited; the most if `text` is empty.

    Raises:
        WireError: It is not a number of seconds.
    """
    if not text:
        return WALLET_TIMEOUT_S_MAX
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise WireError(f"expected {TIMEOUT} in seconds, found {text[:32]!r}")
    return min(seconds, WALLET_TIMEOUT_S_MAX)


def format_hop(hop: Hop) -> str:
    """Return what a redirected request must send."""
    return base64.urlsafe_b64encode(msgspec.json.encode(hop)).decode().rstrip("=")


def parse_hop(text: str) -> Hop:
    """Return what an agent sends back with a redirected request.

    Raises:
        WireError: It cannot be read.
    """
    if len(text) > WALLET_PURPOSE_BYTES_MAX:
        raise WireError(f"expected at most {WALLET_PURPOSE_BYTES_MAX} bytes of {HOP}")
    return _decode(text, Hop, HOP)


def hide_credential(charge: ChargeRecord) -> ChargeRecord:
    """Return a charge without what its payer signed: an agent has no use for it."""
    return replace(charge, credential="")


def pack_channel(record: ChannelRecord) -> object:
    """Return a channel's record for JSON, without deposits that its payer signed.

    `locked` stays what it is.
    """
    goal = record.goal if record.top_up is None else record.locked
    values = asdict(replace(record, goal=goal))
    return {name: value for name, value in values.items() if name not in _SIGNED}


def unpack_channel(packed: object) -> ChannelRecord:
    """Return a channel's record, or raise `msgspec.ValidationError`."""
    return ChannelRecord(**asdict(msgspec.convert(packed, _Packed)))


def _decode(text: str, kind: type[_T], name: str) -> _T:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise WireError(f"{name} is not base64url of its JSON form: {error}") from error
