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
from channel.client.policy.policy import (
    Offer,
    Policy,
    TokenLimits,
    locked_budget_of,
    require_deposit,
    top_up_size,
)
from channel.client.store.record import Account
from channel.client.store.sqlite import PaymentStore
from channel.errors import AgentError, ChannelUnusableError, TransactionRevertedError
from channel.types import ChannelKey
from channel.wire.funding import Deposit
from channel.wire.payload import TopUpHash

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
        self, account: Account, offer: Offer, limits: TokenLimits, needed: int
    ) -> tuple[Account, TopUpHash | Deposit | None]:
        """Deposit enough that a voucher for `needed` is covered, or sign for it.

        Returns the channel and what to present: a mined transaction, a signed deposit (perhaps an
        earlier one that is too small), or None when the chain already shows a sufficient deposit.

        Raises:
            BudgetExceededError: It would exceed the policy's deposit or cumulative cap.
            CannotFundError: The account can make no deposit that the server accepts.
            ChannelUnusableError: The channel is closing, so it is not topped up (F-62).
        """
        require_deposit(limits, needed, account.origin)
        account = await self._forget_used(await self._opener.check(account), offer)
        if account.state != "open":
            raise ChannelUnusableError(
                f"Expected an open channel to top up, found one that is {account.state}."
            )
        if needed <= account.deposit:
            return account, None
        depositor = self._opener.depositor(account, offer)
        means, left = await asyncio.gather(
            depositor.read_means(),
            self._store.locked_left(account, locked_budget_of(limits)),
        )
        signed = account.top_up
        if signed is not None and account.deposit + signed.amount > limits.deposit_max:
            signed = None if is_over(signed, means) else signed  # from a more generous policy
        if signed is None or depositor.is_dead(signed, means):
            least = needed - account.deposit
            wanted = top_up_size(
                self._policy, limits, offer.request, deposit=account.deposit, needed=needed
            )
            if account.opening is not None:  # an amount that was worth the gas is so again
                wanted = max(wanted, account.opening.amount)
            room = limits.deposit_max - account.deposit
            amount = max(least, min(wanted, room, means.balance, left // 2))
            signed = await depositor.sign_top_up(
                means, amount=amount, salt=self._random_bytes(SALT_BYTES)
            )
            if signed is None:
                return await self._send_top_up(account, amount, limits)
        elif not depositor.is_presentable(signed, means.now):
            require_deposit(limits, account.deposit + signed.amount, account.origin)
            signed = await depositor.sign_again(means, signed)
        old, fresh = account.top_up, signed
        account = await self._store.update(
            account.key,
            # If another process has signed one meanwhile, use that one.
            lambda current: replace(current, top_up=fresh) if current.top_up == old else current,
            locked=locked_budget_of(limits),
        )
        return account, account.top_up

    async def _forget_used(self, account: Account, offer: Offer) -> Account:
        """Drop a signed top-up that the chain shows as used, and update the deposit with it."""
        used = account.top_up
        if used is None:
            return account
        block_number = await self._opener.depositor(account, offer).find_use(used)
        if block_number is None:
            return account
        account, _ = await self._opener.read(account, block_number=block_number)

        def let_go(current: Account) -> Account:
            kept = current.top_up
            if kept is None or kept.authorization.nonce != used.authorization.nonce:
                return current  # another process dropped it, and may have signed the next one
            return replace(current, top_up=None)

        return await self._store.update(account.key, let_go)

    async def _send_top_up(
        self, account: Account, amount: int, limits: TokenLimits
    ) -> tuple[Account, TopUpHash]:
        """Send a top-up. It counts as locked before it is sent, whether or not it is mined."""

        def plan(current: Account) -> Account:
            return replace(current, goal=max(current.deposit, current.goal) + amount)

        def give_up(current: Account) -> Account:
            return replace(current, goal=current.goal - amount)

        chain = self._opener.chain(account.key.chain_id, account.origin)
        await self._store.update(account.key, plan, locked=locked_budget_of(limits))
        try:
            tx_hash = await chain.top_up(
                escrow=account.key.escrow,
                token=account.terms.token,
                channel_id=account.key.channel_id,
                amount=amount,
            )
        except (TransactionRevertedError, AgentError):  # nothing moved
            await self._store.update(account.key, give_up)
            raise
        payload = TopUpHash(
            channel_id=account.key.channel_id, additional_deposit=amount, tx_hash=tx_hash
        )
        return await self.count_deposit(account.key, account.deposit + amount), payload

    async def count_deposit(self, key: ChannelKey, goal: int) -> Account:
        """Raise the deposit to `goal`, as reported by the server or this client's transaction.

        A signed top-up stays in the record until the chain shows that it was used: see `top_up`.
        """
        return await self._store.update(
            key, lambda current: replace(current, deposit=max(current.deposit, goal))
        )
