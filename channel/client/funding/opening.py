"""Finds channels on chain again, or opens new ones (CLIENT-04, CLIENT-05, F-97).

Salt, terms and signed deposits are stored before anything leaves this process. A crash afterwards
leaves a record in state `opening`, or one with a `top_up`, and the next process continues with it:

    the same salt      the escrow refuses a second channel with the same id
    the same nonce     the token, or Permit2, accepts one authorization with it

So a deposit is made once, however often it is presented, signed again or sent (F-75).
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from msgspec.structs import replace

from channel.chain import PayerChain
from channel.client.funding.deposit import Depositor, is_over
from channel.client.funding.keys import VoucherKeys
from channel.client.policy.context import PaymentContext
from channel.client.policy.funding_method import permit2_of, usable_types
from channel.client.policy.policy import (
    Amounts,
    Offer,
    Policy,
    TokenLimits,
    budget_of,
    deposit_size,
    locked_budget_of,
    require_chain,
    require_deposit,
)
from channel.client.store.record import ChannelRecord, Scope, adopt_fact, adopt_opening
from channel.client.store.sqlite import PaymentStore
from channel.errors import ChannelUnusableError, PolicyRefusedError, TransactionRevertedError
from channel.types import ZERO_ADDRESS, ChannelFact, ChannelKey, ChannelTerms, TxHash
from channel.verify.typed_data import CANONICAL_PERMIT2, derive_channel_id
from channel.wire.receipt import Receipt

__all__ = ["ChannelOpener", "Source"]

SALT_BYTES = 32
PARTLY_APPROVED = "approval_denied"
"""The code of a refusal whose `allowed`, above 0, was approved instead of what was asked."""

Source = Literal["slot", "store", "new"]
"""Where a request's channel comes from."""


class ChannelOpener:
    """Updates channel records from the chain, and makes deposits there."""

    def __init__(
        self,
        *,
        policy: Policy,
        store: PaymentStore,
        keys: VoucherKeys,
        chains: Mapping[int, PayerChain],
        now: Callable[[], float],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._policy = policy
        self._store = store
        self._keys = keys
        self._chains = chains
        self._now = now
        self._random_bytes = random_bytes

    def chain(self, chain_id: int, origin: str) -> PayerChain:
        """Return the chain with this id; see `require_chain`."""
        return require_chain(self._chains, chain_id, origin)

    async def obtain(
        self,
        record: ChannelRecord | None,
        scope: Scope,
        offer: Offer,
        limits: TokenLimits,
        *,
        taken: set[ChannelKey],
        is_checked: bool,
        amounts: Amounts,
        context: PaymentContext,
    ) -> tuple[ChannelRecord, Source]:
        """Return a channel in state `open` or `opening`: this one, a stored one or a new one.

        Args:
            record: The channel that the slot uses, in one of these states; None if there is none.
            scope: The payments that it is for.
            offer: The offer that is answered.
            limits: The limits that allow the offer.
            taken: The channels that other slots use.
            is_checked: Whether `record` was compared with the chain before (CLIENT-05).
            amounts: What the request costs, which a new channel must cover.
            context: The request; its URL is stored with a new channel.

        Raises:
            AgentError: See `find` and `prepare`.
        """
        source: Source = "slot"
        if record is None:
            record, source = await self.find(scope, taken), "store"
        if record is not None and record.state == "open" and not is_checked:
            record = await self.check(record)
            if record.state != "open":
                record = None
        if record is not None and record.state == "opening":
            has_ended = await self.has_ended(record, offer)
            record = None if has_ended else record
        if record is not None:
            return record, source
        record = await self.prepare(scope, offer, limits, amounts=amounts, context=context)
        return record, "new"

    async def find(self, scope: Scope, taken: set[ChannelKey]) -> ChannelRecord | None:
        """Return a usable channel of this scope, or None.

        A channel is skipped if another key than the current one signed its vouchers (F-22), or if
        another client uses it (F-41).

        Raises:
            ChannelUnusableError: The server contradicted itself about a channel that is not closed
                yet, so it gets no other one.
        """
        for record in await self._store.live_records(scope.origin):
            if record.state == "stopped":
                raise ChannelUnusableError(
                    f"Channel 0x{record.key.channel_id.hex()} at {scope.origin} was stopped "
                    "because the server contradicted itself; close it or request its close."
                )
            if (
                record.scope == scope
                and record.key not in taken
                and record.state in ("opening", "open")
                and self._keys.signer(record.salt).address == record.terms.signer
                and await self._store.claim(record.key)
            ):
                return record
        return None

    async def prepare(
        self,
        scope: Scope,
        offer: Offer,
        limits: TokenLimits,
        *,
        amounts: Amounts,
        context: PaymentContext,
    ) -> ChannelRecord:
        """Store a new channel in state `opening`, before anything leaves this process.

        A deposit by signature is signed and stored with it. An account with less than the suitable
        deposit deposits what it has, if that covers the first cost. So does one whose wallet's
        owner has approved a smaller deposit than it asked for.

        Raises:
            AgentError: The escrow is not trusted, the first cost exceeds the allowed deposit or
                budget, the account can make no deposit, or the origin has too many channels.
        """
        needed, ahead = amounts.cost, amounts.ahead - amounts.cost
        require_deposit(limits, needed, scope.origin)
        budget = budget_of(self._policy, limits)
        await self._store.require_budget(scope, needed, budget=budget, now=self._now())
        chain = self.chain(scope.chain_id, scope.origin)
        _, means = await asyncio.gather(
            chain.require_escrow(scope.escrow, scope.token),
            chain.read_means(scope.token, permit2_of(offer.request)),
        )
        locked = locked_budget_of(limits)
        wanted = deposit_size(self._policy, limits, offer.request, needed, ahead=ahead)
        salt = self._random_bytes(SALT_BYTES)
        signer = self._keys.signer(salt).address
        terms = ChannelTerms(
            payer=scope.payer,
            payee=scope.payee,
            token=scope.token,
            authorized_signer=ZERO_ADDRESS if signer == scope.payer else signer,
        )
        channel_id = derive_channel_id(
            terms, salt=salt, escrow=scope.escrow, chain_id=scope.chain_id
        )
        record = ChannelRecord(
            key=ChannelKey(scope.chain_id, scope.escrow, channel_id),
            origin=scope.origin,
            url=context.url,
            terms=terms,
            salt=salt,
            state="opening",
            deposit=max(needed, min(wanted, means.balance)),
            opened_at=int(self._now()),
        )
        left = await self._store.locked_left(record, locked)
        record = replace(record, deposit=max(needed, min(record.deposit, left // 2)))

        async def add(planned: ChannelRecord) -> ChannelRecord:
            opening = await Depositor(chain, planned, offer.request).sign_opening(means)
            planned = replace(planned, opening=opening)
            await self._store.claim(planned.key)  # before another client can see the channel
            await self._store.add(
                planned,
                channels_max=self._policy.channels_per_origin_max,
                locked=locked,
                context=context,
            )
            return planned

        try:
            return await add(record)
        except PolicyRefusedError as error:
            less = error.allowed
            if error.code != PARTLY_APPROVED or less is None or not needed <= less < record.deposit:
                raise
            return await add(replace(record, deposit=less))  # what was signed never left

    async def deposit(
        self,
        record: ChannelRecord,
        offer: Offer,
        limits: TokenLimits,
        *,
        is_new: bool,
        context: PaymentContext,
    ) -> tuple[ChannelRecord, TxHash | None]:
        """Return a channel in state `opening`, with the transaction that proves its opening.

        It is sent if necessary. None if the record's signed deposit is the proof, by which the
        server opens the channel or has opened it, or if the channel is open already, because a
        request that was cancelled has opened it meanwhile.

        Args:
            record: The channel.
            offer: The offer that is answered; it lists the accepted proofs.
            limits: The current limits for a deposit that must be signed or sent again.
            is_new: Whether it was prepared just now, so that the chain cannot have it.
            context: The request, for the store's guard.

        Raises:
            ChannelUnusableError: The chain contradicts the record.
            CannotFundError: The account can make no deposit that the server accepts now.
            BudgetExceededError: The policy now allows less than was planned.
        """
        fact, open_tx = None, None
        if not is_new:
            record, fact = await self.read(record)
        if fact is None and record.open_tx is None:
            if not is_new:
                await self._store.permit(record, context)
            record = await self._freshen_opening(record, offer, limits, is_new=is_new)
            if record.opening is None:
                record, open_tx = await self._send_opening(record)
        elif not await self._is_presentable(record, offer):
            record, open_tx = await self._find_opening(record)
        if record.state not in ("opening", "open"):
            raise ChannelUnusableError(
                f"Expected a channel that is opening, found it {record.state} on chain. "
                "Send the request again."
            )
        return record, open_tx

    async def _freshen_opening(
        self, record: ChannelRecord, offer: Offer, limits: TokenLimits, *, is_new: bool
    ) -> ChannelRecord:
        """Sign the deposit again if it expires soon, by another method if its own is refused."""
        if is_new:
            return record
        depositor = self.depositor(record, offer)
        means = await depositor.read_means()
        opening = record.opening
        if opening is not None and depositor.is_presentable(opening, means.now):
            return record
        require_deposit(limits, record.deposit, record.origin)
        fresh = await depositor.sign_opening(means)
        return await self._store.update(record.key, partial(replace, opening=fresh))

    async def _is_presentable(self, record: ChannelRecord, offer: Offer) -> bool:
        """Return whether to present the signed opening rather than its transaction."""
        if record.opening is None:
            return False
        if "hash" not in usable_types(offer.request):
            return True
        depositor = self.depositor(record, offer)
        return depositor.is_presentable(record.opening, (await depositor.read_means()).now)

    async def _send_opening(self, record: ChannelRecord) -> tuple[ChannelRecord, TxHash]:
        chain = self.chain(record.key.chain_id, record.origin)
        open_tx = await chain.open_channel(
            escrow=record.key.escrow,
            payee=record.terms.payee,
            token=record.terms.token,
            deposit=record.deposit,
            salt=record.salt,
            authorized_signer=record.terms.authorized_signer,
        )
        return await self._with_opening(record, open_tx)

    async def open_alone(self, record: ChannelRecord, offer: Offer, limits: TokenLimits) -> bool:
        """Open a channel with a signed deposit at this account's own cost; False if impossible.

        The escrow accepts one opening for a salt. A server that still has the signed one can do
        nothing with it, or was faster, and then the channel exists (F-75, AMB-10). A top-up has no
        such protection: the signed one could be made in addition.

        Raises:
            BudgetExceededError: The policy now allows less than was planned.
            TransactionRevertedError: The escrow refused for another reason.
        """
        if record.state != "opening" or "hash" not in usable_types(offer.request):
            return False
        if not await self.is_on_chain(record):
            means = await self.depositor(record, offer).read_means()
            if not means.can_pay_gas or means.balance < record.deposit:
                return False
            require_deposit(limits, record.deposit, record.origin)
            try:
                await self._send_opening(record)
            except TransactionRevertedError:
                if not await self.is_on_chain(record):
                    raise
        await self._store.update(record.key, partial(replace, opening=None))
        return True

    async def _find_opening(self, record: ChannelRecord) -> tuple[ChannelRecord, TxHash]:
        open_tx = record.open_tx
        if open_tx is None:
            chain = self.chain(record.key.chain_id, record.origin)
            open_tx = await chain.find_opening(
                escrow=record.key.escrow, channel_id=record.key.channel_id
            )
        if open_tx is None:
            raise ChannelUnusableError(
                "The chain has the channel, but no node shows its opening. Try again later."
            )
        return await self._with_opening(record, open_tx)

    async def _with_opening(
        self, record: ChannelRecord, open_tx: TxHash
    ) -> tuple[ChannelRecord, TxHash]:
        record = await self._store.update(record.key, partial(replace, open_tx=open_tx))
        return await self.check(record), open_tx

    async def check(self, record: ChannelRecord) -> ChannelRecord:
        """Compare a channel with the chain and store the result (CLIENT-05).

        Vouchers that were signed and never answered, because a process ended, count as lost.
        """
        return (await self.read(record))[0]

    async def read(
        self, record: ChannelRecord, *, block_number: int | None = None
    ) -> tuple[ChannelRecord, ChannelFact | None]:
        """Compare a channel with the chain at a block (the head if None); see `check`."""
        chain = self.chain(record.key.chain_id, record.origin)
        fact = await chain.read_channel(
            record.key.escrow, record.key.channel_id, block_number=block_number
        )
        if fact is None:
            return record, None  # the node may lag behind; the server reports what it sees
        _require_same(record, fact)
        return await self._store.update(record.key, partial(adopt_fact, fact=fact)), fact

    async def confirm(
        self, record: ChannelRecord, receipt: Receipt | None, *, url: str
    ) -> ChannelRecord:
        """Continue with a channel that the server has opened; store the transaction it names."""
        record, fact = await self.read(record)
        is_there = fact is not None and receipt is not None and record.open_tx is None
        open_tx = receipt.tx_hash if is_there and receipt is not None else record.open_tx
        change = partial(adopt_opening, url=url, open_tx=open_tx)
        return await self._store.update(record.key, change)

    async def notice_opened(self, record: ChannelRecord) -> None:
        """Continue with a channel whose opening was mined although its voucher was refused."""
        if record.state == "opening" and await self.is_on_chain(record):
            await self.confirm(record, None, url=record.url)

    async def is_on_chain(self, record: ChannelRecord) -> bool:
        """Return whether the chain shows this channel."""
        return (await self.read(record))[1] is not None

    async def has_ended(self, record: ChannelRecord, offer: Offer) -> bool:
        """Return whether a channel in state `opening` is over, so that another is needed (F-97).

        Either the chain shows that it ended, because the server closed it unclaimed. Or its nonce
        was used without a channel, because the payer cancelled the authorization.
        """
        record, fact = await self.read(record)
        if fact is not None or record.opening is None:
            return record.state != "opening"
        block_number = await self.depositor(record, offer).find_use(record.opening)
        if block_number is None:
            return False
        record, fact = await self.read(record, block_number=block_number)
        if fact is not None:
            return record.state != "opening"
        await self._store.update(record.key, partial(replace, state="closed", deposit=0))
        return True

    async def give_up_opening(self, record: ChannelRecord) -> ChannelRecord:
        """End a channel whose signed deposit was not made and cannot be made any more.

        Raises:
            ChannelUnusableError: It still can: its holder may use it until it has expired.
        """
        chain = self.chain(record.key.chain_id, record.origin)
        means = await chain.read_means(record.terms.token, CANONICAL_PERMIT2)
        if record.opening is not None and not is_over(record.opening, means):
            raise ChannelUnusableError(
                f"The deposit that was signed for {record.origin} may still be made. It expires "
                "within half an hour. Close the channel then."
            )
        return await self._store.update(record.key, partial(replace, state="closed", deposit=0))

    async def enlarge(
        self, record: ChannelRecord, limits: TokenLimits, least: int, context: PaymentContext
    ) -> ChannelRecord:
        """Plan to open with a greater deposit, if the policy allows it (F-92).

        The smaller one that was signed has the same nonce, so it cannot be made in addition.

        Raises:
            BudgetExceededError: The policy does not allow it.
        """
        require_deposit(limits, least, record.origin)
        return await self._store.update(
            record.key,
            lambda current: (
                replace(current, deposit=max(least, current.deposit), opening=None)
                if current.state == "opening"
                else current
            ),
            locked=locked_budget_of(limits),
            context=context,
        )

    def depositor(self, record: ChannelRecord, offer: Offer) -> Depositor:
        """Return the signer of deposits for a channel under an offer."""
        chain = self.chain(record.key.chain_id, record.origin)
        return Depositor(chain, record, offer.request)


def _require_same(record: ChannelRecord, fact: ChannelFact) -> None:
    if fact.key != record.key or fact.terms != record.terms:
        raise ChannelUnusableError(
            "The chain shows another payer, payee, token or signer than this record. Use another "
            "node, or another store."
        )
