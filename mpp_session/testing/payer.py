"""An agent with money, for tests of code that pays."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from channel.client.policy.policy import Policy, TokenLimits
from channel.types import TokenUnit
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.agent.sync_client import SyncPayingClient, open_sync_client
from settlement.dev.devnet import DevAccount, DevnetValues

__all__ = ["UNIT_PRICE_MAX", "TestPayer"]

UNIT_PRICE_MAX: Final[Mapping[str, int | str]] = {"llm_token": 1_000, "request": 1_000_000}
_DEPOSIT_MAX: Final = 10_000_000
_BUDGET: Final = 100_000_000


class TestPayer:
    """An account of the devnet, and clients that pay from it."""

    __test__ = False

    def __init__(self, values: DevnetValues, directory: Path, name: str = "payer") -> None:
        """Use the account of this name; `agent` is the one without ether."""
        self._values = values
        self._name = name
        self.store = directory / "purse.db"

    @property
    def account(self) -> DevAccount:
        """Address and key."""
        return self._values.accounts[self._name]

    def policy(self, unit_price_max: Mapping[str, int | str] = UNIT_PRICE_MAX) -> Policy:
        """Return a policy for the devnet: these kinds at most at these prices."""
        limits = TokenLimits(
            chain_id=self._values.chain_id,
            token=self._values.token,
            unit_price_max=unit_price_max,
            deposit_max=_DEPOSIT_MAX,
            budget=_BUDGET,
            unit=TokenUnit(self._values.token_symbol, self._values.token_decimals),
        )
        return Policy(limits=(limits,), allow_loopback_http=True)

    @asynccontextmanager
    async def client(self, policy: Policy | None = None) -> AsyncIterator[PayingClient]:
        """Open an `httpx.AsyncClient` that pays; the next one continues with the same channels."""
        async with open_client(
            rpc_url=self._values.rpc_url,
            private_key=self.account.private_key,
            policy=policy or self.policy(),
            store=self.store,
        ) as client:
            yield client

    @contextmanager
    def sync_client(self, policy: Policy | None = None) -> Iterator[SyncPayingClient]:
        """Open an `httpx.Client` that pays; the next one goes on with the same channels."""
        with open_sync_client(
            rpc_url=self._values.rpc_url,
            private_key=self.account.private_key,
            policy=policy or self.policy(),
            store=self.store,
        ) as client:
            yield client
