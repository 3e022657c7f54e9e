"""Vouchers: chooses the amount, makes it durable, then signs it and presents it on demand."""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from channel.client.funding.keys import VoucherKeys
from channel.client.funding.opening import ChannelOpener
from channel.client.funding.top_up import TopUps
from channel.client.payment.channel_pool import ChannelSlot
from channel.client.payment.management import Presented, Reply, deposit_type, present
from channel.client.payment.receipts import ReceiptChecker
from channel.client.payment.request import PaidRequest, Payment
from channel.client.payment.voucher_with_deposit import VoucherWithDeposit
from channel.client.policy.funding_method import usable_types
from channel.client.policy.policy import Offer, Policy, budget_of, choose_offer, require_deposit
from channel.client.store.record import ChannelRecord, choose_amount
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
        self,
        paid_request: PaidRequest,
        payment: Payment,
        *,
        claimed: int = 0,
        is_needed: bool = True,
    ) -> VoucherWithDeposit:
        """Return a voucher for what is counted and in flight, or for `claimed` if that is more.

        A stream's voucher includes one further step, if the limits allow it. If the deposit is too
        small for what is needed, a signed deposit comes with the voucher, which cannot be paid
        before that is made (VCH-06).

        The checks come in this order: this client's own count, the policy's caps and the deposit,
        the budget. So a claim beyond the count never causes a top-up (F-94).

        Args:
            paid_request: The request that is paid for.
            payment: The terms of its payment.
            claimed: The amount that the server says it needs.
            is_needed: False for a voucher in advance, for which nothing is deposited.

        Raises:
            OverclaimError: The claim exceeds what was delivered, what is in flight, and one step.
            UnsettledClaimError: It does, but concurrent requests may explain it.
            BudgetExceededError: It exceeds the policy's caps or the budgets.
            CannotFundError: A deposit is needed, and the account can make none.
        """
        limits, tab = payment.limits, payment.tab
        record = await self._store.get(payment.key)
        # No `await` from here to the sum: the counts and what is in flight must belong together.
        tab.require_claim(
            payment.hold,
            claimed,
            unit_price=payment.price,
            lost_max=self._policy.lost_units_max * payment.price,
        )
        record = tab.view(record)
        base = max(record.counted, record.spent)
        needed = min(base + tab.in_flight, tab.ceiling) if is_needed else record.signed
        needed = max(needed, claimed)
        if record.state == "opening":  # a top-up follows once it is open, if necessary
            needed = min(needed, record.deposit)
        if needed > record.signed:
            require_deposit(limits, needed, record.origin)
        attached = None
        if needed > record.deposit:  # never deposit for what may not be signed
            more = needed - record.signed
            budget = budget_of(self._policy, limits)
            await self._store.require_budget(record.scope, more, budget=budget, now=self._now())
            record, attached = await self._top_up(paid_request, payment, record, needed)
        deposit = record.deposit + (0 if attached is None else attached.amount)
        cap = deposit if limits.cumulative_max is None else limits.cumulative_max

        counts = tab.view(record)
        # What passed the check above is not checked again after a top-up.
        allowance = max(tab.allowance, needed - counts.claimable)
        is_stream = payment.hold.is_streaming or (
            paid_request.expectation.is_stream and not paid_request.expectation.is_guess
        )
        ahead = max(counts.counted, counts.spent) + tab.allowance if is_stream else needed

        def choose(current: ChannelRecord, budget_left: int) -> int:
            amount = choose_amount(
                replace(counts, signed=current.signed, deposit=deposit),
                required=needed,
                ahead=min(ahead, cap, current.signed + budget_left),
                allowance=allowance,
                min_delta=payment.offer.request.min_voucher_delta,
            )
            if amount > current.signed:
                require_deposit(limits, amount, current.origin)
            return amount

        record = await self._store.sign_for(
            record.key,
            choose,
            budget=budget_of(self._policy, limits),
            now=self._now(),
        )
        tab.note_signed(record.signed)
        # More may be signed for a top-up that was not made: present only what is covered now.
        amount = min(record.signed, deposit)
        return VoucherWithDeposit(
            await self.sign(record, amount, slot=payment.slot), attached, goal=deposit
        )

    async def sign(
        self, record: ChannelRecord, amount: int, *, slot: ChannelSlot | None = None
    ) -> SignedVoucher:
        """Sign a durable amount; a slot's last signature is reused."""
        key = record.key
        if slot is not None and slot.last_voucher is not None:
            last = slot.last_voucher
            if (last.channel_id, last.cumulative_amount) == (key.channel_id, amount):
                return last
        signer = self._keys.signer(record.salt)
        voucher = SignedVoucher(
            key.channel_id, amount, await signer.sign(voucher_digest(key, amount))
        )
        if slot is not None:
            slot.last_voucher = voucher
        return voucher

    async def present_voucher(
        self, paid_request: PaidRequest, payment: Payment, prepared: VoucherWithDeposit
    ) -> None:
        """Present a voucher by HEAD, with its deposit, which has been made when this returns.

        Raises:
            AgentError: See `present`.
        """
        presented = await self.present(paid_request, payment, prepared.payload)
        await self.confirm_deposit(paid_request, payment, prepared, presented.receipt)

    async def confirm_deposit(
        self,
        paid_request: PaidRequest,
        payment: Payment,
        prepared: VoucherWithDeposit,
        receipt: Receipt | None,
    ) -> None:
        """Record a deposit that the server reports as made."""
        if prepared.opens:
            record = await self._store.get(payment.key)
            await self._opener.confirm(record, receipt, url=paid_request.url)
        elif prepared.deposit is not None:
            await self._top_ups.count_deposit(payment.key, prepared.goal)

    async def present(
        self, paid_request: PaidRequest, payment: Payment, payload: Payload
    ) -> Presented:
        """Present a credential by HEAD to the request's own address, and accept its receipt.

        Raises:
            AgentError: See `management.present` and `ReceiptChecker.adopt`.
        """
        presented = await present(
            paid_request.management,
            payment.offer,
            payload,
            payment.source,
            renew=lambda reply: self._renew(paid_request, payment.offer, payload, reply),
            sleep=self._sleep,
        )
        if isinstance(payload, TopUpHash | TopUpAuthorization | TopUpPermit2):
            # It proves no voucher key, so its receipt shows public amounts only (O-20).
            payment.answer(presented.offer)
        else:
            await self._receipts.accept_presented(paid_request, payment, presented)
        return presented

    async def _top_up(
        self, paid_request: PaidRequest, payment: Payment, record: ChannelRecord, needed: int
    ) -> tuple[ChannelRecord, Deposit | None]:
        """Deposit more before a voucher above the deposit (CLIENT-07).

        Returns the channel, and the signed deposit with which it covers `needed`. An earlier signed
        deposit that is too small is presented alone, and another one follows.
        """
        async with payment.slot.funding:
            for _ in range(TOP_UPS_MAX):
                record, more = await self._top_ups.top_up(
                    record, payment.offer, payment.limits, needed
                )
                if isinstance(more, Deposit) and needed <= record.deposit + more.amount:
                    return record, more
                record = await self._present_top_up(paid_request, payment, record, more)
                if needed <= record.deposit:
                    return record, None
        raise DepositPendingError(origin=record.origin, waited_s=0)

    async def fund(self, paid_request: PaidRequest, payment: Payment, needed: int) -> None:
        """Top up the channel so that a voucher for `needed` is covered, in the background.

        Raises:
            AgentError: See `TopUps.top_up` and `management.present`.
        """
        async with payment.slot.funding:
            record = await self._store.get(payment.key)
            record, more = await self._top_ups.top_up(record, payment.offer, payment.limits, needed)
            await self._present_top_up(paid_request, payment, record, more)

    async def _present_top_up(
        self,
        paid_request: PaidRequest,
        payment: Payment,
        record: ChannelRecord,
        more: TopUpHash | Deposit | None,
    ) -> ChannelRecord:
        """Present a top-up without a voucher, and return the channel with it."""
        if more is None:
            return record
        if isinstance(more, TopUpHash):
            await self.present(paid_request, payment, more)
            return record
        await self.present(paid_request, payment, build_top_up(more, record.key.channel_id))
        return await self._top_ups.count_deposit(record.key, record.deposit + more.amount)

    def _renew(
        self, paid_request: PaidRequest, old: Offer, payload: Payload, reply: Reply
    ) -> Offer:
        """Return the fresh offer of a 402 to a HEAD: equal terms, and no higher price (F-95)."""
        chosen = choose_offer(self._policy, reply.challenges, paid_request.origin, self._now())
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
                origin=paid_request.origin,
            )
        for field in ("chain_id", "escrow", "currency", "recipient", "unit_type"):
            if getattr(new.request, field) != getattr(old.request, field):
                raise OfferRefusedError(
                    field=field,
                    asked="another one",
                    allowed="the one offered before",
                    origin=paid_request.origin,
                )
        kind = deposit_type(payload)
        if kind is not None and kind not in usable_types(new.request):
            raise OfferRefusedError(
                field="credentialTypes",
                asked=", ".join(new.request.credential_types),
                allowed=f"{kind}, as it was offered before",
                origin=paid_request.origin,
            )
        return new
