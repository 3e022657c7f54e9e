"""Vouchers: chooses the amount, makes it durable, then signs it and presents it on demand."""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from channel.client.funding.keys import VoucherKeys
from channel.client.funding.opening import ChannelOpener
from channel.client.funding.top_up import TopUps
from channel.client.payment.channel_pool import ChannelSlot
from channel.client.payment.presenting import Presented, Reply, deposit_type, present
from channel.client.payment.promise import Promise
from channel.client.payment.receipts import ReceiptChecker
from channel.client.payment.request import Purchase, Ticket
from channel.client.policy.funding_method import usable_types
from channel.client.policy.policy import Offer, Policy, budget_of, choose_offer, require_deposit
from channel.client.store.record import Account, choose_amount
from channel.client.store.sqlite import PaymentStore
from channel.errors import DepositPendingError, OfferRefusedError, PaymentRefusedError
from channel.types import SignedVoucher
from channel.verify.typed_data import voucher_digest
from channel.wire.funding import Deposit
from channel.wire.payload import (
    Payload,
    TopUpAuthorization,
    TopUpHash,
    TopUpPermit2,
    build_top_up,
)
from channel.wire.receipt import Receipt

__all__ = ["VoucherIssuer"]

TOP_UPS_MAX = 3


class VoucherIssuer:
    """Makes vouchers for requests. The caller holds the slot's lock."""

    def __init__(
        self,
        *,
        policy: Policy,
        keys: VoucherKeys,
        store: PaymentStore,
        opener: ChannelOpener,
        receipts: ReceiptChecker,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._policy = policy
        self._keys = keys
        self._store = store
        self._opener = opener
        self._top_ups = TopUps(policy=policy, store=store, opener=opener)
        self._receipts = receipts
        self._now = now
        self._sleep = sleep

    async def make(
        self, purchase: Purchase, ticket: Ticket, *, claimed: int = 0, is_needed: bool = True
    ) -> Promise:
        """Return a voucher for what is counted and in flight, or for `claimed` if that is more.

        A stream's voucher includes one further step, if the limits allow it. If the deposit is too
        small for what is needed, a signed deposit comes with the voucher, which cannot be paid
        before that is made (VCH-06).

        The checks come in this order: this client's own count, the policy's caps and the deposit,
        the budget. So a claim beyond the count never causes a top-up (F-94).

        Args:
            purchase: The request that is paid for.
            ticket: The terms of its payment.
            claimed: The amount that the server says it needs.
            is_needed: False for a voucher in advance, for which nothing is deposited.

        Raises:
            OverclaimError: The claim exceeds what was delivered, what is in flight, and one step.
            UnsettledClaimError: It does, but concurrent requests may explain it.
            BudgetExceededError: It exceeds the policy's caps or the budgets.
            CannotFundError: A deposit is needed, and the account can make none.
        """
        limits, tab = ticket.limits, ticket.tab
        account = await self._store.get(ticket.key)
        # No `await` from here to the sum: the counts and what is in flight must belong together.
        tab.require_claim(
            ticket.hold,
            claimed,
            unit_price=ticket.price,
            lost_max=self._policy.lost_units_max * ticket.price,
        )
        account = tab.view(account)
        base = max(account.counted, account.spent)
        needed = min(base + tab.in_flight, tab.ceiling) if is_needed else account.signed
        needed = max(needed, claimed)
        if account.state == "opening":  # a top-up follows once it is open, if necessary
            needed = min(needed, account.deposit)
        if needed > account.signed:
            require_deposit(limits, needed, account.origin)
        rider = None
        if needed > account.deposit:  # never deposit for what may not be signed
            more = needed - account.signed
            budget = budget_of(self._policy, limits)
            await self._store.require_budget(account.scope, more, budget=budget, now=self._now())
            account, rider = await self._top_up(purchase, ticket, account, needed)
        deposit = account.deposit + (0 if rider is None else rider.amount)
        cap = deposit if limits.cumulative_max is None else limits.cumulative_max

        counts = tab.view(account)
        # What passed the check above is not checked again after a top-up.
        allowance = max(tab.allowance, needed - counts.claimable)
        is_stream = ticket.hold.is_streaming or (
            purchase.expectation.is_stream and not purchase.expectation.is_guess
        )
        ahead = max(counts.counted, counts.spent) + tab.allowance if is_stream else needed

        def choose(current: Account, budget_left: int) -> int:
            amount = choose_amount(
                replace(counts, signed=current.signed, deposit=deposit),
                required=needed,
                ahead=min(ahead, cap, current.signed + budget_left),
                allowance=allowance,
                min_delta=ticket.offer.request.min_voucher_delta,
            )
            if amount > current.signed:
                require_deposit(limits, amount, current.origin)
            return amount

        account = await self._store.sign_for(
            account.key,
            choose,
            budget=budget_of(self._policy, limits),
            now=self._now(),
        )
        tab.note_signed(account.signed)
        # More may be signed for a top-up that was not made: present only what is covered now.
        amount = min(account.signed, deposit)
        return Promise(await self.sign(account, amount, slot=ticket.slot), rider, goal=deposit)

    async def sign(
        self, account: Account, amount: int, *, slot: ChannelSlot | None = None
    ) -> SignedVoucher:
        """Sign a durable amount; a slot's last signature is reused."""
        key = account.key
        if slot is not None and slot.last_voucher is not None:
            last = slot.last_voucher
            if (last.channel_id, last.cumulative_amount) == (key.channel_id, amount):
                return last
        signer = self._keys.signer(account.salt)
        voucher = SignedVoucher(
            key.channel_id, amount, await signer.sign(voucher_digest(key, amount))
        )
        if slot is not None:
            slot.last_voucher = voucher
        return voucher

    async def present_promise(self, purchase: Purchase, ticket: Ticket, promise: Promise) -> None:
        """Present a voucher by HEAD, with its deposit, which has been made when this returns.

        Raises:
            AgentError: See `present`.
        """
        presented = await self.present(purchase, ticket, promise.payload)
        await self.land(purchase, ticket, promise, presented.receipt)

    async def land(
        self, purchase: Purchase, ticket: Ticket, promise: Promise, receipt: Receipt | None
    ) -> None:
        """Record a deposit that the server reports as made."""
        if promise.opens:
            account = await self._store.get(ticket.key)
            await self._opener.confirm(account, receipt, url=purchase.url)
        elif promise.deposit is not None:
            await self._top_ups.count_deposit(ticket.key, promise.goal)

    async def present(self, purchase: Purchase, ticket: Ticket, payload: Payload) -> Presented:
        """Present a credential by HEAD to the request's own address, and accept its receipt.

        Raises:
            AgentError: See `management.present` and `ReceiptChecker.adopt`.
        """
        presented = await present(
            purchase.management,
            ticket.offer,
            payload,
            ticket.source,
            renew=lambda reply: self._renew(purchase, ticket.offer, payload, reply),
            sleep=self._sleep,
        )
        if isinstance(payload, TopUpHash | TopUpAuthorization | TopUpPermit2):
            # It proves no voucher key, so its receipt shows public amounts only (O-20).
            ticket.answer(presented.offer)
        else:
            await self._receipts.accept_presented(purchase, ticket, presented)
        return presented

    async def _top_up(
        self, purchase: Purchase, ticket: Ticket, account: Account, needed: int
    ) -> tuple[Account, Deposit | None]:
        """Deposit more before a voucher above the deposit (CLIENT-07).

        Returns the channel, and the signed deposit with which it covers `needed`. An earlier signed
        deposit that is too small is presented alone, and another one follows.
        """
        async with ticket.slot.funding:
            for _ in range(TOP_UPS_MAX):
                account, more = await self._top_ups.top_up(
                    account, ticket.offer, ticket.limits, needed
                )
                if isinstance(more, Deposit) and needed <= account.deposit + more.amount:
                    return account, more
                account = await self._present_top_up(purchase, ticket, account, more)
                if needed <= account.deposit:
                    return account, None
        raise DepositPendingError(origin=account.origin, waited_s=0)

    async def fund(self, purchase: Purchase, ticket: Ticket, needed: int) -> None:
        """Top up the channel so that a voucher for `needed` is covered, in the background.

        Raises:
            AgentError: See `TopUps.top_up` and `management.present`.
        """
        async with ticket.slot.funding:
            account = await self._store.get(ticket.key)
            account, more = await self._top_ups.top_up(account, ticket.offer, ticket.limits, needed)
            await self._present_top_up(purchase, ticket, account, more)

    async def _present_top_up(
        self,
        purchase: Purchase,
        ticket: Ticket,
        account: Account,
        more: TopUpHash | Deposit | None,
    ) -> Account:
        """Present a top-up without a voucher, and return the channel with it."""
        if more is None:
            return account
        if isinstance(more, TopUpHash):
            await self.present(purchase, ticket, more)
            return account
        await self.present(purchase, ticket, build_top_up(more, account.key.channel_id))
        return await self._top_ups.count_deposit(account.key, account.deposit + more.amount)

    def _renew(self, purchase: Purchase, old: Offer, payload: Payload, reply: Reply) -> Offer:
        """Return the fresh offer of a 402 to a HEAD: equal terms, and no higher price (F-95)."""
        chosen = choose_offer(self._policy, reply.challenges, purchase.origin, self._now())
        if chosen is None:
            raise PaymentRefusedError(
                status=reply.status,
                problem_type="without a challenge",
                detail="the server refused a HEAD without naming what it asks",
            )
        new = chosen[0]
        if new.request.unit_price > old.request.unit_price:
            raise OfferRefusedError(
                field="amount",
                asked=new.request.unit_price,
                allowed=f"{old.request.unit_price}, as it was offered before",
                origin=purchase.origin,
            )
        for field in ("chain_id", "escrow", "currency", "recipient", "unit_type"):
            if getattr(new.request, field) != getattr(old.request, field):
                raise OfferRefusedError(
                    field=field,
                    asked="another one",
                    allowed="the one offered before",
                    origin=purchase.origin,
                )
        kind = deposit_type(payload)
        if kind is not None and kind not in usable_types(new.request):
            raise OfferRefusedError(
                field="credentialTypes",
                asked=", ".join(new.request.credential_types),
                allowed=f"{kind}, as it was offered before",
                origin=purchase.origin,
            )
        return new
