"""What may be at risk: bounds that refuse, and nothing else."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.errors import ExposureLimitError, OpeningsPausedError
from channel.types import Address, ChannelId, ChannelKey, VerifiedVoucher
from settlement.settle.exposure import (
    Exposure,
    ExposureGate,
    ExposureLimits,
    Promise,
    exposure_of,
    gas_reserve_wei,
)
from settlement.settle.schedule import Watched
from tests.settlement.settle.test_schedule import channel, channels

KEY = ChannelKey(1, Address(b"e" * 20), ChannelId(b"c" * 32))
OTHER = ChannelKey(1, Address(b"e" * 20), ChannelId(b"d" * 32))


def promise(
    gate: ExposureGate,
    key: ChannelKey,
    amount: int,
    *,
    accepted: int,
    settled: int,
    signer: bytes = b"s" * 20,
    payer: bytes = b"p" * 20,
    by_contract: bool = False,
) -> None:
    """Ask whether a voucher may be taken on a channel of which the books say this."""
    known = channel(vouchers=(accepted,), settled=settled)
    terms = replace(known.terms, payer=Address(payer), authorized_signer=Address(signer))
    voucher = VerifiedVoucher(key, amount, b"", by_contract=by_contract)
    gate.require_promise(voucher, replace(known, key=key, terms=terms, accepted=accepted))


def test_both_sides_are_exposed_to_what_was_promised() -> None:
    state = channel(vouchers=(900,), spent=600, settled=200)
    assert exposure_of(state) == Exposure(payee=700, payer=300)


@given(channels())
def test_exposure_is_never_negative_and_ends_with_the_channel(each: Watched) -> None:
    state = each.state
    seen = exposure_of(state)
    assert seen.payee >= 0
    assert seen.payer >= 0
    if state.is_finalized:
        assert seen == Exposure()


def test_without_bounds_everything_is_taken() -> None:
    gate = ExposureGate()
    promise(gate, KEY, 2**128 - 1, accepted=0, settled=0)
    gate.take_room(2**128 - 1)
    gate.require_openings()
    assert not gate.is_full
    assert not gate.is_crowded


def test_a_channel_is_bounded_by_what_is_unsettled_and_the_refusal_says_how_much_fits() -> None:
    """F-64: settling makes room."""
    gate = ExposureGate(ExposureLimits(channel_max=100))
    promise(gate, KEY, 100, accepted=90, settled=0)
    with pytest.raises(ExposureLimitError, match="send a voucher for up to 140 now"):
        promise(gate, KEY, 141, accepted=100, settled=40)
    promise(gate, KEY, 140, accepted=100, settled=40)
    promise(gate, KEY, 141, accepted=100, settled=41)


def test_a_repeat_is_never_refused() -> None:
    """VCH-04: it promises nothing new."""
    gate = ExposureGate(ExposureLimits(channel_max=10, total_max=10))
    promise(gate, KEY, 500, accepted=500, settled=0)


def test_promises_take_no_room_from_others() -> None:
    """F-66, F-98: a payer who signs up to the bound and buys nothing keeps no other payer out."""
    gate = ExposureGate(ExposureLimits(total_max=1000))
    promise(gate, KEY, 10**9, accepted=0, settled=0)
    assert (gate.total, gate.is_crowded) == (0, False)
    promise(gate, OTHER, 1000, accepted=0, settled=0)
    gate.take_room(1000)


def test_all_channels_together_are_bounded_between_two_sweeps_too() -> None:
    """F-66: what this process holds counts immediately, not only with the next sweep."""
    gate = ExposureGate(ExposureLimits(total_max=1000))
    gate.end_sweep(400)
    assert not gate.is_crowded
    gate.take_room(300)
    assert gate.is_crowded
    with pytest.raises(ExposureLimitError, match="limit of unsettled amounts is reached"):
        gate.take_room(301)
    gate.take_room(300)
    assert gate.is_full
    gate.take_room(0)
    gate.begin_sweep()
    gate.end_sweep(0)
    gate.take_room(1000)


def test_what_is_held_while_a_sweep_looks_is_not_forgotten_with_it() -> None:
    """F-66: the sweep may have read that channel before."""
    gate = ExposureGate(ExposureLimits(total_max=1000))
    gate.take_room(100)
    gate.begin_sweep()
    gate.take_room(700)
    gate.end_sweep(100)
    assert gate.total == 800
    with pytest.raises(ExposureLimitError):
        gate.take_room(201)


def test_room_that_was_not_used_is_given_back() -> None:
    """F-98: what was held and not delivered keeps no other payer out."""
    gate = ExposureGate(ExposureLimits(total_max=1000))
    gate.take_room(1000)
    assert gate.is_full
    gate.give_back(1000)
    assert gate.total == 0
    gate.end_sweep(400)
    gate.give_back(1000)
    assert gate.total == 400


def test_a_blocked_channel_is_served_nothing_and_can_be_let_go_on() -> None:
    """F-19: what its wallet signs may be worth nothing."""
    gate = ExposureGate()
    gate.block(KEY)
    with pytest.raises(ExposureLimitError, match="wallet"):
        promise(gate, KEY, 5, accepted=5, settled=0)
    promise(gate, OTHER, 5, accepted=0, settled=0)
    gate.unblock(KEY)
    promise(gate, KEY, 5, accepted=5, settled=0)


def test_openings_are_refused_while_gas_is_low() -> None:
    """F-65."""
    gate = ExposureGate()
    gate.is_gas_low = True
    with pytest.raises(OpeningsPausedError) as refused:
        gate.require_openings()
    assert (refused.value.status, refused.value.retry_after_s) == (503, 60)
    promise(gate, KEY, 5, accepted=0, settled=0)
    gate.take_room(5)


def test_the_reserve_is_for_so_many_closes_at_twice_todays_price() -> None:
    assert gas_reserve_wei(10, gas_per_close=80_000, base_fee_wei=10**9) == 1_600_000 * 10**9
    assert gas_reserve_wei(1, gas_per_close=80_000, base_fee_wei=10**9) == 1_020_000 * 10**9


class Shop:
    """One process: channels whose requests hold, deliver and give back, and a sweep among them.

    The sweep reads one channel after the other, while requests go on.
    """

    def __init__(self, bound: int) -> None:
        self.gate = ExposureGate(ExposureLimits(total_max=bound))
        self.held: dict[int, list[int]] = {0: [], 1: []}
        self.owed = {0: 0, 1: 0}
        self.seen: dict[int, int] | None = None
        """What a sweep under way has counted, by channel."""

    @property
    def at_risk(self) -> int:
        return sum(self.of(channel) for channel in self.held)

    def of(self, channel: int) -> int:
        return self.owed[channel] + sum(self.held[channel])

    def act(self, name: str, channel: int, amount: int) -> None:
        if name == "hold":
            try:
                self.gate.take_room(amount)
            except ExposureLimitError:
                return
            self.held[channel].append(amount)
        elif name == "deliver" and self.held[channel]:
            held = self.held[channel].pop()
            used = min(held, amount)
            self.owed[channel] += used
            self.gate.give_back(held - used)
        elif name == "settle":
            self.owed[channel] -= min(self.owed[channel], amount)
        elif name == "begin":
            self.gate.begin_sweep()
            self.seen = {}
        elif name == "read" and self.seen is not None:
            self.seen.setdefault(channel, self.of(channel))
        elif name == "end" and self.seen is not None:
            for each in self.held:
                self.seen.setdefault(each, self.of(each))
            self.gate.end_sweep(sum(self.seen.values()))
            self.seen = None


ACTS = ["hold", "deliver", "settle", "begin", "read", "end"]


@given(
    st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 1), st.integers(0, 600)), max_size=60)
)
@example(
    [
        ("hold", 0, 100),
        ("begin", 0, 0),
        ("read", 1, 0),
        ("hold", 1, 60),
        ("deliver", 0, 0),
        ("end", 0, 0),
    ]
)
def test_of_one_process_the_total_never_passes_its_bound(acts: list[tuple[str, int, int]]) -> None:
    """F-66: for any order of holds, deliveries, releases, settles and sweeps."""
    shop = Shop(1000)
    for name, where, amount in acts:
        shop.act(name, where, amount)
        assert shop.at_risk <= shop.gate.total <= 2000
        assert shop.at_risk <= 1000


# -- one signer on many channels, and contracts that vouch (O-01)

CONTRACT = b"w" * 20


def key(number: int) -> ChannelKey:
    return replace(KEY, channel_id=ChannelId(number.to_bytes(32)))


def looked(**limits: int) -> ExposureGate:
    """Return a gate that has looked at all channels once, and found none."""
    gate = ExposureGate(ExposureLimits(**limits))
    gate.begin_sweep()
    gate.end_sweep(0, {})
    gate.trust_contracts(frozenset())
    return gate


def test_one_signer_is_bounded_over_all_its_channels() -> None:
    """O-01: for every kind of signer; it keeps no other payer out."""
    gate = looked(channel_max=100, signer_max=250)
    for number in (1, 2):
        promise(gate, key(number), 100, accepted=0, settled=0)
    with pytest.raises(ExposureLimitError, match="one signer: send a voucher for up to 50 now"):
        promise(gate, key(3), 51, accepted=0, settled=0)
    promise(gate, key(3), 50, accepted=0, settled=0)
    assert gate.is_signer_crowded(Address(b"s" * 20))
    promise(gate, key(4), 100, accepted=0, settled=0, signer=b"other signer" + bytes(8))
    promise(gate, key(1), 150, accepted=100, settled=100)  # a settle made room
    with pytest.raises(ExposureLimitError):
        promise(gate, key(2), 151, accepted=100, settled=0)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"signer": CONTRACT}, {"signer": CONTRACT, "payer": b"another payer" + bytes(7)}),
        ({"signer": CONTRACT}, {"signer": b"another contract" + bytes(4)}),
    ],
    ids=["many channels and payers of one contract", "many contracts of one payer"],
)
def test_what_contracts_vouch_for_is_bounded_in_all(
    first: dict[str, Any], then: dict[str, Any]
) -> None:
    """O-01: for each signer and for each payer, before anything is scheduled."""
    gate = looked(channel_max=10**9, signer_max=10**9, contract_signed_max=100)
    promise(gate, key(1), 60, accepted=0, settled=0, by_contract=True, **first)
    with pytest.raises(ExposureLimitError, match=r"contract-signed vouchers .* up to 40"):
        promise(gate, key(2), 41, accepted=0, settled=0, by_contract=True, **then)
    promise(gate, key(2), 40, accepted=0, settled=0, by_contract=True, **then)
    with pytest.raises(ExposureLimitError):
        promise(gate, key(1), 61, accepted=60, settled=0, by_contract=True, **first)
    promise(gate, key(1), 10**6, accepted=60, settled=0, **first)  # by a key of the same account


def test_a_keys_voucher_makes_no_room_for_more_of_a_contracts() -> None:
    """O-01: a delegated account signs now by key, now by code; the lower one may be used."""
    gate = looked(contract_signed_max=100)
    promise(gate, key(1), 100, accepted=0, settled=0, signer=CONTRACT, by_contract=True)
    promise(gate, key(1), 101, accepted=100, settled=0, signer=CONTRACT)
    with pytest.raises(ExposureLimitError, match="voucher for up to 0 now"):
        promise(gate, key(2), 1, accepted=0, settled=0, signer=CONTRACT, by_contract=True)


def test_nothing_of_a_contracts_is_taken_before_every_channel_was_looked_at() -> None:
    """O-01: a restart forgets what was promised, not what is owed."""
    gate = ExposureGate(ExposureLimits(contract_signed_max=100))
    with pytest.raises(ExposureLimitError, match="The server has just started"):
        promise(gate, key(1), 1, accepted=0, settled=0, by_contract=True)
    promise(gate, key(1), 1, accepted=0, settled=0)
    gate.begin_sweep()
    promised = Promise(Address(CONTRACT), Address(b"p" * 20), 90, 90)
    gate.end_sweep(0, {key(9): promised})
    gate.trust_contracts(frozenset())
    with pytest.raises(ExposureLimitError, match="voucher for up to 10 now"):
        promise(gate, key(1), 11, accepted=0, settled=0, signer=CONTRACT, by_contract=True)


def test_what_is_promised_while_a_sweep_looks_is_not_forgotten_with_it() -> None:
    """O-01: the sweep may have read that channel before."""
    gate = looked(contract_signed_max=100, signer_max=100)
    gate.begin_sweep()
    promise(gate, key(1), 100, accepted=0, settled=0, by_contract=True)
    gate.end_sweep(0, {key(1): Promise(Address(b"s" * 20), Address(b"p" * 20), 10, 10)})
    with pytest.raises(ExposureLimitError):
        promise(gate, key(2), 1, accepted=0, settled=0, by_contract=True)
    gate.begin_sweep()
    gate.end_sweep(0, {})
    promise(gate, key(2), 100, accepted=0, settled=0, by_contract=True)


@pytest.mark.parametrize("broken", [b"s" * 20, b"p" * 20], ids=["the contract", "who named it"])
def test_a_contract_that_broke_its_word_is_not_believed_again(broken: bytes) -> None:
    """O-01: on no channel; a key's vouchers of the same payer are taken."""
    gate = looked(contract_signed_max=100)
    gate.trust_contracts(frozenset([Address(broken)]))
    with pytest.raises(ExposureLimitError, match="ordinary key"):
        promise(gate, key(7), 1, accepted=0, settled=0, by_contract=True)
    promise(gate, key(7), 1, accepted=0, settled=0)
