"""What other parts of the wallet add to its process."""

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from starlette.routing import BaseRoute

from channel.errors import AgentError
from mpp_session.agent.wallet_wire import ApprovalAnswer, ApprovalState, ShownApproval

__all__ = ["Addition", "ApprovalQuestions", "unknown_approval"]


class ApprovalQuestions(Protocol):
    """The questions that payments raised, as the agents see them."""

    async def state(self, agent: str, approval_id: str, *, wait_s: float) -> ApprovalState | None:
        """Return the state of an agent's question, after at most `wait_s`; None if it has none."""

    async def supervised(self, agent: str) -> list[ShownApproval]:
        """Return the questions that wait and that this agent may answer for others."""

    async def answer_as(
        self, agent: str, approval_id: str, answer: ApprovalAnswer
    ) -> ShownApproval:
        """Give an agent's answer, or take back its own question."""


class Addition(Protocol):
    """What another part adds: see `additions.py`, which lists them."""

    def owner_routes(self) -> Sequence[BaseRoute]:
        """Return what the owner's door answers besides, below a prefix of the part's own.

        The door has checked the user and the token before a route is asked.
        """

    def background(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Return the tasks that run as long as the wallet does, by what they do."""


def unknown_approval(approval_id: str) -> AgentError:
    """Return the error for an id that belongs to no question of this agent."""
    return AgentError(f"this agent raised no question {approval_id[:64]!r}: check the id")
