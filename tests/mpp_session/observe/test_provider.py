"""The health of a provider's parts is what it is: a test breaks each."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from channel.http.hooks import AlarmEvent, Hooks
from channel.tasks import Tasks
from mpp_session.devnet_file import devnet_settings
from mpp_session.gateway.errors import ModelServerDownError
from mpp_session.observe.health import Part
from mpp_session.observe.provider import Observed
from mpp_session.settings import Sponsoring
from mpp_session.settings.config import load_config
from mpp_session.testing.chain import TestChain
from mpp_session.wiring import Parts, build_parts
from settlement.alarms import AlarmKind
from tests.faults.proxy import LyingNode, lying_node
from tests.waiting import until


class Alarmed(Hooks):
    def __init__(self) -> None:
        self.heard: list[tuple[str, bool]] = []

    def on_alarm(self, event: AlarmEvent) -> None:
        self.heard.append((event.name, event.is_raised))


class World(msgspec.Struct):
    """A provider that serves, with parts that a test can break."""

    parts: Parts
    observed: Observed
    node: LyingNode
    books: Path
    alarmed: Alarmed
    has_model_server: list[bool]

    async def look(self) -> dict[str, Part]:
        return dict(await self.observed.health.look())

    async def until_down(self, name: str) -> Part:
        async def is_down() -> bool:
            return not (await self.look())[name].is_ok

        await until(is_down)
        return (await self.look())[name]

    async def until_ok(self, name: str) -> None:
        async def is_ok() -> bool:
            return (await self.look())[name].is_ok

        await until(is_ok)


@pytest.fixture
async def world(devnet: TestChain, tmp_path: Path) -> AsyncIterator[World]:
    has_model_server = [True]

    async def check_model_server() -> None:
        if not has_model_server[0]:
            raise ModelServerDownError("The model server does not answer.")

    async with lying_node(devnet.values.rpc_url) as node:
        config = load_config(
            None,
            environment={},
            defaults={
                **devnet_settings(devnet.values),
                "chain.rpc_url": node.url,
                "upstream.url": "http://127.0.0.1:9",
                "price.per_unit": 1,
                "payment.realm": "tests",
                "payment.secrets": ["a secret of thirty-two bytes or more"],
                "ledger.url": f"sqlite:///{tmp_path / 'books.db'}",
                "ledger.state_dir": str(tmp_path),
                "settlement.start": False,
                "sponsoring.fee_payer": False,
                "settlement.poll_interval_s": 0.1,
            },
        )
        async with build_parts(config) as parts, Tasks() as tasks:
            alarmed = Alarmed()
            observed = Observed(
                parts,
                alarmed,
                registry=CollectorRegistry(),
                model_server=check_model_server,
                chain_away_s=1.0,
            )
            for name, work in {**parts.background(), **observed.background()}.items():
                tasks.start(work, name=name)
            yield World(parts, observed, node, tmp_path / "books.db", alarmed, has_model_server)


async def test_a_chain_that_does_not_answer_is_down_until_it_does(world: World) -> None:
    await world.until_ok("chain")
    world.node.is_down = True
    assert "the chain was last seen" in (await world.until_down("chain")).why
    assert not world.observed.health.is_ready
    world.node.is_down = False
    await world.until_ok("chain")


async def test_a_settler_is_up_while_it_holds_the_lease(world: World) -> None:
    """Without one the provider sells, up to its bounds, and is not whole."""
    await world.until_ok("chain")
    assert "no settler" in (await world.until_down("settler")).why
    assert world.observed.health.is_ready
    assert not world.observed.health.is_whole
    await world.parts.journal.take_lease("a settler", ttl_s=60)
    await world.until_ok("settler")
    assert world.observed.health.is_whole
    await world.parts.journal.release_lease()
    await world.until_down("settler")


async def test_without_a_settler_no_payer_can_begin_whose_gas_is_paid(world: World) -> None:
    """The settler sends such deposits: a balancer must send no customers here."""
    await world.until_ok("chain")
    config = replace(world.parts.config, sponsoring=Sponsoring(fee_payer=True))
    parts = replace(world.parts, config=config)
    health = Observed(parts, None, registry=CollectorRegistry()).health
    await health.look()
    assert not health.is_ready
    await world.parts.journal.take_lease("a settler", ttl_s=60)

    async def is_ready() -> bool:
        await health.look()
        return health.is_ready

    await until(is_ready)


async def test_a_database_that_takes_no_write_is_down_until_it_does(world: World) -> None:
    """A reader would still be answered; and a check that is stuck is not started again."""
    await world.until_ok("database")
    other = sqlite3.connect(world.books, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert (await world.until_down("database")).why == "no answer within 2 s"
    assert not world.observed.health.is_ready
    other.execute("ROLLBACK")
    other.close()
    await world.until_ok("database")


async def test_a_database_for_which_an_alarm_rings_is_down(world: World) -> None:
    world.parts.watcher.alarms.ring(AlarmKind.BOOKS_AWAY, "no space left")
    assert (await world.until_down("database")).why == "no space left"


async def test_a_model_server_that_does_not_answer_is_down(world: World) -> None:
    await world.until_ok("model_server")
    world.has_model_server[0] = False
    assert (await world.until_down("model_server")).why == "The model server does not answer."
    assert not world.observed.health.is_ready


async def test_hooks_hear_of_alarms(world: World) -> None:
    world.parts.watcher.alarms.ring(AlarmKind.GAS_LOW, "too little", subject="0xaa")
    world.parts.watcher.alarms.end(AlarmKind.GAS_LOW, subject="0xaa")
    assert world.alarmed.heard == [("gas-low", True), ("gas-low", False)]


async def test_a_second_worker_tells_nothing_twice(world: World) -> None:
    parts = msgspec.structs.replace(world.parts, is_first=False)
    before = parts.watcher.listener
    second = Observed(parts, world.alarmed, registry=CollectorRegistry())
    assert second.background() == {}
    assert parts.watcher.listener is before
