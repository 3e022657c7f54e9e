"""Pays for requests: chooses the channel and the amount, and reacts to refusals.

It uses HTTP only through a `ManagementClient` and the chain only through `PayerChain`, so tests can
exercise every decision against any behaviour of both. What is durable when:

    salt and terms            before a deposit is broadcast     (a crash finds the channel again)
    a signed deposit          before it is sent                 (a crash sends the same one again)
    the amount of a voucher   before it is signed and sent      (a crash never signs below it)
    what arrived              before the next voucher, and when an answer or a stream ends
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from msgspec.structs import replace

from channel.chain import PayerChain
from channel.client.funding.keys import VoucherKeys
from channel.client.funding.opening import ChannelOpener
from channel.client.payment.channel_pool import ChannelPool
from channel.client.payment.charges import ChargePayer
from channel.client.payment.management import Header, ManagementClient, Reply, build_header
from channel.client.payment.receipts import ReceiptChecker
from channel.client.payment.request import PaidRequest
from channel.client.payment.stream import PaidStream
from channel.client.payment.vouchers import VoucherIssuer, VoucherWithDeposit
from channel.client.policy.charges import ChargeOffer
from channel.client.policy.choice import REPEATED, SINGLE, choose_offer, choose_payment
from channel.client.policy.decisions import (
    SETTLE_TRIES_MAX,
    SETTLE_WAIT_S_STEP,
    RetryState,
    Step,
    decide,
    deposit_pause_s,
)
from channel.client.policy.meter import Expectation
from channel.client.policy.policy import (
    Offer,
    Policy,
    TokenLimits,
    amounts_of,
    require_chain,
    require_offer,
)
from channel.client.policy.prices import main_kind, require_no_rise
from channel.client.policy.stages import NEXT, Outcome, Stage
from channel.client.policy.usage import RequestCost
from channel.client.store.record import ChannelRecord, Scope, read_receipt
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    DepositPendingError,
    OfferRefusedError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
    ReceiptViolationError,
    UnsettledClaimError,
)
from channel.wire.challenge import SessionRequest
from channel.wire.payload import (
    VoucherPayload,
)
from channel.wire.problem import Problem, parse_problem

__all__ = ["Payer"]

REMEMBERED_MAX = 256
UNKNOWN_CHANNEL = "session/channel-not-found"
CHUNK_UNIT = "llm_chunk"
"""The unit of a route priced by the chunk, regardless of the model server's own counts."""


class Payer:
    """Pays for the requests of one agent. Several tasks may use it concurrently."""

    def __init__(
        self,
        *,
        policy: Policy,
        keys: VoucherKeys,
        store: PaymentStore,
        chains: Mapping[int, PayerChain],
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.policy = policy
        self.store = store
        self.now = now
        self.sleep = sleep
        self.chains = chains
        self.pool = ChannelPool(streams_max=policy.parallel_streams_max)
        self.opener = ChannelOpener(policy=policy, store=store, keys=keys, chains=chains, now=now)
        self.charges = ChargePayer(policy=policy, store=store, chains=chains, now=now)
        self.receipts = ReceiptChecker(store, self.pool)
        self.issuer = VoucherIssuer(
            policy=policy,
            keys=keys,
            store=store,
            opener=self.opener,
            receipts=self.receipts,
            now=now,
            sleep=sleep,
        )
        self.leaving = asyncio.Lock()
        """Held while a channel is left on chain, so that each transaction is sent once."""
        self._remembered: OrderedDict[tuple[str, str, str], Offer] = OrderedDict()

    async def prepay(self, request: PaidRequest) -> Header | None:
        """Return a credential for a route with a known, fresh challenge; otherwise None.

        A charge that was signed for an equal request, and was not answered, comes first.
        """
        if (header := await self.charges.resume(request)) is not None:
            return header
        offer = self._remembered.get(request.route)
        if offer is None or not offer.is_fresh(self.now()):
            return None
        limits = require_offer(self.policy, offer, request.origin, self.now())
        request.is_prepaid = True
        return await self._pay(request, offer, limits)

    def count(self, asked: SessionRequest, expectation: Expectation) -> RequestCost:
        """Return the count of a request under an offer, with nothing counted."""
        return RequestCost(
            asked.pricing,
            expectation,
            units_max=self.policy.request_units_max,
            believes_counts=main_kind(asked) != CHUNK_UNIT,
        )

    async def find_offer(
        self, route: tuple[str, str, str], origin: str, management: ManagementClient
    ) -> tuple[Offer, TokenLimits]:
        """Return the current offer of a route, and the limits that allow it; nothing is paid.

        Without a remembered, fresh one the server is asked by a HEAD.

        Raises:
            OfferRefusedError: The policy does not allow it.
            PaymentRefusedError: The server offers none.
        """
        offer = self._remembered.get(route)
        if offer is not None and offer.is_fresh(self.now()):
            return offer, require_offer(self.policy, offer, origin, self.now())
        reply = await management.head(None)
        chosen = choose_offer(self.policy, reply.challenges, origin, self.now(), x402=reply.x402)
        if chosen is None:
            raise PaymentRefusedError(
                status=reply.status,
                problem_type="without a challenge",
                detail="a HEAD is not asked to pay, so the request may be free",
            )
        return chosen

    async def answer(self, request: PaidRequest, reply: Reply) -> Header | None:
        """Return the credential for sending the request again, or None to return the answer.

        Waits where the server asks for it. Raises an `AgentError` where paying (again) would be
        wrong; then nothing more was signed.
        """
        if request.charge is not None:
            await self.charges.answer(request.charge, reply)
            return None
        return await self._answer(request, reply)

    async def _answer(self, request: PaidRequest, reply: Reply) -> Header | None:
        """Do the same for a request that nothing or a channel pays for."""
        self.note_unsent(request)  # it was answered, so it was not served
        problem = parse_problem(reply.body)
        step = decide(reply.status, problem, request.retry, retry_after_s=reply.retry_after_s)
        if step is Step.DEPOSIT_ALONE and not await self._deposit_alone(request):
            step = decide(reply.status, problem, request.retry, retry_after_s=reply.retry_after_s)
        if step is Step.WAIT:
            await self._wait(request.retry, reply.wait_s)
            if request.has_slot:
                request.tab.note_sent(request)
            return request.header
        _unlock(request)
        match step:
            case Step.HAND_ON:
                return None
            case Step.PENDING:
                raise DepositPendingError(origin=request.origin, waited_s=request.retry.waited_s)
            case Step.UNKNOWN:
                raise PaymentOutcomeUnknownError(
                    idempotency_key=request.idempotency_key, reason="the server lost it"
                )
            case Step.STOP:
                raise _refused(reply, problem)
            case Step.PAY:
                return await self._pay_first(request, reply)
        if not request.has_slot:
            raise _refused(reply, problem)
        return await self._pay_again(request, step, reply, problem)

    async def _pay_first(self, request: PaidRequest, reply: Reply) -> Header | None:
        """Pay for a request by the best of the offers; None where nothing is offered."""
        chosen = choose_payment(
            self.policy,
            reply.challenges,
            request.origin,
            self.now(),
            x402=reply.x402,
            order=SINGLE if await self.charges.is_first(request) else REPEATED,
        )
        if chosen is None:
            return None
        offer, limits = chosen
        if isinstance(offer, ChargeOffer):
            return await self.charges.pay(request, offer, limits)
        return await self._pay(request, offer, limits)

    async def _wait(self, retry: RetryState, wait_s: float) -> None:
        pause_s = deposit_pause_s(retry.waits, wait_s) if retry.is_funding else wait_s
        retry.waits += 1
        retry.waited_s += pause_s
        await self.sleep(pause_s)

    async def accept(self, request: PaidRequest, reply: Reply) -> None:
        """Count a paid answer that is not a stream, check its receipt, and release the channel.

        Raises:
            ReceiptViolationError: The receipt is wrong; the channel is stopped.
        """
        if request.charge is not None:
            await self.charges.accept(request, request.charge, reply)
            self.release(request)
        elif request.has_slot:
            await self._confirm_deposit(request, reply.receipt)
            await self.receipts.accept(request, reply.receipt)
            self.release(request)

    async def begin_stream(self, request: PaidRequest, reply: Reply) -> PaidStream | None:
        """Return the payer's side of a stream that begins; None if it is not paid for.

        Raises:
            ReceiptViolationError: The receipt in its headers is wrong.
        """
        if not request.has_slot:
            await self.accept(request, reply)  # at most a charge, which pays for all of it
            return None
        await self._confirm_deposit(request, reply.receipt)
        await self.receipts.begin_stream(request, reply.receipt)
        return PaidStream(
            store=self.store,
            pool=self.pool,
            issuer=self.issuer,
            receipts=self.receipts,
            request=request,
            now=self.now,
            sleep=self.sleep,
        )

    async def count_unanswered(self, request: PaidRequest) -> None:
        """Count the possible cost of a paid request that was never answered."""
        if self._lose(request):
            await request.tab.store(self.store)

    def note_unsent(self, request: PaidRequest) -> None:
        """Record that the last credential was never sent."""
        request.is_sent = False

    def release(self, request: PaidRequest) -> None:
        """Release what a request holds; a second call does nothing.

        A caller may be cancelled at any `await`, even after the answer.
        """
        self._lose(request)
        _unlock(request)
        self.pool.leave(request)
        self.charges.release(request)

    def _lose(self, request: PaidRequest) -> bool:
        """Count a sent and uncounted request as lost, within a bound; return whether it was one.

        A stream counts one step more: the server may have sent that before it noticed that the
        client left.
        """
        if not request.is_sent:
            return False
        value = request.cost + request.ahead
        value += request.step if request.expectation.is_stream else 0
        request.begin_counting()
        request.tab.lose(value, lost_max=request.amounts.lost_max)
        return True

    async def leave(self, record: ChannelRecord) -> ChannelRecord:
        """Stop using a channel, and return its record as the chain shows it now."""
        self.pool.forget(record.key)
        return await self.opener.check(record)

    async def _pay_again(
        self,
        request: PaidRequest,
        step: Step,
        reply: Reply,
        problem: Problem | None,
    ) -> Header:
        """Do what must precede another credential, and return the credential."""
        retry = request.retry
        claimed = 0
        if step is Step.REFRESH:
            retry.refreshes += 1
        elif step is Step.RECHECK:
            retry.rechecks += 1
            request.slot.is_checked = False
        elif step is Step.REOPEN:
            retry.reopens += 1
            is_unknown = problem is not None and problem.type == UNKNOWN_CHANNEL
            await self._give_up(request, is_unknown=is_unknown)
        elif step is Step.DEPOSIT_MORE and problem is not None:
            retry.deposits += 1
            record = await self.store.get(request.tab.key)
            least = problem.deposit_min or 0
            await self.opener.enlarge(record, request.limits, least, request.context())
        elif step is Step.RAISE and problem is not None:
            if request.was_shared or request.tab.may_have_lost:
                # Concurrent requests may use what was signed, repeatedly: the rounds bound it.
                retry.shared_raises += 1
                await self.sleep(SETTLE_WAIT_S_STEP * (retry.shared_raises // SETTLE_TRIES_MAX))
            else:
                retry.raises += 1
            rise = (problem.accepted or 0) + (problem.min_voucher_delta or 0)
            claimed = problem.required_cumulative or rise
            await self.opener.notice_opened(await self.store.get(request.tab.key))
        chosen = choose_offer(self.policy, reply.challenges, request.origin, self.now())
        offer, limits = chosen or (request.offer, request.limits)
        if step is not Step.REFRESH or not request.is_prepaid:
            self._require_no_rise(request, offer, limits)
        return await self._pay(request, offer, limits, claimed=claimed)

    def _require_no_rise(self, request: PaidRequest, offer: Offer, limits: TokenLimits) -> None:
        """Check that a fresh challenge within one request does not raise its price (F-95).

        A remembered challenge may have ended with the price that it stated: then the caps decide.
        """
        before, after = request.offer.request, offer.request
        if (before.chain_id, before.currency) != (after.chain_id, after.currency):
            return
        try:
            require_no_rise(before, after, unit=limits.unit, origin=request.origin)
        except OfferRefusedError:
            self._remembered.pop(request.route, None)  # the next request asks for the price
            raise

    async def _deposit_alone(self, request: PaidRequest) -> bool:
        """Open at this account's own cost a channel whose attached deposit was not made.

        Returns whether the channel exists. The slot's lock is held while the deposit is attached.
        """
        request.retry.deposits_alone += 1
        if not request.has_slot:
            return False
        record = await self.store.get(request.tab.key)
        return await self.opener.open_alone(record, request.offer, request.limits)

    async def _give_up(self, request: PaidRequest, *, is_unknown: bool) -> None:
        """Stop using a channel that the server does not know or has ended (F-97)."""
        slot, tab = request.slot, request.tab
        async with slot.lock:
            if slot.tab is not tab:
                return  # another request of this slot has already replaced it
            record = await self.opener.check(await self.store.get(tab.key))
            slot.forget_channel()
            request.spent_before.pop(record.key, None)
            if is_unknown and record.state == "open":
                # The chain has it: present its opening again rather than pay for another one. The
                # server has lost its record of the channel, including `spent`.
                reopened = partial(replace, state="opening", spent=0, accepted=0)
                await self.store.update(record.key, reopened)
            elif record.state != "closed":
                await self.store.update(record.key, partial(replace, state="closing"))

    async def _pay(
        self, request: PaidRequest, offer: Offer, limits: TokenLimits, *, claimed: int = 0
    ) -> Header:
        """Return a credential for an open channel whose voucher covers the cost.

        Args:
            request: The request that is paid for.
            offer: The offer that is answered.
            limits: The limits that allow the offer.
            claimed: The amount that the server says it needs; 0 if it named none.

        Raises:
            UnsettledClaimError: The server needs what concurrent requests may have used, and they
                have made no progress, or it needs more even after that.
        """
        while True:
            try:
                return await self._pay_now(request, offer, limits, claimed)
            except UnsettledClaimError as claim:
                retry = request.retry
                if retry.settles >= SETTLE_TRIES_MAX:
                    raise
                retry.settles += 1
                if not await request.tab.settle(request, claim.asked):
                    # The request behind the claim may have ended, so ask the server again.
                    claimed = 0
                    await self.sleep(SETTLE_WAIT_S_STEP * retry.settles)

    async def _pay_now(
        self, request: PaidRequest, offer: Offer, limits: TokenLimits, claimed: int
    ) -> Header:
        """Take a slot, and go through the stages of `NEXT` until the request may be sent."""
        await self._enter(request, offer, limits)
        await request.slot.lock.acquire()
        request.has_lock = True
        stage, open_tx = Stage.OBTAIN, None
        outcome: Outcome
        try:
            while stage is not Stage.SEND:
                match stage:
                    case Stage.OBTAIN:
                        record, is_new = await self._obtain(request)
                        is_signed = is_new and record.opening is not None
                        is_open = record.state == "open"
                        outcome = "open" if is_open else "signed" if is_signed else "opening"
                    case Stage.DEPOSIT:
                        record, open_tx = await self.opener.deposit(
                            record,
                            request.offer,
                            limits,
                            is_new=is_new,
                            context=request.context(),
                        )
                        is_open = record.state == "open"
                        outcome = "open" if is_open else "sent" if open_tx else "signed"
                    case Stage.PRESENT if open_tx is not None:
                        record = await self.issuer.present_opening(request, record, open_tx)
                        outcome = "open"
                    case Stage.SIGN:
                        request.slot.is_checked = True
                        opening = record.opening if record.state == "opening" else None
                        prepared = await self.issuer.make(request, claimed=claimed, opening=opening)
                        is_alone = request.slot.requests == {request}
                        is_covered = prepared.deposit is None
                        outcome = "covered" if is_covered else "alone" if is_alone else "shared"
                    case Stage.HEAD:
                        is_made = await self._present_deposit(request, prepared)
                        outcome = "covered" if is_made else "refused"
                    case Stage.ATTACH:
                        request.attached_deposit = prepared
                        outcome = "covered"
                stage = NEXT[stage, outcome]
        finally:
            if request.attached_deposit is None:
                _unlock(request)
        is_attached = request.attached_deposit is not None
        payload = prepared.payload if is_attached else VoucherPayload(prepared.voucher)
        request.tab.note_sent(request)
        request.retry.has_paid, request.retry.is_funding = True, is_attached
        self._remember(request.route, request.offer)
        request.header = build_header(request.offer, payload, request.source)
        return request.header

    async def _enter(self, request: PaidRequest, offer: Offer, limits: TokenLimits) -> None:
        """Take a slot for this offer; the request stays in its own if the terms are equal."""
        asked = offer.request
        chain = require_chain(self.chains, asked.chain_id, request.origin)
        scope = Scope(
            request.origin,
            asked.chain_id,
            asked.escrow,
            chain.account,
            asked.recipient,
            asked.currency,
        )
        request.usage = self.count(asked, request.expectation)
        amounts = amounts_of(self.policy, asked, request.usage)
        await self.pool.enter(request, scope, offer, limits, amounts)

    async def _obtain(self, request: PaidRequest) -> tuple[ChannelRecord, bool]:
        """Return the slot's channel, found or planned, and whether it was planned just now."""
        slot = request.slot
        record = None if slot.tab is None else await self.store.get(slot.tab.key)
        if record is not None and record.state not in ("opening", "open"):
            slot.forget_channel()
            record = None
        record, source = await self.opener.obtain(
            record,
            slot.scope,
            request.offer,
            request.limits,
            taken=self.pool.taken(slot.scope),
            is_checked=slot.is_checked,
            amounts=request.amounts,
            context=request.context(),
        )
        self.pool.use(request, record)
        if source == "store":  # also while `opening`: its deposit carried the first voucher
            unanswered, lost_max = record.signed - record.counted, request.amounts.lost_max
            request.tab.lose(unanswered, lost_max=lost_max)
            record = await request.tab.store(self.store)
        return record, source == "new"

    async def _present_deposit(self, request: PaidRequest, prepared: VoucherWithDeposit) -> bool:
        """Present a voucher and its deposit by HEAD, and return whether the deposit was made.

        Its answer comes once the deposit is mined. A deposit refused there is attached to the
        request after all.
        """
        try:
            await self.issuer.present_voucher(request, prepared)
        except PaymentRefusedError as error:
            if error.status not in (402, 429):
                raise
            return False
        except DepositPendingError as error:
            if error.waited_s:  # 0 means not to wait, and the message says why
                raise
            return False
        return True

    async def _confirm_deposit(self, request: PaidRequest, text: str | None) -> None:
        """Record the attached deposit of an answered request, and let the other requests go on."""
        if request.attached_deposit is not None:
            receipt = None
            with contextlib.suppress(ReceiptViolationError):  # `accept` raises it later
                receipt = None if text is None else read_receipt(text)
            await self.issuer.confirm_deposit(request, request.attached_deposit, receipt)
        _unlock(request)

    def _remember(self, route: tuple[str, str, str], offer: Offer) -> None:
        self._remembered[route] = offer
        self._remembered.move_to_end(route)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)


def _unlock(request: PaidRequest) -> None:
    """Let the other requests of the slot continue; a second call does nothing."""
    request.attached_deposit = None
    if request.has_lock:
        request.has_lock = False
        request.slot.lock.release()


def _refused(reply: Reply, problem: Problem | None) -> PaymentRefusedError:
    return PaymentRefusedError(
        status=reply.status,
        problem_type="without a problem type" if problem is None else problem.type,
        detail="" if problem is None else (problem.detail or problem.title),
    )
