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

from msgspec.structs import replace

from channel.chain import PayerChain
from channel.client.funding.keys import VoucherKeys
from channel.client.funding.opening import ChannelOpener
from channel.client.payment.channel_pool import ChannelPool
from channel.client.payment.management import Header, Reply, build_header, read_receipt
from channel.client.payment.receipts import ReceiptChecker
from channel.client.payment.request import PaidRequest, Payment, build_scope
from channel.client.payment.stream import PaidStream
from channel.client.payment.voucher_with_deposit import VoucherWithDeposit
from channel.client.payment.vouchers import VoucherIssuer
from channel.client.policy.decisions import (
    SETTLE_TRIES_MAX,
    SETTLE_WAIT_S_STEP,
    RetryState,
    Step,
    decide,
    deposit_pause_s,
)
from channel.client.policy.policy import (
    Offer,
    Policy,
    TokenLimits,
    choose_offer,
    require_offer,
    step_value,
)
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    ChannelUnusableError,
    DepositPendingError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
    ReceiptViolationError,
    UnsettledClaimError,
)
from channel.wire.funding import Deposit
from channel.wire.payload import OpenHash, Payload, VoucherPayload
from channel.wire.problem import Problem, parse_problem

__all__ = ["Payer"]

REMEMBERED_MAX = 256
UNKNOWN_CHANNEL = "session/channel-not-found"


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
        self.pool = ChannelPool(streams_max=policy.parallel_streams_max)
        self.opener = ChannelOpener(policy=policy, store=store, keys=keys, chains=chains, now=now)
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
        self._remembered: OrderedDict[tuple[str, str], Offer] = OrderedDict()

    async def prepay(self, paid_request: PaidRequest) -> Header | None:
        """Return a credential for a route with a known, fresh challenge; otherwise None."""
        offer = self._remembered.get(paid_request.route)
        if offer is None or not offer.is_fresh(self.now()):
            return None
        limits = require_offer(self.policy, offer, paid_request.origin, self.now())
        return await self._pay(paid_request, offer, limits)

    async def answer(self, paid_request: PaidRequest, reply: Reply) -> Header | None:
        """Return the credential for sending the request again, or None to return the answer.

        Waits where the server asks for it. Raises an `AgentError` where paying (again) would be
        wrong; then nothing more was signed.
        """
        self.note_unsent(paid_request)  # it was answered, so it was not served
        problem = parse_problem(reply.body)
        step = decide(reply.status, problem, paid_request.retry, retry_after_s=reply.retry_after_s)
        if step is Step.DEPOSIT_ALONE and not await self._deposit_alone(paid_request):
            step = decide(
                reply.status, problem, paid_request.retry, retry_after_s=reply.retry_after_s
            )
        if step is Step.WAIT:
            await self._wait(paid_request.retry, reply.wait_s)
            return paid_request.send_again()
        if paid_request.payment is not None:
            paid_request.payment.unlock()
        match step:
            case Step.HAND_ON:
                return None
            case Step.PENDING:
                raise DepositPendingError(
                    origin=paid_request.origin, waited_s=paid_request.retry.waited_s
                )
            case Step.UNKNOWN:
                raise PaymentOutcomeUnknownError(
                    idempotency_key=paid_request.idempotency_key, reason="the server lost it"
                )
            case Step.STOP:
                raise _refused(reply, problem)
            case Step.PAY:
                chosen = choose_offer(
                    self.policy,
                    reply.challenges,
                    paid_request.origin,
                    self.now(),
                    others=reply.others,
                )
                # None: only other payment protocols are offered, which the caller may use.
                return None if chosen is None else await self._pay(paid_request, *chosen)
        if paid_request.payment is None:
            raise _refused(reply, problem)
        return await self._pay_again(paid_request, paid_request.payment, step, reply, problem)

    async def _wait(self, retry: RetryState, wait_s: float) -> None:
        pause_s = deposit_pause_s(retry.waits, wait_s) if retry.is_funding else wait_s
        retry.waits += 1
        retry.waited_s += pause_s
        await self.sleep(pause_s)

    async def accept(self, paid_request: PaidRequest, reply: Reply) -> None:
        """Count a paid answer that is not a stream, check its receipt, and release the channel.

        Raises:
            ReceiptViolationError: The receipt is wrong; the channel is stopped.
        """
        if paid_request.payment is not None:
            await self._confirm_deposit(paid_request, paid_request.payment, reply.receipt)
            await self.receipts.accept(paid_request, paid_request.payment, reply.receipt)
            self.release(paid_request)

    async def begin_stream(self, paid_request: PaidRequest, reply: Reply) -> PaidStream | None:
        """Return the payer's side of a stream that begins; None if it is not paid for.

        Raises:
            ReceiptViolationError: The receipt in its headers is wrong.
        """
        payment = paid_request.payment
        if payment is None:
            return None
        await self._confirm_deposit(paid_request, payment, reply.receipt)
        await self.receipts.begin_stream(paid_request, payment, reply.receipt)
        return PaidStream(
            policy=self.policy,
            store=self.store,
            pool=self.pool,
            issuer=self.issuer,
            receipts=self.receipts,
            paid_request=paid_request,
            payment=payment,
            now=self.now,
            sleep=self.sleep,
        )

    async def count_unanswered(self, paid_request: PaidRequest) -> None:
        """Count the possible cost of a paid request that was never answered."""
        if self._lose(paid_request) and paid_request.payment is not None:
            await paid_request.payment.tab.store(self.store)

    def note_unsent(self, paid_request: PaidRequest) -> None:
        """Record that the last credential was never sent."""
        if paid_request.payment is not None:
            paid_request.payment.hold.is_sent = False

    def release(self, paid_request: PaidRequest) -> None:
        """Release what a request holds; a second call does nothing.

        A caller may be cancelled at any `await`, even after the answer.
        """
        self._lose(paid_request)
        if paid_request.payment is not None:
            paid_request.payment.unlock()
            self.pool.leave(paid_request.payment.slot, paid_request.payment.hold)

    def _lose(self, paid_request: PaidRequest) -> bool:
        """Count a sent and uncounted request as lost, within a bound; return whether it was one.

        A stream counts one step more: the server may have sent that before it noticed that the
        client left.
        """
        payment = paid_request.payment
        if payment is None or not payment.hold.is_sent:
            return False
        value = payment.hold.cost + (payment.step if paid_request.expectation.is_stream else 0)
        payment.hold.begin_counting()
        payment.tab.lose(value, lost_max=self.policy.lost_units_max * payment.price)
        return True

    async def leave(self, record: ChannelRecord) -> ChannelRecord:
        """Stop using a channel, and return its record as the chain shows it now."""
        self.pool.forget(record.key)
        return await self.opener.check(record)

    async def _pay_again(
        self,
        paid_request: PaidRequest,
        payment: Payment,
        step: Step,
        reply: Reply,
        problem: Problem | None,
    ) -> Header:
        """Do what must precede another credential, and return the credential."""
        retry = paid_request.retry
        claimed = 0
        if step is Step.REFRESH:
            retry.refreshes += 1
        elif step is Step.RECHECK:
            retry.rechecks += 1
            payment.slot.is_checked = False
        elif step is Step.REOPEN:
            retry.reopens += 1
            is_unknown = problem is not None and problem.type == UNKNOWN_CHANNEL
            await self._give_up(payment, is_unknown=is_unknown)
        elif step is Step.DEPOSIT_MORE and problem is not None:
            retry.deposits += 1
            record = await self.store.get(payment.key)
            await self.opener.enlarge(record, payment.limits, problem.deposit_min or 0)
        elif step is Step.RAISE and problem is not None:
            if payment.hold.was_shared or payment.tab.may_have_lost:
                # Concurrent requests may use what was signed, repeatedly: the rounds bound it.
                retry.shared_raises += 1
                await self.sleep(SETTLE_WAIT_S_STEP * (retry.shared_raises // SETTLE_TRIES_MAX))
            else:
                retry.raises += 1
            rise = (problem.accepted or 0) + (problem.min_voucher_delta or 0)
            claimed = problem.required_cumulative or rise
            await self.opener.notice_opened(await self.store.get(payment.key))
        chosen = choose_offer(self.policy, reply.challenges, paid_request.origin, self.now())
        offer, limits = chosen or (payment.offer, payment.limits)
        return await self._pay(paid_request, offer, limits, claimed=claimed)

    async def _deposit_alone(self, paid_request: PaidRequest) -> bool:
        """Open at this account's own cost a channel whose attached deposit was not made.

        Returns whether the channel exists. The slot's lock is held while the deposit is attached.
        """
        paid_request.retry.deposits_alone += 1
        payment = paid_request.payment
        if payment is None:
            return False
        record = await self.store.get(payment.key)
        return await self.opener.open_alone(record, payment.offer, payment.limits)

    async def _give_up(self, payment: Payment, *, is_unknown: bool) -> None:
        """Stop using a channel that the server does not know or has ended (F-97)."""
        async with payment.slot.lock:
            if payment.slot.key != payment.key:
                return  # another request of this slot has already replaced it
            record = await self.opener.check(await self.store.get(payment.key))
            payment.slot.forget_channel()
            payment.spent_before.pop(record.key, None)
            if is_unknown and record.state == "open":
                # The chain has it: present its opening again rather than pay for another one. The
                # server has lost its record of the channel, including `spent`.
                await self.store.update(
                    record.key,
                    lambda current: replace(current, state="opening", spent=0, accepted=0),
                )
            elif record.state != "closed":
                await self.store.update(
                    record.key, lambda current: replace(current, state="closing")
                )

    async def _pay(
        self, paid_request: PaidRequest, offer: Offer, limits: TokenLimits, *, claimed: int = 0
    ) -> Header:
        """Return a credential for an open channel whose voucher covers the cost.

        Args:
            paid_request: The request that is paid for.
            offer: The offer that is answered.
            limits: The limits that allow the offer.
            claimed: The amount that the server says it needs; 0 if it named none.

        Raises:
            UnsettledClaimError: The server needs what concurrent requests may have used, and they
                have made no progress, or it needs more even after that.
        """
        while True:
            try:
                return await self._pay_now(paid_request, offer, limits, claimed)
            except UnsettledClaimError as claim:
                payment, retry = paid_request.payment, paid_request.retry
                if payment is None or retry.settles >= SETTLE_TRIES_MAX:
                    raise
                retry.settles += 1
                if not await payment.tab.settle(payment.hold, claim.asked):
                    # The request behind the claim may have ended, so ask the server again.
                    claimed = 0
                    await self.sleep(SETTLE_WAIT_S_STEP * retry.settles)

    async def _pay_now(
        self, paid_request: PaidRequest, offer: Offer, limits: TokenLimits, claimed: int
    ) -> Header:
        payment = await self._payment(paid_request, offer, limits)
        await payment.lock()
        try:
            record = await self._ensure_open(paid_request, payment)
            prepared = await self.issuer.make(paid_request, payment, claimed=claimed)
            if record.state == "opening":
                prepared = replace(prepared, deposit=record.opening, goal=record.deposit)
            payload = await self._attach_deposit(paid_request, payment, prepared)
        finally:
            if payment.attached_deposit is None:
                payment.unlock()
        payment.tab.sent(payment.hold)
        paid_request.retry.has_paid = True
        paid_request.retry.is_funding = payment.attached_deposit is not None
        self._remember(paid_request.route, payment.offer)
        paid_request.header = build_header(payment.offer, payload, payment.source)
        return paid_request.header

    async def _attach_deposit(
        self, paid_request: PaidRequest, payment: Payment, prepared: VoucherWithDeposit
    ) -> Payload:
        """Return the payload of the request: the voucher, with a deposit if one may be attached.

        If no other request uses the channel, the deposit is attached to the request, which saves a
        round trip; later requests wait until the answer begins. If others wait already, a HEAD
        carries the deposit, and its answer comes once the deposit is mined. A deposit refused there
        is attached to the request after all, because only that is answered with a reason.
        """
        if prepared.deposit is not None and payment.slot.holds != {payment.hold}:
            try:
                await self.issuer.present_voucher(paid_request, payment, prepared)
                return VoucherPayload(prepared.voucher)
            except PaymentRefusedError as error:
                if error.status not in (402, 429):
                    raise
            except DepositPendingError as error:
                if error.waited_s:  # 0 means not to wait, and the message says why
                    raise
        if prepared.deposit is None:
            return VoucherPayload(prepared.voucher)
        payment.attached_deposit = prepared
        return prepared.payload

    async def _confirm_deposit(
        self, paid_request: PaidRequest, payment: Payment, text: str | None
    ) -> None:
        """Record the attached deposit of an answered request, and let the other requests go on."""
        if payment.attached_deposit is not None:
            receipt = None
            with contextlib.suppress(ReceiptViolationError):  # `accept` raises it later
                receipt = None if text is None else read_receipt(text)
            await self.issuer.confirm_deposit(
                paid_request, payment, payment.attached_deposit, receipt
            )
        payment.unlock()

    async def _payment(
        self, paid_request: PaidRequest, offer: Offer, limits: TokenLimits
    ) -> Payment:
        """Return the request's payment for this offer: the current one if the terms are equal."""
        chain = self.opener.chain(offer.request.chain_id, paid_request.origin)
        scope = build_scope(paid_request.origin, offer, payer=chain.account)
        cost, cost_max = paid_request.costs(self.policy, offer)
        payment = paid_request.payment
        if payment is None or payment.slot.scope != scope:
            self.release(paid_request)
            slot, hold = await self.pool.enter(
                scope, cost=cost, cost_max=cost_max, is_stream=paid_request.expectation.is_stream
            )
            payment = paid_request.payment = Payment(
                offer=offer, limits=limits, slot=slot, hold=hold
            )
        payment.answer(offer)
        payment.limits = limits
        payment.hold.cost, payment.hold.cost_max = cost, cost_max
        payment.hold.step = step_value(self.policy, offer.request)
        return payment

    async def _ensure_open(self, paid_request: PaidRequest, payment: Payment) -> ChannelRecord:
        """Return the slot's channel, found or newly opened. The slot's lock is held."""
        slot = payment.slot
        record = None if slot.key is None else await self.store.get(slot.key)
        if record is None or record.state not in ("opening", "open"):
            slot.forget_channel()
            record = await self.opener.find(slot.scope, self.pool.taken(slot.scope))
            if record is not None:  # also while `opening`: its deposit carried the first voucher
                tab = self.pool.tab(record)
                lost_max = self.policy.lost_units_max * payment.price
                tab.lose(record.signed - record.counted, lost_max=lost_max)
                record = await tab.store(self.store)
        if record is not None and record.state == "open" and not slot.is_checked:
            record = await self.opener.check(record)
            if record.state != "open":
                record = None
        if record is not None and record.state == "opening":
            has_ended = await self.opener.has_ended(record, payment.offer)
            record = None if has_ended else record
        is_new = record is None
        if record is None:
            record = await self.opener.prepare(
                slot.scope,
                payment.offer,
                payment.limits,
                url=paid_request.url,
                needed=payment.hold.cost,
            )
        self.pool.use(slot, payment.hold, record)
        payment.spent_before.setdefault(record.key, record.spent)
        if record.state == "opening":
            record = await self._open(paid_request, payment, record, is_new=is_new)
        slot.is_checked = True
        return record

    async def _open(
        self, paid_request: PaidRequest, payment: Payment, record: ChannelRecord, *, is_new: bool
    ) -> ChannelRecord:
        """Return the channel, with its opening deposit signed, or made and presented.

        A deposit that was made is presented with a HEAD before the first content request. So a
        request that fails for its own reasons leaves no doubt about the channel.
        """
        record, proof = await self.opener.deposit(
            record, payment.offer, payment.limits, is_new=is_new
        )
        if record.state == "open":
            return record  # a request that was cancelled has opened it meanwhile
        if record.state != "opening":
            raise ChannelUnusableError(
                f"Expected a channel that is opening, found it {record.state} on chain. "
                "Send the request again."
            )
        if isinstance(proof, Deposit):
            return record
        voucher = (await self.issuer.make(paid_request, payment)).voucher
        opening = OpenHash(voucher, record.salt, record.terms.authorized_signer, proof)
        await self.issuer.present(paid_request, payment, opening)
        return await self.store.update(
            record.key, lambda current: replace(current, state="open", url=paid_request.url)
        )

    def _remember(self, route: tuple[str, str], offer: Offer) -> None:
        self._remembered[route] = offer
        self._remembered.move_to_end(route)
        if len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)


def _refused(reply: Reply, problem: Problem | None) -> PaymentRefusedError:
    return PaymentRefusedError(
        status=reply.status,
        problem_type="without a problem type" if problem is None else problem.type,
        detail="" if problem is None else (problem.detail or problem.title),
    )
