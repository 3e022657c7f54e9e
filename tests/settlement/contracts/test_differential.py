"""Random histories: the contract and the pure books of channel/state end at the same balances."""

import os
from random import Random

import pytest
from msgspec.structs import replace

from channel.errors import PeerError
from channel.methods.evm.method import EVM
from channel.state import commands as c
from channel.state.channel_state import ChannelState, LadderVoucher, ReservationKind
from channel.state.transitions import transition
from channel.types import (
    Address,
    ChannelFact,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    SignedVoucher,
    VerifiedVoucher,
)
from local_chain import ZERO_ADDRESS, Account
from tests.settlement.contracts.world import GRACE_S, PLENTY, World, reverts

HISTORIES = int(os.environ.get("DIFFERENTIAL_HISTORIES", "500"))  # 10,000 nightly
PARTS = 10
STEPS_MAX = 12
FIRST_BLOCK = 1


def raw(text: str) -> Address:
    return Address(bytes.fromhex(text[2:]))


class History:
    """One channel's life, decided by chance, written into the books and played on the chain."""

    def __init__(self, world: World, rng: Random, salt: int) -> None:
        self.world, self.rng = world, rng
        self.signer = world.signer if rng.random() < 0.5 else world.payer
        named = self.signer.address if self.signer is world.signer else ZERO_ADDRESS
        deposit = rng.randint(1, rng.choice([3, 1000, 10**9]))
        channel_id = world.open(salt, named, deposit)
        self.key = ChannelKey(
            world.chain.chain_id, raw(world.escrow.address), ChannelId(channel_id)
        )
        terms = ChannelTerms(
            raw(world.payer.address),
            raw(world.payee.address),
            raw(world.token.address),
            raw(named),
        )
        # What the chain must say, computed here from what was done.
        self.fact = ChannelFact(self.key, terms, deposit, 0, 0, False, FIRST_BLOCK)  # noqa: FBT003
        first = self.sign(rng.randint(0, deposit))
        self.books = transition(None, c.OpenChannel(self.fact, first, at=0))

    def sign(self, amount: int, by: Account | None = None) -> VerifiedVoucher:
        """A voucher that went through the engine's own verification."""
        signature = (by or self.signer).sign(EVM.voucher_digest(self.key, amount))
        signed = SignedVoucher(self.key.channel_id, amount, signature)
        return EVM.verify_voucher(signed, self.key, raw(self.signer.address))

    def apply(self, command: c.Command) -> None:
        """Take a command into the books; a refusal changes nothing."""
        try:
            self.books = transition(self.books, command)
        except PeerError:
            return

    def happened(self, **changes: int) -> None:
        """Check the chain against what must have happened, then tell the books."""
        self.fact = replace(self.fact, block_number=self.fact.block_number + 1, **changes)
        found = self.world.channel(self.key.channel_id)
        assert (found.deposit, found.settled) == (self.fact.deposit, self.fact.settled)
        assert found.close_requested_at == self.fact.close_requested_at
        assert found.finalized == self.fact.is_finalized
        self.apply(c.Observe(self.fact))
        assert (self.books.deposit, self.books.settled) == (found.deposit, found.settled)
        assert self.books.is_finalized == found.finalized

    # What may happen. Each step is a method named step_*.

    def step_voucher(self) -> None:
        amount = self.rng.randint(0, self.books.deposit + 2)
        self.apply(c.AcceptVoucher(self.sign(amount), self.rng.choice([0, 5]), at=1))

    def step_serve(self) -> None:
        """Reserve some of what is available and spend a part of it."""
        amount = self.rng.randint(1, max(1, self.books.available))
        name = self.rng.randbytes(16)
        kind = self.rng.choice(list(ReservationKind))
        highest = self.books.highest.cumulative_amount
        self.apply(c.Reserve(name, kind, 1, amount, highest, 0, lease_expires_at=10))
        if held := [r.amount for r in self.books.reservations if r.reservation_id == name]:
            self.apply(c.Spend(name, self.rng.randint(0, held[0])))
            self.apply(c.Release(name))

    def step_top_up(self) -> None:
        amount = self.rng.randint(1, 1000)
        self.send("topUp", self.key.channel_id, amount, by=self.world.payer)
        self.happened(deposit=self.fact.deposit + amount, close_requested_at=0)

    def step_settle(self) -> None:
        """Settle with the voucher the books would choose; refused exactly when they say so."""
        voucher = self.books.at_or_below_spent
        if voucher is None:
            return
        if voucher.cumulative_amount <= self.books.settled:
            with reverts("AmountNotIncreasing"):
                self.pay("settle", voucher)
            return
        self.apply(c.Publish(voucher.cumulative_amount))
        self.pay("settle", voucher)
        self.happened(settled=voucher.cumulative_amount)

    def step_overdraw(self) -> None:
        """What the books refuse as above the deposit the contract refuses too."""
        voucher = self.sign(self.books.deposit + self.rng.randint(1, 5))
        before = self.books
        self.apply(c.AcceptVoucher(voucher, 0, at=2))
        assert self.books == before
        with reverts("AmountExceedsDeposit"):
            self.pay("settle", LadderVoucher(voucher.cumulative_amount, voucher.signature))

    def step_request_close(self) -> None:
        self.send("requestClose", self.key.channel_id, by=self.world.payer)
        asked_at = self.fact.close_requested_at or self.world.chain.now()
        self.happened(close_requested_at=asked_at)

    def step_close(self) -> None:
        """Close with the voucher a unilateral close is made with, or forfeit."""
        self.apply(c.BeginClose())
        voucher = self.books.at_or_above_spent or LadderVoucher(0, b"")
        self.apply(c.CommitClose(voucher))
        assert self.books.closing_with == voucher
        self.pay("close", voucher)
        settled = max(self.fact.settled, voucher.cumulative_amount)
        self.happened(settled=settled, is_finalized=True)

    def step_withdraw(self) -> None:
        if not self.fact.close_requested_at:
            with reverts("CloseNotReady"):
                self.send("withdraw", self.key.channel_id, by=self.world.payer)
            return
        ready_at = self.fact.close_requested_at + GRACE_S
        self.world.chain.travel_to(max(ready_at, self.world.chain.now()))
        self.send("withdraw", self.key.channel_id, by=self.world.payer)
        self.happened(is_finalized=True)

    def pay(self, function: str, voucher: LadderVoucher) -> None:
        arguments = (self.key.channel_id, voucher.cumulative_amount, voucher.signature)
        self.send(function, *arguments, by=self.world.payee)

    def send(self, function: str, *arguments: object, by: Account) -> None:
        self.world.escrow.send(function, *arguments, sender=by.address)

    def play(self) -> ChannelState:
        """Play until the channel ends or enough has happened, and return the books."""
        steps = [getattr(self, name) for name in dir(self) if name.startswith("step_")]
        often = [self.step_voucher, self.step_serve, self.step_settle]
        for _ in range(self.rng.randint(1, STEPS_MAX)):
            self.rng.choice([*steps, *often, *often])()
            if self.books.is_finalized:
                break
        return self.books


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(3600)
def test_contract_and_books_end_at_the_same_balances(world: World, part: int) -> None:
    """ACC-07, SETTLE-02, CLOSE-02: every voucher the engine accepts, the contract pays."""
    books = [
        History(world, Random(f"{part} {i}"), salt=part * HISTORIES + i).play()  # noqa: S311
        for i in range(HISTORIES // PARTS)
    ]
    paid = sum(each.settled for each in books)
    still_held = sum(each.deposit - each.settled for each in books if not each.is_finalized)
    assert world.balance(world.payee.address) == PLENTY + paid
    assert world.balance(world.escrow.address) == still_held
    assert world.balance(world.payer.address) == PLENTY - paid - still_held
    assert any(each.is_finalized for each in books)
    assert any(each.settled for each in books)
