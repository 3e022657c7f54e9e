"""What the policy says about approvals (values only)."""

from collections.abc import Mapping

import msgspec

from channel.types import Address, TokenUnit
from mpp_session.agent.amounts import BASE_UNITS
from mpp_session.wallet.approvals.record import Scope
from mpp_session.wallet.policy import WalletPolicy

__all__ = ["ApprovalRules", "Supervisor", "rules_of"]


class Supervisor(msgspec.Struct, frozen=True):
    """An agent that may answer for others."""

    may_approve: frozenset[str]
    """Names of the agents whose asks it may approve."""
    approve_max: Mapping[tuple[int, Address], int]
    """The greatest amount of each token, by chain and address; none of a token that is missing."""


class ApprovalRules(msgspec.Struct, frozen=True, kw_only=True):
    """The part of one policy that approvals need."""

    policy_revision: int
    policy_hash: str
    timeout_s: float = 900
    """How long a question waits; then it counts as denied, for as long again."""
    valid_s: float = 3600
    """How long an approval can be used."""
    quorum: int = 1
    """How many distinct people must approve."""
    people: frozenset[str] = frozenset()
    """Who may answer; empty for everyone whom the wallet's owner door lets in."""
    scope_max: Scope = "once"
    """The widest scope that may be given."""
    pending_max: int = 20
    """How many questions of one agent may wait."""
    supervisors: Mapping[str, Supervisor] = msgspec.field(default_factory=dict)
    units: Mapping[tuple[int, Address], TokenUnit] = msgspec.field(default_factory=dict)
    """How amounts of each token are written, by chain and address."""

    def unit(self, chain_id: int, token: Address) -> TokenUnit:
        """Return how amounts of a token are written."""
        return self.units.get((chain_id, token), BASE_UNITS)


def rules_of(policy: WalletPolicy, *, people: frozenset[str] = frozenset()) -> ApprovalRules:
    """Return what a policy says about approvals; `people` are those who may answer."""
    places = {alias: (token.chain, token.address) for alias, token in policy.tokens.items()}
    approval = policy.approval
    return ApprovalRules(
        policy_revision=policy.revision,
        policy_hash=policy.hash,
        timeout_s=approval.timeout_s,
        quorum=approval.quorum,
        people=people,
        scope_max=approval.scope_max,
        pending_max=approval.pending_max,
        supervisors={
            name: Supervisor(
                may_approve=frozenset(agent.may_approve),
                approve_max={places[alias]: most for alias, most in agent.approve_max.items()},
            )
            for name, agent in policy.agents.items()
            if agent.may_approve
        },
        units={places[alias]: token.unit for alias, token in policy.tokens.items()},
    )
