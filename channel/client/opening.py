"""Channels on chain: find one again, open one, top one up (CLIENT-04, CLIENT-05, F-97).

Salt and terms are stored before a deposit is broadcast. A crash anywhere after that leaves an
account in state `opening`, and whoever comes next reads the chain for it: the same salt can
never make two deposits, because the escrow refuses a second channel of the same id.
"""

import secrets
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from channel.chain import PayerChain
from channel.client.account import Account, Scope, adopt_fact, count_lost
from channel.client.policy import (
    Offer,
    Policy,
    TokenLimits,
    deposit_size,
    require_deposit,
    top_up_size,
)
from channel.client.store import Purse
from channel.errors import ChannelUnusableError, OfferRefusedError
from channel.types import ChannelFact, ChannelKey, TxHash
from channel.verify.typed_data import derive_channel_id

__all__ = ["ChannelOpener"]

SALT_BYTES = 32


class ChannelOpener:
    """Turns what the chain shows into accounts, and moves deposits there."""

    def __init__(
        self,
        *,
        policy: Policy,
        purse: Purse,
        chains: Mapping[int, PayerChain],
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._policy = policy
        self._purse = purse
        self._chains = chains
        self._now = now
        self._random_bytes = random_bytes

    def chain(self, chain_id: int, origin: str) -> PayerChain:
        """Return the chain of this id, or raise `OfferRefusedError` if there is none here."""
        chain = self._chains.get(chain_id)
        if chain is None:
            raise OfferRefusedError(
                field="chainId",
                asked=chain_id,
                allowed=", ".join(map(str, self._chains)) or "none",
                origin=origin,
            )
        return chain

    async def find(self, scope: Scope, taken: set[ChannelKey]) -> Account | None:
        """Return a channel of this scope that can be used, or None.

        Raises:
            ChannelUnusableError: The server was caught lying about one, and that one is not
                closed yet: it gets no other.
        """
        for account in await self._purse.live_accounts(scope.origin):
            if account.state == "stopped":
                raise ChannelUnusableError(
                    f"Channel 0x{account.key.channel_id.hex()} at {scope.origin} was stopped "
                    "because the server contradicted itself; close it or request its close."
                )
            if (
                account.scope == scope
                and account.key not in taken
                and account.state in ("opening", "open")
            ):
                return account
        return None

    async def prepare(
        self, scope: Scope, offer: Offer, limits: TokenLimits, *, url: str, needed: int
    ) -> Account:
        """Store a new channel in state `opening`; nothing has left this process yet.

        Raises:
            AgentError: The escrow is not trusted, the first cost is above the deposit allowed,
                or the origin has too many channels.
        """
        require_deposit(limits, needed, scope.origin)
        chain = self.chain(scope.chain_id, scope.origin)
        await chain.require_escrow(scope.escrow, scope.terms.token)
        salt = self._random_bytes(SALT_BYTES)
        channel_id = derive_channel_id(
            scope.terms, salt=salt, escrow=scope.escrow, chain_id=scope.chain_id
        )
        account = Account(
            key=ChannelKey(scope.chain_id, scope.escrow, channel_id),
            origin=scope.origin,
            url=url,
            terms=scope.terms,
            salt=salt,
            state="opening",
            deposit=deposit_size(self._policy, limits, offer.request, needed),
            opened_at=int(self._now()),
        )
        await self._purse.add(account, channels_max=self._policy.channels_per_origin_max)
        return account

    async def deposit(self, account: Account) -> tuple[Account, TxHash]:
        """Bring an account in state `opening` on chain, or find it there, and return its opening.

        Raises:
            ChannelUnusableError: The chain shows something else than what was meant.
        """
        chain = self.chain(account.key.chain_id, account.origin)
        escrow = account.key.escrow
        fact = await chain.read_channel(escrow, account.key.channel_id)
        open_tx = account.open_tx
        if fact is None and open_tx is None:
            open_tx = await chain.open_channel(
                escrow=escrow,
                payee=account.terms.payee,
                token=account.terms.token,
                deposit=account.deposit,
                salt=account.salt,
                authorized_signer=account.terms.authorized_signer,
            )
        elif open_tx is None:
            open_tx = await chain.find_opening(escrow=escrow, channel_id=account.key.channel_id)
        if open_tx is None:
            raise ChannelUnusableError("The channel is on chain, but not its opening.")
        found = open_tx
        account = await self._purse.update(
            account.key, lambda current: replace(current, open_tx=found)
        )
        return await self.check(account), open_tx

    async def check(self, account: Account) -> Account:
        """Compare a channel with the chain and store what that shows (CLIENT-05).

        What was signed and never answered, because a process ended, is granted as lost.
        """
        chain = self.chain(account.key.chain_id, account.origin)
        fact = await chain.read_channel(account.key.escrow, account.key.channel_id)
        if fact is None:
            return account  # a node that lags behind; the server says what it sees
        _require_same(account, fact)

        def change(current: Account) -> Account:
            return adopt_fact(current, fact)

        return await self._purse.update(account.key, change)

    async def grant_lost(self, account: Account, lost_max: int) -> Account:
        """Grant what was in flight when the last process ended, within the policy's bound."""
        return await self._purse.update(
            account.key,
            lambda current: count_lost(
                current, value=current.signed - current.counted, lost_max=lost_max
            ),
        )

    async def top_up(
        self, account: Account, offer: Offer, limits: TokenLimits, needed: int
    ) -> tuple[Account, int, TxHash | None]:
        """Deposit so much more that a voucher for `needed` is covered.

        Returns the channel, what was added and by which transaction; nothing and None when the
        chain shows a deposit that is great enough already.

        Raises:
            BudgetExceededError: The policy's deposit or cumulative cap is in the way.
            ChannelUnusableError: The channel is closing; it is not topped up (F-62).
        """
        require_deposit(limits, needed, account.origin)
        account = await self.check(account)
        if account.state != "open":
            raise ChannelUnusableError(f"The channel is {account.state}; it is not topped up.")
        if needed <= account.deposit:
            return account, 0, None
        chain = self.chain(account.key.chain_id, account.origin)
        amount = top_up_size(
            self._policy, limits, offer.request, deposit=account.deposit, needed=needed
        )
        tx_hash = await chain.top_up(
            escrow=account.key.escrow,
            token=account.terms.token,
            channel_id=account.key.channel_id,
            amount=amount,
        )
        goal = account.deposit + amount
        account = await self._purse.update(
            account.key, lambda current: replace(current, deposit=max(current.deposit, goal))
        )
        return account, amount, tx_hash


def _require_same(account: Account, fact: ChannelFact) -> None:
    if fact.key != account.key or fact.terms != account.terms:
        raise ChannelUnusableError("The chain shows another payer, payee, token or signer.")
