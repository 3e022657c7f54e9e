"""The paying client for synchronous code: `mpp_session.agent.client` on a thread of its own.

    with open_sync_client(
        rpc_url=RPC_URL, private_key=KEY, policy=policy, store="agent.db"
    ) as client:
        answer = client.get("https://api.example/joke")
        client.payments.close("https://api.example/")

The same client serves `openai.OpenAI(base_url=..., api_key="unused", http_client=client)`.
"""

from collections.abc import Collection, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from channel.client.funding.keys import VoucherKeys
from channel.client.funding.signer import Signer
from channel.client.http.blocking import LoopThread, SyncPayingTransport
from channel.client.payments import Payments, Summary
from channel.client.policy.policy import Policy
from channel.client.policy.quote import Quote
from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.errors import ConfigError
from channel.types import Address, ChannelId, TxHash
from mpp_session.agent.client import TIMEOUT_S, open_client
from mpp_session.agent.wallet_socket import WalletPayments
from mpp_session.agent.wallet_wire import ApprovalState, BudgetLeft

__all__ = ["SyncPayingClient", "SyncPayments", "open_sync_client"]


class SyncPayments:
    """The agent's channels for synchronous code: what `Payments` does, and it blocks."""

    def __init__(self, loop: LoopThread, payments: Payments) -> None:
        self._loop = loop
        self._payments = payments

    def channels(self) -> list[ChannelRecord]:
        """See `Payments.channels`."""
        return self._loop.run(self._payments.channels())

    def charges(self) -> list[ChargeRecord]:
        """See `Payments.charges`."""
        return self._loop.run(self._payments.charges())

    def summary(self) -> list[Summary]:
        """See `Payments.summary`."""
        return self._loop.run(self._payments.summary())

    def quote(self, request: httpx.Request) -> Quote:
        """See `Payments.quote`."""
        request.read()
        return self._loop.run(self._payments.quote(request))

    def close(self, which: ChannelId | str | None = None) -> list[ChannelRecord]:
        """See `Payments.close`."""
        return self._loop.run(self._payments.close(which))

    def request_close(self, which: ChannelId) -> ChannelRecord:
        """See `Payments.request_close`."""
        return self._loop.run(self._payments.request_close(which))

    def find_opening(self, which: ChannelId) -> TxHash | None:
        """See `Payments.find_opening`."""
        return self._loop.run(self._payments.find_opening(which))

    def withdraw(self, which: ChannelId) -> ChannelRecord:
        """See `Payments.withdraw`."""
        return self._loop.run(self._payments.withdraw(which))

    def budgets(self) -> list[BudgetLeft]:
        """See `WalletPayments.budgets`; `ConfigError` without a wallet."""
        return self._loop.run(self._wallet.budgets())

    def approval(self, approval_id: str, *, wait_s: int = 0) -> ApprovalState:
        """See `WalletPayments.approval`; `ConfigError` without a wallet."""
        return self._loop.run(self._wallet.approval(approval_id, wait_s=wait_s))

    def wait_for(self, approval_id: str, *, timeout_s: float = 3600.0) -> ApprovalState:
        """See `WalletPayments.wait_for`; `ConfigError` without a wallet."""
        return self._loop.run(self._wallet.wait_for(approval_id, timeout_s=timeout_s))

    @property
    def _wallet(self) -> WalletPayments:
        if not isinstance(self._payments, WalletPayments):
            raise ConfigError("this client pays by itself: budgets and approvals are a wallet's")
        return self._payments


class SyncPayingClient(httpx.Client):
    """An `httpx.Client` whose requests are paid for, and its channels."""

    def __init__(
        self, *, payments: SyncPayments, transport: httpx.BaseTransport, **options: Any
    ) -> None:
        super().__init__(transport=transport, **options)
        self.payments = payments
        self.transport = transport
        """What pays: for a client of another kind."""


@contextmanager
def open_sync_client(  # noqa: PLR0913 -- as `open_client`
    *,
    rpc_url: str | None = None,
    private_key: bytes | str | None = None,
    policy: Policy | None = None,
    store: Path | str | None = None,
    signer: Signer | None = None,
    keys: VoucherKeys | None = None,
    wallet: Address | str | None = None,
    token: str | None = None,
    task: str = "",
    on_behalf_of: str = "",
    trusted_escrows: Collection[Address] = (),
    base_url: str = "",
    timeout_s: float = TIMEOUT_S,
    answers_refusals: bool | None = None,
) -> Iterator[SyncPayingClient]:
    """Open a synchronous client for one account on one chain, and close everything at the end.

    Arguments and errors as `open_client`. Several threads may use the client. In a coroutine use
    `open_client`: this one blocks the event loop.
    """
    with LoopThread() as loop:
        opened = AsyncExitStack()
        opening = open_client(
            rpc_url=rpc_url,
            private_key=private_key,
            policy=policy,
            store=store,
            signer=signer,
            keys=keys,
            wallet=wallet,
            token=token,
            task=task,
            on_behalf_of=on_behalf_of,
            trusted_escrows=trusted_escrows,
            timeout_s=timeout_s,
            answers_refusals=answers_refusals,
        )
        paying = loop.run(opened.enter_async_context(opening))
        try:
            with SyncPayingClient(
                payments=SyncPayments(loop, paying.payments),
                transport=SyncPayingTransport(loop, paying.transport),
                base_url=base_url,
                timeout=timeout_s,
            ) as client:
                yield client
        finally:
            if not loop.is_closed:  # as it is where a program ends without closing its client
                loop.run(opened.aclose())
