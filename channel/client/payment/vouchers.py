"""Vouchers: chooses the amount, makes it durable, then signs it and presents it on demand."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from msgspec.structs import replace

from channel.client.funding.keys import VoucherKeys
from channel.client.funding.opening import ChannelOpener
from channel.client.funding.top_up import TopUps
from channel.client.payment.channel_pool import ChannelSlot
from channel.client.payment.management import Presented, Reply, deposit_type, present
from channel.client.payment.receipts import ReceiptChecker
from channel.client.payment.request import PaidRequest
from channel.client.policy.choice import choose_offer
from channel.client.policy.funding_method import usable_types
from channel.client.policy.policy import (
    Offer,
    Policy,
    amounts_of,
    budget_of,
    require_deposit,
)
from channel.client.policy.prices import main_kind, require_no_rise
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import DepositPendingError, OfferRefusedError, PaymentRefusedError
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenHash,
    OpenPermit2,
    TopUpAuthorization,
    TopUpHash,
    TopUpPermit2,
    build_open,
    build_top_up,
)
from channel.methods.registry import DEFAULT
from channel.types import SignedVoucher, TxHash
from channel.wire.funding import (
    Deposit,
)
from channel.wire.payload import (
    Payload,
    VoucherPayload,
)
from channel.wire.receipt import Receipt

__all__ = ["VoucherIssuer", "VoucherWithDeposit"]

TOP_UPS_MAX = 3


class VoucherWithDeposit(msgspec.Struct, frozen=True):
    """The content of a credential: a voucher, and the deposit that must be made before (VCH-06)."""

    voucher: SignedVoucher
    payload: OpenAuthorization | OpenPermit2 | VoucherPayload
    """The credential's payload, including the deposit."""
    deposit: Deposit | None
    """An opening or a top-up that is not known to have been made."""
    goal: int
    """The channel's deposit once that is made, in base units."""


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
        request: PaidRequest,
        *,
        claimed: int = 0,
        is_needed: bool = True,
        opening: Deposit | None = None,
    ) -> VoucherWithDeposit:
        """Return a voucher for what is counted and in flight, or for `claimed` if that is more.

        If the deposit is too small for what is needed, a signed deposit comes with the voucher,
        which cannot be paid before that is made (VCH-06).

        The checks come in this order: this client's own count, the policy's caps and the deposit,
        the budget. So a claim beyond the count never causes a top-up (F-94).

        Args:
            request: The request that is paid for.
            claimed: The amount that the server says it needs.
            is_needed: False for a voucher in advance, for which nothing is deposited.
            opening: The signed deposit that opens the channel, which comes with the voucher.

        Raises:
            OverclaimError: The claim exceeds what was delivered, what is in flight, and one step.
            UnsettledClaimError: It does, but concurrent requests may explain it.
            BudgetExceededError: It exceeds the policy's caps or the budgets.
            CannotFundError: A deposit is needed, and the account can make none.
        """
        limits, tab = request.limits, request.tab
        budget = budget_of(self._policy, limits)
        stored = await self._store.get(tab.key)
        record, needed = tab.require(request, stored, claimed, is_needed=is_needed)
        if record.state == "opening":  # a top-up follows once it is open, if necessary
            needed = min(needed, record.deposit)
        if needed > record.signed:
            require_deposit(limits, needed, record.origin)
        attached = None
        if needed > record.deposit:  # never deposit for what may not be signed
            more = needed - record.signed
            await self._store.require_budget(record.scope, more, budget=budget, now=self._now())
            record, attached = await self._top_up(request, record, needed)
        deposit = record.deposit + (0 if attached is None else attached.amount)
        record = await tab.sign_for(
            request,
            record,
            needed,
            deposit=deposit,
            store=self._store,
            budget=budget,
            now=self._now(),
        )
        # More may be signed for a top-up that was not made: present only what is covered now.
        amount = min(record.signed, deposit)
        voucher = await self.sign(record, amount, slot=request.slot)
        if opening is not None:
            return VoucherWithDeposit(voucher, build_open(opening, voucher), opening, deposit)
        return VoucherWithDeposit(voucher, VoucherPayload(voucher, attached), attached, deposit)

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
        digest = DEFAULT.voucher_digest(key, amount)
        voucher = SignedVoucher(key.channel_id, amount, await signer.sign(digest))
        if slot is not None:
            slot.last_voucher = voucher
        return voucher

    async def present_opening(
        self, request: PaidRequest, record: ChannelRecord, open_tx: TxHash
    ) -> ChannelRecord:
        """Present an opening with the first voucher, by HEAD, and return the open channel.

        Before the first content request: one that fails for its own reasons then leaves no doubt
        about the channel.
        """
        voucher = (await self.make(request)).voucher
        opening = OpenHash(voucher, record.salt, record.terms.authorized_signer, open_tx)
        await self.present(request, opening)
        return await self._store.update(record.key, partial(replace, state="open", url=request.url))

    async def present_voucher(self, request: PaidRequest, prepared: VoucherWithDeposit) -> None:
        """Present a voucher by HEAD, with its deposit, which has been made when this returns.

        Raises:
            AgentError: See `present`.
        """
        presented = await self.present(request, prepared.payload)
        await self.confirm_deposit(request, prepared, presented.receipt)

    async def confirm_deposit(
        self, request: PaidRequest, prepared: VoucherWithDeposit, receipt: Receipt | None
    ) -> None:
        """Record a deposit that the server reports as made."""
        if prepared.deposit is None:
            return
        key = request.tab.key
        if prepared.deposit.action == "open":
            await self._opener.confirm(await self._store.get(key), receipt, url=request.url)
        else:
            await self._top_ups.count_deposit(key, prepared.goal)

    async def present(self, request: PaidRequest, payload: Payload) -> Presented:
        """Present a credential by HEAD to the request's own address, and accept its receipt.

        Raises:
            AgentError: See `management.present` and `ReceiptChecker.adopt`.
        """
        presented = await present(
            request.management,
            request.offer,
            payload,
            request.source,
            renew=lambda reply: self._renew(request, payload, reply),
            sleep=self._sleep,
        )
        offer = presented.offer
        if offer is not request.offer:
            request.offer = offer
            request.amounts = amounts_of(self._policy, offer.request, request.usage)
            request.challenge_ids.add(offer.challenge.id)
        # The receipt of a top-up proves no voucher key, so it shows public amounts only (O-20).
        if not isinstance(payload, TopUpHash | TopUpAuthorization | TopUpPermit2):
            await self._receipts.accept_presented(request, presented)
        return presented

    async def _top_up(
        self, request: PaidRequest, record: ChannelRecord, needed: int
    ) -> tuple[ChannelRecord, Deposit | None]:
        """Deposit more before a voucher above the deposit (CLIENT-07).

        Returns the channel, and the signed deposit with which it covers `needed`. An earlier signed
        deposit that is too small is presented alone, and another one follows.
        """
        async with request.slot.funding:
            for _ in range(TOP_UPS_MAX):
                record, more = await self._top_ups.top_up(
                    record, request.offer, request.limits, needed, request.context()
                )
                if isinstance(more, Deposit) and needed <= record.deposit + more.amount:
                    return record, more
                record = await self._present_top_up(request, record, more)
                if needed <= record.deposit:
                    return record, None
        raise DepositPendingError(origin=record.origin, waited_s=0)

    async def fund(self, request: PaidRequest, needed: int) -> None:
        """Top up the channel so that a voucher for `needed` is covered, in the background.

        Raises:
            AgentError: See `TopUps.top_up` and `management.present`.
        """
        async with request.slot.funding:
            record = await self._store.get(request.tab.key)
            record, more = await self._top_ups.top_up(
                record, request.offer, request.limits, needed, request.context()
            )
            await self._present_top_up(request, record, more)

    async def _present_top_up(
        self, request: PaidRequest, record: ChannelRecord, more: TopUpHash | Deposit | None
    ) -> ChannelRecord:
        """Present a top-up without a voucher, and return the channel with it."""
        if more is None:
            return record
        if isinstance(more, TopUpHash):
            await self.present(request, more)
            return record
        await self.present(request, build_top_up(more, record.key.channel_id))
        return await self._top_ups.count_deposit(record.key, record.deposit + more.amount)

    def _renew(self, request: PaidRequest, payload: Payload, reply: Reply) -> Offer:
        """Return the fresh offer of a 402 to a HEAD: equal terms, and no higher price (F-95)."""
        old = request.offer
        chosen = choose_offer(self._policy, reply.challenges, request.origin, self._now())
        if chosen is None:
            raise PaymentRefusedError(
                status=reply.status,
                problem_type="without a challenge",
                detail="the server refused a HEAD without naming what it asks",
            )
        new, limits = chosen
        before, after = old.request, new.request
        require_no_rise(before, after, unit=limits.unit, origin=request.origin)
        for field, is_same in (
            *(
                (name, getattr(after, name) == getattr(before, name))
                for name in ("chain_id", "escrow", "currency", "recipient")
            ),
            ("unit_type", main_kind(after) == main_kind(before)),
        ):
            if not is_same:
                raise OfferRefusedError(
                    field=field,
                    asked="another one",
                    allowed="the one offered before",
                    origin=request.origin,
                )
        kind = deposit_type(payload)
        if kind is not None and kind not in usable_types(new.request):
            raise OfferRefusedError(
                field="credentialTypes",
                asked=", ".join(new.request.credential_types),
                allowed=f"{kind}, as it was offered before",
                origin=request.origin,
            )
        return new
