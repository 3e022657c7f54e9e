"""Checks what the chain must show before an opening or a top-up counts (OPEN, TOPUP)."""

from channel.chain import TransactionEvidence
from channel.engine.challenger import Authenticated
from channel.errors import (
    ChannelFinalizedError,
    InsufficientBalanceError,
    MalformedPayloadError,
    SignerMismatchError,
    VerificationFailedError,
)
from channel.ledger.interface import ConsumeProof
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.types import Address, ChannelFact, ChannelId, ChannelTerms

__all__ = [
    "build_unopened",
    "read_source",
    "require_opened",
    "require_source",
    "require_topped_up",
    "require_usable",
]


def require_source(paid: Authenticated, terms: ChannelTerms) -> None:
    """Check that a source, if given, is the payer or its signer (CRED-02, CRED-03).

    Raises:
        MalformedPayloadError: It is on another chain.
        SignerMismatchError: It is neither.
    """
    source = read_source(paid)
    if source is not None and source not in (terms.payer, terms.signer):
        raise SignerMismatchError("The source is neither the channel's payer nor its signer.")


def read_source(paid: Authenticated) -> Address | None:
    """Return the payer's address as the credential states it; None if it states none.

    Raises:
        MalformedPayloadError: It is on another chain.
    """
    source = paid.credential.source
    if source is None:
        return None
    if source[0] != paid.key.chain_id:
        raise MalformedPayloadError("source: not on the chain of this offer.")
    return source[1]


def require_opened(evidence: TransactionEvidence, channel_id: ChannelId) -> ConsumeProof:
    """Return the proof that this transaction opened this channel in the escrow (OPEN-03, F-84).

    Raises:
        VerificationFailedError: It did not open the channel.
    """
    for log in evidence.opened:
        if log.channel_id == channel_id:
            return ConsumeProof(evidence.tx_hash, log.log_index)
    raise VerificationFailedError("The transaction did not open this channel.")


def require_topped_up(
    evidence: TransactionEvidence, channel_id: ChannelId, amount: int
) -> ConsumeProof:
    """Return the proof that this transaction raised the deposit by exactly `amount` (TOPUP-03).

    Raises:
        VerificationFailedError: It did not.
    """
    for log in evidence.topped_up:
        if (log.channel_id, log.additional_deposit) == (channel_id, amount):
            return ConsumeProof(evidence.tx_hash, log.log_index)
    raise VerificationFailedError("The transaction did not add this deposit to this channel.")


def require_usable(fact: ChannelFact | None, terms: ChannelTerms, cost: int) -> ChannelFact:
    """Return the channel's state if it can pay for at least `cost` (OPEN-04).

    Raises:
        VerificationFailedError: The chain does not show it, or shows other terms.
        ChannelFinalizedError: It has ended, or its payer has requested a close.
        InsufficientBalanceError: The rest of the deposit does not cover it.
    """
    if fact is None or fact.terms != terms:
        raise VerificationFailedError("The escrow has no such channel yet.")
    if fact.is_finalized:
        raise ChannelFinalizedError("The channel is finalized.")
    if fact.close_requested_at:
        raise ChannelFinalizedError("The channel has a pending close requested by its payer.")
    if fact.deposit - fact.settled < cost:
        raise InsufficientBalanceError(
            required_cumulative=fact.settled + cost,
            accepted=fact.settled,
            spent=fact.settled,
            deposit=fact.deposit,
        )
    return fact


def build_unopened(fact: ChannelFact) -> ChannelState:
    """Return the state of a channel that was never opened here: the chain's values."""
    nothing = LadderVoucher(fact.settled, b"")
    return ChannelState(
        key=fact.key,
        terms=fact.terms,
        deposit=fact.deposit,
        settled=fact.settled,
        accepted=fact.settled,
        spent=fact.settled,
        published=fact.settled,
        close_requested_at=fact.close_requested_at,
        is_finalized=fact.is_finalized,
        fact_block=fact.block_number,
        highest=nothing,
        at_or_below_spent=nothing,
        above_spent=None,
        active_at=0,
    )
