"""The wallet's process: opens everything, serves its doors, and stops without losing a count."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from channel.errors import MppSessionError
from channel.tasks import Tasks
from mpp_session.dashboard.token_file import read_or_make_token
from mpp_session.errors import CommandError
from mpp_session.process.signals import reload_on_hangup, stop_at_eof, stop_on_signals
from mpp_session.wallet.policy.compiled import Agent
from mpp_session.wallet.server.additions import build_additions, open_approvals
from mpp_session.wallet.server.agent_door import AgentDoor
from mpp_session.wallet.server.doors import serve_door
from mpp_session.wallet.server.forwarding import Forwarder
from mpp_session.wallet.server.opening import WalletSettings, has_other_users, open_wallet
from mpp_session.wallet.server.owner_door import OwnerDoor
from mpp_session.wallet.server.questions import Questions
from mpp_session.wallet.server.running import RunningWallet
from mpp_session.wallet.server.sockets import listen_on_port, listen_on_socket

__all__ = ["OWNER_SOCKET", "OWNER_TOKEN", "Listening", "run_wallet", "socket_of"]

_log: Final = logging.getLogger(__name__)

OWNER_SOCKET: Final = "owner/wallet.sock"
OWNER_TOKEN: Final = "owner.token"  # noqa: S105 -- a file's name
_AGENTS: Final = "agents"
_SOCKET: Final = "wallet.sock"


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """Where agents find the wallet: by name, as `open_client(wallet=...)` takes it."""

    agents: Mapping[str, str]
    port: str | None = None
    """For every agent, where a port was asked for."""
    approvals: str | None = None
    """The pages on which people answer, where a port for them was asked for."""


def socket_of(home: Path, agent: Agent) -> Path:
    """Return the path of an agent's socket: its own where the policy gives it a user."""
    folder = home / _AGENTS
    return folder / _SOCKET if agent.uid is None else folder / agent.name / _SOCKET


async def run_wallet(
    settings: WalletSettings,
    *,
    announce: Callable[[Listening], None],
    until_eof: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input ends if that is requested.

    SIGHUP reads the policy again. At the end every running stream is cancelled and what came of it
    is counted; then clients, nodes and books are closed.

    Raises:
        ConfigError: A check failed; nothing was served.
        CommandError: A port is in use, or a task that must run has ended.
        StoreError: Books or checkpoints failed.
        InvariantError: A bug.
    """
    stopping, reloads = asyncio.Event(), asyncio.Event()
    stop_on_signals(stopping)
    reload_on_hangup(stopping, reloads.set)
    if until_eof:
        stop_at_eof(stopping)
    async with open_wallet(settings) as wallet:
        with contextlib.ExitStack() as sockets:
            doors = _Doors(settings, wallet, sockets)
            guards = {
                **doors.serve(),
                **doors.background(),
                "reloading the policy": _reload_when(reloads, wallet),
                "keeping checkpoints": wallet.checkpoints.keep(),
            }
            _log.info("the audit trail's public key is %s", wallet.checkpoints.public_key)
            announce(doors.listening)
            await _run_until(stopping, guards, wallet, doors.broken)


class _Doors:
    """The sockets and their applications."""

    def __init__(
        self, settings: WalletSettings, wallet: RunningWallet, sockets: contextlib.ExitStack
    ) -> None:
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails with the first bug of a door."""
        self._settings = settings
        self._wallet = wallet
        self._sockets = sockets
        home = settings.home
        token = read_or_make_token(home / OWNER_TOKEN)
        self._port = None
        ports: list[int] = []
        if settings.listen is not None:
            self._port = sockets.enter_context(listen_on_port(*settings.listen))
            ports = [self._port.getsockname()[1]]
        approvals = open_approvals(wallet, settings, token, sockets)
        if approvals.page_port is not None:
            ports.append(approvals.page_port)
        self._approvals_url = approvals.page_url
        forwarder = Forwarder(
            allows_loopback=lambda: wallet.policy.allow_loopback_http,
            own_ports=ports,
            admit=wallet.admit,
            note_end=wallet.note_end,
            note_refusal=wallet.note_refusal,
        )
        self._build = partial(
            AgentDoor,
            agents=lambda: wallet.policy.agents,
            running_agents=wallet.running_agents,
            forwarder=forwarder,
            questions=Questions(forwarder, wallet.budgets_of, approvals),
            on_bug=self._fail,
        )
        self._additions = build_additions(approvals)
        self._owner = OwnerDoor(
            wallet,
            token,
            more=[route for one in self._additions for route in one.owner_routes()],
            on_bug=self._fail,
        )

    @property
    def listening(self) -> Listening:
        """Where agents find the wallet."""
        agents = self._wallet.policy.agents
        paths = {
            name: f"unix:{socket_of(self._settings.home, agent)}" for name, agent in agents.items()
        }
        if self._port is None:
            return Listening(agents=paths, approvals=self._approvals_url or None)
        host, port = self._port.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return Listening(
            agents=paths,
            port=f"http://{shown}:{port}",
            approvals=self._approvals_url or None,
        )

    def serve(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Open the sockets, and return the tasks that serve them."""
        own, home = os.geteuid(), self._settings.home
        policy = self._wallet.policy
        owner = self._open(listen_on_socket(home / OWNER_SOCKET))
        shared = self._open(self._open_shared())
        served = {
            "serving the owner": serve_door(
                owner, self._owner, uids=frozenset({own}), name="the owner's door"
            )
        }
        if self._port is not None:
            served["serving the agents' port"] = serve_door(
                self._port, self._build(), uids=None, name="the agents' port"
            )
        served["serving the agents"] = serve_door(
            shared, self._build(), uids=frozenset({own}), name="the agents' door"
        )
        for name, agent in policy.agents.items():
            if agent.uid is None:
                continue
            path = socket_of(home, agent)
            served[f"serving the agent {name}"] = serve_door(
                self._open(listen_on_socket(path, uid=agent.uid)),
                self._build(only=name),
                uids=frozenset({own, agent.uid}),
                name=f"the door of {name}",
            )
        return served

    def background(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Return the tasks of other parts."""
        return {name: work for one in self._additions for name, work in one.background().items()}

    def _open_shared(self) -> socket.socket:
        path = self._settings.home / _AGENTS / _SOCKET
        return listen_on_socket(path, is_passed=has_other_users(self._wallet.policy))

    def _open(self, listener: socket.socket) -> socket.socket:
        return self._sockets.enter_context(listener)

    def _fail(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)


async def _reload_when(asked: asyncio.Event, wallet: RunningWallet) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            await wallet.reload()
        except MppSessionError as error:
            _log.error("the policy stays as it is: %s", error)


async def _run_until(
    stopping: asyncio.Event,
    guards: Mapping[str, Coroutine[Any, Any, None]],
    wallet: RunningWallet,
    broken: asyncio.Future[None],
) -> None:
    """Run the doors and the other tasks; the first that ends stops all.

    Raises:
        CommandError: A task that must run has ended.
        InvariantError: A bug.
    """
    async with Tasks() as tasks:
        stopped = tasks.start(stopping.wait())
        running = [tasks.start(work, name=name) for name, work in guards.items()]
        try:
            every: set[asyncio.Future[Any]] = {stopped, broken, *running}
            await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
            ended = [task for task in running if task.done()]
        finally:
            await wallet.end()  # streams first: a door waits for its answers
    if broken.done():
        broken.result()
    for task in ended:
        task.result()
        raise CommandError(f"the wallet stopped because {task.get_name()} ended")
    _log.info("stopped")
