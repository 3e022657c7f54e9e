"""Which block a settler saw last is on disk, under its lease, in both databases."""

from pathlib import Path

import pytest

from channel.types import Address
from settlement.errors import LeaseLostError
from settlement.tx.journal.interface import Look
from settlement.tx.journal.url import open_journal

ACCOUNT = Address(b"a" * 20)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


async def test_the_last_look_is_kept_and_only_the_holder_of_the_lease_writes_it(url: str) -> None:
    """F-110: a settler that was overtaken says nothing more, not even that it still looks."""
    first = await open_journal(url, chain_id=1, account=ACCOUNT)
    second = await open_journal(url, chain_id=1, account=ACCOUNT)
    other = await open_journal(url, chain_id=2, account=ACCOUNT)
    try:
        assert await first.last_look() is None
        await first.take_lease("first", ttl_s=60)
        await first.note_look(Look(7, b"h" * 32, 100, 101))
        await first.note_look(Look(8, b"i" * 32, 112, 113))
        assert await second.last_look() == Look(8, b"i" * 32, 112, 113)
        assert await other.last_look() is None
        await first.release_lease()
        await second.take_lease("second", ttl_s=60)
        with pytest.raises(LeaseLostError):
            await first.note_look(Look(9, b"j" * 32, 124, 125))
        assert await second.last_look() == Look(8, b"i" * 32, 112, 113)
    finally:
        for journal in (first, second, other):
            await journal.close()
