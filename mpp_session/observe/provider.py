"""Everything that is observed of one provider's process, built from its parts."""

from collections.abc import Coroutine, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute, Route

from channel.errors import ChannelNotFoundError
from channel.http.hooks import HookCalls, Hooks
from channel.types import ChannelId, ChannelKey
from mpp_session.observe.books import BooksView
from mpp_session.observe.gauges import ProviderGauges
from mpp_session.observe.health import Check, Health, HealthPages, PartDownError
from mpp_session.observe.journal import JournalReader
from mpp_session.observe.scrape import metrics_page
from mpp_session.wiring import Parts
from settlement.alarms import AlarmKind

__all__ = ["Observed"]

_CHAIN_AWAY_S: Final = 60.0
"""As the alarm `chain-away`."""
_NEEDED: Final = frozenset({"database", "chain", "model_server"})
"""Nothing can be sold without them. Without a settler it can, up to the bounds of exposure, to
payers who pay the gas of their deposits."""
_UNSOUND: Final = frozenset({AlarmKind.BOOKS_UNSAFE, AlarmKind.BOOKS_AWAY})


class Observed:
    """The books, the settler's journal, the health and their metrics."""

    def __init__(
        self,
        parts: Parts,
        hooks: Hooks | None,
        *,
        registry: CollectorRegistry,
        model_server: Check | None = None,
        chain_away_s: float = _CHAIN_AWAY_S,
    ) -> None:
        """Observe these parts, and tell `hooks` of settlements and alarms.

        `registry` is the one that `hooks` count in, if they do; the gauges are added to it.
        `model_server` looks at the model server, if there is one. The chain counts as away once
        this process has not seen it for `chain_away_s` seconds.
        """
        self._parts = parts
        self._chain_away_s = chain_away_s
        self.books = BooksView(HookCalls(hooks), now=parts.clock.now)
        self.journal = JournalReader(parts.journal)
        checks: dict[str, Check] = {
            "database": self._check_database,
            "chain": self._check_chain,
            "settler": self._check_settler,
        }
        if model_server is not None:
            checks["model_server"] = model_server
        # The settler sends the deposits whose gas the payee pays: without it no payer can begin.
        begins = {"settler"} if parts.config.sponsoring.fee_payer else set()
        self.health = Health(checks, needed=(_NEEDED | begins) & checks.keys())
        self._registry = registry
        self._gauges = ProviderGauges(
            books=self.books,
            journal=self.journal,
            watcher=parts.watcher,
            health=self.health,
            unit=parts.unit,
            total_max=parts.config.exposure.total_max,
        )
        registry.register(self._gauges)
        if parts.is_first:
            self.books.listen_to(parts.watcher)

    def background(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Return the tasks that must run while the provider serves, by name."""
        if not self._parts.is_first:
            return {}
        return {
            "reading the settler's journal": self.journal.run(),
            "looking at the parts": self.health.run(),
        }

    def routes(self) -> list[BaseRoute]:
        """Return the pages of the operator's port."""
        pages = HealthPages(self.health, is_public=False)
        return [
            Route("/metrics", metrics_page(self._registry, self._gauges.refresh)),
            Route("/healthz", pages),
            Route("/readyz", pages),
        ]

    async def _check_database(self) -> None:
        """Begin a transaction that writes nothing: a database that is only read from fails it."""
        ringing = [a.text for a in self._parts.watcher.alarms.ringing if a.kind in _UNSOUND]
        if ringing:
            raise PartDownError(ringing[0])
        reader = self._parts.reader
        unknown = ChannelKey(reader.chain_id, reader.escrow, ChannelId(bytes(32)))
        try:
            await self._parts.ledger.apply(unknown, [])
        except ChannelNotFoundError:
            return

    async def _check_chain(self) -> None:
        age_s = self._parts.watcher.looked_s_ago
        if age_s is None:
            raise PartDownError("the chain was not seen yet")
        if age_s > self._chain_away_s:
            raise PartDownError(f"the chain was last seen {age_s:.0f} s ago")

    async def _check_settler(self) -> None:
        if await self._parts.journal.lease_holder() is None:
            raise PartDownError("no settler holds the lease of the payee's key")
