"""Days of three kinds of agents, and what can go wrong with them: events by seed, without a clock.

A world is made from its seed alone. Times are Unix seconds from a Monday on, amounts base units of
a token with six decimals. Every commitment is an event, those of an attack are marked.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from heapq import merge
from itertools import count
from typing import Final, Literal, NamedTuple

from msgspec.structs import replace

from mpp_session.wallet.watch.observation import KEY_BYTES, Observation
from mpp_session.wallet.watch.sample import DAY_S

__all__ = ["ATTACKS", "CENT", "KINDS", "MONDAY", "Event", "World", "attack"]

MONDAY: Final = 1_767_571_200.0
HOUR_S: Final = 3_600.0
CENT: Final = 10_000
Kind = Literal["chat", "batch", "swarm"]
KINDS: Final[tuple[Kind, ...]] = ("chat", "batch", "swarm")
WEEKEND: Final = 5
LATE, TRIES = 0.05, 0.07
"""Chances of a day: a person works late, or tries a new service."""
NO_NIGHT, AGAIN = 0.04, 0.03
"""Chances of a night: the batch does not run, or a part of it runs again by day."""
EXPLORES, KEEPS = 0.25, 0.3
"""Chances of a burst: it pays a new origin, which is then used again."""
RETRY = 0.01
FRESH_SHARE = 0.2
"""Of a thief's requests, those to a new origin."""
SLOWEST_S = 60.0
"""A loop with longer pauses lasts a week."""


class Event(NamedTuple):
    """One commitment of money; the one that ends a request has its digest."""

    origin: str
    seen: Observation
    digest: bytes
    loss: int | None = None
    """What an attack takes with it; None for the agent's own events."""


class Provider(NamedTuple):
    """One origin and what it charges for."""

    origin: str
    weight: float
    amount: float
    spread: float
    price: float
    deposit: int
    """0: it is paid request by request."""


class World:
    """One agent of a kind over some weeks."""

    def __init__(self, kind: Kind, seed: int, weeks: int = 8) -> None:
        self.kind, self.seed, self.weeks = kind, seed, weeks
        self.end = MONDAY + 7 * weeks * DAY_S
        self.chance = random.Random(f"{kind} {seed}")  # noqa: S311 -- no secret
        self._numbers = count()
        self.left: dict[str, float] = {}
        self.providers = list(_PROVIDERS[kind](self.chance))
        self.price_changes = {
            p.origin: (
                MONDAY + self.chance.uniform(10, 7 * weeks) * DAY_S,
                self.chance.uniform(0.85, 1.25),
            )
            for p in self.providers[:2]
        }
        """Honest ones: when, and by which factor."""

    def with_attacker(self, name: str) -> "World":
        """Return a copy in which another user acts, by chances of its own."""
        other = copy(self)
        other.chance = random.Random(f"{self.kind} {self.seed} {name}")  # noqa: S311 -- no secret
        other.left = dict(self.left)
        return other

    def normal(self) -> list[Event]:
        """Return all that the agent does by itself."""
        events: list[Event] = []
        for at, provider, digest in sorted(self._requests(), key=lambda each: each[0]):
            events += self.request(at, provider, digest)
        return events

    def request(
        self,
        at: float,
        provider: Provider,
        digest: bytes = b"",
        *,
        factor: float = 1.0,
        price: float = 1.0,
        is_attack: bool = False,
    ) -> Iterator[Event]:
        """Yield what one request commits: its cost, after a deposit where the last is used up."""
        changed = self.price_changes.get(provider.origin, (math.inf, 1.0))
        price *= changed[1] if at >= changed[0] else 1.0
        draw = self.chance.lognormvariate(math.log(provider.amount), provider.spread)
        cost = max(1, round(draw * price * factor))
        number = next(self._numbers)
        request = _key(f"{self.kind} {self.seed} {number}")
        payee = _key(provider.origin)
        prices = (("output_token", provider.price * price),)
        if provider.deposit and self.left.get(provider.origin, 0) < cost:
            self.left[provider.origin] = self.left.get(provider.origin, 0) + provider.deposit
            seen = Observation(
                at=at,
                is_deposit=True,
                amount=provider.deposit,
                total=provider.deposit,
                request=request,
                payee=payee,
                prices=prices,
            )
            yield Event(provider.origin, seen, b"", 0 if is_attack else None)
        self.left[provider.origin] = self.left.get(provider.origin, 0) - cost
        seen = Observation(
            at=at,
            is_charge=not provider.deposit,
            amount=cost,
            total=cost,
            request=request,
            payee=payee,
            prices=prices if provider.deposit else (),
        )
        yield Event(provider.origin, seen, digest or request, cost if is_attack else None)

    def pick(self) -> Provider:
        """Return a provider, the usual ones more often."""
        return self.chance.choices(self.providers, [p.weight for p in self.providers])[0]

    def newcomer(self) -> Provider:
        """Return a provider that the agent has not used, with small prices."""
        name = f"https://new-{self.kind}-{self.seed}-{next(self._numbers)}.example"
        return Provider(name, 0.02, self.chance.uniform(0.2, 1.0) * CENT, 0.5, 3.0, 0)

    def _requests(self) -> Iterator[tuple[float, Provider, bytes]]:
        days = {"chat": self._chat_day, "batch": self._batch_day, "swarm": self._swarm_day}
        trend = 1.0
        for day in range(7 * self.weeks):
            trend *= self.chance.uniform(0.99, 1.015)
            yield from days[self.kind](day, trend)

    def _chat_day(self, day: int, trend: float) -> Iterator[tuple[float, Provider, bytes]]:
        chance, start = self.chance, MONDAY + day * DAY_S
        is_weekend = day % 7 >= WEEKEND
        busy = chance.lognormvariate(0, 0.3) * (0.12 if is_weekend else 1.0) * trend
        for hour in range(7, 19):
            rate = 8 * busy * math.sin(math.pi * (hour - 6) / 14)
            yield from self._spread(start + hour * HOUR_S, HOUR_S, _poisson(chance, rate))
        if chance.random() < LATE:  # a person works late
            late = start + chance.choice((20, 21, 22)) * HOUR_S
            yield from self._spread(late, 1.5 * HOUR_S, 10)
        if chance.random() < TRIES:  # a person tries a new service
            fresh = self.newcomer()
            for _ in range(chance.randint(1, 6)):
                yield start + chance.uniform(8, 18) * HOUR_S, fresh, b""

    def _batch_day(self, day: int, trend: float) -> Iterator[tuple[float, Provider, bytes]]:
        chance, start = self.chance, MONDAY + day * DAY_S
        if chance.random() < NO_NIGHT:
            return
        begin = start + 2 * HOUR_S + chance.uniform(0, 1_200)
        requests = round(200 * trend * chance.lognormvariate(0, 0.12))
        yield from self._spread(begin, 2 * HOUR_S, requests)
        if chance.random() < AGAIN:  # a part is run again by day
            again = start + chance.uniform(8, 16) * HOUR_S
            yield from self._spread(again, HOUR_S, requests // 3)

    def _swarm_day(self, day: int, trend: float) -> Iterator[tuple[float, Provider, bytes]]:
        chance, start = self.chance, MONDAY + day * DAY_S
        bursts = chance.choice((0, 1)) if day % 7 >= WEEKEND else chance.choice((2, 3, 3, 4))
        for _ in range(bursts):
            begin = start + chance.uniform(7, 22) * HOUR_S
            requests = round(70 * trend * chance.lognormvariate(0, 0.4))
            yield from self._spread(begin, chance.uniform(0.3, 1.0) * HOUR_S, requests)
            if chance.random() < EXPLORES:
                fresh = self.newcomer()
                for _ in range(chance.randint(1, 10)):
                    yield begin + chance.uniform(0, 1_800), fresh, b""
                if chance.random() < KEEPS:  # it is used again, later
                    self.providers.append(fresh)

    def _spread(
        self, begin: float, length: float, requests: int
    ) -> Iterator[tuple[float, Provider, bytes]]:
        for _ in range(requests):
            at, provider = begin + self.chance.uniform(0, length), self.pick()
            yield at, provider, b""
            if self.chance.random() < RETRY:  # once again after an error
                yield at + 3, provider, b""


def _chat(chance: random.Random) -> Iterable[Provider]:
    yield Provider("https://model.example", 0.8, 1.2 * CENT, 0.9, 10.0, 2 * 100 * CENT)
    yield Provider("https://search.example", 0.15, 0.8 * CENT, 0.1, 0.0, 0)
    yield Provider("https://maps.example", 0.05, 0.3 * CENT, chance.uniform(0.1, 0.4), 0.0, 0)


def _batch(chance: random.Random) -> Iterable[Provider]:
    yield Provider("https://model.example", 0.9, 2 * CENT, 0.35, 6.0, 5 * 100 * CENT)
    yield Provider("https://ocr.example", 0.1, 1 * CENT, chance.uniform(0.05, 0.2), 0.0, 0)


def _swarm(chance: random.Random) -> Iterable[Provider]:
    yield Provider("https://model.example", 0.4, 1.5 * CENT, 1.0, 15.0, 3 * 100 * CENT)
    for number in range(11):
        amount = chance.uniform(0.2, 2.0) * CENT
        yield Provider(f"https://data-{number}.example", 0.6 / 11, amount, 0.3, 0.0, 0)


_PROVIDERS: Final[dict[str, Callable[[random.Random], Iterable[Provider]]]] = {
    "chat": _chat,
    "batch": _batch,
    "swarm": _swarm,
}


# -- attacks


ATTACKS: Final = ("loop", "slow loop", "creep", "drain", "burst", "drip", "stolen")
DAYS: Final = {"creep": 28, "drip": 28, "slow loop": 7, "stolen": 7}


def attack(
    world: World, name: str, start: float, normal: list[Event], usual_day: float
) -> Iterator[Event]:
    """Return the events from `start` on, the agent's own and those of the attack, as they come.

    Args:
        world: The agent's.
        name: One of `ATTACKS`.
        start: When the attack begins.
        normal: The agent's own events after `start`.
        usual_day: What the agent spends on a usual day, in base units.
    """
    end = start + DAYS.get(name, 1) * DAY_S
    own = [event for event in normal if event.seen.at < end]
    if name == "creep":
        return _creep(world, start, own)
    made = _MADE[name](world.with_attacker(name), start, usual_day)
    return merge(own, made, key=lambda event: event.seen.at)


def _loop(world: World, start: float, _usual_day: float, pause_s: float = 0.0) -> Iterator[Event]:
    """The same request again and again, which succeeds."""
    chance = world.chance
    provider, digest = world.providers[0], _key(f"loop {world.seed}")
    pause_s = pause_s or chance.choice((1.0, 5.0, 20.0))
    at = start
    while at < start + (DAY_S if pause_s < SLOWEST_S else 7 * DAY_S):
        yield from world.request(at, provider, digest, is_attack=True)
        at += pause_s * chance.uniform(0.8, 1.2)


def _slow_loop(world: World, start: float, _usual_day: float) -> Iterator[Event]:
    """As slow as no breaker counts."""
    return _loop(world, start, 0.0, pause_s=world.chance.choice((90.0, 180.0)))


def _creep(world: World, start: float, own: list[Event]) -> Iterator[Event]:
    """The provider that is used most raises its price by three percent a day."""
    dearest = world.providers[0].origin
    for event in own:
        if event.origin != dearest:
            yield event
            continue
        seen, factor = event.seen, 1.03 ** ((event.seen.at - start) / DAY_S)
        prices = tuple((kind, price * factor) for kind, price in seen.prices)
        if seen.is_deposit:
            yield event._replace(seen=replace(seen, prices=prices), loss=0)
            continue
        cost = round(seen.amount * factor)
        dearer = replace(seen, amount=cost, total=cost, prices=prices)
        yield event._replace(seen=dearer, loss=cost - seen.amount)


def _drain(world: World, start: float, usual_day: float) -> Iterator[Event]:
    """A new payee, in one deposit or some charges, twice a usual day in all."""
    chance = world.chance
    origin, pieces = f"https://drain-{world.seed}.example", chance.choice((1, 5, 40))
    amount, at = round(2 * usual_day / pieces), start
    for number in range(pieces):
        request = _key(f"drain {world.seed} {number}")
        seen = Observation(
            at=at,
            is_deposit=pieces == 1,
            is_charge=pieces > 1,
            amount=amount,
            total=amount,
            request=request,
            payee=_key(origin),
        )
        yield Event(origin, seen, request, amount)
        at += chance.uniform(20, 600)


def _burst(world: World, start: float, usual_day: float) -> Iterator[Event]:
    """Different requests to known origins, until five usual days are spent."""
    spent, at = 0, start
    while spent < 5 * usual_day:
        for event in world.request(at, world.pick(), is_attack=True):
            spent += 0 if event.seen.is_deposit else event.seen.amount
            yield event
        at += world.chance.expovariate(1 / 2.0)


def _drip(world: World, start: float, usual_day: float) -> Iterator[Event]:
    """Requests to a known origin, day and night, that cost 0.8 of a usual day in a day."""
    provider = world.providers[0]
    mean = provider.amount * math.exp(provider.spread**2 / 2)
    pause_s = DAY_S * mean / (0.8 * usual_day)
    at = start
    while at < start + DAYS["drip"] * DAY_S:
        yield from world.request(at, provider, is_attack=True)
        at += pause_s * world.chance.uniform(0.5, 1.5)


def _stolen(world: World, start: float, usual_day: float) -> Iterator[Event]:
    """A thief uses the agent's token, some hours a day, and a new origin as well."""
    chance, fresh = world.chance, world.newcomer()
    for day in range(DAYS["stolen"]):
        begin = start + day * DAY_S + chance.uniform(0, 2) * HOUR_S
        for _ in range(4):
            spent, at = 0, begin
            while spent < usual_day / 4:
                provider = fresh if chance.random() < FRESH_SHARE else world.providers[0]
                factor = 2.0 if provider is fresh else 1.0
                for event in world.request(at, provider, factor=factor, is_attack=True):
                    spent += 0 if event.seen.is_deposit else event.seen.amount
                    yield event
                at += chance.expovariate(1 / 60.0)
            begin = max(begin + HOUR_S, at)


_MADE: Final = {
    "loop": _loop,
    "slow loop": _slow_loop,
    "drain": _drain,
    "burst": _burst,
    "drip": _drip,
    "stolen": _stolen,
}


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:KEY_BYTES]


def _poisson(chance: random.Random, mean: float) -> int:
    limit, product, number = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        number += 1
    return number
