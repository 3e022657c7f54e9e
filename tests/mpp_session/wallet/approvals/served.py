"""The pages of approvals on a free port, over a real file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from sqlite3 import Connection

import msgspec

from channel.client.store.sqlite import PaymentStore
from mpp_session.admin.app import build_admin
from mpp_session.dashboard.access import Access
from mpp_session.settings import Secret
from mpp_session.wallet.approvals.record import Record
from mpp_session.wallet.approvals.site import ApprovalSite
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.approvals.tokens import AnswerTokens
from mpp_session.wallet.types import Ask
from tests.mpp_session.serving import serve
from tests.mpp_session.wallet.approvals.asks import ask_of, decision_of

__all__ = ["OWNER", "SECRET", "Clock", "Served", "open_wallet", "serve_approvals"]

OWNER = "an-owner-s-token-of-thirty-two-chars"
SECRET = Secret("a secret that wallet and receiver share")


class Clock(msgspec.Struct):
    """A time that tests move."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Served(msgspec.Struct):
    """What a test reaches."""

    url: str
    store: PaymentStore
    approvals: Approvals
    clock: Clock

    async def ask(self, ask: Ask | None = None) -> Record:
        """Ask a question, and return its record."""
        asked = ask or ask_of()

        def change(db: Connection) -> Record:
            self.approvals.request(db, asked, decision_of(), self.clock.now)
            return self.approvals.pending(db)[-1]

        return await self.store.transact(change)

    async def get(self, record: Record) -> Record:
        """Return the record as it is now."""
        return await self.store.transact(lambda db: self.approvals.get(db, record.id))


@asynccontextmanager
async def open_wallet(folder: Path) -> AsyncIterator[PaymentStore]:
    """Open a payment store with the tables of approvals, as the wallet does."""
    store = await PaymentStore.open(folder / "wallet.db")
    try:
        for statement in Approvals.SCHEMA.split(";"):
            await store.transact(partial(_execute, statement))
        yield store
    finally:
        await store.close()


def _execute(statement: str, db: Connection) -> None:
    db.execute(statement)


@asynccontextmanager
async def serve_approvals(folder: Path, approvals: Approvals) -> AsyncIterator[Served]:
    """Serve them to one person, mia."""
    clock = Clock()
    async with open_wallet(folder) as store:
        site = ApprovalSite(
            approvals,
            store.transact,
            {"mia": Access(Secret(OWNER))},
            tokens=AnswerTokens(SECRET),
            now=clock,
        )
        async with serve(build_admin(site.routes)) as url:
            yield Served(url, store, approvals, clock)
