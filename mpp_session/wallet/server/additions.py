"""The other parts of the wallet that add to its process: routes of the owner's door, and tasks."""

from mpp_session.wallet.server.parts import Addition, ApprovalQuestions, NoQuestions
from mpp_session.wallet.server.running import RunningWallet

__all__ = ["build_additions", "build_questions"]


def build_additions(wallet: RunningWallet) -> list[Addition]:
    """Return what other parts add to this wallet, in the order in which routes are tried."""
    del wallet
    return []


def build_questions(wallet: RunningWallet) -> ApprovalQuestions:
    """Return what answers agents about the approvals that they wait for."""
    del wallet
    return NoQuestions()
