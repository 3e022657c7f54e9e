"""What a gate tells about its requests: one interface for metrics, traces, logs and dashboards.

    class Sales(Hooks):
        def on_receipt(self, event: ReceiptEvent) -> None:
            print(event.route, event.cost)

    PaymentGate(app, engine=engine, routes=routes, hooks=Sales())

The gate calls a method in the event loop, between two steps of a request, and waits for it: it must
be quick and must not block. What it raises goes to the log, at most once a minute, and never into
the request. A method that a class does not override costs nothing.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import msgspec

from channel.types import Address, ChannelId

__all__ = [
    "AlarmEvent",
    "ChallengeEvent",
    "Fanout",
    "HookCalls",
    "Hooks",
    "OpenEvent",
    "ReceiptEvent",
    "RefusalEvent",
    "RequestEvent",
    "SettleEvent",
    "SpendEvent",
]

_log: Final = logging.getLogger(__name__)

_LOG_INTERVAL_S: Final = 60.0

Action: TypeAlias = Literal["request", "repeat", "open", "topUp", "voucher", "close", "charge"]
"""What a credential did: buy an answer, ask for a stored one again, or manage its channel. With
`charge` a single payment bought an answer, without a channel."""
Ending: TypeAlias = Literal["done", "left", "failed"]
"""How a paid request ended: answered, its client left, or it broke off."""


class RequestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the request that an event is about. Amounts are in base units."""

    at: float
    """Wall-clock time in Unix seconds."""
    monotonic: float
    """The same moment of `time.monotonic`, in seconds, to subtract others from."""
    received: float
    """When the request arrived, of `time.monotonic`."""
    request_id: str
    """32 hex digits: the id of the request's reservation, if it gets one."""
    route: str
    """Method and path template of a sold route, as in `POST /v1/chat/completions`."""
    variant: str = ""
    """The variant of the route's price, such as a model's name; empty if it has none."""
    channel_id: ChannelId | None = None
    """The channel that the credential names; proven only in the events of a payment."""
    payer: Address | None = None
    """The channel's payer; None before the channel is known."""
    challenge_id: str | None = None
    """The challenge that the credential answers; None without a credential."""


class ChallengeEvent(RequestEvent, frozen=True, kw_only=True):
    """A request without a credential was answered with challenges, one for each offer."""

    status: int
    problem_type: str
    issued: tuple[str, ...]
    """The ids of the challenges."""


class RefusalEvent(RequestEvent, frozen=True, kw_only=True):
    """A request was refused, by the gate or, with an empty `problem_type`, by the application."""

    status: int
    problem_type: str
    """The last part of the problem's type, as in `session/insufficient-balance`."""
    detail: str = ""
    """The error's sentence, as the client reads it."""
    issued: tuple[str, ...] = ()
    """The ids of the challenges in the answer."""


class OpenEvent(RequestEvent, frozen=True, kw_only=True):
    """A channel was opened here, or its deposit was raised."""

    action: Action
    deposit: int
    """The channel's whole deposit now."""
    tx_hash: str | None = None


class SpendEvent(RequestEvent, frozen=True, kw_only=True):
    """A part of a request's cost became durable: `amount` is in the ledger's `spent` now.

    The amounts of a request add up to its cost.
    """

    amount: int
    cost: int
    """What the request has cost up to now."""
    usage: Mapping[str, int]
    """Units by kind that `cost` is for."""
    spent: int
    """The channel's `spent` now."""


class ReceiptEvent(RequestEvent, frozen=True, kw_only=True):
    """A credential was accepted and what it paid for has ended."""

    action: Action
    outcome: Ending
    status: int | None
    """Of the answer; None if it never began."""
    cost: int
    """What the request cost; 0 for an action that buys nothing."""
    usage: Mapping[str, int]
    """Units by kind that were delivered."""
    reported: Mapping[str, int] | None = None
    """Units by kind that the application's own source reports, as a cross-check: `Meter.reported`.
    None if it reports none."""
    accepted: int
    spent: int
    deposit: int
    """The channel's amounts now."""
    handled: float | None = None
    """When the application got the request, of `time.monotonic`: the payment was durable."""
    first_sent: float | None = None
    """When the first content was sent, of `time.monotonic`."""


class SettleEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The chain shows that a channel was settled or closed: money has arrived."""

    at: float
    monotonic: float
    channel_id: ChannelId
    payer: Address | None
    amount: int
    """Paid out by this settlement, in base units."""
    settled: int
    """Paid out over the channel's life."""
    is_final: bool = False
    """Whether the channel has ended."""
    tx_hash: str | None = None


class AlarmEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm of the watcher was raised, or has ended."""

    at: float
    monotonic: float
    name: str
    """One of `settlement.alarms.AlarmKind`, as in `grace-runs`."""
    subject: str
    """The channel, node or account that it is about; empty if there is only one."""
    level: int
    """Severity on the alarm's own scale: a percentage, or 0."""
    text: str
    """What it is about, and what to do."""
    is_raised: bool
    """False when its cause is gone."""


class Hooks:
    """Does nothing. Override the methods that you need."""

    def on_challenge(self, event: ChallengeEvent) -> None:
        """A request came without a credential and got challenges."""

    def on_refusal(self, event: RefusalEvent) -> None:
        """A request was refused."""

    def on_open(self, event: OpenEvent) -> None:
        """A channel was opened, or its deposit was raised."""

    def on_spend(self, event: SpendEvent) -> None:
        """A part of a request's cost became durable."""

    def on_receipt(self, event: ReceiptEvent) -> None:
        """A paid request or an action on a channel ended."""

    def on_settle(self, event: SettleEvent) -> None:
        """A settlement was seen on the chain."""

    def on_alarm(self, event: AlarmEvent) -> None:
        """An alarm was raised, or has ended."""


class Fanout(Hooks):
    """Passes each event to several hooks, in order; the failure of one does not reach the next."""

    def __init__(self, *hooks: Hooks) -> None:
        self.hooks = hooks


E = TypeVar("E")


class _Call(Generic[E]):
    """Calls one method of every hook that overrides it. It is false when none does.

    The caller tests that first, and builds no event for nothing.
    """

    def __init__(self, methods: list[Callable[[E], None]]) -> None:
        self._methods = methods
        self._logged_at = -_LOG_INTERVAL_S

    def __bool__(self) -> bool:
        return bool(self._methods)

    def __call__(self, event: E) -> None:
        """Pass on an event. Never raises."""
        for method in self._methods:
            try:
                method(event)
            except Exception:  # noqa: BLE001 - a stranger's code must not end a paid request
                now = time.monotonic()
                if now - self._logged_at >= _LOG_INTERVAL_S:
                    self._logged_at = now
                    _log.exception("a hook failed: %s", getattr(method, "__qualname__", method))


class HookCalls:
    """The calls of one gate: `calls.receipt(event)` calls `on_receipt` of each hook."""

    def __init__(self, hooks: Hooks | None = None) -> None:
        flat = _flatten(hooks)
        self.challenge: _Call[ChallengeEvent] = _call(flat, "on_challenge")
        self.refusal: _Call[RefusalEvent] = _call(flat, "on_refusal")
        self.open: _Call[OpenEvent] = _call(flat, "on_open")
        self.spend: _Call[SpendEvent] = _call(flat, "on_spend")
        self.receipt: _Call[ReceiptEvent] = _call(flat, "on_receipt")
        self.settle: _Call[SettleEvent] = _call(flat, "on_settle")
        self.alarm: _Call[AlarmEvent] = _call(flat, "on_alarm")
        self._has_any = any((self.challenge, self.refusal, self.open, self.spend, self.receipt))

    def __bool__(self) -> bool:
        """Return whether any hook listens to a request's events."""
        return self._has_any


def _flatten(hooks: Hooks | None) -> list[Hooks]:
    if hooks is None:
        return []
    if isinstance(hooks, Fanout):
        return [one for each in hooks.hooks for one in _flatten(each)]
    return [hooks]


def _call(hooks: list[Hooks], name: str) -> _Call[Any]:
    """Return the call of one method, without hooks that inherit it from `Hooks`."""
    nothing = getattr(Hooks, name)
    methods = [getattr(one, name) for one in hooks]
    return _Call([one for one in methods if getattr(one, "__func__", one) is not nothing])
