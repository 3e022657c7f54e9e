"""The heart of the paying side: which channel, how much, and what after a refusal.

It speaks HTTP only through a `Courier` and to the chain only through `PayerChain`, so that every
decision can be tested against any behaviour of both. What is durable when:

    salt and terms            before the deposit is broadcast   (a crash finds the channel again)
    the amount of a voucher   before it is signed and sent      (a crash never signs more for less)
    what arrived              before the next voucher, and when an answer or a stream ends
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping

from msgspec.structs import replace

from channel.chain import PayerChain
from channel.client.account import (
    Account,
    adopt_receipt,
    choose_amount,
    count_lost,
    count_received,
    require_counted,
    require_receipt,
)
from channel.client.decisions import Step, decide
from channel.client.lanes import Hold, Lane, Lanes
from channel.client.opening import ChannelOpener
from channel.client.policy import (
    Offer,
    Policy,
    TokenLimits,
    choose_offer,
    require_deposit,
    require_offer,
    step_value,
)
from channel.client.presenting import Header, Presented, Reply, build_header, present, read_receipt
from channel.client.purchase import Purchase, build_scope
from channel.client.signer import Signer
from channel.client.store import Purse
from channel.errors import (
    ChannelUnusableError,
    OfferRefusedError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
    ReceiptViolationError,
    WireError,
)
from channel.types import Address, ChannelKey, SignedVoucher
from channel.verify.typed_data import voucher_digest
from channel.wire.payload import OpenHash, Payload, TopUpHash, VoucherPayload
from channel.wire.problem import Problem, parse_problem
from channel.wire.receipt import Receipt, format_receipt, parse_receipt_json
from channel.wire.sse import NEED_VOUCHER_EVENT, RECEIPT_EVENT, parse_need_voucher

__all__ = ["Payer"]

REMEMBERED_MAX = 256
IDLE_NEEDS_MAX = 3


class Payer:
    """Pays for requests of one agent. Many tasks may use it at once."""

    def __init__(
        self,
        *,
        policy: Policy,
        signer: Signer,
        purse: Purse,
        chains: Mapping[int, PayerChain],
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.policy = policy
        self.purse = purse
        self.opener = ChannelOpener(policy=policy, purse=purse, chains=chains, now=now)
        self.lanes = Lanes(streams_max=policy.parallel_streams_max)
        self.now = now
        self.sleep = sleep
        self._signer = signer
        self._remembered: OrderedDict[tuple[str, str], Offer] = OrderedDict()

    async def prepay(self, purchase: Purchase) -> Header | None:
        """Return a credential for a route whose challenge is known and fresh, else None."""
        offer = self._remembered.get(purchase.route)
        if offer is None or not offer.is_fresh(self.now()):
            return None
        limits = require_offer(self.policy, offer, purchase.origin, self.now())
        return await self._pay(purchase, offer, limits)

    async def answer(self, purchase: Purchase, reply: Reply) -> Header | None:
        """Return what to send the request with again, or None to hand the answer on.

        Waits where the server asks for it. Raises an `AgentError` where paying (again) would
        be wrong; then nothing more was signed.
        """
        problem = parse_problem(reply.body)
        tried = purchase.tried
        step = decide(reply.status, problem, tried)
        if step is Step.HAND_ON:
            return None
        if step is Step.WAIT and purchase.header is not None:
            tried.waits += 1
            await self.sleep(reply.wait_s)
            return purchase.header
        if step is Step.UNKNOWN:
            raise PaymentOutcomeUnknownError(
                idempotency_key=purchase.idempotency_key, reason="the server lost it"
            )
        chosen = choose_offer(self.policy, reply.challenges, purchase.origin, self.now())
        if step is Step.PAY and chosen is None:
            return None  # payment of a kind that is none of ours
        if step is Step.STOP or step is Step.WAIT:
            raise _refused(reply, problem)
        offer, limits = chosen or self._standing(purchase, reply, problem)
        required = await self._prepare_step(purchase, step, problem)
        return await self._pay(purchase, offer, limits, required=required)

    async def _prepare_step(
        self, purchase: Purchase, step: Step, problem: Problem | None
    ) -> int | None:
        """Do what must precede another credential; return what the server says it needs."""
        tried = purchase.tried
        if step is Step.REFRESH:
            tried.refreshes += 1
        elif step is Step.RAISE and problem is not None:
            tried.raises += 1
            if problem.required_cumulative is not None:
                return problem.required_cumulative
            return (problem.accepted or 0) + (problem.min_voucher_delta or 0)
        elif step is Step.RECHECK:
            tried.rechecks += 1
            self._lane(purchase).is_checked = False
        elif step is Step.REOPEN:
            tried.reopens += 1
            await self._give_up(purchase, problem)
        return None

    def _standing(
        self, purchase: Purchase, reply: Reply, problem: Problem | None
    ) -> tuple[Offer, TokenLimits]:
        if purchase.offer is None or purchase.limits is None:
            raise _refused(reply, problem)
        return purchase.offer, purchase.limits

    async def _give_up(self, purchase: Purchase, problem: Problem | None) -> None:
        """Part with a channel that the server does not know or has ended (F-97)."""
        lane = self._lane(purchase)
        async with lane.lock:
            account = await self._account(lane)
            if account is None:
                return
            account = await self.opener.check(account)
            lane.forget_channel()
            is_unknown = problem is not None and problem.type == "session/channel-not-found"
            if account.state == "closed":
                return
            if is_unknown and account.state == "open":
                # Alive on chain: present its opening again rather than pay for another. What the
                # server knew of it is gone, and with it what it had spent.
                purchase.spent_before.pop(account.key, None)
                fresh = replace(account, state="opening", spent=0, accepted=0)
            else:
                fresh = replace(account, state="closing")
            await self.purse.update(
                account.key,
                lambda current: replace(
                    current, state=fresh.state, spent=fresh.spent, accepted=fresh.accepted
                ),
            )

    async def _pay(
        self,
        purchase: Purchase,
        offer: Offer,
        limits: TokenLimits,
        *,
        required: int | None = None,
    ) -> Header:
        """Return a credential for a channel that is open and whose voucher covers the cost."""
        chain = self.opener.chain(offer.request.chain_id, purchase.origin)
        scope = build_scope(
            purchase.origin, offer, payer=chain.account, signer=self._signer.address
        )
        hold = purchase.hold
        cost, cost_max = purchase.costs(self.policy, offer)
        if hold is None or hold.lane.scope != scope:
            self.release(purchase)
            hold = purchase.hold = await self.lanes.enter(
                scope, cost=cost, cost_max=cost_max, is_stream=purchase.expectation.is_stream
            )
        hold.cost, hold.cost_max = cost, cost_max
        purchase.offer, purchase.limits = offer, limits
        async with hold.lane.lock:
            account = await self._ensure_open(purchase, hold, offer, limits)
            needed, ahead = self._aims(purchase, hold, account)
            voucher = await self._voucher(purchase, needed=max(needed, required or 0), ahead=ahead)
        offer = purchase.offer  # a refresh while opening may have replaced it
        purchase.tried.has_paid = True
        purchase.challenge_ids.add(offer.challenge.id)
        self._remember(purchase.route, offer)
        purchase.header = build_header(offer, VoucherPayload(voucher), self._source(hold.lane))
        return purchase.header

    def _aims(self, purchase: Purchase, hold: Hold, account: Account) -> tuple[int, int]:
        """Return what a voucher must cover now, and what we would like it to cover."""
        needed = max(account.counted, account.spent) + hold.lane.in_flight
        if purchase.expectation.is_stream:
            return needed, account.counted + purchase.allowance(self.policy)
        return needed, needed

    async def _ensure_open(
        self, purchase: Purchase, hold: Hold, offer: Offer, limits: TokenLimits
    ) -> Account:
        """Return the lane's channel, found again or newly opened; the lane's lock is held."""
        lane = hold.lane
        account = await self._account(lane)
        if account is None or account.state not in ("opening", "open"):
            lane.forget_channel()
            account = await self.opener.find(lane.scope, self.lanes.taken(lane.scope))
            if account is not None and account.state == "open":
                lost_max = self.policy.lost_units_max * offer.request.unit_price
                account = await self.opener.grant_lost(account, lost_max)
        if account is not None and account.state == "open" and not lane.is_checked:
            account = await self.opener.check(account)
            if account.state != "open":
                account = None
        if account is None:
            account = await self.opener.prepare(
                lane.scope, offer, limits, url=purchase.url, needed=hold.cost
            )
        lane.key = account.key
        purchase.spent_before.setdefault(account.key, account.spent)
        if account.state == "opening":
            account = await self._open(purchase, hold, account)
        lane.is_checked = True
        return account

    async def _open(self, purchase: Purchase, hold: Hold, account: Account) -> Account:
        """Deposit if that is still to be done, and present the opening to the server.

        With a HEAD, so that the deposit is known before the first content request: a request
        that fails for its own reasons leaves no doubt about the channel.
        """
        account, open_tx = await self.opener.deposit(account)
        if account.state != "opening":
            raise ChannelUnusableError(f"The channel being opened is {account.state} on chain.")
        needed, ahead = self._aims(purchase, hold, account)
        voucher = await self._voucher(purchase, needed=needed, ahead=ahead)
        payload = OpenHash(
            voucher=voucher,
            salt=account.salt,
            authorized_signer=account.terms.authorized_signer,
            tx_hash=open_tx,
        )
        presented = await self.present(purchase, payload)
        await self._adopt_presented(purchase, account.key, presented)
        return await self.purse.update(
            account.key, lambda current: replace(current, state="open", url=purchase.url)
        )

    async def _voucher(self, purchase: Purchase, *, needed: int, ahead: int) -> SignedVoucher:
        """Return a voucher for at least `needed`; its amount is durable before it is signed.

        The order of refusals: our own count, then the policy's caps and the deposit, then the
        budget. A claim beyond our count therefore never causes a top-up (F-94).
        """
        offer, limits, lane = purchase.offer, purchase.limits, self._lane(purchase)
        account = await self._account(lane)
        if account is None or offer is None or limits is None:
            raise ChannelUnusableError("There is no channel to sign for.")
        allowance = purchase.allowance(self.policy)
        require_counted(account, needed, allowance)
        if needed > account.signed:
            require_deposit(limits, needed, account.origin)
        if needed > account.deposit:
            account = await self._top_up(purchase, account, offer, limits, needed)
        cap = account.deposit if limits.cumulative_max is None else limits.cumulative_max

        def choose(current: Account, budget_left: int) -> int:
            wished = min(ahead, cap, current.signed + budget_left)
            return choose_amount(
                current,
                required=needed,
                ahead=wished,
                allowance=allowance,
                min_delta=offer.request.min_voucher_delta,
            )

        account = await self.purse.sign_for(
            account.key,
            choose,
            budget=limits.budget,
            window_s=self.policy.budget_window_s,
            now=self.now(),
        )
        return await self.sign(lane, account.key, account.signed)

    async def sign(self, lane: Lane | None, key: ChannelKey, amount: int) -> SignedVoucher:
        """Sign an amount that is durable; the last signature of a lane is not made twice."""
        if lane is not None and lane.last_signature is not None:
            signed, signature = lane.last_signature
            if signed == amount:
                return SignedVoucher(key.channel_id, amount, signature)
        signature = await self._signer.sign(voucher_digest(key, amount))
        if lane is not None:
            lane.last_signature = (amount, signature)
        return SignedVoucher(key.channel_id, amount, signature)

    async def _top_up(
        self,
        purchase: Purchase,
        account: Account,
        offer: Offer,
        limits: TokenLimits,
        needed: int,
    ) -> Account:
        account, amount, tx_hash = await self.opener.top_up(account, offer, limits, needed)
        if tx_hash is not None:
            payload = TopUpHash(
                channel_id=account.key.channel_id, additional_deposit=amount, tx_hash=tx_hash
            )
            await self._adopt_presented(
                purchase, account.key, await self.present(purchase, payload)
            )
        return account

    async def present(self, purchase: Purchase, payload: Payload) -> Presented:
        """Present a credential by HEAD to the purchase's address; see `presenting.present`."""
        offer = purchase.offer
        if offer is None:
            raise ChannelUnusableError("There is no challenge to answer.")
        lane = self._lane(purchase)
        presented = await present(
            purchase.courier,
            offer,
            payload,
            self._source(lane),
            renew=lambda reply: self.renew(purchase, reply),
            sleep=self.sleep,
        )
        purchase.offer = presented.offer
        purchase.challenge_ids.add(presented.offer.challenge.id)
        return presented

    def renew(self, purchase: Purchase, reply: Reply) -> Offer:
        """Return the fresh offer of a 402 to a HEAD: the same terms, no higher price (F-95)."""
        chosen = choose_offer(self.policy, reply.challenges, purchase.origin, self.now())
        old = purchase.offer
        if chosen is None or old is None:
            raise _refused(reply, None)
        new = chosen[0]
        if new.request.unit_price > old.request.unit_price:
            raise OfferRefusedError(
                field="amount",
                asked=new.request.unit_price,
                allowed=f"{old.request.unit_price}, as it was offered before",
                origin=purchase.origin,
            )
        for field in ("chain_id", "escrow", "currency", "recipient"):
            if getattr(new.request, field) != getattr(old.request, field):
                raise OfferRefusedError(
                    field=field,
                    asked="another one",
                    allowed="the one offered before",
                    origin=purchase.origin,
                )
        return new

    async def _adopt_presented(
        self, purchase: Purchase, key: ChannelKey, presented: Presented
    ) -> None:
        if presented.receipt is not None:
            await self.adopt(
                purchase, key, presented.receipt, presented.receipt_text, is_final=False
            )

    async def accept(self, purchase: Purchase, reply: Reply, *, is_stream: bool) -> None:
        """Take the receipt of a paid answer; count it, unless it is a stream that comes yet.

        Raises:
            ReceiptViolationError: The receipt cannot be right; the channel is stopped.
        """
        hold, offer = purchase.hold, purchase.offer
        if hold is None or offer is None or hold.lane.key is None:
            return
        key = hold.lane.key
        receipt = None
        if reply.receipt is not None:
            receipt = await self._read(key, reply.receipt)
        if not is_stream:
            price = offer.request.unit_price
            units = 1 if receipt is None or receipt.units is None else receipt.units
            units = min(units, hold.cost_max // price)
            await self.purse.update(
                key, lambda current: count_received(current, value=units * price, units=units)
            )
        if receipt is not None:
            text = reply.receipt or ""
            await self.adopt(purchase, key, receipt, text, is_final=hold.is_alone)

    async def _read(self, key: ChannelKey, text: str) -> Receipt:
        try:
            return read_receipt(text)
        except ReceiptViolationError:
            await self._stop(key)
            raise

    async def adopt(
        self, purchase: Purchase, key: ChannelKey, receipt: Receipt, text: str, *, is_final: bool
    ) -> None:
        """Hold a receipt against the purse and store it; see `adopt_receipt`."""
        is_own = purchase.is_key_ours
        await self.adopt_receipt(
            key,
            receipt,
            text,
            challenge_ids=purchase.challenge_ids if is_own else None,
            spent_min=purchase.spent_before.get(key, 0) if is_own else 0,
            is_final=is_final,
        )

    async def adopt_receipt(
        self,
        key: ChannelKey,
        receipt: Receipt,
        text: str,
        *,
        challenge_ids: Collection[str] | None,
        spent_min: int,
        is_final: bool,
    ) -> None:
        """Hold a receipt against the purse and store it; a lie stops the channel (CLIENT-09).

        Raises:
            ReceiptViolationError: It cannot be right.
        """

        def change(current: Account) -> Account:
            require_receipt(current, receipt, challenge_ids=challenge_ids, spent_min=spent_min)
            return adopt_receipt(current, receipt, text, is_final=is_final)

        try:
            await self.purse.update(key, change)
        except ReceiptViolationError:
            await self._stop(key)
            raise

    async def leave(self, account: Account) -> Account:
        """Use a channel no more, and return it as the chain shows it now."""
        self.lanes.forget(account.key)
        return await self.opener.check(account)

    async def _stop(self, key: ChannelKey) -> None:
        await self.purse.update(key, lambda current: replace(current, state="stopped"))
        self.lanes.forget(key)

    async def need_voucher(self, purchase: Purchase, data: str) -> None:
        """Answer a stream that waits for a voucher (SSE-01, CLIENT-07).

        Raises:
            OverclaimError: It asks for more than it has delivered and one step.
            PaymentRefusedError: It asks again and again and delivers nothing, or refuses.
            ReceiptViolationError: What it says cannot be read.
        """
        hold = self._hold(purchase)
        key = hold.lane.key
        try:
            need = parse_need_voucher(data)
        except WireError as error:
            raise ReceiptViolationError(
                field=NEED_VOUCHER_EVENT, said=f"unreadable ({error})", expected="what is needed"
            ) from error
        if key is None or need.channel_id != key.channel_id:
            return  # another channel's: none of this stream's business
        await self.store_received(purchase)
        purchase.idle_needs += 1
        if purchase.idle_needs > IDLE_NEEDS_MAX:
            raise PaymentRefusedError(
                status=200,
                problem_type=NEED_VOUCHER_EVENT,
                detail=f"asked {IDLE_NEEDS_MAX} times and delivered nothing",
            )
        async with hold.lane.lock:
            account = await self._account(hold.lane)
            counted = 0 if account is None else account.counted
            voucher = await self._voucher(
                purchase,
                needed=need.required_cumulative,
                ahead=counted + purchase.allowance(self.policy),
            )
        presented = await self.present(purchase, VoucherPayload(voucher))
        await self._adopt_presented(purchase, key, presented)

    async def end_receipt(self, purchase: Purchase, data: str) -> None:
        """Take the receipt at the end of a stream; a lie stops the channel (SSE-04)."""
        hold = self._hold(purchase)
        if hold.lane.key is None:
            return
        await self.store_received(purchase)
        try:
            receipt = parse_receipt_json(data)
        except WireError as error:
            await self._stop(hold.lane.key)
            raise ReceiptViolationError(
                field=RECEIPT_EVENT, said=f"unreadable ({error})", expected="a receipt"
            ) from error
        purchase.has_end_receipt = True
        text = format_receipt(receipt)
        await self.adopt(purchase, hold.lane.key, receipt, text, is_final=hold.is_alone)

    def count(self, purchase: Purchase, data: str) -> None:
        """Count one event of a stream; stored with the next voucher or at the end."""
        units = purchase.meter.count(data)
        if units:
            purchase.pending_units += units
            purchase.idle_needs = 0

    async def store_received(self, purchase: Purchase) -> None:
        """Store what arrived of a stream; its first cost is then no longer in flight."""
        hold, offer, units = purchase.hold, purchase.offer, purchase.pending_units
        if not units or hold is None or offer is None or hold.lane.key is None:
            return
        purchase.pending_units = 0
        hold.cost = hold.cost_max = 0
        value = units * offer.request.unit_price
        await self.purse.update(
            hold.lane.key, lambda current: count_received(current, value=value, units=units)
        )

    async def end_stream(self, purchase: Purchase, *, is_broken: bool) -> None:
        """Count the rest of a stream and let go of its channel.

        What the caller did not care to read was delivered all the same, up to one step; what a
        broken connection swallowed is granted within the policy's bound, because a server could
        break it at will. Both only until the next receipt says what was really spent.
        """
        hold, offer = purchase.hold, purchase.offer
        try:
            await self.store_received(purchase)
            if purchase.has_end_receipt or hold is None or offer is None or hold.lane.key is None:
                return
            step = step_value(self.policy, offer.request)
            lost_max = self.policy.lost_units_max * offer.request.unit_price
            others = hold.lane.in_flight - hold.cost

            def change(current: Account) -> Account:
                unread = max(0, min(step, current.signed - current.counted - others))
                if is_broken:
                    return count_lost(current, value=unread, lost_max=lost_max)
                return count_received(current, value=unread, units=0)

            await self.purse.update(hold.lane.key, change)
        finally:
            self.release(purchase)

    async def count_unanswered(self, purchase: Purchase) -> None:
        """Grant the cost of a request that was paid for and never answered."""
        hold, offer = purchase.hold, purchase.offer
        if hold is None or offer is None or hold.lane.key is None:
            return
        lost_max = self.policy.lost_units_max * offer.request.unit_price
        await self.purse.update(
            hold.lane.key,
            lambda current: count_lost(current, value=hold.cost, lost_max=lost_max),
        )

    def release(self, purchase: Purchase) -> None:
        """Let go of what was held for a request; a second time does nothing."""
        if purchase.hold is not None:
            self.lanes.leave(purchase.hold)
            purchase.hold = None

    async def _account(self, lane: Lane) -> Account | None:
        return None if lane.key is None else await self.purse.load(lane.key)

    def _hold(self, purchase: Purchase) -> Hold:
        if purchase.hold is None:
            raise ChannelUnusableError("The request holds no channel.")
        return purchase.hold

    def _lane(self, purchase: Purchase) -> Lane:
        return self._hold(purchase).lane

    def _source(self, lane: Lane) -> tuple[int, Address]:
        return lane.scope.chain_id, lane.scope.terms.payer

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
