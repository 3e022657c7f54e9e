"""A dashboard on a free port, over a real ledger, without a chain."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from channel.engine import Engine
from channel.ledger.sqlite import SqliteLedger
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.state.commands import Restore
from channel.types import (
    ZERO_ADDRESS,
    Address,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    TokenUnit,
)
from channel.verify.challenge_id import ChallengeBinder
from mpp_session.admin.app import build_admin
from mpp_session.dashboard.access import Access
from mpp_session.dashboard.feed import Feed
from mpp_session.dashboard.gather import Feeds
from mpp_session.dashboard.pages.prices import PriceShown
from mpp_session.dashboard.site import Dashboard
from mpp_session.process.sales import Sales
from mpp_session.settings import Config, Secret
from mpp_session.settings.config import load_config
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.url import open_journal
from tests.channel.chain_model import ChainModel
from tests.channel.selling import SETTINGS
from tests.e2e.gateways import free_port
from tests.mpp_session.serving import serve

__all__ = ["PAYEE", "TOKEN", "UNIT", "Served", "channel_state", "serve_dashboard"]

TOKEN = "a-log-in-token-of-thirty-two-chars"  # noqa: S105 - no secret
UNIT = TokenUnit("USDC", 6)
PAYEE = Address(b"\xb2" * 20)
ESCROW = Address(b"\xe5" * 20)
CHAIN_ID = 31337


class Served(msgspec.Struct):
    """What a test reaches."""

    url: str
    feed: Feed
    ledger: SqliteLedger
    journal: SettlerJournal
    sales: Sales
    config: Config

    async def add(self, *states: ChannelState) -> None:
        """Put channels into the books."""
        for state in states:
            (await self.ledger.apply(state.key, [Restore(state)])).require()


def channel_state(number: int = 1, *, spent: int = 0, settled: int = 0) -> ChannelState:
    """Return an open channel with a deposit of 10 USDC."""
    key = ChannelKey(CHAIN_ID, ESCROW, ChannelId(number.to_bytes(32)))
    highest = LadderVoucher(spent, b"s" * 65)
    return ChannelState(
        key=key,
        terms=ChannelTerms(Address(b"\xaa" * 20), PAYEE, Address(b"\xc3" * 20), ZERO_ADDRESS),
        deposit=10_000_000,
        settled=settled,
        accepted=spent,
        spent=spent,
        published=settled,
        close_requested_at=0,
        is_finalized=False,
        fact_block=7,
        highest=highest,
        at_or_below_spent=highest if spent else None,
        above_spent=None,
        active_at=1_800_000_000,
    )


def config_of(folder: Path, **changes: str) -> Config:
    """Return a gateway's settings; `changes` by environment name, without its prefix."""
    values = {
        "UPSTREAM_URL": "http://127.0.0.1:9",
        "PRICE_PER_UNIT": "25",
        "PAYMENT_REALM": "llm.example.com",
        "PAYMENT_SECRETS": "a secret of thirty-two bytes or more",
        "CHAIN_RPC_URL": f"http://127.0.0.1:{free_port()}",
        "CHAIN_ID": str(CHAIN_ID),
        "CHAIN_ESCROW": "0x" + ESCROW.hex(),
        "CHAIN_TOKEN": "0x" + "c3" * 20,
        "PAYEE_ADDRESS": "0x" + PAYEE.hex(),
        "LEDGER_URL": f"sqlite:///{folder / 'ledger.db'}",
        "SETTLEMENT_START": "false",
        **changes,
    }
    return load_config(environment={f"MPP_SESSION_{name}": text for name, text in values.items()})


@asynccontextmanager
async def serve_dashboard(folder: Path, **changes: str) -> AsyncIterator[Served]:
    """Serve one whose ledger is empty; `changes` as for `config_of`."""
    config = config_of(folder, **changes)
    ledger = await SqliteLedger.open(folder / "ledger.db", exclusive=True)
    journal = await open_journal(
        config.ledger.url, chain_id=config.chain.id, account=config.gas_account
    )
    feed, sales = Feed(), Sales(journal)
    engine = Engine(
        ledger=ledger,
        chain=ChainModel(),
        binder=ChallengeBinder([b"a secret of thirty-two bytes or more"]),
        settings=replace(SETTINGS, payee=PAYEE),
    )
    dashboard = Dashboard(
        config,
        ledger=ledger,
        engine=engine,
        journal=journal,
        sales=sales,
        feeds=Feeds(feed),
        access=Access(Secret(TOKEN)),
        unit=UNIT,
        prices=lambda: [PriceShown(model="*", endpoint="*", price="25 base units / llm_token")],
    )
    try:
        async with serve(build_admin(dashboard.routes)) as url:
            yield Served(url, feed, ledger, journal, sales, config)
    finally:
        await engine.aclose()
        await journal.close()
        await ledger.close()
