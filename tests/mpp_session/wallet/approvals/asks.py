"""Asks, decisions and rules that the tests of approvals vary."""

from typing import Any

from msgspec.structs import replace

from channel.tariff import Tariff
from channel.types import Address, ChannelId, TokenUnit
from mpp_session.wallet.approvals.record import Decider
from mpp_session.wallet.approvals.rules import ApprovalRules, Supervisor
from mpp_session.wallet.types import Ask, Code, Decision, Purpose

__all__ = ["BOB", "CHAIN_ID", "MIA", "RULES", "TOKEN", "ask_of", "decision_of"]

CHAIN_ID = 31337
TOKEN = Address(b"\xc3" * 20)
MIA = Decider("person", "mia")
BOB = Decider("person", "bob")
RULES = ApprovalRules(
    policy_revision=7,
    policy_hash="a1",
    timeout_s=900,
    valid_s=3600,
    scope_max="window",
    supervisors={"lead": Supervisor(frozenset({"scout", "lead"}), {(CHAIN_ID, TOKEN): 3_000_000})},
    units={(CHAIN_ID, TOKEN): TokenUnit("USDC", 6)},
)

_ASK = Ask(
    kind="deposit",
    agent="scout",
    request_id="r1",
    origin="https://api.example:443",
    method="POST",
    path="/search",
    purpose=Purpose(task="t1", reason="The cheaper search had no data."),
    chain_id=CHAIN_ID,
    token=TOKEN,
    recipient=Address(b"\xb2" * 20),
    escrow=Address(b"\xe5" * 20),
    tariff=Tariff.of("request", 10_000),
    request_max=10_000,
    amount=5_000_000,
    total=5_000_000,
    request_total=0,
    channel_id=ChannelId(bytes(31) + b"\x01"),
    is_opening=True,
    at=1_800_000_000,
)


def ask_of(**changes: Any) -> Ask:
    """Return a deposit of 5 USDC that opens a channel, with changes; `task` is its purpose's."""
    purpose = _ASK.purpose
    for name in ("task", "reason", "tool", "on_behalf_of", "alternatives"):
        if name in changes:
            purpose = replace(purpose, **{name: changes.pop(name)})
    return replace(_ASK, purpose=purpose, **changes)


def decision_of(code: Code = Code.APPROVAL_PENDING, **changes: Any) -> Decision:
    """Return a decision to ask, with changes."""
    known: dict[str, Any] = {
        "action": "ask",
        "code": code,
        "reason": "The deposit is above 4.00 USDC.",
        "rule": "search",
        "field": "approval.above",
        "left": 20_000_000,
        "policy_revision": 7,
    }
    return Decision(**{**known, **changes})
