"""The heart of the paying side: which channel, how much, and what after a refusal.

It speaks HTTP only through a `Courier` and to the chain only through `PayerChain`, so that every
decision can be tested against any behaviour of both. What is durable when:

    salt and terms            before a deposit is broadcast     (a crash finds the channel again)
    a signed deposit          before it is sent                 (a crash sends that one again)
    the amount of a voucher   before it is signed and sent      (a crash never signs below it)
    what arrived              before the next voucher, and when an answer or a stream ends
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

from msgspec.structs import replace

from channel.chain import PayerChain
from channel.client.account import Account, count_lost
from channel.client.decisions import Step, decide
from channel.client.funding import build_open
from channel.client.keys import VoucherKeys
from channel.client.lanes import Lanes
from channel.client.opening import ChannelOpener
from channel.client.policy import Offer, Policy, TokenLimits, choose_offer, require_offer
from channel.client.presenting import Header, Reply, build_header
from channel.client.purchase import Purchase, Ticket, build_scope
from channel.client.receipts import ReceiptBook
from channel.client.store import Purse
from channel.client.streaming import PaidStream
from channel.client.vouchers import VoucherDesk
from channel.errors import (
    ChannelUnusableError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
)
from channel.wire.funding import Deposit
from channel.wire.payload import OpenHash, VoucherPayload
from channel.wire.problem import Problem, parse_problem

__all__ = ["Payer"]

REMEMBERED_MAX = 256
UNKNOWN_CHANNEL = "session/channel-not-found"


class Payer:
    """Pays for requests of one agent. Many tasks may use it at once."""

    def __init__(
        self,
        *,
        policy: Policy,
        keys: VoucherKeys,
        purse: Purse,
        chains: Mapping[int, PayerChain],
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.policy = policy
        self.purse = purse
        self.now = now
        self.sleep = sleep
        self.lanes = Lanes(streams_max=policy.parallel_streams_max)
        self.opener = ChannelOpener(policy=policy, purse=purse, keys=keys, chains=chains, now=now)
        self.receipts = ReceiptBook(purse, self.lanes)
        self.desk = VoucherDesk(
            policy=policy,
            keys=keys,
            purse=purse,
            opener=self.opener,
            receipts=self.receipts,
            now=now,
            sleep=sleep,
        )
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
        step = decide(reply.status, problem, purchase.tried)
        match step:
            case Step.HAND_ON:
                return None
            case Step.WAIT:
                purchase.tried.waits += 1
                await self.sleep(reply.wait_s)
                return purchase.header
            case Step.UNKNOWN:
                raise PaymentOutcomeUnknownError(
                    idempotency_key=purchase.idempotency_key, reason="the server lost it"
                )
            case Step.STOP:
                raise _refused(reply, problem)
            case Step.PAY:
                chosen = choose_offer(self.policy, reply.challenges, purchase.origin, self.now())
                # None: a payment of a kind that is none of ours, for the caller to make.
                return None if chosen is None else await self._pay(purchase, *chosen)
        if purchase.ticket is None:
            raise _refused(reply, problem)
        return await self._pay_again(purchase, purchase.ticket, step, reply, problem)

    async def accept(self, purchase: Purchase, reply: Reply) -> None:
        """Count a paid answer in one piece, check its receipt, and let go of the channel.

        Raises:
            ReceiptViolationError: The receipt cannot be right; the channel is stopped.
        """
        if purchase.ticket is not None:
            await self.receipts.accept(purchase, purchase.ticket, reply.receipt)
            self.release(purchase)

    async def begin_stream(self, purchase: Purchase, reply: Reply) -> PaidStream | None:
        """Return the payer's side of a stream that begins; None if it is not paid for.

        Raises:
            ReceiptViolationError: The receipt in its headers cannot be right.
        """
        ticket = purchase.ticket
        if ticket is None:
            return None
        await self.receipts.begin_stream(purchase, ticket, reply.receipt)
        return PaidStream(
            policy=self.policy,
            purse=self.purse,
            lanes=self.lanes,
            desk=self.desk,
            receipts=self.receipts,
            purchase=purchase,
            ticket=ticket,
            now=self.now,
        )

    async def count_unanswered(self, purchase: Purchase) -> None:
        """Grant the cost of a request that was paid for and never answered, within a bound."""
        ticket = purchase.ticket
        if ticket is not None:
            lost_max = self.policy.lost_units_max * ticket.price
            await self.purse.update(
                ticket.key,
                lambda current: count_lost(current, value=ticket.hold.cost, lost_max=lost_max),
            )

    def release(self, purchase: Purchase) -> None:
        """Let go of what was held for a request; a second time does nothing."""
        if purchase.ticket is not None:
            self.lanes.leave(purchase.ticket.hold)

    async def leave(self, account: Account) -> Account:
        """Use a channel no more, and return it as the chain shows it now."""
        self.lanes.forget(account.key)
        return await self.opener.check(account)

    async def _pay_again(
        self,
        purchase: Purchase,
        ticket: Ticket,
        step: Step,
        reply: Reply,
        problem: Problem | None,
    ) -> Header:
        """Do what must precede another credential, and return that."""
        tried = purchase.tried
        required = 0
        if step is Step.REFRESH:
            tried.refreshes += 1
        elif step is Step.RECHECK:
            tried.rechecks += 1
            ticket.lane.is_checked = False
        elif step is Step.REOPEN:
            tried.reopens += 1
            is_unknown = problem is not None and problem.type == UNKNOWN_CHANNEL
            await self._give_up(ticket, is_unknown=is_unknown)
        elif problem is not None:
            tried.raises += 1
            rise = (problem.accepted or 0) + (problem.min_voucher_delta or 0)
            required = problem.required_cumulative or rise
        chosen = choose_offer(self.policy, reply.challenges, purchase.origin, self.now())
        offer, limits = chosen or (ticket.offer, ticket.limits)
        return await self._pay(purchase, offer, limits, required=required)

    async def _give_up(self, ticket: Ticket, *, is_unknown: bool) -> None:
        """Part with a channel that the server does not know or has ended (F-97)."""
        async with ticket.lane.lock:
            if ticket.lane.key != ticket.key:
                return  # another request of this lane has parted with it already
            account = await self.opener.check(await self.purse.get(ticket.key))
            ticket.lane.forget_channel()
            ticket.spent_before.pop(account.key, None)
            if is_unknown and account.state == "open":
                # Alive on chain: present its opening again rather than pay for another. What the
                # server knew of it is gone, and with it what it had spent.
                await self.purse.update(
                    account.key,
                    lambda current: replace(current, state="opening", spent=0, accepted=0),
                )
            elif account.state != "closed":
                await self.purse.update(
                    account.key, lambda current: replace(current, state="closing")
                )

    async def _pay(
        self, purchase: Purchase, offer: Offer, limits: TokenLimits, *, required: int = 0
    ) -> Header:
        """Return a credential for a channel that is open and whose voucher covers the cost."""
        ticket = await self._ticket(purchase, offer, limits)
        async with ticket.lane.lock:
            account = await self._ensure_open(purchase, ticket)
            needed, ahead = self._aims(purchase, ticket, account)
            payload = await self.desk.make(
                purchase, ticket, needed=max(needed, required), ahead=ahead
            )
            if payload.deposit is not None:
                await self.desk.present(purchase, ticket, payload)
        purchase.tried.has_paid = True
        self._remember(purchase.route, ticket.offer)
        voucher = VoucherPayload(payload.voucher)
        purchase.header = build_header(ticket.offer, voucher, ticket.source)
        return purchase.header

    async def _ticket(self, purchase: Purchase, offer: Offer, limits: TokenLimits) -> Ticket:
        """Return the request's ticket for this offer: the one it has, unless the terms changed."""
        chain = self.opener.chain(offer.request.chain_id, purchase.origin)
        scope = build_scope(purchase.origin, offer, payer=chain.account)
        cost, cost_max = purchase.costs(self.policy, offer)
        ticket = purchase.ticket
        if ticket is None or ticket.lane.scope != scope:
            self.release(purchase)
            hold = await self.lanes.enter(
                scope, cost=cost, cost_max=cost_max, is_stream=purchase.expectation.is_stream
            )
            ticket = purchase.ticket = Ticket(offer=offer, limits=limits, hold=hold)
        ticket.answer(offer)
        ticket.limits = limits
        ticket.hold.cost, ticket.hold.cost_max = cost, cost_max
        return ticket

    def _aims(self, purchase: Purchase, ticket: Ticket, account: Account) -> tuple[int, int]:
        """Return what a voucher must cover now, and what we would like it to cover."""
        needed = max(account.counted, account.spent) + ticket.lane.in_flight
        if purchase.expectation.is_stream:
            return needed, account.counted + ticket.allowance(self.policy)
        return needed, needed

    async def _ensure_open(self, purchase: Purchase, ticket: Ticket) -> Account:
        """Return the lane's channel, found again or newly opened; the lane's lock is held."""
        lane = ticket.lane
        account = None if lane.key is None else await self.purse.get(lane.key)
        if account is None or account.state not in ("opening", "open"):
            lane.forget_channel()
            account = await self.opener.find(lane.scope, self.lanes.taken(lane.scope))
            if account is not None and account.state == "open":
                lost_max = self.policy.lost_units_max * ticket.price
                account = await self.opener.grant_lost(account, lost_max)
        if account is not None and account.state == "open" and not lane.is_checked:
            account = await self.opener.check(account)
            if account.state != "open":
                account = None
        is_new = account is None
        if account is None:
            account = await self.opener.prepare(
                lane.scope, ticket.offer, ticket.limits, url=purchase.url, needed=ticket.hold.cost
            )
        lane.key = account.key
        ticket.hold.use(account.key)
        ticket.spent_before.setdefault(account.key, account.spent)
        if account.state == "opening":
            account = await self._open(purchase, ticket, account, is_new=is_new)
        lane.is_checked = True
        return account

    async def _open(
        self, purchase: Purchase, ticket: Ticket, account: Account, *, is_new: bool
    ) -> Account:
        """Deposit if that is still to be done, and present the opening to the server.

        With a HEAD, so that the deposit is known before the first content request: a request
        that fails for its own reasons leaves no doubt about the channel.
        """
        account, proof = await self.opener.deposit(account, ticket.offer, is_new=is_new)
        if account.state != "opening":
            raise ChannelUnusableError(f"The channel being opened is {account.state} on chain.")
        needed, ahead = self._aims(purchase, ticket, account)
        voucher = (await self.desk.make(purchase, ticket, needed=needed, ahead=ahead)).voucher
        opening = (
            build_open(proof, voucher)
            if isinstance(proof, Deposit)
            else OpenHash(voucher, account.salt, account.terms.authorized_signer, proof)
        )
        presented = await self.desk.present(purchase, ticket, opening)
        if isinstance(proof, Deposit):
            await self.opener.confirm(account, presented.receipt)
        return await self.purse.update(
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
