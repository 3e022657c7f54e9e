"""More money for a channel that is open: by signature or by transaction, once for one purpose.

A top-up that was signed and is not known to be on chain stays in the account, and whoever needs
more goes on with that one: its nonce is taken once, however often it is shown (F-75).
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
        """Deposit so much more that a voucher for `needed` is covered, or sign for it.

        Returns the channel and what to present: a transaction that added to it, a signed deposit
        that will (perhaps an earlier one, and perhaps less than is needed), or None when the
        chain shows a deposit that is great enough already.

        Raises:
            BudgetExceededError: The policy's deposit or cumulative cap is in the way.
            CannotFundError: The account can make no deposit in a way that is taken.
            ChannelUnusableError: The channel is closing; it is not topped up (F-62).
        """
        require_deposit(limits, needed, account.origin)
        account = await self._forget_used(await self._opener.check(account), offer)
        if account.state != "open":
            raise ChannelUnusableError(f"The channel is {account.state}; it is not topped up.")
        if needed <= account.deposit:
            return account, None
        depositor = self._opener.depositor(account, offer)
        means, left = await asyncio.gather(
            depositor.read_means(),
            self._store.locked_left(account, locked_budget_of(limits)),
        )
        signed = account.top_up
        if signed is not None and account.deposit + signed.amount > limits.deposit_max:
            signed = None if is_over(signed, means) else signed  # of a policy that was greater
        if signed is None or depositor.is_dead(signed, means):
            least = needed - account.deposit
            wanted = top_up_size(
                self._policy, limits, offer.request, deposit=account.deposit, needed=needed
            )
            if account.opening is not None:  # what was worth its gas once is so again
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
            # Another process may have signed one meanwhile: then that is the one.
            lambda current: replace(current, top_up=fresh) if current.top_up == old else current,
            locked=locked_budget_of(limits),
        )
        return account, account.top_up

    async def _forget_used(self, account: Account, offer: Offer) -> Account:
        """Let go of a signed top-up that the chain shows as used, and see the deposit with it."""
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
                return current  # another process has let go of it, and may have signed the next
            return replace(current, top_up=None)

        return await self._store.update(account.key, let_go)

    async def _send_top_up(
        self, account: Account, amount: int, limits: TokenLimits
    ) -> tuple[Account, TopUpHash]:
        """Send a top-up, which counts as locked from before it leaves, mined or not."""

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
        except (TransactionRevertedError, AgentError):  # nothing was moved
            await self._store.update(account.key, give_up)
            raise
        payload = TopUpHash(
            channel_id=account.key.channel_id, additional_deposit=amount, tx_hash=tx_hash
        )
        return await self.count_deposit(account.key, account.deposit + amount), payload

    async def count_deposit(self, key: ChannelKey, goal: int) -> Account:
        """Count what the server, or our own transaction, has brought the deposit to.

        A signed top-up stays noted until the chain shows it used: see `top_up`.
        """
        return await self._store.update(
            key, lambda current: replace(current, deposit=max(current.deposit, goal))
        )
