"""Checks a provider's settings, keys, chain, books and settler, one by one.

`mpp-session doctor` shows the result. Each check states what it found, and a remedy if that is not
good. A check that needs another one's result is skipped when that one failed: one cause gives one
fault. Nothing is written, signed or sent, and no secret is in any text.
"""

import asyncio
import enum
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from channel.errors import ChainUnavailableError, ConfigError, LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.ledger.queries import TablesMissingError
from channel.ledger.url import find_sqlite_path, open_ledger
from mpp_session.agent.amounts import format_ether
from mpp_session.chain_watch import connect_escrow, node_limits
from mpp_session.keys import load_signer
from mpp_session.operator.status import Level, judge_views
from mpp_session.prices.table import PriceTable
from mpp_session.process.clock import require_clock
from mpp_session.settings import (
    DEVELOPMENT_CHAINS,
    Config,
    ProviderConfig,
    SettlerConfig,
    parse_address,
)
from settlement.escrow.payout_check import find_payout_obstacle
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_name import read_token_unit
from settlement.settle.exposure import gas_reserve_wei
from settlement.tx.journal.url import open_journal
from settlement.watch.health import HealthLimits

__all__ = ["Check", "Verdict", "check_watchtower", "examine", "unreadable"]

_DISK_BYTES_MIN: Final = 1024**3
_LOOK_S_MAX: Final = 120
_TOWER_S_MAX: Final = 180
"""The settler writes a line each minute, if only to show that it writes."""
_READABLE_BY_OTHERS: Final = 0o077


class Verdict(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    ADVICE = "advice"
    """It works, and could be better or safer."""
    FAULT = "fault"
    """The gateway would not start, or would lose money or customers."""
    SKIPPED = "skipped"
    """It could not be looked at."""


class Check(msgspec.Struct, frozen=True):
    """One check: what was looked at, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def unreadable(error: ConfigError) -> list[Check]:
    """Return the only check of settings that are invalid."""
    remedy = "correct the setting; docs/reference/configuration.md lists them all"
    return [Check("settings", Verdict.FAULT, str(error), remedy)]


async def examine(config: ProviderConfig, path: Path | None) -> AsyncIterator[Check]:
    """Yield the checks of settings that are valid, in the order in which to mend faults.

    `path` is the file of the settings. Never raises for what is wrong at the provider.
    """
    yield _settings(config, path)
    yield _secrets(config, path)
    yield await _key(config)
    async with _connect(config) as (reader, fault):
        if reader is None:
            yield Check("nodes", Verdict.FAULT, fault, _NODES)
            for name in ("clock", "escrow", "token", "price", "gas"):
                yield Check(name, Verdict.SKIPPED, "no node answers")
        else:
            for name, check in _CHAIN_CHECKS:
                try:
                    yield await check(config, reader)
                except ChainUnavailableError as error:
                    yield Check(name, Verdict.FAULT, str(error), _NODES)
    yield _disk(config)
    yield await _books(config)
    yield await _settler(config)
    yield await asyncio.to_thread(check_watchtower, config)


_NODES: Final = "check `chain.rpc_url` and `chain.id`, and that the node can be reached from here"


def _settings(config: ProviderConfig, path: Path | None) -> Check:
    where = "environment and flags" if path is None else str(path)
    return Check("settings", Verdict.OK, f"{where}: realm {config.payment.realm}")


def _secrets(config: ProviderConfig, path: Path | None) -> Check:
    secrets = [secret.reveal() for secret in config.payment.secrets]
    if any(len(set(secret)) < 8 for secret in secrets):  # noqa: PLR2004
        return Check(
            "secrets",
            Verdict.FAULT,
            "a secret of challenges repeats a few characters",
            "make a random one: openssl rand -hex 32",
        )
    exposed = path if path is not None and _is_exposed(path) else None
    if exposed is not None and any(secret in exposed.read_text("utf-8") for secret in secrets):
        return Check(
            "secrets",
            Verdict.ADVICE,
            f"{exposed} holds secrets, and other users of this machine can read it",
            f"chmod 600 {exposed}",
        )
    return Check("secrets", Verdict.OK, f"{len(secrets)}, the first one signs")


def _is_exposed(path: Path) -> bool:
    return bool(path.stat().st_mode & _READABLE_BY_OTHERS)


async def _key(config: SettlerConfig) -> Check:
    if not config.settlement.start:
        return Check("key", Verdict.SKIPPED, "the settler runs elsewhere (settlement.start)")
    account = config.relayer if config.relayer.address is not None else config.payee
    try:
        signer = await asyncio.to_thread(load_signer, account)
    except ConfigError as error:
        return Check("key", Verdict.FAULT, str(error), "`mpp-session keygen` makes a keystore")
    for file in (account.keystore_file, account.password_file):
        if file is not None and _is_exposed(Path(file)):
            return Check(
                "key",
                Verdict.ADVICE,
                f"other users of this machine can read {file}",
                f"chmod 600 {file}",
            )
    return Check("key", Verdict.OK, f"signs for 0x{signer.address.hex()}")


@asynccontextmanager
async def _connect(config: ProviderConfig) -> AsyncIterator[tuple[EscrowReader | None, str]]:
    async with AsyncExitStack() as open_:
        try:
            reader = await open_.enter_async_context(connect_escrow(config.chain))
        except (ConfigError, ChainUnavailableError) as error:
            yield None, str(error)
        else:
            yield reader, ""


async def _nodes(config: ProviderConfig, reader: EscrowReader) -> Check:
    chain = config.chain
    views = await reader.rpc.compare_nodes(depth=node_limits(chain).compare_depth)
    findings = judge_views(views, Level.CRITICAL)
    if findings:
        worst = max(finding.level for finding in findings)
        verdict = Verdict.FAULT if worst is Level.CRITICAL else Verdict.ADVICE
        found = "; ".join(finding.text for finding in findings)
        return Check("nodes", verdict, found, "mend that node, or take it out of the settings")
    found = f"{len(views)} of chain {reader.chain_id} agree"
    if len(views) == 1 and chain.id not in DEVELOPMENT_CHAINS:
        return Check(
            "nodes",
            Verdict.ADVICE,
            f"one of chain {reader.chain_id}, and its answers are trusted",
            "name two more of other operators in `chain.more_rpc_urls`",
        )
    return Check("nodes", Verdict.OK, found)


async def _clock(config: ProviderConfig, reader: EscrowReader) -> Check:
    block, wall = await reader.rpc.block(), time.time()
    try:
        require_clock(block.timestamp, chain_id=config.chain.id, wall=wall)
    except ConfigError as error:
        return Check("clock", Verdict.FAULT, str(error), "timedatectl set-ntp true")
    return Check("clock", Verdict.OK, f"{wall - block.timestamp:+.0f} s from the newest block")


async def _escrow(config: ProviderConfig, reader: EscrowReader) -> Check:
    try:
        await reader.require_deployment(token=parse_address(config.chain.token))
    except ConfigError as error:
        remedy = "take `chain.escrow` and `chain.token` from the output of `mpp-session deploy`"
        return Check("escrow", Verdict.FAULT, str(error), remedy)
    grace_s = await reader.read_grace_period_s()
    return Check("escrow", Verdict.OK, f"0x{reader.escrow.hex()}, grace period {grace_s} s")


async def _token(config: ProviderConfig, reader: EscrowReader) -> Check:
    token, payee = parse_address(config.chain.token), parse_address(config.payee.address)
    why = await find_payout_obstacle(reader, token, payee, owed=0)
    if why is not None:
        return Check(
            "token",
            Verdict.FAULT,
            f"it would not pay 0x{payee.hex()}: {why}",
            "use another payee, or ask the token's issuer",
        )
    unit = await read_token_unit(reader.rpc, token)
    if unit is None:
        return Check(
            "token",
            Verdict.ADVICE,
            f"0x{token.hex()} states no symbol or decimals: amounts are shown in base units",
            "check `chain.token`",
        )
    return Check("token", Verdict.OK, f"{unit.symbol}, {unit.decimals} decimals")


async def _price(config: ProviderConfig, reader: EscrowReader) -> Check:
    if not isinstance(config, Config):
        return Check("price", Verdict.SKIPPED, "the application has its own prices")
    unit = await read_token_unit(reader.rpc, parse_address(config.chain.token))
    try:
        if config.price is not None:
            config.price.tariff(unit)  # its errors name `[price]`; the table's name a row
        table = PriceTable(config.price_rows, unit)
    except ConfigError as error:
        return Check("price", Verdict.FAULT, str(error), 'write it as `output = "0.40"`')
    return Check("price", Verdict.OK, table.describe())


async def _gas(config: ProviderConfig, reader: EscrowReader) -> Check:
    account = config.gas_account
    block = await reader.rpc.block()
    balance = await reader.rpc.balance_wei(account)
    limits = HealthLimits(closes_reserved_min=config.exposure.closes_reserved_min)
    needed = gas_reserve_wei(
        limits.closes_reserved_min,
        gas_per_close=limits.gas_per_close,
        base_fee_wei=block.base_fee_wei or 0,
    )
    found = f"0x{account.hex()} holds {format_ether(balance)}"
    if balance < needed:
        return Check(
            "gas",
            Verdict.FAULT,
            f"{found}; {format_ether(needed)} are kept to close channels in time",
            f"send at least {format_ether(needed - balance)} to 0x{account.hex()}",
        )
    return Check("gas", Verdict.OK, found)


_CHAIN_CHECKS: Final[
    tuple[tuple[str, Callable[[ProviderConfig, EscrowReader], Awaitable[Check]]], ...]
] = (
    ("nodes", _nodes),
    ("clock", _clock),
    ("escrow", _escrow),
    ("token", _token),
    ("price", _price),
    ("gas", _gas),
)


def _disk(config: ProviderConfig) -> Check:
    path = find_sqlite_path(config.ledger.url)
    if path is None:
        return Check("disk", Verdict.SKIPPED, "the books are in PostgreSQL")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Check(
            "disk",
            Verdict.FAULT,
            f"this user cannot write in {folder}",
            f"mkdir -p {folder}, and give it to the gateway's user",
        )
    free = shutil.disk_usage(folder).free
    if free < _DISK_BYTES_MIN:
        return Check(
            "disk",
            Verdict.FAULT,
            f"{free // 1024**2} MiB are free in {folder}",
            f"free at least {_DISK_BYTES_MIN // 1024**2} MiB, or move `ledger.url`",
        )
    return Check("disk", Verdict.OK, f"{free / 1024**3:.0f} GiB free in {folder}")


def _new_file(config: ProviderConfig) -> Path | None:
    """Return the file that the first start makes; None if it is there, or no file."""
    path = find_sqlite_path(config.ledger.url)
    return path if path is not None and not path.exists() else None


async def _books(config: ProviderConfig) -> Check:
    path = _new_file(config)
    if path is not None:
        return Check("books", Verdict.OK, f"none yet: the first start makes {path}")
    try:
        ledger = await open_ledger(config.ledger.url, exclusive=False, read_only=True)
    except TablesMissingError:
        return Check("books", Verdict.OK, "the database is empty: the first start fills it")
    except (ConfigError, LedgerUnavailableError) as error:
        return Check("books", Verdict.FAULT, str(error), "check `ledger.url` and the database")
    try:
        return await _look(ledger)
    finally:
        await ledger.close()


async def _look(ledger: Ledger) -> Check:
    try:
        found = await ledger.look()
    except LedgerUnavailableError as error:
        return Check("books", Verdict.FAULT, str(error), "check `ledger.url` and the database")
    if found.fault is not None:
        remedy = "a commit must mean `on disk`: see the alarm in docs/guide/operating.md"
        return Check("books", Verdict.FAULT, found.fault, remedy)
    if found.warning is not None:
        return Check("books", Verdict.ADVICE, found.warning, "make the standby synchronous")
    return Check("books", Verdict.OK, "they open, and a commit is on disk when it is acknowledged")


async def _settler(config: ProviderConfig) -> Check:
    if _new_file(config) is not None:
        return Check("settler", Verdict.SKIPPED, "none ever ran on these books")
    try:
        journal = await open_journal(
            config.ledger.url,
            chain_id=config.chain.id,
            account=config.gas_account,
            read_only=True,
        )
    except TablesMissingError:
        return Check("settler", Verdict.SKIPPED, "none ever ran on these books")
    except (ConfigError, LedgerUnavailableError) as error:
        return Check("settler", Verdict.SKIPPED, str(error))
    try:
        holder, look = await journal.lease_holder(), await journal.last_look()
    finally:
        await journal.close()
    if holder is None:
        return Check(
            "settler",
            Verdict.ADVICE,
            "none runs: no channel is settled, and no close request of a payer is answered",
            "start `mpp-session gateway`, or `mpp-session settle` where the key is",
        )
    age_s = None if look is None else int(time.time() - look.looked_at)
    if age_s is None or age_s > _LOOK_S_MAX:
        return Check(
            "settler",
            Verdict.FAULT,
            f"{holder} has not seen the chain for {age_s} s",
            "see the alarm in docs/guide/operating.md",
        )
    return Check("settler", Verdict.OK, f"{holder}, looked {age_s} s ago")


def check_watchtower(config: ProviderConfig) -> Check:
    """Look at the file that a watchtower on another machine gets copies of. Reads a file."""
    name, file = "watchtower", config.tower.export_file
    if file is None:
        if config.chain.id in DEVELOPMENT_CHAINS:
            return Check(name, Verdict.SKIPPED, "a development chain needs none")
        return Check(
            name,
            Verdict.ADVICE,
            "none: while no settler runs for a grace period, payers take back what they owe",
            "set `tower.export_file`, and run `mpp-session settle --watchtower` on another machine",
        )
    try:
        age_s = int(time.time() - Path(file).stat().st_mtime)
    except FileNotFoundError:
        if _new_file(config) is not None:
            return Check(name, Verdict.SKIPPED, f"the settler's first start makes {file}")
        age_s = None
    except OSError as error:
        return Check(
            name,
            Verdict.FAULT,
            f"{file} cannot be read: {error.strerror}",
            f"give {file} to the user of settler and doctor",
        )
    if age_s is None or age_s > _TOWER_S_MAX:
        old = "is missing" if age_s is None else f"got no line for {age_s} s"
        return Check(
            name,
            Verdict.FAULT,
            f"{file} {old}: a watchtower knows of no newer voucher",
            "start `mpp-session settle`; if it runs, see `tower-unfed` in docs/guide/operating.md",
        )
    return Check(name, Verdict.OK, f"{file} got its last line {age_s} s ago")
