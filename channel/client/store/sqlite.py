"""The agent's payment store: what was signed, durable before it is sent (CLIENT-06, F-96).

One SQLite file in WAL mode with synchronous=FULL, readable by its owner alone. Every change is one
`BEGIN IMMEDIATE` transaction that reads the row, lets a pure function decide and writes the result.
It runs completely in the store's own thread, so a cancelled caller never leaves half of one, and
two processes that share the file see each other's amounts. Only one of them uses a channel (see
`locks`).
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from channel.client.policy.budget import Bound, Budget, LockedBudget, require_within
from channel.client.policy.context import PaymentContext
from channel.client.store.charge import ChargeRecord
from channel.client.store.guard import Guard
from channel.client.store.locks import ChannelLocks
from channel.client.store.record import ChannelRecord, Scope
from channel.errors import AgentError, BudgetExceededError, OfferRefusedError, StoreError, WireError
from channel.files import create_own
from channel.sql import parse_queries
from channel.types import Address, ChannelId, ChannelKey, ChannelTerms, TxHash
from channel.wire.funding import (
    Deposit,
    parse_deposit,
)

__all__ = ["PaymentStore"]

T = TypeVar("T")

AMOUNT_BYTES = 16
BUSY_TIMEOUT_S = 5.0
OPEN_PAUSE_S = 0.01
MINUTE_S = 60
KEEP_S = 400 * 24 * 3600
SCHEMA_VERSION = 5

_SQL = resources.files("channel.client.store") / "sql"
_SCHEMA = (_SQL / "schema.sql").read_text()
_UPGRADES = (
    (1, 1, (_SQL / "upgrade_2.sql").read_text()),
    (1, 2, (_SQL / "upgrade_3.sql").read_text()),
    (1, 4, (_SQL / "upgrade_5.sql").read_text()),
    (4, 4, (_SQL / "upgrade_5_charge.sql").read_text()),
)
"""The first and last schema to which each applies."""
_QUERIES = parse_queries((_SQL / "queries.sql").read_text())


class PaymentStore:
    """Open it with `await PaymentStore.open(path)` and close it with `await store.close()`.

    Every method may raise `StoreError`, and then nothing was stored.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor
    ) -> None:
        self._path = path
        self._connection = connection
        self._thread = thread
        self._locks: ChannelLocks | None = None
        self._agent: str | None = None
        self._guard: Guard | None = None
        self._is_view = False

    def for_agent(self, agent: str, guard: Guard | None = None) -> "PaymentStore":
        """Return the same file as one agent uses it: its own channels and charges only.

        Args:
            agent: Its name, which is stored with its channels.
            guard: Agrees to everything that the agent is about to pay.
        """
        view = PaymentStore(self._path, self._connection, self._thread)
        view._agent, view._guard, view._is_view = agent, guard, True
        return view

    @classmethod
    async def open(cls, path: Path | str) -> Self:
        """Open or create the file, with mode 0600.

        Raises:
            StoreError: It cannot be opened, is not a payment store, or a newer version wrote it.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="payment-store")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(
                thread, _connect, Path(path)
            )
        except (sqlite3.Error, OSError) as error:
            thread.shutdown(wait=False)
            raise StoreError(
                f"the payment store cannot be opened: {error}; check its path and its owner"
            ) from error
        except StoreError:
            thread.shutdown(wait=False)
            raise
        return cls(Path(path), connection, thread)

    async def close(self) -> None:
        """Close the file. Committed changes stay, and other clients may use the channels.

        One agent's view only releases that agent's channels: others use the same file.
        """
        await self._run(self._close)
        if not self._is_view:
            self._thread.shutdown(wait=False)

    async def claim(self, key: ChannelKey) -> bool:
        """Return whether this client may use a channel, until it closes its store.

        No store records what is in flight: if two clients spent from one channel, each would take
        what the other one buys for an overclaim.
        """

        def take() -> bool:
            if self._locks is None:
                self._locks = ChannelLocks(self._path.with_name(f"{self._path.name}-claims"))
            return self._locks.take(key)

        return await self._run(take)

    def _close(self) -> None:
        if not self._is_view:
            self._connection.close()
        if self._locks is not None:
            self._locks.close()
            self._locks = None

    async def load(self, key: ChannelKey) -> ChannelRecord | None:
        """Return one channel, or None."""
        return await self._run(lambda: self._load(key))

    async def get(self, key: ChannelKey) -> ChannelRecord:
        """Return one channel that must exist; `StoreError` if it does not."""
        return await self._run(lambda: self._require(key))

    async def records(self) -> list[ChannelRecord]:
        """Return every channel, oldest first."""
        return await self._run(lambda: self._select("load_accounts", {"agent": self._agent}))

    async def live_records(self, origin: str) -> list[ChannelRecord]:
        """Return the channels of an origin that still hold a deposit, oldest first."""
        values = {"origin": origin, "agent": self._agent}
        return await self._run(lambda: self._select("load_live_accounts", values))

    async def add(
        self,
        record: ChannelRecord,
        *,
        channels_max: int,
        locked: LockedBudget,
        context: PaymentContext | None = None,
    ) -> None:
        """Store a new channel, before anything about it leaves this process.

        Raises:
            BudgetExceededError: The origin already has `channels_max` channels with a deposit, or
                too much would lie in deposits.
        """

        def change() -> None:
            live = [
                other
                for other in self._select(
                    "load_live_accounts", {"origin": record.origin, "agent": self._agent}
                )
                if other.terms.token == record.terms.token
            ]
            if len(live) >= channels_max:
                raise BudgetExceededError(
                    limit="channels_per_origin_max",
                    asked=len(live) + 1,
                    allowed=channels_max,
                    origin=record.origin,
                )
            require_within(self._locked(record, locked), record.locked, record.origin)
            if self._guard is not None:
                self._guard.deposit(self._connection, None, record, context)
            self._store(record)

        await self._transact(change, context)

    async def update(
        self,
        key: ChannelKey,
        change: Callable[[ChannelRecord], ChannelRecord],
        *,
        locked: LockedBudget | None = None,
        context: PaymentContext | None = None,
    ) -> ChannelRecord:
        """Replace a channel by the result of `change`, and return that.

        If `change` raises, nothing is stored and this raises the same. What was received for a
        channel's deposit makes room for its own top-ups, so that it can continue.

        Raises:
            BudgetExceededError: Deposits would grow, and exceed `locked`.
        """

        def run() -> ChannelRecord:
            before = self._require(key)
            after = change(before)
            is_deposit = locked is not None and after.locked > before.locked
            if locked is not None and is_deposit:
                increase = after.locked - before.locked
                bounds = self._locked(before, locked, used_up=before.received)
                require_within(bounds, increase, before.origin)
            if after != before:
                if self._guard is not None and is_deposit:
                    self._guard.deposit(self._connection, before, after, context)
                elif self._guard is not None:
                    self._guard.change(self._connection, before, after)
                self._store(after)
            return after

        return await self._transact(run, context)

    async def sign_for(
        self,
        key: ChannelKey,
        choose: Callable[[ChannelRecord, int], int],
        *,
        budget: Budget,
        now: float,
        context: PaymentContext | None = None,
    ) -> ChannelRecord:
        """Raise `signed` to what `choose` returns for the channel and the rest of the budget.

        When this returns, the amount is on disk, and only then may it be signed and sent. An
        amount at or below `signed` changes nothing. If the guard refuses an amount that looks
        ahead, it is asked for the least one.

        Raises:
            BudgetExceededError: It would exceed the budget for the window (F-96).
            AgentError: As the guard raises.
        """

        def run() -> ChannelRecord:
            before = self._require(key)
            bounds = self._guarded_bounds(_purpose(before), budget, now)

            def sign(amount: int) -> ChannelRecord:
                return self._sign(before, amount, bounds, budget=budget, now=now, context=context)

            amount = choose(before, min(bound.left for bound in bounds))
            if self._guard is None:
                return sign(amount)
            self._connection.execute("SAVEPOINT ahead")
            try:
                return sign(amount)
            except AgentError:
                least = choose(before, 0)
                if least == amount:
                    raise
                self._connection.execute("ROLLBACK TO ahead")
            return sign(least)

        return await self._transact(run, context)

    def _sign(
        self,
        before: ChannelRecord,
        amount: int,
        bounds: list[Bound],
        *,
        budget: Budget,
        now: float,
        context: PaymentContext | None,
    ) -> ChannelRecord:
        after = before
        if amount > before.signed:
            increase = amount - before.signed
            require_within(bounds, increase, before.origin)
            if not self._leaves_to_guard(budget):
                self._count(_purpose(before), increase, budget, now)
            after = replace(before, signed=amount, vouchers=before.vouchers + 1)
        if self._guard is not None:
            self._guard.sign(self._connection, before, after, context)
        if after.signed != before.signed:
            values = {"signed": _pack(after.signed), "vouchers": after.vouchers}
            self._execute("store_signed", _key_columns(after.key) | values)
        return after

    async def permit(self, record: ChannelRecord, context: PaymentContext) -> None:
        """Ask the guard again, before a deposit that it agreed to is signed or sent anew.

        Raises:
            AgentError: As the guard raises.
        """
        guard = self._guard
        if guard is not None:
            await self._transact(
                lambda: guard.deposit(self._connection, record, record, context), context
            )

    async def add_charge(
        self,
        record: ChargeRecord,
        *,
        budget: Budget,
        now: float,
        context: PaymentContext | None = None,
    ) -> None:
        """Store a charge and count it towards the budget, before it is signed.

        Raises:
            BudgetExceededError: It would exceed the budget for the window (F-96).
            OfferRefusedError: A charge with this nonce was signed before.
        """

        def change() -> None:
            if self._execute("has_charge", _charge_key(record) | {"agent": self._agent}):
                raise OfferRefusedError(
                    field="payment of",
                    asked="an offer that was answered before",
                    allowed="a fresh one",
                    origin=record.origin,
                )
            purpose = _charge_purpose(record)
            bounds = self._guarded_bounds(purpose, budget, now)
            require_within(bounds, record.amount, record.origin)
            if not self._leaves_to_guard(budget):
                self._count(purpose, record.amount, budget, now)
            if self._guard is not None:
                self._guard.charge(self._connection, record, context)
            since = int(now - max(KEEP_S, budget.window_s))
            self._execute("delete_charges", {"since": since})
            self._execute("store_charge", self._charge_row(record))

        await self._transact(change, context)

    async def update_charge(self, record: ChargeRecord) -> None:
        """Replace credential, state and reference of a stored charge."""
        await self._transact(lambda: self._execute("store_charge", self._charge_row(record)))

    async def charges_for(self, purchase: bytes) -> list[ChargeRecord]:
        """Return the charges that were planned for a request, oldest first."""
        values = {"purchase": purchase, "agent": self._agent}
        rows = await self._run(lambda: self._execute("load_charges_for", values))
        return [_from_charge_row(row) for row in rows]

    async def charges(self) -> list[ChargeRecord]:
        """Return every charge, oldest first."""
        rows = await self._run(lambda: self._execute("load_charges", {"agent": self._agent}))
        return [_from_charge_row(row) for row in rows]

    async def has_paid(self, origin: str, *, since: float) -> bool:
        """Return whether an origin has a channel, or was paid for a request since then."""
        values = {"origin": origin, "since": int(since), "agent": self._agent}
        return bool(await self._run(lambda: self._execute("has_paid", values)))

    def _count(
        self, purpose: Mapping[str, object], increase: int, budget: Budget, now: float
    ) -> None:
        """Add what will be signed to its minute, and forget minutes that no window reaches."""
        minute = int(now // MINUTE_S)
        packed = _pack(self._minutes(purpose, now).get(minute, 0) + increase)
        self._execute("store_minute", {**purpose, "minute": minute, "amount": packed})
        since = now - max(KEEP_S, budget.window_s)
        self._execute("delete_minutes", {"since": int(since // MINUTE_S)})

    async def locked_left(self, record: ChannelRecord, locked: LockedBudget) -> int:
        """Return how much more may be deposited in a channel, which need not be stored yet.

        A deposit that is not needed yet takes half of it, to leave room for others.
        """

        def run() -> int:
            bounds = self._locked(record, locked, used_up=record.received)
            return min(bound.left for bound in bounds)

        return await self._run(run)

    def _locked(
        self, record: ChannelRecord, locked: LockedBudget, *, used_up: int = 0
    ) -> list[Bound]:
        """Return the bounds of the next deposit, less what is used up of earlier deposits."""
        purpose = _purpose(record)
        records = self._select("load_locked_accounts", purpose)
        own = sum(other.locked for other in records if other.origin == record.origin)
        total = sum(other.locked for other in records)
        return locked.bounds(origin_used=max(0, own - used_up), total_used=max(0, total - used_up))

    async def require_budget(
        self, scope: Scope, amount: int, *, budget: Budget, now: float
    ) -> None:
        """Check that `amount` more may be signed, before a deposit is made for it.

        Raises:
            BudgetExceededError: It may not (F-96).
        """
        purpose = {"origin": scope.origin, "chain_id": scope.chain_id, "token": scope.token}
        bounds = await self._run(lambda: self._bounds(purpose, budget, now))
        require_within(bounds, amount, scope.origin)

    def _minutes(self, names: Mapping[str, object], since: float) -> dict[int, int]:
        rows = self._execute("load_minutes", {**names, "since": int(since // MINUTE_S)})
        return {row["minute"]: _unpack(row["amount"]) for row in rows}

    def _leaves_to_guard(self, budget: Budget) -> bool:
        """Return whether a guard counts alone, because the budget bounds nothing."""
        return self._guard is not None and budget.is_unbounded

    def _guarded_bounds(
        self, purpose: Mapping[str, object], budget: Budget, now: float
    ) -> list[Bound]:
        if self._leaves_to_guard(budget):
            return budget.bounds(origin_used=0, total_used=0)
        return self._bounds(purpose, budget, now)

    def _bounds(self, purpose: Mapping[str, object], budget: Budget, now: float) -> list[Bound]:
        """Return the bounds of the next signature, with what is used up of them."""
        since, total = now - budget.window_s, 0
        if budget.total_max is not None:
            where = {name: purpose[name] for name in ("chain_id", "token")}
            rows = self._execute("load_minutes_total", {**where, "since": int(since // MINUTE_S)})
            total = sum(_unpack(row["amount"]) for row in rows)
        origin = sum(self._minutes(purpose, since).values())
        return budget.bounds(origin_used=origin, total_used=total)

    def _require(self, key: ChannelKey) -> ChannelRecord:
        record = self._load(key)
        if record is None:
            raise StoreError(
                f"channel 0x{key.channel_id.hex()} is not in the payment store {self._path}"
            )
        return record

    def _load(self, key: ChannelKey) -> ChannelRecord | None:
        found = self._select("load_account", _key_columns(key) | {"agent": self._agent})
        return found[0] if found else None

    def _select(self, query: str, values: Mapping[str, object]) -> list[ChannelRecord]:
        return [_from_row(row) for row in self._execute(query, values)]

    def _store(self, record: ChannelRecord) -> None:
        self._execute("store_account", _to_row(record) | {"agent": self._agent})

    def _charge_row(self, record: ChargeRecord) -> dict[str, object]:
        return _to_charge_row(record) | {"agent": self._agent}

    def _execute(self, query: str, values: Mapping[str, object]) -> list[sqlite3.Row]:
        return self._connection.execute(_QUERIES[query], values).fetchall()

    async def transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in one transaction, durable when this returns; undone if it raises.

        For a guard's own tables, which lie in the same file.
        """
        return await self._transact(lambda: change(self._connection))

    async def _transact(self, change: Callable[[], T], context: PaymentContext | None = None) -> T:
        def run() -> T:
            try:
                return self._commit(change)
            except AgentError as error:
                guard, refused = self._guard, error
                if guard is None:
                    raise
                raise self._commit(
                    lambda: guard.refuse(self._connection, context, refused)
                ) from error

        return await self._run(run)

    def _commit(self, change: Callable[[], T]) -> T:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = change()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return result

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the payment store failed: {error}") from error
        except RuntimeError as error:  # the executor was shut down
            raise StoreError("the payment store is closed; open it again") from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, readable by this user alone from its first byte on."""
    create_own(path)
    path.chmod(0o600)
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.row_factory = sqlite3.Row
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        _require_version(version)
        for first, last, statements in _UPGRADES:
            if first <= version <= last:
                for statement in statements.split(";"):
                    connection.execute(statement)
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Enable the log; wait for other processes that open the file, which SQLite does not here."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(OPEN_PAUSE_S)
        else:
            return


def _require_version(version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"expected a payment store of schema {SCHEMA_VERSION} or older, found {version}: use "
            "the version of mpp-session that wrote it, or a newer one"
        )


def _pack(amount: int) -> bytes:
    return amount.to_bytes(AMOUNT_BYTES, "big")


def _unpack(blob: bytes) -> int:
    return int.from_bytes(blob, "big")


_AMOUNTS = (
    "deposit",
    "signed",
    "received",
    "lost",
    "waived",
    "goal",
    "accepted",
    "spent",
    "settled",
)
_PLAIN = (
    "origin",
    "url",
    "salt",
    "state",
    "opened_at",
    "open_tx",
    "end_tx",
    "vouchers",
    "units",
    "receipt",
    "close_requested_at",
)
_DEPOSITS = ("opening", "top_up")
_TERMS = ("payer", "payee", "token", "authorized_signer")


def _purpose(record: ChannelRecord) -> dict[str, object]:
    return {
        "origin": record.origin,
        "chain_id": record.key.chain_id,
        "token": record.terms.token,
    }


def _key_columns(key: ChannelKey) -> dict[str, object]:
    return {"chain_id": key.chain_id, "escrow": key.escrow, "channel_id": key.channel_id}


def _to_row(record: ChannelRecord) -> dict[str, object]:
    return (
        _key_columns(record.key)
        | {name: getattr(record.terms, name) for name in _TERMS}
        | {name: getattr(record, name) for name in _PLAIN}
        | {name: _pack(getattr(record, name)) for name in _AMOUNTS}
        | {name: _write_deposit(getattr(record, name)) for name in _DEPOSITS}
    )


def _write_deposit(deposit: Deposit | None) -> str | None:
    """Return a signed deposit in its wire form, which `_read_deposit` parses strictly."""
    return None if deposit is None else msgspec.json.encode(deposit.members()).decode()


@lru_cache(maxsize=256)
def _read_deposit(text: str | None) -> Deposit | None:
    if text is None:
        return None
    try:
        return parse_deposit(msgspec.json.decode(text))
    except (WireError, msgspec.DecodeError) as error:
        raise StoreError(
            f"the payment store holds a deposit that cannot be parsed: {error}"
        ) from error


def _from_row(row: sqlite3.Row) -> ChannelRecord:
    fields: dict[str, Any] = {name: row[name] for name in _PLAIN}
    fields |= {name: _unpack(row[name]) for name in _AMOUNTS}
    fields |= {name: _read_deposit(row[name]) for name in _DEPOSITS}
    for name in ("open_tx", "end_tx"):
        fields[name] = None if row[name] is None else TxHash(row[name])
    return ChannelRecord(
        key=ChannelKey(row["chain_id"], Address(row["escrow"]), ChannelId(row["channel_id"])),
        terms=ChannelTerms(*(Address(row[name]) for name in _TERMS)),
        **fields,
    )


def _charge_purpose(record: ChargeRecord) -> dict[str, object]:
    return {"origin": record.origin, "chain_id": record.chain_id, "token": record.token}


def _charge_key(record: ChargeRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in ("chain_id", "token", "payer", "nonce")}


def _to_charge_row(record: ChargeRecord) -> dict[str, object]:
    return asdict(record) | {"amount": _pack(record.amount)}


def _from_charge_row(row: sqlite3.Row) -> ChargeRecord:
    names = (name for name in row.keys() if name != "agent")  # noqa: SIM118 -- a Row's keys
    fields: dict[str, Any] = {name: row[name] for name in names}
    fields |= {name: Address(row[name]) for name in ("token", "payer", "payee")}
    fields["amount"] = _unpack(row["amount"])
    fields["is_key_given"] = bool(row["is_key_given"])
    return ChargeRecord(**fields)
