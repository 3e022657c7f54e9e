"""Checks what the chain must show before an opening or a top-up counts (OPEN, TOPUP)."""

from typing import TypeAlias

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
from channel.verify.typed_data import derive_channel_id
from channel.wire.payload import OpenAuthorization, OpenHash, OpenPermit2

__all__ = [
    "Opening",
    "build_unopened",
    "require_opened",
    "require_source",
    "require_terms",
    "require_topped_up",
    "require_usable",
]

Opening: TypeAlias = OpenHash | OpenAuthorization | OpenPermit2


def require_terms(paid: Authenticated, payload: Opening) -> ChannelTerms:
    """Return the terms that this payload claims, if its channel id follows from them (OPEN-01).

    For `hash` the payer is the source; for every other type it is the funder of the deposit.

    Raises:
        MalformedPayloadError: No source, a source on another chain, or another channel's id.
    """
    if isinstance(payload, OpenHash):
        if paid.credential.source is None:
            raise MalformedPayloadError("source: missing")
        payer = _source_address(paid)
    else:
        payer = payload.authorization.funder
    terms = ChannelTerms(
        payer=payer,
        payee=paid.asked.recipient,
        token=paid.asked.currency,
        authorized_signer=payload.authorized_signer,
    )
    derived = derive_channel_id(
        terms, salt=payload.salt, escrow=paid.key.escrow, chain_id=paid.key.chain_id
    )
    if derived != payload.channel_id:
        raise MalformedPayloadError("payload.channelId: not the id of a channel with these terms.")
    return terms


def require_source(paid: Authenticated, terms: ChannelTerms) -> None:
    """Check that a source, if given, is the payer or its signer (CRED-02, CRED-03).

    Raises:
        MalformedPayloadError: It is on another chain.
        SignerMismatchError: It is neither.
    """
    if paid.credential.source is None:
        return
    if _source_address(paid) not in (terms.payer, terms.signer):
        raise SignerMismatchError("The source is neither the channel's payer nor its signer.")


def _source_address(paid: Authenticated) -> Address:
    source = paid.credential.source
    if source is None or source[0] != paid.key.chain_id:
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
