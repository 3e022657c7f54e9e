"""The door of agents: each is known by its token, and gets only what is its own."""

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Final

import httpx
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from channel.errors import (
    AgentError,
    InvariantError,
    MppSessionError,
    PolicyRefusedError,
    WireError,
)
from mpp_session.agent.wallet_wire import TARGET, TOKEN
from mpp_session.wallet.policy.compiled import Agent
from mpp_session.wallet.server.answers import answer_failure
from mpp_session.wallet.server.forwarding import BodyTooLongError, Forwarder, find_field
from mpp_session.wallet.server.questions import Questions
from mpp_session.wallet.server.running_agent import RunningAgent
from mpp_session.wallet.types import Code

__all__ = ["AgentDoor", "token_digest"]

_ROOT: Final = "/"


def token_digest(token: str) -> bytes:
    """Return what the policy holds of an agent's token: the hash of 256 random bits."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class AgentDoor:
    """Answers the agents of one socket."""

    def __init__(
        self,
        *,
        agents: Callable[[], Mapping[str, Agent]],
        running_agents: Mapping[str, RunningAgent],
        forwarder: Forwarder,
        questions: Questions,
        only: str | None = None,
        on_bug: Callable[[BaseException], None],
    ) -> None:
        """Serve agents.

        Args:
            agents: The agents of the policy in force.
            running_agents: What runs for them, by name; also after a reload.
            forwarder: Makes their requests.
            questions: Answers about their payments.
            only: The one agent whose socket this is; None if several share it. An agent that has
                a user of its own uses its own socket, for no other one tells who connects.
            on_bug: Is called with an error that must end the process.
        """
        self._agents = agents
        self._running_agents = running_agents
        self._forwarder = forwarder
        self._questions = questions
        self._only = only
        self._on_bug = on_bug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        try:
            await self._answer(scope, receive, send)
        except InvariantError as error:
            self._on_bug(error)
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope["headers"]
        try:
            running = self._find_running(find_field(raw, TOKEN))
            is_forwarded = bool(find_field(raw, TARGET))
        except PolicyRefusedError as error:
            status = 401 if error.code == Code.AGENT_UNKNOWN else None
            await answer_failure(error, status)(scope, receive, send)
            return
        except WireError as error:
            await answer_failure(error, 400)(scope, receive, send)
            return
        if is_forwarded and scope["path"] == _ROOT and not scope["query_string"]:
            await self._forwarder.forward(running, scope, receive, send)
            return
        response = None
        try:
            if not is_forwarded:
                response = await self._questions.answer(running, Request(scope, receive))
        except InvariantError:
            raise
        except BodyTooLongError as error:
            response = answer_failure(error, 413)
        except WireError as error:
            response = answer_failure(error, 400)
        except (MppSessionError, httpx.RequestError) as error:
            response = answer_failure(error)
        if response is None:
            asked = f"{scope['method']} {scope['path']}"
            response = answer_failure(
                AgentError(f"there is no {asked[:100]!r} here: send / with {TARGET}"), 404
            )
        await response(scope, receive, send)

    def _find_running(self, token: str) -> RunningAgent:
        """Return the agent whose token this is.

        Every digest is compared, in a time that says nothing about them.

        Raises:
            PolicyRefusedError: No agent has it, the socket is another agent's, or it has expired.
        """
        digest = token_digest(token)
        found: Agent | None = None
        for agent in self._agents().values():
            if hmac.compare_digest(agent.token_digest, digest):
                found = agent
        if found is None or not self._serves(found):
            where = "" if self._only is None else f" of the agent {self._only}"
            raise PolicyRefusedError(
                f"expected the token{where} in {TOKEN}: `mpp-session wallet agent-add` makes one, "
                "and the policy holds its hash",
                code=Code.AGENT_UNKNOWN,
            )
        if found.expires <= time.time():
            raise PolicyRefusedError(
                f"the agent {found.name} has expired: its owner can set `expires` in the policy",
                code=Code.AGENT_EXPIRED,
                field=f"agent.{found.name}.expires",
            )
        running = self._running_agents.get(found.name)
        if running is None:
            raise PolicyRefusedError(
                f"the agent {found.name} was revoked by its owner: it needs another name and token",
                code=Code.AGENT_REVOKED,
            )
        return running

    def _serves(self, agent: Agent) -> bool:
        return agent.uid is None if self._only is None else agent.name == self._only
