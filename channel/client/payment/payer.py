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
from channel.client.payment.presenting import Header, Reply, build_header, read_receipt
from channel.client.payment.promise import Promise
from channel.client.payment.receipts import ReceiptChecker
from channel.client.payment.request import Purchase, Ticket, build_scope
from channel.client.payment.stream import PaidStream
from channel.client.payment.vouchers import VoucherIssuer
from channel.client.policy.decisions import (
    SETTLE_TRIES_MAX,
    SETTLE_WAIT_S_STEP,
    Step,
    Tried,
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
from channel.client.store.record import Account
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
        self.desk = VoucherIssuer(
            policy=policy,
            keys=keys,
            store=store,
            opener=self.opener,
            receipts=self.receipts,
            now=now,
            sleep=sleep,
        )
        self._remembered: OrderedDict[tuple[str, str], Offer] = OrderedDict()

    async def prepay(self, purchase: Purchase) -> Header | None:
        """Return a credential for a route with a known, fresh challenge; otherwise None."""
        offer = self._remembered.get(purchase.route)
        if offer is None or not offer.is_fresh(self.now()):
            return None
        limits = require_offer(self.policy, offer, purchase.origin, self.now())
        return await self._pay(purchase, offer, limits)

    async def answer(self, purchase: Purchase, reply: Reply) -> Header | None:
        """Return the credential for sending the request again, or None to return the answer.

        Waits where the server asks for it. Raises an `AgentError` where paying (again) would be
        wrong; then nothing more was signed.
        """
        self.note_unsent(purchase)  # it was answered, so it was not served
        problem = parse_problem(reply.body)
        step = decide(reply.status, problem, purchase.tried, retry_after_s=reply.retry_after_s)
        if step is Step.DEPOSIT_ALONE and not await self._deposit_alone(purchase):
            step = decide(reply.status, problem, purchase.tried, retry_after_s=reply.retry_after_s)
        if step is Step.WAIT:
            await self._wait(purchase.tried, reply.wait_s)
            return purchase.send_again()
        if purchase.ticket is not None:
            purchase.ticket.unlock()
        match step:
            case Step.HAND_ON:
                return None
            case Step.PENDING:
                raise DepositPendingError(origin=purchase.origin, waited_s=purchase.tried.waited_s)
            case Step.UNKNOWN:
                raise PaymentOutcomeUnknownError(
                    idempotency_key=purchase.idempotency_key, reason="the server lost it"
                )
            case Step.STOP:
                raise _refused(reply, problem)
            case Step.PAY:
                chosen = choose_offer(
                    self.policy,
                    reply.challenges,
                    purchase.origin,
                    self.now(),
                    others=reply.others,
                )
                # None: only other payment protocols are offered, which the caller may use.
                return None if chosen is None else await self._pay(purchase, *chosen)
        if purchase.ticket is None:
            raise _refused(reply, problem)
        return await self._pay_again(purchase, purchase.ticket, step, reply, problem)

    async def _wait(self, tried: Tried, wait_s: float) -> None:
        pause_s = deposit_pause_s(tried.waits, wait_s) if tried.is_funding else wait_s
        tried.waits += 1
        tried.waited_s += pause_s
        await self.sleep(pause_s)

    async def accept(self, purchase: Purchase, reply: Reply) -> None:
        """Count a paid answer that is not a stream, check its receipt, and release the channel.

        Raises:
            ReceiptViolationError: The receipt is wrong; the channel is stopped.
        """
        if purchase.ticket is not None:
            await self._land(purchase, purchase.ticket, reply.receipt)
            await self.receipts.accept(purchase, purchase.ticket, reply.receipt)
            self.release(purchase)

    async def begin_stream(self, purchase: Purchase, reply: Reply) -> PaidStream | None:
        """Return the payer's side of a stream that begins; None if it is not paid for.

        Raises:
            ReceiptViolationError: The receipt in its headers is wrong.
        """
        ticket = purchase.ticket
        if ticket is None:
            return None
        await self._land(purchase, ticket, reply.receipt)
        await self.receipts.begin_stream(purchase, ticket, reply.receipt)
        return PaidStream(
            policy=self.policy,
            store=self.store,
            pool=self.pool,
            desk=self.desk,
            receipts=self.receipts,
            purchase=purchase,
            ticket=ticket,
            now=self.now,
            sleep=self.sleep,
        )

    async def count_unanswered(self, purchase: Purchase) -> None:
        """Count the possible cost of a paid request that was never answered."""
        if self._lose(purchase) and purchase.ticket is not None:
            await purchase.ticket.tab.store(self.store)

    def note_unsent(self, purchase: Purchase) -> None:
        """Record that the last credential was never sent."""
        if purchase.ticket is not None:
            purchase.ticket.hold.is_sent = False

    def release(self, purchase: Purchase) -> None:
        """Release what a request holds; a second call does nothing.

        A caller may be cancelled at any `await`, even after the answer.
        """
        self._lose(purchase)
        if purchase.ticket is not None:
            purchase.ticket.unlock()
            self.pool.leave(purchase.ticket.slot, purchase.ticket.hold)

    def _lose(self, purchase: Purchase) -> bool:
        """Count a sent and uncounted request as lost, within a bound; return whether it was one.

        A stream counts one step more: the server may have sent that before it noticed that the
        client left.
        """
        ticket = purchase.ticket
        if ticket is None or not ticket.hold.is_sent:
            return False
        value = ticket.hold.cost + (ticket.step if purchase.expectation.is_stream else 0)
        ticket.hold.begin_counting()
        ticket.tab.lose(value, lost_max=self.policy.lost_units_max * ticket.price)
        return True

    async def leave(self, account: Account) -> Account:
        """Stop using a channel, and return its record as the chain shows it now."""
        self.pool.forget(account.key)
        return await self.opener.check(account)

    async def _pay_again(
        self,
        purchase: Purchase,
        ticket: Ticket,
        step: Step,
        reply: Reply,
        problem: Problem | None,
    ) -> Header:
        """Do what must precede another credential, and return the credential."""
        tried = purchase.tried
        claimed = 0
        if step is Step.REFRESH:
            tried.refreshes += 1
        elif step is Step.RECHECK:
            tried.rechecks += 1
            ticket.slot.is_checked = False
        elif step is Step.REOPEN:
            tried.reopens += 1
            is_unknown = problem is not None and problem.type == UNKNOWN_CHANNEL
            await self._give_up(ticket, is_unknown=is_unknown)
        elif step is Step.DEPOSIT_MORE and problem is not None:
            tried.deposits += 1
            account = await self.store.get(ticket.key)
            await self.opener.enlarge(account, ticket.limits, problem.deposit_min or 0)
        elif step is Step.RAISE and problem is not None:
            if ticket.hold.was_shared or ticket.tab.may_have_lost:
                # Concurrent requests may use what was signed, repeatedly: the rounds bound it.
                tried.shared_raises += 1
                await self.sleep(SETTLE_WAIT_S_STEP * (tried.shared_raises // SETTLE_TRIES_MAX))
            else:
                tried.raises += 1
            rise = (problem.accepted or 0) + (problem.min_voucher_delta or 0)
            claimed = problem.required_cumulative or rise
            await self.opener.notice_opened(await self.store.get(ticket.key))
        chosen = choose_offer(self.policy, reply.challenges, purchase.origin, self.now())
        offer, limits = chosen or (ticket.offer, ticket.limits)
        return await self._pay(purchase, offer, limits, claimed=claimed)

    async def _deposit_alone(self, purchase: Purchase) -> bool:
        """Open at this account's own cost a channel whose attached deposit was not made.

        Returns whether the channel exists. The slot's lock is held while the deposit is attached.
        """
        purchase.tried.deposits_alone += 1
        ticket = purchase.ticket
        if ticket is None:
            return False
        account = await self.store.get(ticket.key)
        return await self.opener.open_alone(account, ticket.offer, ticket.limits)

    async def _give_up(self, ticket: Ticket, *, is_unknown: bool) -> None:
        """Stop using a channel that the server does not know or has ended (F-97)."""
        async with ticket.slot.lock:
            if ticket.slot.key != ticket.key:
                return  # another request of this slot has already replaced it
            account = await self.opener.check(await self.store.get(ticket.key))
            ticket.slot.forget_channel()
            ticket.spent_before.pop(account.key, None)
            if is_unknown and account.state == "open":
                # The chain has it: present its opening again rather than pay for another one. The
                # server has lost its record of the channel, including `spent`.
                await self.store.update(
                    account.key,
                    lambda current: replace(current, state="opening", spent=0, accepted=0),
                )
            elif account.state != "closed":
                await self.store.update(
                    account.key, lambda current: replace(current, state="closing")
                )

    async def _pay(
        self, purchase: Purchase, offer: Offer, limits: TokenLimits, *, claimed: int = 0
    ) -> Header:
        """Return a credential for an open channel whose voucher covers the cost.

        Args:
            purchase: The request that is paid for.
            offer: The offer that is answered.
            limits: The limits that allow the offer.
            claimed: The amount that the server says it needs; 0 if it named none.

        Raises:
            UnsettledClaimError: The server needs what concurrent requests may have used, and they
                have made no progress, or it needs more even after that.
        """
        while True:
            try:
                return await self._pay_now(purchase, offer, limits, claimed)
            except UnsettledClaimError as claim:
                ticket, tried = purchase.ticket, purchase.tried
                if ticket is None or tried.settles >= SETTLE_TRIES_MAX:
                    raise
                tried.settles += 1
                if not await ticket.tab.settle(ticket.hold, claim.asked):
                    # The request behind the claim may have ended, so ask the server again.
                    claimed = 0
                    await self.sleep(SETTLE_WAIT_S_STEP * tried.settles)

    async def _pay_now(
        self, purchase: Purchase, offer: Offer, limits: TokenLimits, claimed: int
    ) -> Header:
        ticket = await self._ticket(purchase, offer, limits)
        await ticket.lock()
        try:
            account = await self._ensure_open(purchase, ticket)
            promise = await self.desk.make(purchase, ticket, claimed=claimed)
            if account.state == "opening":
                promise = replace(promise, deposit=account.opening, goal=account.deposit)
            payload = await self._board(purchase, ticket, promise)
        finally:
            if ticket.ride is None:
                ticket.unlock()
        ticket.tab.sent(ticket.hold)
        purchase.tried.has_paid = True
        purchase.tried.is_funding = ticket.ride is not None
        self._remember(purchase.route, ticket.offer)
        purchase.header = build_header(ticket.offer, payload, ticket.source)
        return purchase.header

    async def _board(self, purchase: Purchase, ticket: Ticket, promise: Promise) -> Payload:
        """Return the payload of the request: the voucher, with a deposit if one may be attached.

        If no other request uses the channel, the deposit is attached to the request, which saves a
        round trip; later requests wait until the answer begins. If others wait already, a HEAD
        carries the deposit, and its answer comes once the deposit is mined. A deposit refused there
        is attached to the request after all, because only that is answered with a reason.
        """
        if promise.deposit is not None and ticket.slot.holds != {ticket.hold}:
            try:
                await self.desk.present_promise(purchase, ticket, promise)
                return VoucherPayload(promise.voucher)
            except PaymentRefusedError as error:
                if error.status not in (402, 429):
                    raise
            except DepositPendingError as error:
                if error.waited_s:  # 0 means not to wait, and the message says why
                    raise
        if promise.deposit is None:
            return VoucherPayload(promise.voucher)
        ticket.ride = promise
        return promise.payload

    async def _land(self, purchase: Purchase, ticket: Ticket, text: str | None) -> None:
        """Record the attached deposit of an answered request, and let the other requests go on."""
        if ticket.ride is not None:
            receipt = None
            with contextlib.suppress(ReceiptViolationError):  # `accept` raises it later
                receipt = None if text is None else read_receipt(text)
            await self.desk.land(purchase, ticket, ticket.ride, receipt)
        ticket.unlock()

    async def _ticket(self, purchase: Purchase, offer: Offer, limits: TokenLimits) -> Ticket:
        """Return the request's payment for this offer: the current one if the terms are equal."""
        chain = self.opener.chain(offer.request.chain_id, purchase.origin)
        scope = build_scope(purchase.origin, offer, payer=chain.account)
        cost, cost_max = purchase.costs(self.policy, offer)
        ticket = purchase.ticket
        if ticket is None or ticket.slot.scope != scope:
            self.release(purchase)
            slot, hold = await self.pool.enter(
                scope, cost=cost, cost_max=cost_max, is_stream=purchase.expectation.is_stream
            )
            ticket = purchase.ticket = Ticket(offer=offer, limits=limits, slot=slot, hold=hold)
        ticket.answer(offer)
        ticket.limits = limits
        ticket.hold.cost, ticket.hold.cost_max = cost, cost_max
        ticket.hold.step = step_value(self.policy, offer.request)
        return ticket

    async def _ensure_open(self, purchase: Purchase, ticket: Ticket) -> Account:
        """Return the slot's channel, found or newly opened. The slot's lock is held."""
        slot = ticket.slot
        account = None if slot.key is None else await self.store.get(slot.key)
        if account is None or account.state not in ("opening", "open"):
            slot.forget_channel()
            account = await self.opener.find(slot.scope, self.pool.taken(slot.scope))
            if account is not None:  # also while `opening`: its deposit carried the first voucher
                tab = self.pool.tab(account)
                lost_max = self.policy.lost_units_max * ticket.price
                tab.lose(account.signed - account.counted, lost_max=lost_max)
                account = await tab.store(self.store)
        if account is not None and account.state == "open" and not slot.is_checked:
            account = await self.opener.check(account)
            if account.state != "open":
                account = None
        if account is not None and account.state == "opening":
            has_ended = await self.opener.has_ended(account, ticket.offer)
            account = None if has_ended else account
        is_new = account is None
        if account is None:
            account = await self.opener.prepare(
                slot.scope, ticket.offer, ticket.limits, url=purchase.url, needed=ticket.hold.cost
            )
        self.pool.use(slot, ticket.hold, account)
        ticket.spent_before.setdefault(account.key, account.spent)
        if account.state == "opening":
            account = await self._open(purchase, ticket, account, is_new=is_new)
        slot.is_checked = True
        return account

    async def _open(
        self, purchase: Purchase, ticket: Ticket, account: Account, *, is_new: bool
    ) -> Account:
        """Return the channel, with its opening deposit signed, or made and presented.

        A deposit that was made is presented with a HEAD before the first content request. So a
        request that fails for its own reasons leaves no doubt about the channel.
        """
        account, proof = await self.opener.deposit(
            account, ticket.offer, ticket.limits, is_new=is_new
        )
        if account.state == "open":
            return account  # a request that was cancelled has opened it meanwhile
        if account.state != "opening":
            raise ChannelUnusableError(
                f"Expected a channel that is opening, found it {account.state} on chain. "
                "Send the request again."
            )
        if isinstance(proof, Deposit):
            return account
        voucher = (await self.desk.make(purchase, ticket)).voucher
        opening = OpenHash(voucher, account.salt, account.terms.authorized_signer, proof)
        await self.desk.present(purchase, ticket, opening)
        return await self.store.update(
            account.key, lambda current: replace(current, state="open", url=purchase.url)
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
