"""Tops up open channels, by signature or by transaction, once for each purpose.

A signed top-up that is not known to be on chain stays in the record, and the next top-up continues
with it: its nonce is accepted once, however often it is presented (F-75).
"""

import asyncio
import secrets
from collections.abc import Callable

from msgspec.structs import replace

from channel.client.funding.deposit import is_over
from channel.client.funding.opening import SALT_BYTES, ChannelOpener
from channel.client.policy.context import PaymentContext
from channel.client.policy.policy import (
    Offer,
    Policy,
    TokenLimits,
    locked_budget_of,
    require_deposit,
    top_up_size,
)
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.errors import AgentError, ChannelUnusableError, TransactionRevertedError
from channel.methods.evm.payload import (
    TopUpHash,
)
from channel.types import ChannelKey
from channel.wire.funding import (
    Deposit,
)

__all__ = ["TopUps"]


class TopUps:
    """Adds to deposits."""

    def __init__(
        self,
        *,
        policy: Policy,
        store: PaymentStore,
        opener: ChannelOpener,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._policy = policy
        self._store = store
        self._opener = opener
        self._random_bytes = random_bytes

    async def top_up(
        self,
        record: ChannelRecord,
        offer: Offer,
        limits: TokenLimits,
        needed: int,
        context: PaymentContext,
    ) -> tuple[ChannelRecord, TopUpHash | Deposit | None]:
        """Deposit enough that a voucher for `needed` is covered, or sign for it.

        Returns the channel and what to present: a mined transaction, a signed deposit (perhaps an
        earlier one that is too small), or None when the chain already shows a sufficient deposit.

        Raises:
            BudgetExceededError: It would exceed the policy's deposit or cumulative cap.
            CannotFundError: The account can make no deposit that the server accepts.
            ChannelUnusableError: The channel is closing, so it is not topped up (F-62).
        """
        require_deposit(limits, needed, record.origin)
        record = await self._forget_used(await self._opener.check(record), offer)
        if record.state != "open":
            raise ChannelUnusableError(
                f"Expected an open channel to top up, found one that is {record.state}."
            )
        if needed <= record.deposit:
            return record, None
        depositor = self._opener.depositor(record, offer)
        means, left = await asyncio.gather(
            depositor.read_means(),
            self._store.locked_left(record, locked_budget_of(limits)),
        )
        signed = record.top_up
        if signed is not None and record.deposit + signed.amount > limits.deposit_max:
            signed = None if is_over(signed, means) else signed  # from a more generous policy
        if signed is None or depositor.is_dead(signed, means):
            least = needed - record.deposit
            wanted = top_up_size(
                self._policy, limits, offer.request, deposit=record.deposit, needed=needed
            )
            if record.opening is not None:  # an amount that was worth the gas is so again
                wanted = max(wanted, record.opening.amount)
            room = limits.deposit_max - record.deposit
            amount = max(least, min(wanted, room, means.balance, left // 2))
            signed = await depositor.sign_top_up(
                means, amount=amount, salt=self._random_bytes(SALT_BYTES)
            )
            if signed is None:
                return await self._send_top_up(record, amount, limits, context)
        elif not depositor.is_presentable(signed, means.now):
            require_deposit(limits, record.deposit + signed.amount, record.origin)
            await self._store.permit(record, context)
            signed = await depositor.sign_again(means, signed)
        old, fresh = record.top_up, signed
        record = await self._store.update(
            record.key,
            # If another process has signed one meanwhile, use that one.
            lambda current: replace(current, top_up=fresh) if current.top_up == old else current,
            locked=locked_budget_of(limits),
            context=context,
        )
        return record, record.top_up

    async def _forget_used(self, record: ChannelRecord, offer: Offer) -> ChannelRecord:
        """Drop a signed top-up that the chain shows as used, and update the deposit with it."""
        used = record.top_up
        if used is None:
            return record
        block_number = await self._opener.depositor(record, offer).find_use(used)
        if block_number is None:
            return record
        record, _ = await self._opener.read(record, block_number=block_number)

        def let_go(current: ChannelRecord) -> ChannelRecord:
            kept = current.top_up
            if kept is None or kept.authorization.nonce != used.authorization.nonce:
                return current  # another process dropped it, and may have signed the next one
            return replace(current, top_up=None)

        return await self._store.update(record.key, let_go)

    async def _send_top_up(
        self, record: ChannelRecord, amount: int, limits: TokenLimits, context: PaymentContext
    ) -> tuple[ChannelRecord, TopUpHash]:
        """Send a top-up. It counts as locked before it is sent, whether or not it is mined."""

        def plan(current: ChannelRecord) -> ChannelRecord:
            return replace(current, goal=max(current.deposit, current.goal) + amount)

        def give_up(current: ChannelRecord) -> ChannelRecord:
            return replace(current, goal=current.goal - amount)

        chain = self._opener.chain(record.key.chain_id, record.origin)
        locked = locked_budget_of(limits)
        await self._store.update(record.key, plan, locked=locked, context=context)
        try:
            tx_hash = await chain.top_up(
                escrow=record.key.escrow,
                token=record.terms.token,
                channel_id=record.key.channel_id,
                amount=amount,
            )
        except (TransactionRevertedError, AgentError):  # nothing moved
            await self._store.update(record.key, give_up)
            raise
        payload = TopUpHash(
            channel_id=record.key.channel_id, additional_deposit=amount, tx_hash=tx_hash
        )
        return await self.count_deposit(record.key, record.deposit + amount), payload

    async def count_deposit(self, key: ChannelKey, goal: int) -> ChannelRecord:
        """Raise the deposit to `goal`, as reported by the server or this client's transaction.

        A signed top-up stays in the record until the chain shows that it was used: see `top_up`.
        """
        return await self._store.update(
            key, lambda current: replace(current, deposit=max(current.deposit, goal))
        )
