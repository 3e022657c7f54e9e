"""The provider's end: settles signed ahead as vouchers grow, and again when they age."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from channel.ledger.sqlite import SqliteLedger
from channel.state.channel_state import ChannelState
from channel.state.commands import Restore
from settlement.alarms import AlarmKind
from settlement.errors import SignerError
from settlement.presigned.authorization import PresignedSettle
from settlement.presigned.cover import CoverPolicy
from settlement.presigned.export import TowerExport
from settlement.presigned.file import TowerFile
from settlement.tx.encoding import UnsignedTx
from settlement.tx.signer import KeySigner, Signer
from tests.settlement.presigned.test_authorization import PAYEE, PAYEE_KEY
from tests.settlement.settle.test_schedule import NOW, channel
from tests.waiting import until

POLICY = CoverPolicy(uncovered_max=100, uncovered_age_s=300, life_s=100_000)


@asynccontextmanager
async def exporting(
    path: Path, payee: Signer = PAYEE
) -> AsyncIterator[tuple[TowerExport, TowerFile]]:
    ledger = await SqliteLedger.open(path / "ledger.db", exclusive=False)
    file = await TowerFile.open(path / "settles.jsonl")
    export = TowerExport(file, payee, ledger, policy=POLICY, beat_s=0.05, retry_s=0.01)
    task = asyncio.create_task(export.run())
    try:
        yield export, file
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await ledger.close()


async def known(path: Path, state: ChannelState) -> ChannelState:
    """Put a channel into the books."""
    ledger = await SqliteLedger.open(path / "ledger.db", exclusive=False)
    try:
        return (await ledger.apply(state.key, [Restore(state)])).require()
    finally:
        await ledger.close()


async def published(path: Path, state: ChannelState) -> int:
    ledger = await SqliteLedger.open(path / "ledger.db", exclusive=False)
    try:
        found = await ledger.load(state.key)
    finally:
        await ledger.close()
    assert found is not None
    return found.published


def newest(file: TowerFile, state: ChannelState) -> PresignedSettle | None:
    return file.newest.get(state.key)


async def test_what_was_delivered_is_signed_ahead_and_grows(tmp_path: Path) -> None:
    """F-64, RELAY-01: signed by the payee's key, for exactly the voucher that is due."""
    state = await known(tmp_path, channel(vouchers=(500,), spent=500))
    more = channel(vouchers=(500, 620), spent=620)
    async with exporting(tmp_path) as (export, file):
        export.show(state, now=NOW)
        await until(lambda: newest(file, state) is not None)
        first = file.newest[state.key]
        assert (first.cumulative_amount, first.payee) == (500, PAYEE.address)
        assert first.is_signed_by_key()
        export.show(more, now=NOW + 1)
        await until(lambda: file.newest[state.key].cumulative_amount == 620)


async def test_what_is_signed_outlives_the_grace_after_an_outage(tmp_path: Path) -> None:
    """RELAY-04: at any moment half of its life is left."""
    state = await known(tmp_path, channel(vouchers=(500,), spent=500))
    async with exporting(tmp_path) as (export, file):
        export.show(state, now=NOW)
        await until(lambda: newest(file, state) is not None)
        first = file.newest[state.key]
        assert first.deadline == NOW + POLICY.life_s
        export.show(state, now=NOW + POLICY.life_s // 2 + 1)
        await until(lambda: file.newest[state.key] is not first)
        renewed = file.newest[state.key]
    assert renewed.cumulative_amount == 500
    assert renewed.deadline == NOW + POLICY.life_s // 2 + 1 + POLICY.life_s
    assert renewed.nonce != first.nonce


async def test_little_waits_for_its_age(tmp_path: Path) -> None:
    """A signature for every voucher would be one request to the signing service each."""
    state = await known(tmp_path, channel(vouchers=(50,), spent=50))
    async with exporting(tmp_path) as (export, file):
        export.show(state, now=NOW)
        export.show(state, now=NOW + 299)
        await asyncio.sleep(0.05)
        assert newest(file, state) is None
        export.show(state, now=NOW + 300)
        await until(lambda: newest(file, state) is not None)


async def test_after_a_restart_nothing_is_signed_twice(tmp_path: Path) -> None:
    state = await known(tmp_path, channel(vouchers=(500,), spent=500))
    async with exporting(tmp_path) as (export, file):
        export.show(state, now=NOW)
        await until(lambda: newest(file, state) is not None)
        first = file.newest[state.key]
    async with exporting(tmp_path) as (export, file):
        export.show(state, now=NOW + 60)
        await asyncio.sleep(0.05)
        assert file.newest[state.key] == first


async def test_a_line_that_a_stranger_wrote_covers_nothing(tmp_path: Path) -> None:
    """It would keep the real one from being signed."""
    state = await known(tmp_path, channel(vouchers=(500,), spent=500))
    async with exporting(tmp_path) as (export, file):
        export.show(state, now=NOW)
        await until(lambda: newest(file, state) is not None)
        forged = replace(file.newest[state.key], cumulative_amount=10**9)
        await file.append([forged])
    async with exporting(tmp_path) as (export, file):
        export.show(state, now=NOW)
        await until(lambda: newest(file, state) is not None)
        assert file.newest[state.key].cumulative_amount == 500


class AwaySigner(KeySigner):
    """A signing service that is away for a while."""

    is_away = True

    async def sign_message(self, digest: bytes) -> bytes:
        if self.is_away:
            raise SignerError("The signing service does not answer.")
        return await super().sign_message(digest)

    async def sign_transaction(self, tx: UnsignedTx) -> bytes:
        raise NotImplementedError


async def test_a_signing_service_that_is_away_rings_and_is_asked_again(tmp_path: Path) -> None:
    """F-104: and what waited is signed then."""
    state = await known(tmp_path, channel(vouchers=(500,), spent=500))
    signer = AwaySigner(PAYEE_KEY)
    async with exporting(tmp_path, signer) as (export, file):
        export.show(state, now=NOW)
        await until(lambda: bool(export.alarms.ringing))
        assert export.alarms.ringing[0].kind is AlarmKind.TOWER_UNFED
        signer.is_away = False
        await until(lambda: newest(file, state) is not None)
        await until(lambda: not export.alarms.ringing)


async def test_signs_of_life_come_also_when_nothing_is_sold(tmp_path: Path) -> None:
    async with exporting(tmp_path):
        path = tmp_path / "settles.jsonl"
        await until(lambda: path.read_bytes().count(b"{}\n") >= 3)


async def test_what_leaves_the_books_is_public_first(tmp_path: Path) -> None:
    """Decision 5, VCH-04: a file that was stolen buys nothing of what its payers have prepaid.

    One signed ahead above `spent` has to go on buying what it was signed for.
    """
    covered = await known(tmp_path, channel(number=1, vouchers=(500, 900), spent=500))
    steps = await known(tmp_path, channel(number=2, vouchers=(900,), spent=500))
    async with exporting(tmp_path) as (export, file):
        for state in (covered, steps):
            export.show(state, now=NOW)
        await until(lambda: len(file.newest) == 2)
    assert file.newest[covered.key].cumulative_amount == 500
    assert await published(tmp_path, covered) == 500
    assert file.newest[steps.key].cumulative_amount == 900
    assert await published(tmp_path, steps) == 0


async def test_what_was_handed_out_above_delivered_is_public_once_it_was_delivered(
    tmp_path: Path,
) -> None:
    """Decision 5: from then on a stolen line buys nothing; after a restart, too."""
    steps = await known(tmp_path, channel(vouchers=(900,), spent=500))
    async with exporting(tmp_path) as (export, file):
        export.show(steps, now=NOW)
        await until(lambda: newest(file, steps) is not None)
    async with exporting(tmp_path) as (export, _):
        export.show(replace(steps, spent=899), now=NOW)
        export.show(replace(steps, spent=900, above_spent=None), now=NOW)

        async def is_public() -> bool:
            return await published(tmp_path, steps) == 900

        await until(is_public)


async def test_what_has_expired_does_not_stay_in_the_file_for_ever(tmp_path: Path) -> None:
    """F-101: of a channel whose end another process saw, nothing is heard here any more."""
    old = await known(tmp_path, channel(number=1, vouchers=(500,), spent=500))
    other = await known(tmp_path, channel(number=2, vouchers=(9,), spent=0))
    async with exporting(tmp_path) as (export, file):
        export.show(old, now=NOW)
        await until(lambda: newest(file, old) is not None)
        export.show(other, now=NOW + POLICY.life_s)
        await asyncio.sleep(0.1)
        assert newest(file, old) is not None
        export.show(other, now=NOW + POLICY.life_s + 1)
        await until(lambda: newest(file, old) is None)


async def test_what_has_ended_is_forgotten(tmp_path: Path) -> None:
    state = await known(tmp_path, channel(vouchers=(500,), spent=500))
    async with exporting(tmp_path) as (export, file):
        export.show(state, now=NOW)
        await until(lambda: newest(file, state) is not None)
        export.show(replace(state, is_finalized=True), now=NOW)
        assert newest(file, state) is None
