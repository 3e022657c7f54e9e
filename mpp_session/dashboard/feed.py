"""What the gate's hooks tell, kept in bounded memory: live streams, payment cycles, refusals."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from channel.http.hooks import (
    ChallengeEvent,
    Hooks,
    OpenEvent,
    ReceiptEvent,
    RefusalEvent,
    RequestEvent,
    SpendEvent,
)
from channel.types import Address, ChannelId
from mpp_session.dashboard.show import count, usage_text

__all__ = ["CYCLES_KEPT", "RUNNING_KEPT", "Cycle", "Feed", "Live", "Refused", "Seen", "Step"]

CYCLES_KEPT: Final = 200
RUNNING_KEPT: Final = 1000
_REFUSED_KEPT: Final = 200
_EARNED_HOURS_KEPT: Final = 24 * 14
_HOUR_S: Final = 3600
_MANAGED: Final = {
    "repeat": "the stored answer was sent again",
    "open": "the channel is open",
    "topUp": "the deposit counts",
    "voucher": "the voucher is accepted",
    "close": "the close is decided",
}
_ENDINGS: Final = {"done": "answered", "left": "the client left", "failed": "broke off"}

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Live(msgspec.Struct, kw_only=True):
    """A paid request that runs now."""

    request_id: str
    route: str
    variant: str
    channel_id: ChannelId | None
    payer: Address | None
    began_at: float
    """Unix seconds at which the request arrived."""
    cost: int = 0
    """Base units, durable."""
    usage: Mapping[str, int] = msgspec.field(default_factory=dict)


class Step(msgspec.Struct, frozen=True):
    """One moment of a payment cycle."""

    name: str
    after_s: float
    """Seconds since the cycle began."""
    text: str
    is_fault: bool = False


class Cycle(msgspec.Struct, kw_only=True):
    """One request's way from its challenge to its receipt."""

    number: int
    route: str
    variant: str
    at: float
    """Unix seconds at which it began."""
    began: float
    """The same on the monotonic clock."""
    channel_id: ChannelId | None = None
    payer: Address | None = None
    ending: str = "challenged"
    """`challenged`, `running`, `paid`, `managed`, `refused`, `left` or `failed`."""
    status: int | None = None
    cost: int = 0
    issued: list[str] = msgspec.field(default_factory=list)
    """The ids of the challenges that it was answered with, while no request answers one here."""
    answers: str | None = None
    """The id of a challenge that another process may have issued: this one did not."""
    vouchers: int = 0
    """Accepted by requests of their own while it ran."""
    voucher_at: float = 0.0
    """When the last one of them was, on the monotonic clock."""
    steps: list[Step] = msgspec.field(default_factory=list)

    def add(self, name: str, moment: float, text: str, *, is_fault: bool = False) -> None:
        """Add a step at a moment of the monotonic clock."""
        self.steps.append(Step(name, max(0.0, moment - self.began), text, is_fault))


class Refused(msgspec.Struct, kw_only=True):
    """The refusals of one kind since the gateway started."""

    problem_type: str
    status: int
    number: int = 0
    last_at: float = 0.0
    detail: str = ""
    """The last one's sentence."""
    route: str = ""
    channel_id: ChannelId | None = None


class Seen(msgspec.Struct, kw_only=True):
    """What one or several processes have seen, the oldest first."""

    started_at: float
    live: list[Live]
    cycles: list[Cycle]
    refused: list[Refused]
    earned: dict[int, int]
    """Base units that became durable, by hour since 1970."""
    paid_requests: int


class Feed(Hooks):
    """Keeps what the dashboard shows of this process. Each list is bounded."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.started_at = now()
        self.live: OrderedDict[str, Live] = OrderedDict()
        self.cycles: OrderedDict[int, Cycle] = OrderedDict()
        self.refused: OrderedDict[tuple[str, int], Refused] = OrderedDict()
        self.earned: OrderedDict[int, int] = OrderedDict()
        """Base units that became durable, by hour since 1970."""
        self.paid_requests = 0
        self._number = 0
        self._challenged: OrderedDict[str, Cycle] = OrderedDict()
        """By the id of a challenge that no request has answered yet."""
        self._running: OrderedDict[str, Cycle] = OrderedDict()
        """By the id of a request that has a credential and has not ended."""
        self._paying: OrderedDict[ChannelId, Cycle] = OrderedDict()
        """The newest of them, by channel."""

    def read(self) -> Seen:
        """Return all that is kept."""
        return Seen(
            started_at=self.started_at,
            live=list(self.live.values()),
            cycles=list(self.cycles.values()),
            refused=list(self.refused.values()),
            earned=dict(self.earned),
            paid_requests=self.paid_requests,
        )

    def on_challenge(self, event: ChallengeEvent) -> None:
        """See `Hooks.on_challenge`."""
        cycle = self._begin(event)
        cycle.status = event.status
        cycle.add("Request", event.received, event.route)
        cycle.add(str(event.status), event.monotonic, _offers(len(event.issued)))
        self._await(cycle, event.issued)

    def on_refusal(self, event: RefusalEvent) -> None:
        """See `Hooks.on_refusal`."""
        key = (event.problem_type, event.status)
        kind = self.refused.get(key)
        if kind is None:
            kind = self.refused[key] = Refused(problem_type=key[0], status=key[1])
            _trim(self.refused, _REFUSED_KEPT)
        kind.number += 1
        kind.last_at, kind.detail, kind.route = event.at, event.detail, event.route
        kind.channel_id = event.channel_id
        cycle = self._continue(event)
        cycle.ending, cycle.status = "refused", event.status
        name = event.problem_type or "answered by the application"
        text = (
            f"{event.status} {name}: {event.detail}" if event.detail else f"{event.status} {name}"
        )
        cycle.add("Refused", event.monotonic, text, is_fault=True)
        self._await(cycle, event.issued)
        self._end(event)

    def on_open(self, event: OpenEvent) -> None:
        """See `Hooks.on_open`."""
        verb = "opened" if event.action == "open" else "topped up"
        what = "Channel" if event.action == "open" else "Deposit"
        self._continue(event).add(what, event.monotonic, f"{verb}, as the chain shows")

    def on_spend(self, event: SpendEvent) -> None:
        """See `Hooks.on_spend`."""
        hour = int(event.at // _HOUR_S)
        self.earned[hour] = self.earned.get(hour, 0) + event.amount
        _trim(self.earned, _EARNED_HOURS_KEPT)
        cycle = self._continue(event)
        cycle.cost = event.cost
        live = self.live.get(event.request_id)
        if live is None:
            live = self.live[event.request_id] = Live(
                request_id=event.request_id,
                route=event.route,
                variant=event.variant,
                channel_id=event.channel_id,
                payer=event.payer,
                began_at=event.at - (event.monotonic - event.received),
            )
            _trim(self.live, RUNNING_KEPT)
        live.cost, live.usage = event.cost, event.usage

    def on_receipt(self, event: ReceiptEvent) -> None:
        """See `Hooks.on_receipt`."""
        paying = self._find_paying(event)
        if paying is not None:  # a long stream has thousands of vouchers: they are no cycles
            paying.vouchers += 1
            paying.voucher_at = event.monotonic
            return
        cycle = self._continue(event)
        cycle.status, cycle.cost = event.status, event.cost
        if event.action != "request":
            cycle.ending = "managed"
            text = _MANAGED.get(event.action, event.action)
            cycle.add("Receipt", event.monotonic, text)
        else:
            self.paid_requests += 1
            cycle.ending = "paid" if event.outcome == "done" else event.outcome
            if event.handled is not None:
                cycle.add("Decision", event.handled, "accepted: an amount is reserved")
            if event.first_sent is not None:
                cycle.add("First content", event.first_sent, "charged, then sent")
            if cycle.vouchers:
                text = f"{count(cycle.vouchers, 'more voucher')} on the way, this was the last"
                cycle.add("Vouchers", cycle.voucher_at, text)
            usage = usage_text(event.usage)
            text = _ENDINGS[event.outcome] + (f": {usage}" if usage else "")
            cycle.add("Receipt", event.monotonic, text, is_fault=event.outcome == "failed")
        self._end(event)

    def _find_paying(self, event: ReceiptEvent) -> Cycle | None:
        """Return the running request that a separate voucher pays for, if it is one."""
        if event.action != "voucher" or event.channel_id is None:
            return None
        return self._paying.get(event.channel_id)

    def _await(self, cycle: Cycle, issued: Sequence[str]) -> None:
        """Continue a cycle with the request that answers one of these challenges."""
        cycle.issued = list(issued)
        for each in issued:
            self._challenged[each] = cycle

    def _begin(self, event: RequestEvent) -> Cycle:
        self._number += 1
        cycle = self.cycles[self._number] = Cycle(
            number=self._number,
            route=event.route,
            variant=event.variant,
            at=event.at - (event.monotonic - event.received),
            began=event.received,
        )
        _trim(self.cycles, CYCLES_KEPT)
        _trim(self._challenged, CYCLES_KEPT)
        return cycle

    def _continue(self, event: RequestEvent) -> Cycle:
        """Return the request's cycle: the one whose challenge it answers first, or a new one."""
        cycle = self._running.get(event.request_id)
        if cycle is None:
            cycle = self._running[event.request_id] = self._join(event)
            cycle.ending = "running"
            _trim(self._running, RUNNING_KEPT)
        cycle.channel_id, cycle.payer = event.channel_id, event.payer
        if event.channel_id is not None:
            self._paying[event.channel_id] = cycle
            _trim(self._paying, RUNNING_KEPT)
        cycle.variant = event.variant or cycle.variant
        return cycle

    def _join(self, event: RequestEvent) -> Cycle:
        if event.challenge_id is None:
            cycle = self._begin(event)
            cycle.add("Request", event.received, event.route)
            return cycle
        found = self._challenged.pop(event.challenge_id, None)
        if found is not None and found.number in self.cycles:
            found.issued = []  # another process may still be paid under the same challenge
            found.add("Credential", event.received, "answers the challenge")
            return found
        cycle = self._begin(event)
        cycle.answers = event.challenge_id
        cycle.add("Credential", event.received, "under an earlier challenge")
        return cycle

    def _end(self, event: RequestEvent) -> None:
        self.live.pop(event.request_id, None)
        cycle = self._running.pop(event.request_id, None)
        if event.channel_id is not None and self._paying.get(event.channel_id) is cycle:
            self._paying.pop(event.channel_id, None)


def _offers(number: int) -> str:
    return "payment required: 1 offer" if number == 1 else f"payment required: {number} offers"


def _trim(kept: OrderedDict[_Key, _Value], number: int) -> None:
    while len(kept) > number:
        kept.popitem(last=False)
