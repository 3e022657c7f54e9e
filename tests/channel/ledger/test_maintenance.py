"""An operator can check the books, take them elsewhere, and repair what is older than the chain."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from channel.errors import (
    ChannelFinalizedError,
    ChannelNotFoundError,
    ChannelStoppedError,
    ConfigError,
)
from channel.ledger.interface import Ledger
from channel.ledger.maintenance import (
    Amount,
    check,
    close_all,
    export_channels,
    import_channels,
    repair,
)
from channel.ledger.sqlite import SqliteLedger
from channel.limits import AMOUNT_DIGITS_MAX, AMOUNT_MAX
from channel.state import commands as c
from channel.state.channel_state import LadderVoucher
from channel.types import ZERO_ADDRESS
from tests.channel.books import (
    KEY,
    TERMS,
    accepting,
    fact,
    key_of,
    opening,
    reserving,
    run,
    signature,
    streaming,
)


async def each(lines: list[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line


async def fill(ledger: Ledger) -> None:
    """Open channels in every condition that is kept."""
    for number in range(5):
        await ledger.apply(key_of(number), [opening(10, key_of(number))])
    await ledger.apply(
        key_of(1), [accepting(20, key_of(1)), reserving(b"r", 5), streaming(b"s", 7)]
    )
    close = c.CommitClose(LadderVoucher(10, signature(10)))
    mined = fact(key_of(2), settled=10, is_finalized=True, block=120)
    await ledger.apply(key_of(2), [c.BeginClose(), close, c.RecordClose(mined, b"t" * 32)])
    await ledger.apply(key_of(3), [c.BeginClose()])
    big = replace(KEY, escrow=ZERO_ADDRESS)
    await ledger.apply(big, [opening(AMOUNT_MAX, big, seen=fact(big, deposit=AMOUNT_MAX))])


async def test_an_export_rebuilds_the_books(ledger: Ledger, tmp_path: Path) -> None:
    """F-108: vouchers with their signatures, and what a dead stream held counts as spent."""
    await fill(ledger)
    lines = [line async for line in export_channels(ledger)]
    other = await SqliteLedger.open(tmp_path / "other.db", exclusive=True)
    assert await import_channels(other, each(lines)) == 6
    await ledger.end_all_reservations()
    assert await other.list_channels() == await ledger.list_channels()
    assert [line async for line in export_channels(other)] == lines
    assert await check(other) == []
    await other.close()


async def test_an_import_never_overwrites_what_is_known(ledger: Ledger) -> None:
    """F-25, F-52."""
    await ledger.apply(KEY, [opening(10)])
    lines = [line async for line in export_channels(ledger)]
    await ledger.apply(KEY, [accepting(50), reserving(b"r", 30), c.Spend(b"r", 30)])
    await import_channels(ledger, each(lines))
    state = await ledger.load(KEY)
    assert state is not None
    assert (state.accepted, state.spent) == (50, 30)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format":1', b'"format":2'),
        (b'"deposit":"1000"', b'"deposit":"01000"'),
        (b'"deposit":"1000"', b'"deposit":"' + str(AMOUNT_MAX + 1).encode() + b'"'),
        (b'"escrow":"0xe5', b'"escrow":"0x'),
        (b'"spent":"0"', b'"spent":"11"'),
        (b'"fact_block":', b'"fact_block":9999999999999999999'),
        (b'"active_at":', b'"active_at":-1'),
        (b"}\n", b',"more":1}\n'),
        (b"}\n", b"\n"),
    ],
)
async def test_a_line_that_was_not_exported_is_refused(
    ledger: Ledger, old: bytes, new: bytes
) -> None:
    await ledger.apply(KEY, [opening(10)])
    lines = [line async for line in export_channels(ledger)]
    assert old in lines[0]
    with pytest.raises(ConfigError, match="line 2"):
        await import_channels(ledger, each([lines[0], lines[0].replace(old, new)]))


async def test_sound_books_have_no_faults(ledger: Ledger) -> None:
    await fill(ledger)
    assert await check(ledger) == []


async def test_every_unsound_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = await SqliteLedger.open(path, exclusive=True)
    await fill(ledger)
    broken = sqlite3.connect(path)
    broken.execute("UPDATE channel SET highest = x'00' WHERE id = 1")
    broken.execute("UPDATE channel SET published = zeroblob(16) WHERE id = 3")
    broken.execute("INSERT INTO consumed_proof VALUES (1, zeroblob(32), 0, 999)")
    broken.commit()
    broken.close()
    faults = await check(ledger)
    assert len(faults) == 3
    assert key_of(0).channel_id.hex() in faults[1] + faults[2]
    assert "consumed_proof" in faults[0]
    await ledger.close()


async def test_a_repair_lets_a_channel_go_on(ledger: Ledger) -> None:
    """SETTLE-05, F-52."""
    await ledger.apply(KEY, [opening(10), c.Observe(fact(settled=40, block=101))])
    with pytest.raises(ChannelStoppedError):
        (await ledger.apply(KEY, [accepting(60)])).require()
    with pytest.raises(ChannelStoppedError):
        await repair(ledger, KEY, accepted=40, spent=41)
    repaired = await repair(ledger, KEY, accepted=40, spent=40)
    assert repaired == run(opening(10), c.Observe(fact(settled=40, block=101)), c.Repair(40, 40))
    assert (await ledger.apply(KEY, [accepting(60)])).require().accepted == 60


async def test_an_unknown_channel_cannot_be_repaired(ledger: Ledger) -> None:
    with pytest.raises(ChannelNotFoundError):
        await repair(ledger, KEY, accepted=1, spent=1)


async def test_books_that_lack_what_was_bought_close_every_channel_at_what_they_know(
    ledger: Ledger,
) -> None:
    """O-98, O-06: nothing more is bought on any, and none is closed for less than was settled.

    A stream's reservation was perhaps emitted; another payee's channels are not touched. Where
    the chain has settled more than the books know, the rest goes back without a signature.
    """
    await ledger.apply(KEY, [opening(10), reserving(b"r", 2), streaming(b"s", 7)])
    await ledger.apply(key_of(2), [opening(10, key_of(2))])
    foreign = c.Observe(fact(key_of(2), settled=40, block=101))
    await ledger.apply(key_of(2), [foreign])
    strangers = fact(key_of(3))
    strangers = replace(strangers, terms=replace(TERMS, payee=ZERO_ADDRESS))
    await ledger.apply(key_of(3), [opening(10, key_of(3), seen=strangers)])
    ended = fact(key_of(4), is_finalized=True, block=101)
    await ledger.apply(key_of(4), [opening(10, key_of(4)), c.Observe(ended)])
    assert await close_all(ledger, TERMS.payee) == 2
    known, behind, other, over = [await ledger.load(key_of(number)) for number in range(1, 5)]
    assert known is not None
    assert (known.spent, known.reserved) == (7, 0)
    assert known.closing_with == LadderVoucher(10, signature(10))
    assert behind is not None
    assert behind.closing_with == LadderVoucher(40, b"")
    for key in (KEY, key_of(2)):
        refused = await ledger.apply(key, [accepting(60, key)])
        assert isinstance(refused.refusal, ChannelFinalizedError)
    for untouched in (other, over):
        assert untouched is not None
        assert not untouched.is_closing
    assert await close_all(ledger, TERMS.payee) == 2  # again, and nothing else
    assert await ledger.load(KEY) == known


def test_an_amount_of_an_export_has_as_many_digits_as_the_greatest() -> None:
    assert msgspec.convert(str(AMOUNT_MAX), Amount) == str(AMOUNT_MAX)
    assert msgspec.convert("9" * AMOUNT_DIGITS_MAX, Amount)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert("1" + "0" * AMOUNT_DIGITS_MAX, Amount)
