"""The demo of the rails from start to end: one endpoint, five clients of others and a session."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec

from channel.types import Address, TokenUnit
from channel.wire.encoding import format_address, format_checksum_address
from mpp_session.demo.chain_view import Movement, read_movements
from mpp_session.demo.child import Child, run_child
from mpp_session.demo.clients import (
    CLIENTS,
    Answer,
    Client,
    PayerTerms,
    pay,
    prepare,
    require_python,
)
from mpp_session.demo.rails_report import BookEntry, RailsReport, Sale, Wealth
from mpp_session.demo.shop import PATH, PRICE, UNIT
from mpp_session.errors import CommandError
from mpp_session.settings.config import bare_environment
from settlement.dev.devnet import Devnet
from settlement.dev.npm import Progress
from settlement.dev.usdc import DOMAIN_NAME, DOMAIN_VERSION

__all__ = ["Steps", "run_rails_demo"]

_DEPOSIT: Final = 100 * PRICE
_PATIENCE_S: Final = 60.0
_SETTINGS: Final = """\
[rails]
charge = true
wait_s = 60  # six programs start together, also on a slow machine
"""


class Steps(Protocol):
    """Shows the demo's progress."""

    def step(self, what: str, seconds: float) -> None:
        """Show that a step is done, and how long it took."""


async def run_rails_demo(
    screen: Steps, folder: Path, *, progress: Progress, cache: Path | None = None
) -> RailsReport:
    """Sell one endpoint to every client, concurrently, and return the figures.

    `folder` receives the ledger, the payer's store and the logs; `cache` the npm packages, if no
    checkout has them.

    Raises:
        AnvilError: Anvil, npm or a package of npm's is missing. The message says what to do.
        CommandError: A package of Python's is missing, the shop did not start, or `export` failed.
    """
    require_python()
    commands = await prepare(folder, progress=progress, cache=cache)
    async with AsyncExitStack() as open_:
        clock = _Clock(screen)
        chain = Devnet.start(token="usdc", progress=progress)  # noqa: S106 -- a token of value
        devnet = await open_.enter_async_context(chain)
        await asyncio.to_thread(devnet.values.write, folder / "devnet.json")
        for client in CLIENTS:
            await devnet.fund(devnet.account(client.name).address, amount=_DEPOSIT)
        clock.done("A local chain with Circle's USDC and six payers without ether")
        before, first_block = await _count(devnet), await devnet.rpc.block_number()
        async with _run_shop(folder) as shop:
            clock.done("The shop: one route that takes session, charge and x402")
            url = shop.found[1] + PATH
            answers = await asyncio.gather(
                *[
                    pay(
                        commands[client.is_npm],
                        client.name,
                        url,
                        _terms(devnet, client, folder),
                    )
                    for client in CLIENTS
                ]
            )
            clock.done("Six programs have paid, each in its own process")
            books = await _export(folder)
            clock.done("The shop's books")
        movements = await read_movements(devnet, after_block=first_block)
        after = await _count(devnet)
    sales = tuple(
        _sale(devnet, client, answer, movements, wealth=_wealth(before, after, client.name))
        for client, answer in zip(CLIENTS, answers, strict=True)
    )
    known = {one.tx_hash for sale in sales for one in sale.transactions}
    return RailsReport(
        token=TokenUnit(devnet.values.token_symbol, devnet.values.token_decimals),
        price=PRICE,
        sales=sales,
        payee=_wealth(before, after, "payee"),
        escrow=_wealth(before, after, "escrow"),
        strays=tuple(one.transaction for one in movements if one.transaction.tx_hash not in known),
        books=books,
    )


@asynccontextmanager
async def _run_shop(folder: Path) -> AsyncIterator[Child]:
    config = folder / "shop.toml"
    await asyncio.to_thread(config.write_text, _SETTINGS)
    command = [sys.executable, "-m", "mpp_session.demo.shop"]
    command += [str(config), str(folder / "devnet.json")]
    log, ready = folder / "shop.log", r"listening on (http://\S+)"
    environment = bare_environment()  # the user's settings are another shop's
    async with run_child(
        "the shop", command, log=log, ready=ready, timeout_s=_PATIENCE_S, env=environment
    ) as child:
        yield child


async def _export(folder: Path) -> tuple[BookEntry, ...]:
    """Return what `mpp-session export` says, as a provider asks it."""
    command = [sys.executable, "-m", "mpp_session.cli", "export", "--from=2020-01"]
    command += ["--format=jsonl", f"--devnet={folder / 'devnet.json'}"]
    process = await asyncio.create_subprocess_exec(
        *command,
        env=bare_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise CommandError(f"`mpp-session export` failed: {errors.decode(errors='replace')}")
    return tuple(msgspec.json.decode(line, type=BookEntry) for line in output.splitlines())


def _terms(devnet: Devnet, client: Client, folder: Path) -> PayerTerms:
    values = devnet.values
    return PayerTerms(
        key="0x" + devnet.account(client.name).private_key.hex(),
        chain_id=values.chain_id,
        token=format_checksum_address(values.token),
        token_name=DOMAIN_NAME,
        token_version=DOMAIN_VERSION,
        decimals=values.token_decimals,
        rpc_url=values.rpc_url,
        unit=UNIT,
        price=PRICE,
        store=str(folder / f"{client.name}.db"),
    )


async def _count(devnet: Devnet) -> dict[str, tuple[int, int]]:
    """Return the tokens and the ether of every account that matters."""
    accounts: dict[str, Address] = {
        client.name: devnet.account(client.name).address for client in CLIENTS
    }
    accounts |= {"payee": devnet.account("payee").address, "escrow": devnet.values.escrow}
    return {
        name: (await devnet.token_balance(address), await devnet.rpc.balance_wei(address))
        for name, address in accounts.items()
    }


def _wealth(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]], name: str
) -> Wealth:
    (tokens, wei), (tokens_after, wei_after) = before[name], after[name]
    return Wealth(tokens, tokens_after, wei, wei_after)


def _sale(
    devnet: Devnet,
    client: Client,
    answer: Answer,
    movements: list[Movement],
    *,
    wealth: Wealth,
) -> Sale:
    payer, payee = devnet.account(client.name).address, devnet.account("payee").address
    channel = answer.reference if client.rail == "session" else ""
    mine = [one for one in movements if one.involves(payer)]
    # A close pays the payee from the escrow: it is the session's because it refunds the payer.
    paying = {payer, devnet.values.escrow} if channel else {payer}
    return Sale(
        client=client.title,
        rail=client.rail,
        account=format_address(payer),
        status=answer.status,
        error=answer.error,
        reference=answer.reference,
        wealth=wealth,
        transactions=tuple(one.transaction for one in mine),
        arrived=sum(one.moved(sender, payee) for one in mine for sender in paying),
    )


class _Clock:
    def __init__(self, screen: Steps) -> None:
        self._screen = screen
        self._began = time.monotonic()

    def done(self, what: str) -> None:
        now = time.monotonic()
        self._screen.step(what, now - self._began)
        self._began = now
