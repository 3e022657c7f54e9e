"""Vouchers: how much, durable first, signed then, presented where that is asked for."""

import asyncio
from collections.abc import Awaitable, Callable

from channel.client.account import Account, choose_amount, require_counted
from channel.client.lanes import Lane
from channel.client.opening import ChannelOpener
from channel.client.policy import Offer, Policy, choose_offer, require_deposit
from channel.client.presenting import Reply, present
from channel.client.purchase import Purchase, Ticket
from channel.client.receipts import ReceiptBook
from channel.client.signer import Signer
from channel.client.store import Purse
from channel.errors import OfferRefusedError, PaymentRefusedError
from channel.types import ChannelKey, SignedVoucher
from channel.verify.typed_data import voucher_digest
from channel.wire.payload import Payload, TopUpHash

__all__ = ["VoucherDesk"]


class VoucherDesk:
    """Makes vouchers for requests that are being paid. A lane's lock is held meanwhile."""

    def __init__(
        self,
        *,
        policy: Policy,
        signer: Signer,
        purse: Purse,
        opener: ChannelOpener,
        receipts: ReceiptBook,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._policy = policy
        self._signer = signer
        self._purse = purse
        self._opener = opener
        self._receipts = receipts
        self._now = now
        self._sleep = sleep

    async def make(
        self, purchase: Purchase, ticket: Ticket, *, needed: int, ahead: int
    ) -> SignedVoucher:
        """Return a voucher for at least `needed`, for `ahead` if nothing speaks against it.

        The order of refusals: our own count, then the policy's caps and the deposit, then the
        budget. A claim beyond our count therefore never causes a top-up (F-94).

        Raises:
            OverclaimError: More than was delivered, is in flight, and one step.
            BudgetExceededError: More than the policy's caps or the origin's budget.
        """
        limits = ticket.limits
        account = await self._purse.get(ticket.key)
        allowance = ticket.allowance(self._policy)
        require_counted(account, needed, allowance)
        if needed > account.signed:
            require_deposit(limits, needed, account.origin)
        if needed > account.deposit:
            account = await self._top_up(purchase, ticket, account, needed)
        cap = account.deposit if limits.cumulative_max is None else limits.cumulative_max

        def choose(current: Account, budget_left: int) -> int:
            return choose_amount(
                current,
                required=needed,
                ahead=min(ahead, cap, current.signed + budget_left),
                allowance=allowance,
                min_delta=ticket.offer.request.min_voucher_delta,
            )

        account = await self._purse.sign_for(
            account.key,
            choose,
            budget=limits.budget,
            window_s=self._policy.budget_window_s,
            now=self._now(),
        )
        return await self.sign(account.key, account.signed, lane=ticket.lane)

    async def sign(
        self, key: ChannelKey, amount: int, *, lane: Lane | None = None
    ) -> SignedVoucher:
        """Sign an amount that is durable; a lane's last signature is not made twice."""
        if lane is not None and lane.last_voucher is not None:
            last = lane.last_voucher
            if (last.channel_id, last.cumulative_amount) == (key.channel_id, amount):
                return last
        signature = await self._signer.sign(voucher_digest(key, amount))
        voucher = SignedVoucher(key.channel_id, amount, signature)
        if lane is not None:
            lane.last_voucher = voucher
        return voucher

    async def present(self, purchase: Purchase, ticket: Ticket, payload: Payload) -> None:
        """Present a credential by HEAD to the request's own address, and take its receipt.

        Raises:
            AgentError: See `presenting.present` and `ReceiptBook.adopt`.
        """
        presented = await present(
            purchase.courier,
            ticket.offer,
            payload,
            ticket.source,
            renew=lambda reply: self._renew(purchase, ticket.offer, reply),
            sleep=self._sleep,
        )
        await self._receipts.accept_presented(purchase, ticket, presented)

    async def _top_up(
        self, purchase: Purchase, ticket: Ticket, account: Account, needed: int
    ) -> Account:
        """Deposit more, and tell the server, before a voucher above the deposit (CLIENT-07)."""
        account, amount, tx_hash = await self._opener.top_up(
            account, ticket.offer, ticket.limits, needed
        )
        if tx_hash is not None:
            payload = TopUpHash(
                channel_id=account.key.channel_id, additional_deposit=amount, tx_hash=tx_hash
            )
            await self.present(purchase, ticket, payload)
        return account

    def _renew(self, purchase: Purchase, old: Offer, reply: Reply) -> Offer:
        """Return the fresh offer of a 402 to a HEAD: the same terms, no higher price (F-95)."""
        chosen = choose_offer(self._policy, reply.challenges, purchase.origin, self._now())
        if chosen is None:
            raise PaymentRefusedError(
                status=reply.status,
                problem_type="without a challenge",
                detail="a HEAD was refused and nothing is asked",
            )
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
