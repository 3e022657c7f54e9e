"""Opens channels and tops them up, by the payer's transaction or by its signature.

The channel's method turns a payload into a plan. By the payer's transaction: the chain must show
it; if the credential carries it signed, the server sends it first. By signature: the payee submits
a deposit and pays the gas, in this order (VCH-07, AMB-26):

    fields, signatures of deposit and voucher      pure; a wallet's signature asks the chain
    the rules, as if the deposit were made          pure
    the operator's bounds, the simulation           a deposit that would revert is not broadcast
    take                                            durable: from here on the settler must send it
    wait, bounded                                   mined, by the settler or by a third party
    the escrow's log, the channel's state           as for the payer's transaction
    apply                                           in the ledger, with the voucher

A client that is interrupted repeats the credential, and continues from the last durable step.
"""

from collections import OrderedDict

from msgspec.structs import replace

from channel.chain import (
    DepositSponsor,
    SponsoredDeposit,
    TransactionBroadcaster,
    TransactionEvidence,
)
from channel.engine.acceptance import Acceptance
from channel.engine.admission import Admission
from channel.engine.challenger import Authenticated
from channel.engine.facts import ChainFacts
from channel.engine.opening import (
    build_unopened,
    read_source,
    require_opened,
    require_source,
    require_topped_up,
    require_usable,
)
from channel.engine.outcome import Hold, Outcome
from channel.engine.rate_limit import RateLimiter
from channel.engine.reservation import least_amount
from channel.engine.settings import SponsorTerms
from channel.engine.voucher_verifier import VoucherVerifier
from channel.errors import (
    ChannelFinalizedError,
    ChannelNotFoundError,
    DepositTooSmallError,
    InvalidSignatureError,
    MalformedPayloadError,
    PeerError,
    SettlementPendingError,
    SignerMismatchError,
    TransactionRevertedError,
    VerificationFailedError,
)
from channel.ledger.interface import ConsumeProof, Ledger, load_known
from channel.limits import AMOUNT_MAX, FACT_AGES_MAX
from channel.methods.interface import OpeningPlan, PayerTransaction, SessionMethod, TopUpPlan
from channel.state.channel_state import ChannelState
from channel.state.commands import AcceptVoucher, Observe, OpenChannel
from channel.state.transitions import require_open, transition
from channel.types import ChannelFact, ChannelKey, ChannelTerms, TxHash, VerifiedVoucher
from channel.wire.payload import OpenPayload, Payload, TopUpPayload, VoucherPayload

__all__ = ["Deposits", "Sponsoring"]


class Sponsoring:
    """The sponsor that submits payers' deposits, its terms, and the rate for one source."""

    def __init__(self, sponsor: DepositSponsor, terms: SponsorTerms, rate: RateLimiter) -> None:
        self.sponsor = sponsor
        self.terms = terms
        self.rate = rate


class Deposits:
    """The only code that adds a channel to the ledger or raises its deposit by a credential."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        facts: ChainFacts,
        vouchers: VoucherVerifier,
        acceptance: Acceptance,
        admission: Admission,
        sponsoring: Sponsoring | None,
        method: SessionMethod,
        broadcaster: TransactionBroadcaster | None = None,
    ) -> None:
        self._ledger = ledger
        self._facts = facts
        self._vouchers = vouchers
        self._acceptance = acceptance
        self._admission = admission
        self._sponsoring = sponsoring
        self._method = method
        self._broadcaster = broadcaster
        self._credited: OrderedDict[tuple[ChannelKey, TxHash, int], None] = OrderedDict()

    async def make(self, paid: Authenticated, payload: Payload, hold: Hold | None) -> Outcome:
        """Do what a credential with a deposit asks; errors as the method of each kind."""
        match payload:
            case OpenPayload():
                return await self.open(paid, payload, hold)
            case TopUpPayload():
                return await self.top_up(paid, payload)
            case VoucherPayload() if payload.deposit is not None:
                return await self.merged(paid, payload, hold)
        raise MalformedPayloadError("payload: expected a deposit, found none")

    async def open(
        self,
        paid: Authenticated,
        payload: OpenPayload,
        hold: Hold | None,
        *,
        is_merged: bool = False,
    ) -> Outcome:
        """Add a channel that its payer opened, or wants opened, to the ledger (OPEN).

        For a known channel this is only a voucher: it neither resets `spent` nor asks the chain
        (F-25). A deposit attached to a voucher (`is_merged`) must be the one that opened a known
        channel. A credential of its own for a known channel is a repeat in any case (OPEN-10,
        VCH-07).

        Raises:
            MalformedPayloadError: The channel id does not follow from the terms, or a field
                contradicts them.
            InvalidSignatureError, SignerMismatchError: As for a voucher, before any cost.
            TransactionRevertedError: The opening reverted.
            VerificationFailedError: The chain does not show it, or not yet.
            DepositTooSmallError, AuthorizationExpiredError: Too small, or expiring too soon.
            SponsoringPausedError, TooManyDepositsError: No gas is paid now, or for this payer.
            SettlementPendingError: Submitted, and not mined within the bound; ask again.
            OpeningsPausedError: There is not enough gas to defend one more channel.
            PeerError: As for a voucher.
        """
        source = read_source(paid)
        plan = self._method.plan_opening(payload, key=paid.key, asked=paid.asked, source=source)
        require_source(paid, plan.terms)
        verified, state = await self._prove(paid, payload, plan.terms)
        if state is not None:
            if is_merged and not await self._is_taken(plan):
                raise MalformedPayloadError("payload.deposit.action: the channel is open already.")
            return await self._repeat(paid, verified, hold, state)
        if isinstance(plan.deposit, PayerTransaction):
            self._admission.require_openings()
            async with self._facts.bounded_check(paid.client, plan.terms.signer, waits=True):
                evidence = await self._find(plan.deposit)
                opened = await self._find_opened(paid, plan.terms, evidence)
            return await self._record(paid, verified, hold, opened, evidence)
        expected = _as_opened(plan.deposit, plan.terms)
        require_usable(expected, plan.terms, least_amount(paid.asked.pricing))
        transition(None, OpenChannel(expected, verified, self._acceptance.now()))
        self._acceptance.require_promise(verified, build_unopened(expected))
        evidence = await self._make(paid, plan.deposit, plan.terms, first=verified)
        opened = await self._find_opened(paid, plan.terms, evidence)
        return await self._record(paid, verified, hold, opened, evidence)

    async def top_up(self, paid: Authenticated, payload: TopUpPayload) -> Outcome:
        """Record the deposit after a top-up (TOPUP), which is submitted if the payer signed it.

        Raises:
            PeerError, OperatorError: See below, and as for `open`.
        """
        plan = self._method.plan_top_up(payload, key=paid.key, asked=paid.asked)
        if isinstance(plan.deposit, PayerTransaction):
            return await self._top_up_by_payer(paid, plan, plan.deposit)
        return await self._top_up_sponsored(paid, plan.deposit)

    async def _top_up_by_payer(
        self, paid: Authenticated, plan: TopUpPlan, transaction: PayerTransaction
    ) -> Outcome:
        """Record the deposit after a top-up by the payer's transaction.

        `accepted` and `spent` never change. The deposit is the chain's absolute value, so a repeat
        adds nothing (F-29). For a channel that was never opened here, the answer shows the chain's
        values and nothing is stored; the payee pays no gas for it.

        Raises:
            ChannelNotFoundError: The escrow has no such channel for this payee.
            ChannelFinalizedError: It has ended.
            TransactionRevertedError: The top-up reverted.
            VerificationFailedError: The chain does not show it, or shows another amount.
        """
        state = await self._ledger.load(paid.key)
        if state is not None:
            _require_not_ended(state)
            require_source(paid, state.terms)
        self._admission.require_deposits()
        async with self._facts.bounded_check(paid.client, waits=True):
            evidence = await self._find(transaction)
            proof = require_topped_up(evidence, paid.key.channel_id, plan.amount)
            fact = await self._facts.read(paid.key.channel_id, block_min=evidence.block_number)
        if fact is None or fact.terms.payee != paid.asked.recipient:
            raise ChannelNotFoundError("The escrow has no such channel for this payee.")
        if state is None:
            # Not in this ledger, and not stored: its payer has yet to open it here (TOPUP-07).
            return Outcome(state=build_unopened(fact), tx_hash=transaction.tx_hash)
        applied = await self._ledger.apply(paid.key, [Observe(fact)], proof=proof)
        self._facts.mark_read(paid.key)
        return _mined(Outcome(state=applied.require()), evidence)

    async def _top_up_sponsored(self, paid: Authenticated, deposit: SponsoredDeposit) -> Outcome:
        """Submit a top-up that the payer signed, and record it.

        Only for channels in this ledger that may still be used.
        """
        state = await load_known(self._ledger, paid.key)
        _require_not_ended(state)
        if state.is_closing:  # the close would be mined first, and this would pay for a revert
            raise ChannelFinalizedError("The channel is being closed.")
        if state.close_requested_at:  # only the payer's own transaction cancels that (AMB-27)
            raise ChannelFinalizedError("The channel has a pending close requested by its payer.")
        tx_hash = await self._submit(paid, deposit, state.terms)
        credited = (paid.key, tx_hash, deposit.amount)
        if credited in self._credited:  # anyone can repeat it: ask no node again
            return Outcome(state=state, tx_hash=tx_hash)
        evidence = await self._mined_in(tx_hash)
        proof = require_topped_up(evidence, paid.key.channel_id, deposit.amount)
        fact = await self._read(paid.key, evidence)
        applied = await self._ledger.apply(paid.key, [Observe(fact)], proof=proof)
        self._facts.mark_read(paid.key)
        outcome = _mined(Outcome(state=applied.require()), evidence)
        self._credited[credited] = None
        if len(self._credited) > FACT_AGES_MAX:
            self._credited.popitem(last=False)
        return outcome

    async def merged(
        self, paid: Authenticated, payload: VoucherPayload, hold: Hold | None
    ) -> Outcome:
        """Make the deposit attached to a voucher, then accept the voucher (VCH-06, VCH-07).

        If the deposit is mined and the voucher is refused after all, the deposit stays.

        Raises:
            MalformedPayloadError: An `open` for a channel that was opened by another deposit.
            PeerError: As for an opening, or for a top-up and a voucher.
        """
        whole = self._method.split_merged(payload)
        if isinstance(whole, OpenPayload):
            return await self.open(paid, whole, hold, is_merged=True)
        signed = self._method.plan_top_up(whole, key=paid.key, asked=paid.asked).deposit
        if isinstance(signed, PayerTransaction):
            raise MalformedPayloadError("payload.deposit: expected a signature of the funder")
        state = await load_known(self._ledger, paid.key)
        require_open(state)  # only the payer's own transaction cancels a close (AMB-16, AMB-27)
        require_source(paid, state.terms)
        verified = await self._vouchers.verify(
            payload.voucher, paid.key, state.terms.signer, client=paid.client
        )
        self._acceptance.require_rate(verified, state)
        accept = AcceptVoucher(verified, paid.asked.min_voucher_delta, self._acceptance.now())
        transition(_as_topped_up(state, signed), accept)
        self._acceptance.require_promise(verified, state)
        evidence = await self._make(paid, signed, state.terms)
        proof = require_topped_up(evidence, paid.key.channel_id, signed.amount)
        fact = await self._read(paid.key, evidence)
        outcome = await self._acceptance.accept(
            paid, verified, hold, known=state, first=[Observe(fact)], proof=proof
        )
        self._facts.mark_read(paid.key)
        return _mined(outcome, evidence)

    async def _repeat(
        self, paid: Authenticated, verified: VerifiedVoucher, hold: Hold | None, state: ChannelState
    ) -> Outcome:
        """Treat an opening of a known channel as the voucher it carries (OPEN-10, F-25)."""
        require_open(state)
        await self._facts.require_fresh(paid.key)
        return await self._acceptance.accept(paid, verified, hold, known=state)

    async def _prove(
        self, paid: Authenticated, payload: OpenPayload, terms: ChannelTerms
    ) -> tuple[VerifiedVoucher, ChannelState | None]:
        """Return the first voucher, verified, and the channel if the ledger has it."""
        verified = await self._vouchers.verify(
            payload.voucher, paid.key, terms.signer, client=paid.client
        )
        state = await self._ledger.load(paid.key)
        self._acceptance.require_rate(verified, state)
        return verified, state

    async def _is_taken(self, plan: OpeningPlan) -> bool:
        """Whether exactly this deposit was submitted before."""
        if isinstance(plan.deposit, PayerTransaction):
            return False
        return await self._require_sponsoring().sponsor.is_taken(plan.deposit)

    async def _find(self, transaction: PayerTransaction) -> TransactionEvidence:
        """Return the payer's transaction as the chain shows it, and send it if that is asked.

        Raises:
            TransactionRevertedError: It reverted; that is final.
            VerificationFailedError: The node refused it, or it is not deep enough yet.
        """
        if not transaction.raw:
            return await self._facts.require_transaction(transaction.tx_hash)
        if self._broadcaster is None:
            raise MalformedPayloadError("payload.type: this server sends no transactions.")
        is_taken = await self._broadcaster.broadcast(transaction.raw)
        try:
            return await self._facts.require_transaction(transaction.tx_hash)
        except VerificationFailedError as error:
            if is_taken:
                raise
            raise VerificationFailedError(f"{error} The node refused it.") from error

    async def _find_opened(
        self, paid: Authenticated, terms: ChannelTerms, evidence: TransactionEvidence
    ) -> tuple[ChannelFact, ConsumeProof]:
        """Return the channel that this transaction opened, if it is usable."""
        proof = require_opened(evidence, paid.key.channel_id)
        fact = await self._facts.read(paid.key.channel_id, block_min=evidence.block_number)
        return require_usable(fact, terms, least_amount(paid.asked.pricing)), proof

    async def _record(
        self,
        paid: Authenticated,
        verified: VerifiedVoucher,
        hold: Hold | None,
        opened: tuple[ChannelFact, ConsumeProof],
        evidence: TransactionEvidence,
    ) -> Outcome:
        fact, proof = opened
        opening = OpenChannel(fact, verified, self._acceptance.now())
        outcome = await self._acceptance.accept(
            paid, verified, hold, known=build_unopened(fact), first=[opening], proof=proof
        )
        self._facts.mark_read(paid.key)
        return _mined(outcome, evidence)

    async def _make(
        self,
        paid: Authenticated,
        deposit: SponsoredDeposit,
        terms: ChannelTerms,
        *,
        first: VerifiedVoucher | None = None,
    ) -> TransactionEvidence:
        """Return the transaction of a deposit that the payee submits; resumes a durable one.

        Raises:
            SettlementPendingError: It is on its way, or not deep enough yet.
            PeerError: Refused; nothing was broadcast, unless the chain itself refused.
        """
        return await self._mined_in(await self._submit(paid, deposit, terms, first=first))

    async def _submit(
        self,
        paid: Authenticated,
        deposit: SponsoredDeposit,
        terms: ChannelTerms,
        *,
        first: VerifiedVoucher | None = None,
    ) -> TxHash:
        """Return the deposit's transaction, from the settler or from a faster third party."""
        sponsoring = self._require_sponsoring()
        if not await sponsoring.sponsor.is_taken(deposit):
            await self._take(paid, sponsoring, deposit, terms, first)
        return await sponsoring.sponsor.wait(deposit)

    async def _mined_in(self, tx_hash: TxHash) -> TransactionEvidence:
        try:
            return await self._facts.require_transaction(tx_hash)
        except VerificationFailedError as error:
            # It is the payee's and mined, so the payer must never pay again.
            raise SettlementPendingError(str(error)) from error

    async def _take(
        self,
        paid: Authenticated,
        sponsoring: Sponsoring,
        deposit: SponsoredDeposit,
        terms: ChannelTerms,
        first: VerifiedVoucher | None,
    ) -> None:
        if deposit.amount < sponsoring.terms.deposit_min:
            raise DepositTooSmallError(
                deposit=deposit.amount, deposit_min=sponsoring.terms.deposit_min
            )
        refusal: PeerError | None = None
        try:
            self._method.require_key_signature(deposit, sponsoring.terms.token_domain, terms)
        except (InvalidSignatureError, SignerMismatchError) as not_a_key:
            refusal = not_a_key  # unless a contract wallet at that address accepts it
        self._admission.require_openings()
        if paid.client:
            sponsoring.rate.require(paid.client)
        proven = b"" if refusal is not None else deposit.funder
        async with self._facts.bounded_check(paid.client, proven):
            try:
                by_wallet = refusal is not None
                await sponsoring.sponsor.take(deposit, by_wallet=by_wallet, first=first)
            except TransactionRevertedError:
                if refusal is None:
                    raise
                raise refusal from None

    async def _read(self, key: ChannelKey, evidence: TransactionEvidence) -> ChannelFact:
        fact = await self._facts.read(key.channel_id, block_min=evidence.block_number)
        if fact is None:
            raise VerificationFailedError("The escrow does not show the channel.")
        return fact

    def _require_sponsoring(self) -> Sponsoring:
        if self._sponsoring is None:
            raise MalformedPayloadError(
                "payload.type: this server submits no deposits. Open the channel yourself, and "
                "name its transaction."
            )
        return self._sponsoring


def _as_opened(deposit: SponsoredDeposit, terms: ChannelTerms) -> ChannelFact:
    """Return the channel as it will be after this deposit."""
    return ChannelFact(
        key=deposit.key,
        terms=terms,
        deposit=deposit.amount,
        settled=0,
        close_requested_at=0,
        is_finalized=False,
        block_number=0,
    )


def _as_topped_up(state: ChannelState, deposit: SponsoredDeposit) -> ChannelState:
    """Return the ledger's state as it will be after this deposit."""
    after = state.deposit + deposit.amount
    if after > AMOUNT_MAX:  # the payer's number: it must not look like a bug of this program
        raise MalformedPayloadError("payload.deposit: more than a channel can hold.")
    return replace(state, deposit=after)


def _require_not_ended(state: ChannelState) -> None:
    if state.is_finalized:
        raise ChannelFinalizedError("The channel is finalized.")


def _mined(outcome: Outcome, evidence: TransactionEvidence) -> Outcome:
    return replace(outcome, tx_hash=evidence.tx_hash, confirmations=evidence.confirmations)
