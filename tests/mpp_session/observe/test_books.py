"""Sums of a sweep; a hook gets each settlement once."""

import pytest
from msgspec.structs import replace

from channel.http.hooks import HookCalls, Hooks, SettleEvent
from channel.state.channel_state import ChannelState
from channel.types import ChannelId
from mpp_session.observe.books import BooksView
from tests.channel.selling import PRICE, Provider, open_provider


class Settled(Hooks):
    def __init__(self) -> None:
        self.heard: list[tuple[int, int, bool]] = []

    def on_settle(self, event: SettleEvent) -> None:
        self.heard.append((event.amount, event.settled, event.is_final))


class Clock:
    def __init__(self) -> None:
        self.now = 2_000_000_000.0

    def __call__(self) -> float:
        return self.now


class View:
    """A view, with what it tells, and a channel to show it."""

    def __init__(self, state: ChannelState) -> None:
        self.hooks = Settled()
        self.clock = Clock()
        self.books = BooksView(HookCalls(self.hooks), now=self.clock)
        self.state = replace(state, active_at=int(self.clock.now) - 100)

    def sweep(self, *states: ChannelState) -> None:
        self.books.begin_sweep()
        for state in states:
            self.books.show(state)
        self.books.end_sweep()


@pytest.fixture
async def view(tmp_path: object) -> View:
    async with open_provider(tmp_path) as provider:  # type: ignore[arg-type]
        state = await opened(provider)
    return View(replace(state, accepted=8 * PRICE, spent=5 * PRICE))


async def opened(provider: Provider) -> ChannelState:
    payer = provider.payer
    payer.open_on_chain()
    offer = provider.engine.challenger.issue(provider.offer)
    paid = provider.engine.challenger.authenticate(
        payer.credential(offer, payer.opening(8 * PRICE)), [provider.offer]
    )
    return (await provider.engine.perform(paid)).state


def other(state: ChannelState) -> ChannelState:
    return replace(state, key=replace(state.key, channel_id=ChannelId(b"\x02" * 32)))


async def test_a_sweep_adds_up_what_is_open(view: View) -> None:
    closing = replace(other(view.state), close_requested_at=1)
    view.sweep(view.state, closing)
    sums = view.books.sums
    assert sums is not None
    assert (sums.open, sums.closing, sums.stopped) == (2, 1, 0)
    assert (sums.at_risk, sums.unsettled, sums.undelivered) == (
        2 * 5 * PRICE,
        2 * 8 * PRICE,
        2 * 3 * PRICE,
    )
    assert sums.deposited == 2_000


async def test_a_settlement_is_reported_once_with_what_it_paid(view: View) -> None:
    settled = replace(view.state, settled=3 * PRICE, published=3 * PRICE)
    view.sweep(view.state)
    view.books.show(settled)
    view.sweep(settled)
    assert view.hooks.heard == [(3 * PRICE, 3 * PRICE, False)]
    view.sweep(view.state)  # a reorg took it back, and it is mined again
    view.sweep(settled)
    assert len(view.hooks.heard) == 1


async def test_a_close_is_reported_once(view: View) -> None:
    view.sweep(view.state)
    closed = replace(view.state, settled=5 * PRICE, is_finalized=True)
    view.books.show(closed)
    view.sweep()
    view.books.show(closed)
    assert view.hooks.heard == [(5 * PRICE, 5 * PRICE, True)]
    assert view.books.sums is not None
    assert view.books.sums.open == 0


async def test_what_was_settled_before_is_not_reported(view: View) -> None:
    ended = replace(other(view.state), is_finalized=True, settled=PRICE)
    view.sweep(replace(view.state, settled=3 * PRICE), ended)
    view.books.show(ended)
    assert view.hooks.heard == []


async def test_the_close_of_a_channel_that_no_sweep_has_shown_is_reported(view: View) -> None:
    """An agent may open, pay and close between two sweeps."""
    view.sweep(view.state)
    ended = replace(other(view.state), is_finalized=True, settled=PRICE)
    view.books.show(ended)
    view.sweep(view.state, ended)
    assert view.hooks.heard == [(PRICE, PRICE, True)]


async def test_the_lag_is_the_age_of_what_is_not_settled(view: View) -> None:
    view.sweep(view.state)
    assert view.books.settlement_lag_s == 100
    view.clock.now += 50
    view.sweep(view.state)
    assert view.books.settlement_lag_s == 150
    view.sweep(replace(view.state, settled=5 * PRICE))
    assert view.books.settlement_lag_s == 0
