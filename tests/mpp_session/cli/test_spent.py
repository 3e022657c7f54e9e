"""`mpp-session spent`: by server, from the store alone (O-63)."""

import asyncio
import json
from pathlib import Path

from channel.client.policy.budget import LockedBudget
from channel.client.store.sqlite import PaymentStore
from channel.types import Address, ChannelId, ChannelKey
from tests.channel.client.store.test_record import account_of
from tests.mpp_session.cli.conftest import Run


def key(number: int) -> ChannelKey:
    return ChannelKey(1, Address(b"e" * 20), ChannelId(bytes([number]) * 32))


async def fill(path: Path) -> None:
    store = await PaymentStore.open(path)
    free = LockedBudget(origin_max=10**9, total_max=10**9)
    first = account_of(
        key=key(1), origin="https://a.example:443", spent=70, signed=90, deposit=1000
    )
    await store.add(first, channels_max=9, locked=free)
    for number in (2, 3):
        each = account_of(key=key(number), origin="https://b.example:443", spent=5, deposit=500)
        await store.add(each, channels_max=9, locked=free)
    await store.close()


def test_each_server_has_a_row_and_the_sum_is_below(run: Run, tmp_path: Path) -> None:
    """O-63."""
    asyncio.run(fill(tmp_path / "agent.db"))
    rows = json.loads(run("spent", "--store", "agent.db", "--json").stdout)
    assert [(row["origin"], row["channels"], row["spent"], row["locked"]) for row in rows] == [
        ("https://a.example:443", 1, "70", "1000"),
        ("https://b.example:443", 2, "10", "1000"),
    ]
    shown = run("spent", "--store", "agent.db").stdout
    assert "2 servers, 80 base units spent" in shown
