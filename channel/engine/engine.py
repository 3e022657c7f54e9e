"""The order of the steps, one function per action.

    authenticate   was the challenge issued here, for which price    nothing durable
    load           a cheap refusal before any cryptography           nothing durable
    signature      a key's, else a wallet's through the chain        nothing durable
    freshness      only when the last chain read is too old          chain facts
    apply          accept, and reserve for the request, together     everything

Every refusal happens before `apply`, or in it: then nothing has changed.
"""

import time
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from channel.chain import ChainReader, CloseRefusals, DepositSponsor, TransactionBroadcaster
from channel.engine.acceptance import Acceptance, shown_max
from channel.engine.admission import Admission, Unbounded
from channel.engine.challenger import Authenticated, Challenger
from channel.engine.closing import Closing
from channel.engine.deposits import Deposits, Sponsoring
from channel.engine.facts import ChainFacts
from channel.engine.ids import RandomIds
from channel.engine.lease_renewer import LeaseRenewer
from channel.engine.opening import require_source
from channel.engine.outcome import Hold, Outcome
from channel.engine.rate_limit import RateLimiter
from channel.engine.reservation import RunningReservation, least_amount, main_cost, step_amount
from channel.engine.settings import EngineSettings
from channel.engine.verify_pool import VerifyPool
from channel.engine.voucher_verifier import VoucherVerifier
from channel.errors import (
    AmountExceedsDepositError,
    ChannelFinalizedError,
    ConfigError,
    StoppingError,
    TooManyDepositsError,
)
from channel.ledger.interface import Ledger, load_known
from channel.limits import SPONSORED_PERIOD_S
from channel.state.charges import encode_note
from channel.state.requests import RequestClaim
from channel.state.transitions import as_public, require_consent, require_open
from channel.tariff import Tariff, Usage
from channel.tasks import Tasks, log_failure
from channel.types import ChannelKey, TxHash
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.challenge import PAYMENT_AUTHORIZATION, SessionRequest
from channel.wire.payload import (
    ClosePayload,
    VoucherPayload,
)
from channel.wire.receipt import Receipt

__all__ = ["Engine"]

_SECONDS_MAX = 2**32 - 1


class Engine:
    """Accepts credentials for one payee's channels in one escrow."""

    def __init__(  # noqa: PLR0913 -- all its parts, by name
        self,
        *,
        ledger: Ledger,
        chain: ChainReader,
        binder: ChallengeBinder,
        settings: EngineSettings,
        admission: Admission | None = None,
        sponsor: DepositSponsor | None = None,
        refusals: CloseRefusals | None = None,
        broadcaster: TransactionBroadcaster | None = None,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], bytes] | None = None,
    ) -> None:
        """Build an engine. It does nothing until the first request.

        The engine only decides a close: a settler on the same ledger must send and record it.
        `admission` bounds the total at risk; without it there is no bound. `sponsor` submits
        payers' deposits on the terms of `settings.sponsor`: give both, or neither. `refusals` says
        why a close failed; without it, a close that the escrow refused is answered as pending.
        `broadcaster` sends payers' signed transactions, for a method whose credentials carry them.
        `now` is wall-clock time in Unix seconds. `new_id` returns 16 unpredictable bytes; the
        default reads them from the operating system.

        Raises:
            ConfigError: Only one of `sponsor` and `settings.sponsor` is given, or the credential
                header is one that the protocol does not define.
        """
        if settings.credential_header not in (None, PAYMENT_AUTHORIZATION):
            raise ConfigError(
                f"expected the credential header Authorization or {PAYMENT_AUTHORIZATION}, spelt "
                f"exactly so, found {settings.credential_header}"
            )
        self.settings = settings
        self.new_id = new_id = new_id or RandomIds()
        self.now = now
        self.ledger = ledger
        self._chain = chain
        self._background = Tasks(report=log_failure)
        self.challenger = Challenger(binder=binder, settings=settings, now=now, new_id=new_id)
        self._facts = ChainFacts(
            ledger=ledger, chain=chain, settings=settings, now=now, background=self._background
        )
        self._pool = VerifyPool(settings.verifying_threads, settings.method.escrow.domain)
        self._vouchers = VoucherVerifier(
            chain=chain, facts=self._facts, settings=settings, pool=self._pool, now=now
        )
        self._renewer = LeaseRenewer(ledger=ledger, now=now, lease_s=settings.reservation_lease_s)
        self._admission = admission = admission or Unbounded()
        self._acceptance = Acceptance(
            ledger=ledger,
            admission=admission,
            renewer=self._renewer,
            rate=RateLimiter(settings.vouchers_per_second, now),
            now=now,
        )
        self._deposits = Deposits(
            ledger=ledger,
            facts=self._facts,
            vouchers=self._vouchers,
            acceptance=self._acceptance,
            admission=admission,
            sponsoring=_sponsoring(settings, sponsor, now),
            method=settings.method,
            broadcaster=broadcaster,
        )
        self._closing = Closing(
            ledger=ledger,
            facts=self._facts,
            renewer=self._renewer,
            background=self._background,
            wait_s=settings.close_wait_s,
            timeout_s=settings.close_timeout_s,
            refusals=refusals,
        )

    @property
    def signatures_checked(self) -> int:
        """How many voucher signatures this engine has checked."""
        return self._vouchers.checked

    def ask(
        self,
        *,
        unit_price: int = 0,
        unit_type: str = "",
        tariff: Tariff | None = None,
        min_voucher_delta: int = 0,
        suggested_deposit: int | None = None,
        description: str | None = None,
    ) -> SessionRequest:
        """Return a route's request object, completed with the engine's own settings.

        Amounts are in base units of the token. A `tariff` takes the place of `unit_price` and
        `unit_type`, which then state its main rate.
        """
        if tariff is not None:
            unit_price, unit_type = tariff.unit()
            tariff = None if tariff.is_plain else tariff
        sponsor = self.settings.sponsor
        if sponsor is not None and suggested_deposit is not None:
            suggested_deposit = max(suggested_deposit, sponsor.deposit_min)
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
            fee_payer=sponsor is not None,
            credential_types=self.settings.method.credential_types
            if sponsor is None
            else sponsor.credential_types,
            tariff=tariff,
        )

    async def perform(self, paid: Authenticated, hold: Hold | None = None) -> Outcome:
        """Do what the credential asks. With `hold`, also reserve for a content request.

        Raises:
            PeerError: Refused; see `Deposits` and the methods below.
            OperatorError: It could not be decided or made durable.
        """
        payload = paid.credential.payload
        match payload:
            case VoucherPayload() if payload.deposit is None:
                return await self._voucher(paid, payload, hold)
            case ClosePayload():
                return await self._close(paid, payload)
            case _:
                return await self._deposits.make(paid, payload, hold)

    async def _voucher(
        self, paid: Authenticated, payload: VoucherPayload, hold: Hold | None = None
    ) -> Outcome:
        """Accept a voucher (VCH-02), and reserve for a content request in the same transaction.

        Raises:
            ChannelNotFoundError: The channel was never opened here.
            ChannelFinalizedError: It has ended, is being closed, or has a pending close.
            ChallengeNotFoundError: The challenge has expired and no stream runs.
            InvalidSignatureError, SignerMismatchError: Not signed by the channel's signer.
            TooManyRequestsError: Too many vouchers a second (VCH-09).
            ExposureLimitError: More would be unsettled than the operator allows.
            DeltaTooSmallError, AmountExceedsDepositError: See `transitions`.
            InsufficientBalanceError: The voucher was accepted, but does not cover the request.
        """
        state = await load_known(self.ledger, paid.key)
        if hold is not None or not state.has_stream:
            paid.require_current()
        require_open(state)
        require_source(paid, state.terms)
        verified = await self._vouchers.verify(
            payload.voucher, paid.key, state.terms.signer, client=paid.client
        )
        self._acceptance.require_rate(verified, state)
        await self._facts.require_fresh(paid.key)
        if verified.cumulative_amount > state.deposit:
            await self._facts.refresh(paid.key)  # F-50: there may be an unseen top-up
        return await self._acceptance.accept(paid, verified, hold, known=state)

    async def _close(self, paid: Authenticated, payload: ClosePayload) -> Outcome:
        """Close the channel with its payer's consent; see `closing` for the steps.

        A repeat after the close returns the same transaction (CLOSE-05), after the same signature
        check (F-67).

        Raises:
            ChannelNotFoundError: The channel was never opened here.
            InvalidSignatureError, SignerMismatchError: Not signed by the channel's signer.
            PublicVoucherError: A third party may have sent the voucher, so it is no consent.
            AmountExceedsDepositError: The deposit does not cover the amount.
            ChannelFinalizedError: It has ended, but not by this server's close.
            TransactionRevertedError, SettlementPendingError: See `Closing.close`.
        """
        state = await load_known(self.ledger, paid.key)
        require_source(paid, state.terms)
        verified = await self._vouchers.verify(
            payload.voucher, paid.key, state.terms.signer, client=paid.client
        )
        self._acceptance.require_rate(verified, state)
        shown = shown_max(state, verified)
        if state.close_tx:
            return Outcome(state=state, tx_hash=TxHash(state.close_tx), shown_max=shown)
        await self._facts.require_fresh(paid.key)  # a settlement since then is public
        require_consent(state, verified)
        if verified.cumulative_amount > state.deposit:
            state = await self._facts.refresh(paid.key)
            if verified.cumulative_amount > state.deposit:
                raise AmountExceedsDepositError(
                    cumulative_amount=verified.cumulative_amount, deposit=state.deposit
                )
        try:
            outcome = await self._closing.close(paid.key, verified)
        except ChannelFinalizedError:
            # Another worker may have closed it since the check: return its transaction.
            state = (await self.ledger.apply(paid.key, [])).state
            if not state.close_tx:
                raise
            return Outcome(state=state, tx_hash=TxHash(state.close_tx), shown_max=shown)
        return replace(outcome, shown_max=shown)

    def hold(
        self,
        paid: Authenticated,
        *,
        is_metered: bool,
        claim: Callable[[bytes], Awaitable[RequestClaim]] | None = None,
        reservation_id: bytes | None = None,
    ) -> Hold:
        """Return what a content request reserves under the tariff of its challenge.

        A request at a fixed price reserves that. A metered one needs the price of one unit of the
        main kind, and reserves a step if that is covered. `reservation_id` is one of
        `new_request_id`; a new one if None.
        """
        tariff = paid.asked.pricing
        if is_metered:
            least = least_amount(tariff)
            most = max(least, step_amount(tariff, self.settings.reservation_step_units))
        else:
            least = most = main_cost(tariff, paid.units)
        offer = paid.offer
        return Hold(
            reservation_id=reservation_id or self.new_request_id(),
            amount_min=least,
            amount_max=most,
            note=encode_note(f"{offer.http_method} {offer.route}", offer.variant),
            claim=claim,
        )

    def new_request_id(self) -> bytes:
        """Return an id of 12 random bytes behind the time, by which the accounts index it."""
        return (int(self.now()) & _SECONDS_MAX).to_bytes(4, "big") + self.new_id()[4:]

    def reservation(self, paid: Authenticated, hold: Hold, outcome: Outcome) -> RunningReservation:
        """Return the owner's side of what `perform` reserved; its lease is renewed from now on."""
        return RunningReservation(
            outcome=outcome,
            hold=hold,
            tariff=paid.asked.pricing,
            min_voucher_delta=paid.asked.min_voucher_delta,
            step_units=self.settings.reservation_step_units,
            ledger=self.ledger,
            renewer=self._renewer,
            background=self._background,
            admission=self._admission,
        )

    def earn_rate(self, paid: Authenticated, units: int) -> None:
        """Record that a request has bought units: see `Acceptance.earn_rate`."""
        self._acceptance.earn_rate(paid.key, units)

    def receipt(self, paid: Authenticated, outcome: Outcome, usage: Usage | None = None) -> Receipt:
        """Return the receipt for the current state (RCPT-05), without reserved amounts.

        With the request's usage it states the units, by kind if several kinds have a price. A
        client that has not proven the voucher key sees public amounts only (O-20).
        """
        tariff = paid.asked.tariff
        has_kinds = tariff is not None and len(tariff.kinds) > 1
        state = outcome.state
        if outcome.shown_max is not None:
            state = as_public(state, outcome.shown_max)
        return Receipt(
            method=self.settings.method.name,
            challenge_id=paid.challenge_id,
            channel_id=state.key.channel_id,
            chain_id=state.key.chain_id,
            accepted=state.accepted,
            spent=state.spent,
            timestamp=self.now(),
            units=None if usage is None or has_kinds else sum(usage.values()),
            usage=None if usage is None or not has_kinds else dict(usage),
            tx_hash=outcome.tx_hash,
            confirmations=outcome.confirmations,
        )

    async def decide_close(self, key: ChannelKey) -> None:
        """Decide to close a channel without its payer's request; the settler sends the close.

        New requests are refused; running ones get `close_wait_s` to end. The payer gets back what
        is not spent. Continues even if the caller is cancelled.

        Raises:
            ChannelNotFoundError: The channel is not known here.
            ChannelFinalizedError: It has ended.
            SettlementPendingError: Another close of it is under way.
        """
        await load_known(self.ledger, key)
        await self._closing.decide(key)

    def end_streams(self) -> None:
        """Make every running stream end now, with its receipt, because the program stops."""
        self._renewer.end_streams(StoppingError("The server is stopping."))

    async def end_expired(self) -> int:
        """End the reservations of dead owners in any process; renew this process's own before.

        Returns on how many channels something was ended. While requests run this happens
        regularly; a gateway calls it once for those of its predecessor.

        Raises:
            LedgerUnavailableError: It is not complete.
        """
        return await self._renewer.sweep()

    async def aclose(self) -> None:
        """Finish the background work. The ledger stays open: its opener closes it."""
        await self._renewer.close()
        self._pool.close()
        await self._background.drain()


def _sponsoring(
    settings: EngineSettings, sponsor: DepositSponsor | None, now: Callable[[], float]
) -> Sponsoring | None:
    if (settings.sponsor is None) != (sponsor is None):
        raise ConfigError("`settings.sponsor` and `sponsor` must be given together")
    if settings.sponsor is None or sponsor is None:
        return None
    rate = RateLimiter(
        settings.sponsor.per_source_max,
        now,
        period_s=SPONSORED_PERIOD_S,
        refusal=TooManyDepositsError,
        what="deposits an hour from one address (the provider sets "
        "`sponsoring.deposits_per_address`)",
    )
    return Sponsoring(sponsor, settings.sponsor, rate)
