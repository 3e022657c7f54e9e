"""A provider's accounts of a period: charges and payments from the ledger, the rest from the chain.

Everything is read a page at a time and yielded in order of time, charges first. Amounts are base
units, gas is wei. Closed entries never change: an entry of the ledger has the time of its commit,
one of the chain that of its block.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec

from channel.ledger.accounts import DAY_S, ChargeDay, ChargeRow
from channel.ledger.interface import Ledger
from channel.types import Address, TokenUnit, TxHash
from settlement.charge.orders.interface import ChargeOrder, ChargeOrders
from settlement.escrow.reader import EscrowReader
from settlement.node import questions
from settlement.node.rpc import Rpc
from settlement.tx.journal.interface import SettlerJournal
from settlement.types import ChannelClosedLog, Log, SettledLog

__all__ = [
    "COLUMNS",
    "Bucket",
    "Entry",
    "Period",
    "Sums",
    "describe_entry",
    "format_time",
    "read_chain",
    "read_charges",
    "read_payments",
]

Bucket: TypeAlias = Literal["day", "month"]
Kind: TypeAlias = Literal["charge", "payment", "settlement", "close", "refund", "gas"]


class Period(msgspec.Struct, frozen=True):
    """From a time to before another, in Unix seconds."""

    since: int
    until: int

    def holds(self, at: int) -> bool:
        """Whether a time is in it."""
        return self.since <= at < self.until


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an export."""

    kind: Kind
    at: int
    """Unix seconds; for a day of old charges, its beginning."""
    chain_id: int
    amount: int
    """Base units of the token; wei for gas."""
    token: Address | None = None
    """None for gas."""
    requests: int = 0
    model: str = ""
    route: str = ""
    outcome: str = ""
    """Of a charge, as in the ledger. Of a payment: `served` or `credit`. Of gas: `mined` or
    `reverted`."""
    usage: Mapping[str, int] | None = None
    request_id: str = ""
    response_id: str = ""
    channel_id: bytes = b""
    payer: bytes = b""
    payee: bytes = b""
    tx_hash: bytes = b""
    block_number: int | None = None
    gas_used: int | None = None


COLUMNS: Final = (
    *("kind", "at", "chain_id", "amount", "symbol", "base_units", "token", "requests", "model"),
    *("route", "outcome", "usage", "request_id", "response_id", "channel_id", "payer", "payee"),
    *("transaction", "block", "gas_used"),
)
"""The names in `describe_entry`, in order."""

_ETHER: Final = TokenUnit("ether", 18)


def describe_entry(entry: Entry, units: Mapping[Address, TokenUnit]) -> dict[str, Any]:
    """Return an entry by the names of `COLUMNS`: texts and numbers, None for what is unknown.

    `amount` is an exact decimal of the whole token, without it where no node names the decimals;
    `base_units` is always there, a text because it may exceed what a program reads as a number.
    """
    unit = _ETHER if entry.token is None else units.get(entry.token)
    return {
        "kind": entry.kind,
        "at": format_time(entry.at),
        "chain_id": entry.chain_id,
        "amount": None if unit is None else _decimal(entry.amount, unit.decimals),
        "symbol": None if unit is None else unit.symbol,
        "base_units": str(entry.amount),
        "token": _hex(entry.token),
        "requests": entry.requests or None,
        "model": entry.model or None,
        "route": entry.route or None,
        "outcome": entry.outcome or None,
        "usage": None if entry.usage is None else dict(entry.usage),
        "request_id": entry.request_id or None,
        "response_id": entry.response_id or None,
        "channel_id": _hex(entry.channel_id),
        "payer": _hex(entry.payer),
        "payee": _hex(entry.payee),
        "transaction": _hex(entry.tx_hash),
        "block": entry.block_number,
        "gas_used": entry.gas_used,
    }


class Sums:
    """Adds entries up by day or month, kind, token and model. Memory: one entry for each sum."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._sums: dict[tuple[Any, ...], Entry] = {}

    def add(self, entry: Entry) -> None:
        """Add one entry."""
        at = _begin_of(entry.at, self._bucket)
        key = (at, entry.kind, entry.chain_id, entry.token or b"", entry.model)
        known = self._sums.get(key)
        gas = entry.gas_used
        if known is not None and gas is not None:
            gas += known.gas_used or 0
        self._sums[key] = Entry(
            kind=entry.kind,
            at=at,
            chain_id=entry.chain_id,
            amount=entry.amount + (0 if known is None else known.amount),
            token=entry.token,
            requests=entry.requests + (0 if known is None else known.requests),
            model=entry.model,
            usage=_add_usage(None if known is None else known.usage, entry.usage),
            gas_used=gas,
        )

    def entries(self) -> Iterable[Entry]:
        """Return the sums in order of time, kind, token and model."""
        return [self._sums[key] for key in sorted(self._sums)]


async def read_charges(
    ledger: Ledger, period: Period, payee: Address | None = None
) -> AsyncIterator[Entry]:
    """Yield the charges of a period, of one payee or of all: old days first, then each request.

    A day of deleted entries counts whole if it begins in the period.
    """
    first, last = -(-period.since // DAY_S), -(-period.until // DAY_S)
    for day in await ledger.list_charge_days(first, last):
        if payee is None or day.id.payee == payee:
            yield _day_entry(day)
    after: ChargeRow | None = None
    while page := await ledger.list_charges(period.since, period.until, after=after):
        for row in page:
            if payee is None or row.payee == payee:
                yield _charge_entry(row)
        after = page[-1]


async def read_payments(
    orders: ChargeOrders, period: Period, *, chain_id: int, token: Address, payee: Address
) -> AsyncIterator[Entry]:
    """Yield the single payments of a period, each at the time at which it was ordered.

    What was paid and not served yet is its payer's credit.
    """
    after: ChargeOrder | None = None
    while page := await orders.list_made(period.since, period.until, after=after):
        for order in page:
            yield Entry(
                kind="payment",
                at=order.wanted_at,
                chain_id=chain_id,
                amount=order.amount,
                token=token,
                requests=int(order.is_served),
                outcome="served" if order.is_served else "credit",
                payer=order.funder,
                payee=payee,
                tx_hash=order.tx_hash or b"",
            )
        after = page[-1]


async def read_chain(
    reader: EscrowReader,
    journal: SettlerJournal | None,
    period: Period,
    *,
    payee: Address,
    token: Address,
    accounts: frozenset[Address],
) -> AsyncIterator[Entry]:
    """Yield settlements, closes and refunds of a payee in a period, and the gas of its accounts.

    A settlement or close is what the payee was paid by it; a refund is what went back to the payer.
    Gas is of each transaction that one of `accounts` sent for them, and of every other one that
    the journal still has, such as a reverted one or a payer's deposit.

    Raises:
        ChainUnavailableError: No node answers, or none has such old blocks.
    """
    blocks = _Blocks(reader.rpc)
    first, last = await blocks.span(period)
    seen: set[bytes] = set()
    settled: dict[bytes, int] = {}
    async for log, event in reader.find_payouts(payee, from_block=first, to_block=last):
        at = await blocks.time_of(log.block_number)
        common = {
            "at": at,
            "chain_id": reader.chain_id,
            "token": token,
            "channel_id": event.channel_id,
            "payer": log.topics[2][12:],
            "payee": payee,
            "tx_hash": log.tx_hash,
            "block_number": log.block_number,
        }
        for entry in await _payouts(reader, log, event, settled, common):
            yield entry
        if log.tx_hash not in seen:
            seen.add(log.tx_hash)
            gas = await _gas(reader, log.tx_hash, accounts, at)
            if gas is not None:
                yield gas
    for tx in [] if journal is None else await journal.sent_since(0):
        mined = tx.inclusion
        if mined is None or mined.tx_hash in seen or not first <= mined.block_number <= last:
            continue
        gas = await _gas(reader, mined.tx_hash, accounts, await blocks.time_of(mined.block_number))
        if gas is not None:
            yield gas


async def _payouts(
    reader: EscrowReader,
    log: Log,
    event: SettledLog | ChannelClosedLog,
    settled: dict[bytes, int],
    common: Mapping[str, Any],
) -> list[Entry]:
    if isinstance(event, SettledLog):
        settled[event.channel_id] = event.settled
        return [Entry(kind="settlement", amount=event.paid, **common)]
    before = settled.pop(event.channel_id, None)
    if before is None:
        before = await reader.find_settled_before(log)
    return [
        Entry(kind="close", amount=event.settled - before, **common),
        Entry(kind="refund", amount=event.refunded, **common),
    ]


async def _gas(
    reader: EscrowReader, tx_hash: TxHash, accounts: frozenset[Address], at: int
) -> Entry | None:
    """Return what one of the accounts paid for a transaction; None if another account sent it."""
    receipt = await reader.rpc.receipt(tx_hash)
    method, params = questions.transaction(tx_hash)
    sent = await reader.rpc.read(method, *params)
    sender = bytes.fromhex(str(sent["from"])[2:]) if isinstance(sent, dict) else b""
    if receipt is None or sender not in accounts:
        return None
    return Entry(
        kind="gas",
        at=at,
        chain_id=reader.chain_id,
        amount=receipt.cost_wei,
        outcome="mined" if receipt.is_success else "reverted",
        payer=sender,
        tx_hash=tx_hash,
        block_number=receipt.block_number,
        gas_used=receipt.gas_used,
    )


class _Blocks:
    """Times of blocks, each read once."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._times: dict[int, int] = {}

    async def time_of(self, number: int) -> int:
        if number not in self._times:
            self._times[number] = (await self._rpc.block(number)).timestamp
        return self._times[number]

    async def span(self, period: Period) -> tuple[int, int]:
        """Return the first and the last block of a period; the first is above the last if none."""
        head = await self._rpc.block_number()
        first = await self._first_from(period.since, head)
        return first, await self._first_from(period.until, head) - 1

    async def _first_from(self, at: int, head: int) -> int:
        """Return the first block at or after a time; the one after the head if there is none."""
        low, high = 0, head + 1
        while low < high:
            middle = (low + high) // 2
            if await self.time_of(middle) >= at:
                high = middle
            else:
                low = middle + 1
        return low


def _charge_entry(row: ChargeRow) -> Entry:
    is_request = bool(row.reservation_id)
    return Entry(
        kind="charge",
        at=row.at,
        chain_id=row.key.chain_id,
        amount=row.amount,
        token=row.token,
        requests=int(is_request),
        model=row.variant,
        route=row.route,
        outcome=row.outcome.value,
        usage=row.usage,
        request_id=f"gen-{row.reservation_id.hex()}" if is_request else "",
        response_id=row.response_id,
        channel_id=row.key.channel_id,
        payer=row.payer,
        payee=row.payee,
    )


def _day_entry(day: ChargeDay) -> Entry:
    one = day.id
    return Entry(
        kind="charge",
        at=one.day * DAY_S,
        chain_id=one.chain_id,
        amount=day.amount,
        token=Address(one.token),
        requests=day.requests,
        model=one.variant,
        route=one.route,
        outcome=one.outcome,
        usage=day.usage or None,
        payee=one.payee,
    )


def _add_usage(
    known: Mapping[str, int] | None, more: Mapping[str, int] | None
) -> Mapping[str, int] | None:
    if known is None or more is None:
        return more if known is None else known
    return {kind: known.get(kind, 0) + more.get(kind, 0) for kind in sorted({*known, *more})}


def _begin_of(at: int, bucket: Bucket) -> int:
    moment = datetime.fromtimestamp(at, UTC)
    day = moment.replace(hour=0, minute=0, second=0)
    return int((day if bucket == "day" else day.replace(day=1)).timestamp())


def format_time(at: int) -> str:
    """Return Unix seconds as RFC 3339 in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _decimal(amount: int, decimals: int) -> str:
    whole, part = divmod(amount, 10**decimals)
    return f"{whole}.{part:0{decimals}d}" if decimals else str(whole)


def _hex(value: bytes | None) -> str | None:
    return f"0x{value.hex()}" if value else None
