"""The order of the steps, one function per action.

    authenticate   whose challenge is it, and what was promised      nothing durable
    load           a cheap refusal before any cryptography           nothing durable
    signature      a key's, else a wallet's through the chain        nothing durable
    freshness      only where the last chain read is too old         chain facts
    apply          accept, and hold for the request, in one go       all of it

Everything that is refused is refused before `apply`, or by it: then nothing moved.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from channel.chain import ChainReader, ChannelCloser
from channel.engine.admission import Admission, Unbounded
from channel.engine.background import Background
from channel.engine.challenger import Authenticated, Challenger
from channel.engine.closing import Closing
from channel.engine.facts import ChainFacts
from channel.engine.keeper import ReservationKeeper
from channel.engine.offer import Offer
from channel.engine.opening import (
    build_unopened,
    require_opened,
    require_source,
    require_terms,
    require_topped_up,
    require_usable,
)
from channel.engine.outcome import Hold, Outcome
from channel.engine.rate_limit import RateLimiter
from channel.engine.reservation import RunningReservation, held_amount
from channel.engine.settings import EngineSettings
from channel.engine.signatures import SignatureCheck
from channel.engine.verifying import VoucherVerifier
from channel.errors import (
    AmountExceedsDepositError,
    ChannelFinalizedError,
    ChannelNotFoundError,
    LedgerUnavailableError,
    MalformedPayloadError,
)
from channel.ledger.interface import Applied, ClaimRequest, ConsumeProof, ForgetRequest, Ledger
from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.commands import (
    AcceptVoucher,
    Command,
    Observe,
    OpenChannel,
    Release,
    Reserve,
)
from channel.state.requests import RequestClaim
from channel.state.transitions import require_consent, require_open
from channel.types import ChannelId, ChannelKey, TxHash, VerifiedVoucher
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.challenge import Challenge, SessionRequest
from channel.wire.credential import Credential
from channel.wire.payload import ClosePayload, OpenHash, TopUpHash, VoucherPayload
from channel.wire.receipt import Receipt

__all__ = ["Engine"]

_PUBLIC = b"public"


def _random_id() -> bytes:
    return secrets.token_bytes(16)


class Engine:
    """Takes credentials for one payee's channels in one escrow."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        chain: ChainReader,
        closer: ChannelCloser,
        binder: ChallengeBinder,
        settings: EngineSettings,
        admission: Admission | None = None,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], bytes] = _random_id,
    ) -> None:
        """Build an engine. It does nothing by itself until the first request.

        `admission` bounds what may be at risk in all; without it nothing does.
        `now` is wall-clock time in Unix seconds; `new_id` returns 16 unpredictable bytes.
        """
        self.settings = settings
        self.new_id = new_id
        self.now = now
        self._ledger = ledger
        self._chain = chain
        self._admission = admission or Unbounded()
        self._background = Background()
        self._challenger = Challenger(binder=binder, settings=settings, now=now, new_id=new_id)
        self._facts = ChainFacts(
            ledger=ledger, chain=chain, settings=settings, now=now, background=self._background
        )
        self._rate = RateLimiter(settings.vouchers_per_second, now)
        asking = RateLimiter(settings.vouchers_per_second, now)
        self._verifier = VoucherVerifier(settings.verifying_threads)
        self._signatures = SignatureCheck(
            chain=chain, facts=self._facts, asking=asking, verifier=self._verifier
        )
        self._keeper = ReservationKeeper(
            ledger=ledger, now=now, lease_s=settings.reservation_lease_s
        )
        self._closing = Closing(
            ledger=ledger,
            closer=closer,
            facts=self._facts,
            keeper=self._keeper,
            background=self._background,
            now=now,
            wait_s=settings.close_wait_s,
        )

    @property
    def signatures_checked(self) -> int:
        """How many voucher signatures this engine has checked."""
        return self._signatures.checked

    def ask(
        self,
        *,
        unit_price: int,
        unit_type: str,
        min_voucher_delta: int = 0,
        suggested_deposit: int | None = None,
        description: str | None = None,
    ) -> SessionRequest:
        """Return what a route asks, completed by what is the same for every route.

        Amounts in base units of the token.
        """
        return SessionRequest(
            unit_price=unit_price,
            currency=self.settings.token,
            recipient=self.settings.payee,
            chain_id=self._chain.chain_id,
            escrow=self._chain.escrow,
            unit_type=unit_type,
            suggested_deposit=suggested_deposit,
            description=description,
            min_voucher_delta=min_voucher_delta,
        )

    def issue_challenge(self, offer: Offer, channel_id: ChannelId | None = None) -> Challenge:
        """Return a fresh challenge for an offer. Stateless: nothing is remembered."""
        return self._challenger.issue(offer, channel_id)

    def authenticate(self, credential: Credential, offers: Sequence[Offer]) -> Authenticated:
        """Return the credential as one that answers a challenge of ours for one of `offers`.

        Raises:
            PeerError: See `Challenger.authenticate`.
        """
        return self._challenger.authenticate(credential, offers)

    async def perform(self, paid: Authenticated, hold: Hold | None = None) -> Outcome:
        """Do what the credential asks. With `hold`, also hold money for a content request.

        Raises:
            PeerError: Refused; see the function of the action.
            OperatorError: It could not be decided or made durable.
        """
        payload = paid.credential.payload
        match payload:
            case VoucherPayload():
                return await self.voucher(paid, payload, hold)
            case OpenHash():
                return await self.open(paid, payload, hold)
            case TopUpHash():
                return await self.top_up(paid, payload)
            case ClosePayload():
                return await self.close(paid, payload)
            case _:
                raise MalformedPayloadError("payload.type: not offered.")

    async def voucher(
        self, paid: Authenticated, payload: VoucherPayload, hold: Hold | None = None
    ) -> Outcome:
        """Accept a voucher (VCH-02), and hold for a content request in the same transaction.

        Raises:
            ChannelNotFoundError: The channel was never opened here.
            ChannelFinalizedError: It has ended, is being closed, or has a pending close.
            ChallengeNotFoundError: The challenge has expired and no stream is live.
            InvalidSignatureError, SignerMismatchError: Not signed by who may.
            TooManyRequestsError: Too many vouchers a second (VCH-09).
            ExposureLimitError: More would be unsettled than the operator allows.
            DeltaTooSmallError, AmountExceedsDepositError: See `transitions`.
            InsufficientBalanceError: The voucher counts, but does not cover the request.
        """
        state = await self._require_known(paid.key)
        if hold is not None or not _has_stream(state):
            paid.require_current()
        require_open(state)
        require_source(paid, state.terms)
        verified = await self._signatures.require(payload.voucher, paid.key, state.terms.signer)
        self._require_rate(verified, state)
        await self._facts.require_fresh(paid.key)
        if verified.cumulative_amount > state.deposit:
            await self._facts.refresh(paid.key)  # F-50: a top-up we have not heard of
        accept = AcceptVoucher(verified, paid.asked.min_voucher_delta, int(self.now()))
        return await self._accept(paid, accept, verified, hold, known=state)

    async def open(
        self, paid: Authenticated, payload: OpenHash, hold: Hold | None = None
    ) -> Outcome:
        """Take a channel that its payer opened on chain into the books (OPEN-01 to OPEN-10).

        For a channel that is known already this is a voucher and nothing else: it neither
        resets `spent` nor asks the chain (F-25).

        Raises:
            MalformedPayloadError: The channel id does not follow from the terms.
            InvalidSignatureError, SignerMismatchError: As for a voucher, before all that costs.
            TransactionRevertedError: The opening reverted.
            VerificationFailedError: The chain does not show it, or not yet.
            OpeningsPausedError: There is too little gas to defend one more channel.
            PeerError: As for a voucher.
        """
        terms = require_terms(paid, payload)
        verified = await self._signatures.require(payload.voucher, paid.key, terms.signer)
        state = await self._ledger.load(paid.key)
        self._require_rate(verified, state)
        if state is not None:
            require_open(state)
            await self._facts.require_fresh(paid.key)
            accept = AcceptVoucher(verified, paid.asked.min_voucher_delta, int(self.now()))
            return await self._accept(paid, accept, verified, hold, known=state)
        self._admission.require_openings()
        async with self._facts.bounded_check():
            evidence = await self._facts.require_transaction(payload.tx_hash)
            proof = require_opened(evidence, payload)
            fact = require_usable(
                await self._facts.read(payload.channel_id, block_min=evidence.block_number),
                terms,
                paid.asked.unit_price,
            )
        opening = OpenChannel(fact, verified, int(self.now()))
        unopened = build_unopened(fact)
        outcome = await self._accept(paid, opening, verified, hold, known=unopened, proof=proof)
        self._facts.mark_read(paid.key)
        return replace(outcome, tx_hash=payload.tx_hash, confirmations=evidence.confirmations)

    async def top_up(self, paid: Authenticated, payload: TopUpHash) -> Outcome:
        """Take over the deposit that a top-up on chain left (TOPUP-01 to TOPUP-07).

        `accepted` and `spent` never move. The deposit is the chain's absolute value, so that a
        repeat adds nothing (F-29). Of a channel that was never opened here the answer tells
        what the chain says and nothing is stored.

        Raises:
            ChannelNotFoundError: The escrow has no such channel of ours.
            ChannelFinalizedError: It has ended.
            TransactionRevertedError: The top-up reverted.
            VerificationFailedError: The chain does not show it, or another amount.
        """
        state = await self._ledger.load(paid.key)
        if state is not None:
            if state.is_finalized:
                raise ChannelFinalizedError("The channel is finalized.")
            require_source(paid, state.terms)
        async with self._facts.bounded_check():
            evidence = await self._facts.require_transaction(payload.tx_hash)
            proof = require_topped_up(evidence, payload)
            fact = await self._facts.read(payload.channel_id, block_min=evidence.block_number)
        if fact is None or fact.terms.payee != paid.asked.recipient:
            raise ChannelNotFoundError("The escrow has no such channel for this payee.")
        if state is None:
            # Not of our books, and not stored: its payer has yet to open it here (TOPUP-07).
            return Outcome(state=build_unopened(fact), tx_hash=payload.tx_hash)
        applied = await self._ledger.apply(paid.key, [Observe(fact)], proof=proof)
        self._facts.mark_read(paid.key)
        return Outcome(
            state=applied.require(),
            tx_hash=payload.tx_hash,
            confirmations=evidence.confirmations,
        )

    async def close(self, paid: Authenticated, payload: ClosePayload) -> Outcome:
        """Close the channel with its payer's consent; see `closing` for the steps.

        A repeat after the close answers with the same transaction (CLOSE-05); its signature is
        checked like any other's (F-67).

        Raises:
            ChannelNotFoundError: The channel was never opened here.
            InvalidSignatureError, SignerMismatchError: Not signed by who may.
            InsufficientBalanceError: The voucher is public, and so nobody's consent.
            AmountExceedsDepositError: The escrow could not pay that.
            ChannelFinalizedError: It has ended, and not by our close.
            TransactionRevertedError, SettlementPendingError: See `Closing.close`.
        """
        state = await self._require_known(paid.key)
        require_source(paid, state.terms)
        verified = await self._signatures.require(payload.voucher, paid.key, state.terms.signer)
        self._require_rate(verified, state)
        if state.close_tx:
            return Outcome(state=state, tx_hash=TxHash(state.close_tx))
        await self._facts.require_fresh(paid.key)  # what was settled meanwhile is public
        require_consent(state, verified.cumulative_amount)
        if verified.cumulative_amount > state.deposit:
            state = await self._facts.refresh(paid.key)
            if verified.cumulative_amount > state.deposit:
                raise AmountExceedsDepositError(
                    cumulative_amount=verified.cumulative_amount, deposit=state.deposit
                )
        try:
            return await self._closing.close(paid.key, verified)
        except ChannelFinalizedError:
            # Another worker may have closed it since we looked: the same answer as its own.
            state = (await self._ledger.apply(paid.key, [])).state
            if not state.close_tx:
                raise
            return Outcome(state=state, tx_hash=TxHash(state.close_tx))

    def reservation(self, paid: Authenticated, hold: Hold, outcome: Outcome) -> RunningReservation:
        """Return the owner's side of what `perform` held; its lease is renewed from now on."""
        return RunningReservation(
            outcome=outcome,
            hold=hold,
            unit_price=paid.asked.unit_price,
            min_voucher_delta=paid.asked.min_voucher_delta,
            step_units=self.settings.reservation_step_units,
            ledger=self._ledger,
            keeper=self._keeper,
            background=self._background,
            admission=self._admission,
        )

    def receipt(self, paid: Authenticated, outcome: Outcome, units: int | None = None) -> Receipt:
        """Return the receipt for the books as they are (RCPT-05), without what is only reserved."""
        state = outcome.state
        return Receipt(
            challenge_id=paid.challenge_id,
            channel_id=state.key.channel_id,
            chain_id=state.key.chain_id,
            accepted=state.accepted,
            spent=state.spent,
            timestamp=self.now(),
            units=units,
            tx_hash=outcome.tx_hash,
            confirmations=outcome.confirmations,
        )

    async def aclose(self) -> None:
        """Finish what must be finished. The ledger stays open: whoever opened it closes it."""
        await self._keeper.close()
        self._verifier.close()
        await self._background.close()

    async def _require_known(self, key: ChannelKey) -> ChannelState:
        state = await self._ledger.load(key)
        if state is None:
            raise ChannelNotFoundError("The channel is not known here.")
        return state

    def _require_rate(self, verified: VerifiedVoucher, state: ChannelState | None) -> None:
        """Count a proven voucher against its channel's rate.

        After the signature, not before: else anybody who knows a channel's id could use up its
        payer's rate. For the same reason a voucher that is public counts apart.
        """
        is_public = state is not None and verified.cumulative_amount <= state.published
        self._rate.require(verified.key.channel_id + (_PUBLIC if is_public else b""))

    async def _accept(
        self,
        paid: Authenticated,
        first: Command,
        verified: VerifiedVoucher,
        hold: Hold | None,
        *,
        known: ChannelState,
        proof: ConsumeProof | None = None,
    ) -> Outcome:
        """Run `first` and the reservation of a content request, durably, in one transaction."""
        if hold is None:
            applied = await self._apply(verified, known, [first], proof=proof)
            return Outcome(state=applied.require())
        claim = None
        # A public voucher authorises nothing, not even an answer given before (decision 5).
        if hold.claim is not None and verified.cumulative_amount > known.published:
            claim = await hold.claim(hold.reservation_id)
        request = None if claim is None else ClaimRequest(claim)
        reserve = self._reserve(paid, hold, verified)
        room = _coverable(reserve, verified, known)
        self._admission.take_room(room)
        held = 0
        try:
            applied = await self._apply(
                verified, known, [first, reserve], request=request, proof=proof
            )
            held = held_amount(applied.state, hold.reservation_id)
        except (asyncio.CancelledError, LedgerUnavailableError):
            # It may have been made: give it back, so that the payer need not wait for a lease.
            self._background.start(self._abandon(paid.key, hold, claim))
            raise
        finally:
            self._admission.give_back(room - held)
        return Outcome(state=applied.require(), stored=applied.stored, claim=claim)

    async def _apply(
        self,
        verified: VerifiedVoucher,
        known: ChannelState,
        commands: Sequence[Command],
        *,
        request: ClaimRequest | None = None,
        proof: ConsumeProof | None = None,
    ) -> Applied:
        """Apply within what the operator lets us be owed. Public vouchers promise nothing new."""
        self._admission.require_promise(
            verified.key,
            verified.cumulative_amount,
            accepted=known.accepted,
            settled=known.settled,
        )
        return await self._ledger.apply(verified.key, commands, request=request, proof=proof)

    def _reserve(self, paid: Authenticated, hold: Hold, verified: VerifiedVoucher) -> Reserve:
        return Reserve(
            reservation_id=hold.reservation_id,
            kind=ReservationKind.REQUEST,
            unit_price=paid.asked.unit_price,
            units_min=hold.units_min,
            units_max=hold.units_max,
            presented=verified.cumulative_amount,
            min_voucher_delta=paid.asked.min_voucher_delta,
            lease_expires_at=self._keeper.lease(),
        )

    async def _abandon(self, key: ChannelKey, hold: Hold, claim: RequestClaim | None) -> None:
        forget = None if claim is None else ForgetRequest(claim)
        await self._ledger.apply(key, [Release(hold.reservation_id)], request=forget)


def _coverable(reserve: Reserve, verified: VerifiedVoucher, known: ChannelState) -> int:
    """Return the most that a reservation can come to hold: what is asked for and covered."""
    covered = max(verified.cumulative_amount, known.accepted) - known.spent
    return min(reserve.units_max * reserve.unit_price, max(0, covered))


def _has_stream(state: ChannelState) -> bool:
    return any(held.kind is ReservationKind.STREAM for held in state.reservations)
