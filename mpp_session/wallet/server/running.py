"""A wallet that runs: its policy, books, chains and agents."""

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx
import msgspec

from channel.client.funding.keys import OneKey, VoucherKeys
from channel.client.funding.signer import AccountSigner
from channel.client.http.transport import origin_of
from channel.client.policy.context import PURPOSE
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import AgentError, ConfigError, MppSessionError, StoreError
from mpp_session.agent.client import PayingClient, build_client
from mpp_session.agent.wallet_wire import BudgetLeft
from mpp_session.wallet.approvals.rules import rules_of
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.audit.checkpoints import CheckpointWriter
from mpp_session.wallet.books.asks import reach_ask
from mpp_session.wallet.books.books import WalletBooks
from mpp_session.wallet.policy import WalletPolicy, client_policy, load_policy, refuse_reach
from mpp_session.wallet.server.forwarding import Ended
from mpp_session.wallet.server.running_agent import RunningAgent
from mpp_session.wallet.types import Purpose, WalletRequest
from mpp_session.wallet.watch.store import Watch
from settlement.escrow.payer import PayerAccount

__all__ = ["Closed", "RunningWallet"]

_log: Final = logging.getLogger(__name__)

_TOGETHER: Final = 4
"""Channels that are closed at a time."""


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """A channel that was to be closed."""

    agent: str
    record: ChannelRecord | None = None
    error: str = ""
    """Why it is open still."""


class RunningWallet:
    """Everything that the doors share."""

    def __init__(
        self,
        policy: WalletPolicy,
        *,
        policy_path: Path,
        books: WalletBooks,
        approvals: Approvals,
        watch: Watch,
        checkpoints: CheckpointWriter,
        chains: Mapping[int, PayerAccount],
        keys: VoucherKeys | None,
    ) -> None:
        """Serve the agents of a policy.

        Args:
            policy: In force now.
            policy_path: Where `reload` reads the next one.
            books: Hold the same policy.
            approvals: The questions to people, which the books' guards ask.
            watch: What is unusual, likewise.
            checkpoints: Of the books' audit trail.
            chains: The paying accounts, one a chain of the policy's tokens.
            keys: Sign the vouchers; None: the accounts do.
        """
        self.policy = policy
        self.books = books
        self.approvals = approvals
        self.watch = watch
        self.checkpoints = checkpoints
        self.chains = chains
        self._policy_path = policy_path
        self._keys = keys
        self._reloading = asyncio.Lock()
        self.running_agents: dict[str, RunningAgent] = {}
        self._revoked: frozenset[str] = frozenset()

    async def begin(self) -> None:
        """Begin to serve the agents, without those that were revoked."""
        await self._read_revoked()
        self._open_agents()

    async def revoke(self, scope: str, *, reason: str, by: str) -> None:
        """Refuse an agent or a rule for good; what runs for the agent ends now.

        Raises:
            ConfigError: The policy has no such agent or rule.
        """
        await self.books.revoke(scope, reason=reason, by=by)
        await self._read_revoked()
        for name in self._revoked & set(self.running_agents):
            await self.running_agents.pop(name).end()

    async def reload(self) -> WalletPolicy:
        """Read the policy's file again and decide by it; what runs goes on under the new one.

        The whole file is checked first: a mistake changes nothing.

        Raises:
            ConfigError: The file is not valid, older than the policy in force, or names a chain
                for which the wallet has no node.
        """
        async with self._reloading:
            policy = await asyncio.to_thread(load_policy, self._policy_path)
            missing = {token.chain for token in policy.tokens.values()} - set(self.chains)
            if missing:
                raise ConfigError(
                    f"the wallet has no node of chain {min(missing)}: start it again with one more "
                    "--rpc-url"
                )
            for name, agent in policy.agents.items():
                before = self.policy.agents.get(name)
                if agent.uid != (None if before is None else before.uid):
                    raise ConfigError(
                        f"`uid` of the agent {name} is new, and its socket is opened at the "
                        "start: start the wallet again"
                    )
            await self.books.reload(policy)
            self.policy = self.watch.policy = policy
            self.approvals.rules = rules_of(policy, people=self.approvals.rules.people)
            gone = [name for name in self.running_agents if name not in policy.agents]
            for name in gone:
                await self.running_agents.pop(name).end()
            for running in self.running_agents.values():
                running.renew()
            self._open_agents()
            _log.info("policy revision %d is in force", policy.revision)
            return policy

    async def budgets_of(self, agent: str) -> list[BudgetLeft]:
        """Return the sums that bound an agent's payments."""
        own = {envelope.name for envelope in self.policy.envelopes_of(agent)}
        found = []
        for state in await self.books.budgets():
            if state.envelope in own:
                found += [
                    BudgetLeft(
                        scope=state.scope,
                        what="spent",
                        used=state.spent,
                        limit=state.amount,
                        token=state.token,
                        window_s=state.window_s,
                    ),
                    BudgetLeft(
                        scope=state.scope,
                        what="locked",
                        used=state.locked,
                        limit=state.locked_max,
                        token=state.token,
                    ),
                ]
        return found

    async def admit(self, agent: str, request: httpx.Request) -> None:
        """Check that an agent may send a request at all, before a server is asked.

        Raises:
            PolicyRefusedError: It may not. The refusal is in the trail.
        """
        attached = request.extensions.get(PURPOSE)
        if not isinstance(attached, WalletRequest):
            attached = WalletRequest(request_id="", purpose=Purpose())
        url = str(request.url.copy_with(query=None))
        ask = reach_ask(agent, attached, method=request.method, url=url, at=time.time())
        await self.books.check(ask, lambda snapshot: refuse_reach(self.policy, ask, snapshot))

    async def note_end(self, ended: Ended) -> None:
        """Note how a request ended, for the breakers."""
        paid = self.books.paid(ended.request_id)
        self.books.end_request(ended.request_id)
        try:
            await self.books.store.transact(
                lambda db: self.watch.note_outcome(
                    db,
                    agent=ended.agent,
                    origin=ended.origin,
                    request_digest=ended.digest,
                    status=ended.status,
                    paid=paid,
                    at=time.time(),
                )
            )
        except StoreError as error:
            _log.warning("how a request of %s ended is not counted: %s", ended.agent, error)

    async def note_refusal(
        self, agent: str, request_id: str, request: httpx.Request | None, error: AgentError
    ) -> None:
        """Record why a request was refused; `request` is None where it could not be made."""
        fields: dict[str, str] = {"request_id": request_id}
        if request is not None:
            path = request.url.raw_path.partition(b"?")[0].decode("ascii")
            fields |= {"origin": origin_of(request.url), "method": request.method, "path": path}
        try:
            await self.books.note_refusal(agent, error, **fields)
        except StoreError as failure:
            _log.warning("a refusal of %s is not recorded: %s", agent, failure)

    async def close_stopped(self) -> list[Closed]:
        """Close every channel of agents that are frozen, revoked, expired or gone."""
        found = await self.books.channels_to_close()
        gate = asyncio.Semaphore(_TOGETHER)
        stopped: dict[str, RunningAgent] = {}

        async def close(agent: str, record: ChannelRecord) -> Closed:
            running = self.running_agents.get(agent) or stopped.get(agent)
            if running is None:
                running = stopped[agent] = self._open_agent(agent)
            async with gate:
                try:
                    (ended,) = await running.run(
                        lambda client: client.payments.close(record.key.channel_id)
                    )
                except (MppSessionError, httpx.RequestError) as error:
                    return Closed(agent=agent, record=record, error=str(error))
                return Closed(agent=agent, record=ended)

        try:
            return list(await asyncio.gather(*(close(one.agent, one.record) for one in found)))
        finally:
            for running in stopped.values():
                await running.end()

    async def end(self) -> None:
        """End what runs for agents: streams end now, and what was signed is counted."""
        await asyncio.gather(*(running.end() for running in self.running_agents.values()))

    async def _read_revoked(self) -> None:
        stops = await self.books.stops()
        self._revoked = frozenset(
            stop.scope.removeprefix("agent ") for stop in stops if stop.kind == "revoke"
        )

    def _open_agents(self) -> None:
        for name in self.policy.agents:
            if name not in self.running_agents and name not in self._revoked:
                self.running_agents[name] = self._open_agent(name)

    def _open_agent(self, name: str) -> RunningAgent:
        return RunningAgent(name, self.books.view(name), self._make_client)

    def _make_client(self, name: str, store: PaymentStore) -> PayingClient:
        policy = client_policy(self.policy, name)
        return build_client(
            policy=policy,
            keys=self._keys or self._account_keys(),
            store=store,
            chains=list(self.chains.values()),
            management=httpx.AsyncHTTPTransport(),  # never behind the streams that wait for it
            answers_refusals=False,
        )

    def _account_keys(self) -> VoucherKeys:
        return OneKey(AccountSigner(next(iter(self.chains.values()))))
