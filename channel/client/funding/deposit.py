"""Signs the deposits of one channel: by which method, until when, and whether one was used.

Times are the chain's (F-111), because its blocks decide whether an authorization is still valid. A
deposit that is signed again keeps its salt and nonce, so that only one of its versions can be used.
"""

from typing import Final

from channel.chain import PayerChain, PayerMeans
from channel.client.funding.signer import AccountSigner
from channel.client.funding.signing import (
    Domain,
    Window,
    sign_open_authorization,
    sign_open_permit,
    sign_top_up_authorization,
    sign_top_up_permit,
)
from channel.client.policy.funding_method import FundingType, choose_way, permit2_of, usable_types
from channel.client.store.record import ChannelRecord
from channel.errors import ChannelUnusableError
from channel.verify.typed_data import permit2_domain_separator
from channel.wire.challenge import SessionRequest
from channel.wire.funding import (
    Deposit,
    TransferAuthorization,
)

__all__ = ["Depositor", "is_over"]

VALID_S: Final = 900
"""How long the server has to get a signed deposit mined."""
LEFT_S_MIN: Final = 120
"""A deposit with less time left is signed again: servers need a margin for mining (OPEN-05)."""


class Depositor:
    """Signs for one channel under one offer. The caller stores what is signed."""

    def __init__(self, chain: PayerChain, record: ChannelRecord, request: SessionRequest) -> None:
        self._chain = chain
        self._record = record
        self._request = request
        self._permit2 = permit2_of(request)

    async def read_means(self) -> PayerMeans:
        """Return what the account can fund, and the time on the chain."""
        return await self._chain.read_means(self._record.terms.token, self._permit2)

    def is_presentable(self, deposit: Deposit, now: int) -> bool:
        """Return whether the server accepts this kind, and the deposit is valid long enough."""
        return deposit.type in usable_types(self._request) and _end(deposit) >= now + LEFT_S_MIN

    def is_dead(self, deposit: Deposit, means: PayerMeans) -> bool:
        """Return whether the server rejects such deposits, and this one cannot be used any more."""
        return is_over(deposit, means) and deposit.type not in usable_types(self._request)

    async def sign_opening(self, means: PayerMeans) -> Deposit | None:
        """Sign the deposit of a channel in state `opening`; None means to send a transaction.

        Raises:
            CannotFundError: The account has no way to deposit.
            MppSessionError: Permit2 had to be approved, and the approval failed.
        """
        record = self._record
        kind = await self._choose(means, record.deposit)
        if kind == "authorization" and means.token_domain is not None:
            return await sign_open_authorization(
                AccountSigner(self._chain),
                Domain(means.token_domain, record.key.escrow),
                Window(0, means.now + VALID_S),
                terms=record.terms,
                salt=record.salt,
                amount=record.deposit,
            )
        if kind == "permit2":
            return await sign_open_permit(
                AccountSigner(self._chain),
                self._permit2_domain(),
                terms=record.terms,
                salt=record.salt,
                amount=record.deposit,
                nonce=int.from_bytes(record.salt),
                deadline=means.now + VALID_S,
            )
        return None

    async def sign_top_up(self, means: PayerMeans, *, amount: int, salt: bytes) -> Deposit | None:
        """Sign a deposit that tops up the channel; None means to send a transaction.

        Raises:
            CannotFundError: The account has no way to deposit.
            MppSessionError: Permit2 had to be approved, and the approval failed.
        """
        kind = await self._choose(means, amount)
        if kind == "authorization" and means.token_domain is not None:
            return await self._authorize(means.token_domain, means.now, amount, salt)
        if kind == "permit2":
            return await self._permit(means.now, amount, int.from_bytes(salt))
        return None

    async def sign_again(self, means: PayerMeans, old: Deposit) -> Deposit:
        """Sign the same top-up for a later time, with the same kind, amount and nonce.

        Raises:
            ChannelUnusableError: The server no longer accepts its kind, and it may still be used.
                A second one of another kind could then be made in addition.
        """
        if old.type not in usable_types(self._request):
            raise ChannelUnusableError(
                f"A top-up of type {old.type} was signed and may still be made, but the server no "
                "longer accepts that type. Try again once the signature has expired."
            )
        funding = old.authorization
        if isinstance(funding, TransferAuthorization):
            if means.token_domain is None or old.salt is None:
                raise ChannelUnusableError(
                    "The token has changed its EIP-712 domain, so this top-up cannot be signed "
                    "again. Wait until it has expired."
                )
            return await self._authorize(means.token_domain, means.now, old.amount, old.salt)
        return await self._permit(means.now, old.amount, funding.nonce)

    async def find_use(self, deposit: Deposit) -> int | None:
        """Return a block by which this deposit's nonce was used, or None.

        The question contains nothing from the server. Otherwise a server could make a deposit look
        used, and the client would sign another one (F-75).
        """
        funding = deposit.authorization
        if isinstance(funding, TransferAuthorization):
            return await self._chain.find_use(
                token=self._record.terms.token, authorization=funding.nonce
            )
        return await self._chain.find_permit_use(
            escrow=self._record.key.escrow, nonce=funding.nonce
        )

    async def _authorize(self, separator: bytes, now: int, amount: int, salt: bytes) -> Deposit:
        key = self._record.key
        return await sign_top_up_authorization(
            AccountSigner(self._chain),
            Domain(separator, key.escrow),
            Window(0, now + VALID_S),
            channel_id=key.channel_id,
            salt=salt,
            amount=amount,
        )

    async def _permit(self, now: int, amount: int, nonce: int) -> Deposit:
        return await sign_top_up_permit(
            AccountSigner(self._chain),
            self._permit2_domain(),
            token=self._record.terms.token,
            channel_id=self._record.key.channel_id,
            amount=amount,
            nonce=nonce,
            deadline=now + VALID_S,
        )

    async def _choose(self, means: PayerMeans, amount: int) -> FundingType:
        """Return the funding method, after approving Permit2 if that is needed and possible."""
        way = choose_way(
            self._request,
            means,
            amount=amount,
            account=self._chain.account,
            origin=self._record.origin,
        )
        if way.is_approval_needed:
            await self._chain.approve_permit2(token=self._record.terms.token, permit2=self._permit2)
        return way.type

    def _permit2_domain(self) -> Domain:
        separator = permit2_domain_separator(self._chain.chain_id, self._permit2)
        return Domain(separator, self._record.key.escrow)


def is_over(deposit: Deposit, means: PayerMeans) -> bool:
    """Return whether a deposit can no longer be used, by the chain's own blocks (F-111).

    With a margin, and never by this machine's clock: with a fast clock the client would drop a
    deposit, or make a second one, while the first can still be used.
    """
    return means.head_at >= _end(deposit) + VALID_S


def _end(deposit: Deposit) -> int:
    """Return when it expires, in Unix seconds."""
    funding = deposit.authorization
    if isinstance(funding, TransferAuthorization):
        return funding.valid_before
    return funding.deadline
