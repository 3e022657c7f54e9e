"""A contract's refusal becomes the problem that ERR-02 names, and stays in the revert's family."""

import pytest

from channel import errors
from settlement.errors import contract_reverted
from settlement.types import RevertReason

_LIKE_NAMED = {
    RevertReason.CHANNEL_NOT_FOUND: errors.ChannelNotFoundError,
    RevertReason.CHANNEL_FINALIZED: errors.ChannelFinalizedError,
    RevertReason.INVALID_SIGNATURE: errors.InvalidSignatureError,
    RevertReason.AMOUNT_EXCEEDS_DEPOSIT: errors.AmountExceedsDepositError,
    RevertReason.TOKEN_REFUSED: errors.InsufficientBalanceError,
}


@pytest.mark.parametrize("reason", RevertReason)
def test_each_reason_has_its_problem(reason: RevertReason) -> None:
    """ERR-02: the like-named type where there is one, transaction-reverted for all others."""
    error = contract_reverted(reason, text="words")
    like: type[errors.PeerError] = _LIKE_NAMED.get(reason, errors.TransactionRevertedError)
    assert isinstance(error, errors.TransactionRevertedError)
    assert (error.status, error.problem_type, error.title) == (
        like.status,
        like.problem_type,
        like.title,
    )
    assert reason.value in error.detail
    assert "0x" not in error.detail
