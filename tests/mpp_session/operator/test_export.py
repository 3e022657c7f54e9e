"""The accounts of a period add up: to the ledger, and to the chain, to the base unit."""

from collections.abc import AsyncIterator
from pathlib import Path

from msgspec.structs import replace

from channel.ledger.accounts import DAY_S, AccountSettings
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.state import commands as c
from channel.state.charges import ChargeEnd, ChargeOutcome, encode_note
from channel.types import TokenUnit
from mpp_session.operator.export import (
    COLUMNS,
    Entry,
    Period,
    Sums,
    describe_entry,
    read_charges,
)
from tests.channel.books import KEY, TERMS, opening, reserving

EVER = Period(0, 2**40)
OCTOBER = 1_790_812_800  # 2026-10-01
UNIT = TokenUnit("USDC", 6)


async def collect(entries: AsyncIterator[Entry]) -> list[Entry]:
    return [entry async for entry in entries]


def total(entries: list[Entry], *kinds: str) -> int:
    return sum(entry.amount for entry in entries if entry.kind in kinds)


async def sell(ledger: Ledger, amount: int, model: str, name: bytes = b"r" * 16) -> None:
    held = replace(reserving(name, amount), note=encode_note("POST /v1/x", model))
    end = ChargeEnd(ChargeOutcome.DONE, {"output_token": amount}, "=cmd()")
    commands: list[c.Command] = [c.Spend(name, amount), c.Release(name, end)]
    (await ledger.apply(KEY, [held, *commands])).require()


async def test_sums_by_model_and_month_equal_the_lines_and_the_ledger(tmp_path: Path) -> None:
    """Old days, deleted from the rows, count on."""
    at = float(OCTOBER - DAY_S)
    ledger = await open_ledger(
        f"sqlite:///{tmp_path / 'ledger.db'}",
        exclusive=True,
        accounts=AccountSettings(kept_s=10 * DAY_S),
        now=lambda: at,
    )
    await ledger.apply(KEY, [opening(1000)])
    for _ in range(40):
        await sell(ledger, 3, "small")
        await sell(ledger, 5, "large")
        at += DAY_S
    before = await collect(read_charges(ledger, EVER))
    await ledger.prune(int(at))
    after = await collect(read_charges(ledger, EVER))
    assert len(after) == len(before) == 80
    sums = {}
    for entries in (before, after):
        months = Sums("month")
        for entry in entries:
            months.add(entry)
        found = [
            (entry.at, entry.model, entry.amount, entry.requests) for entry in months.entries()
        ]
        sums[id(entries)] = found
        assert sum(amount for _, _, amount, _ in found) == 320
    assert sums[id(before)] == sums[id(after)]
    october = [each for each in sums[id(after)] if each[0] == OCTOBER]
    assert october == [(OCTOBER, "large", 155, 31), (OCTOBER, "small", 93, 31)]
    inside = Period(OCTOBER, OCTOBER + 31 * DAY_S)
    assert total(await collect(read_charges(ledger, inside)), "charge") == 155 + 93
    assert total(await collect(read_charges(ledger, inside, TERMS.payer)), "charge") == 0
    assert (await ledger.load(KEY)).spent == 320  # type: ignore[union-attr]
    assert await ledger.faults() == []
    await ledger.close()


def test_an_entry_states_money_exactly_twice_and_time_in_utc() -> None:
    entry = Entry(
        kind="charge", at=OCTOBER, chain_id=1, amount=10**24 + 42, token=TERMS.token, requests=1
    )
    row = describe_entry(entry, {TERMS.token: UNIT})
    assert (*row,) == COLUMNS
    assert (row["amount"], row["base_units"]) == ("1000000000000000000.000042", str(10**24 + 42))
    assert (row["at"], row["symbol"]) == ("2026-10-01T00:00:00Z", "USDC")
    unknown = describe_entry(entry, {})
    assert (unknown["amount"], unknown["base_units"]) == (None, str(10**24 + 42))
    gas = describe_entry(replace(entry, kind="gas", token=None, amount=1), {})
    assert (gas["amount"], gas["symbol"]) == ("0.000000000000000001", "ether")
