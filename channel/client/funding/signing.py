"""Deposits by signature: EIP-3009 authorizations and Permit2 transfers, to open and to top up.

These signatures move money without the payer's own transaction. So each is bound to one channel: an
authorization by its derived nonce (OPEN-05, TOPUP-04), a permit by its witness (OPEN-06). Its
submitter can do only what the payer intended (F-83).

Pure except for the signer: the caller reads domains and times and chooses salts. The policy has
decided beforehand whether a deposit is allowed.
"""

from collections.abc import Callable

import msgspec

from channel.chain import PayerChain
from channel.client.funding.signer import AccountSigner, Signer
from channel.types import ZERO_ADDRESS, Address, ChannelId, ChannelTerms
from channel.verify.typed_data import (
    open_nonce,
    open_permit_digest,
    open_witness,
    receive_authorization_digest,
    top_up_nonce,
    top_up_permit_digest,
    top_up_witness,
    transfer_authorization_digest,
)
from channel.wire.funding import (
    Deposit,
    OpenPermit,
    TopUpPermit,
    TransferAuthorization,
)

__all__ = [
    "Domain",
    "Window",
    "sign_charge",
    "sign_open_authorization",
    "sign_open_permit",
    "sign_top_up_authorization",
    "sign_top_up_permit",
]


class Domain(msgspec.Struct, frozen=True, gc=False):
    """The EIP-712 domain of a signature, and the contract that may take the money."""

    separator: bytes
    """EIP-712 domain separator: the token's own for an authorization, Permit2's for a permit."""
    taker: Address
    """`to` of an authorization, or the `spender` of a permit, which is signed but not sent."""


class Window(msgspec.Struct, frozen=True, gc=False):
    """When an authorization is valid: Unix seconds of the chain's clock, both ends exclusive."""

    valid_after: int
    valid_before: int


async def sign_open_authorization(
    signer: Signer,
    domain: Domain,
    window: Window,
    *,
    terms: ChannelTerms,
    salt: bytes,
    amount: int,
) -> Deposit:
    """Sign an EIP-3009 transfer that can only open the channel of `terms` and `salt`.

    Args:
        signer: The payer's account.
        domain: The token's domain.
        window: When it may be mined.
        terms: The terms of the channel; its payer is the signer's address.
        salt: The salt of the channel.
        amount: The deposit, in base units.
    """
    authorization, signature = await _sign_transfer(
        signer, domain, window, amount, open_nonce(terms, salt)
    )
    return Deposit("open", "authorization", authorization, signature, salt, terms.authorized_signer)


async def sign_top_up_authorization(
    signer: Signer,
    domain: Domain,
    window: Window,
    *,
    channel_id: ChannelId,
    salt: bytes,
    amount: int,
) -> Deposit:
    """Sign an EIP-3009 transfer that can only top up this channel by `amount`.

    `salt` belongs to the top-up: the same salt and amount make the same top-up, which the token
    accepts once.
    """
    nonce = top_up_nonce(channel_id, additional_deposit=amount, funder=signer.address, salt=salt)
    authorization, signature = await _sign_transfer(signer, domain, window, amount, nonce)
    return Deposit("topUp", "authorization", authorization, signature, salt, ZERO_ADDRESS)


async def sign_charge(
    chain: PayerChain, domain: Domain, window: Window, *, amount: int, nonce: bytes
) -> tuple[TransferAuthorization, bytes]:
    """Sign an EIP-3009 transfer that any party may send to the token, once.

    Args:
        chain: The account that pays.
        domain: The token's domain, and the payee.
        window: When it may be mined.
        amount: In base units.
        nonce: Not used by the account before.
    """
    return await _sign_transfer(
        AccountSigner(chain), domain, window, amount, nonce, transfer_authorization_digest
    )


async def _sign_transfer(  # noqa: PLR0917 -- one message, field by field
    signer: Signer,
    domain: Domain,
    window: Window,
    amount: int,
    nonce: bytes,
    digest_of: Callable[..., bytes] = receive_authorization_digest,
) -> tuple[TransferAuthorization, bytes]:
    authorization = TransferAuthorization(
        funder=signer.address,
        to=domain.taker,
        value=amount,
        valid_after=window.valid_after,
        valid_before=window.valid_before,
        nonce=nonce,
    )
    digest = digest_of(
        domain.separator,
        funder=authorization.funder,
        to=authorization.to,
        value=authorization.value,
        valid_after=authorization.valid_after,
        valid_before=authorization.valid_before,
        nonce=authorization.nonce,
    )
    return authorization, await signer.sign(digest)


async def sign_open_permit(
    signer: Signer,
    domain: Domain,
    *,
    terms: ChannelTerms,
    salt: bytes,
    amount: int,
    nonce: int,
    deadline: int,
) -> Deposit:
    """Sign a Permit2 transfer whose witness lets it open only this channel (CLIENT-03).

    Args:
        signer: The payer's account.
        domain: Permit2's domain.
        terms: The terms of the channel; its payer is the signer's address.
        salt: The salt of the channel.
        amount: The deposit, in base units.
        nonce: Any number that this account has not used with Permit2.
        deadline: Unix seconds, inclusive.
    """
    permit = OpenPermit(
        funder=signer.address,
        token=terms.token,
        amount=amount,
        nonce=nonce,
        deadline=deadline,
        payee=terms.payee,
        salt=salt,
        authorized_signer=terms.authorized_signer,
    )
    digest = open_permit_digest(
        domain.separator,
        token=permit.token,
        amount=amount,
        spender=domain.taker,
        nonce=nonce,
        deadline=deadline,
        witness=open_witness(permit.payee, salt, permit.authorized_signer),
    )
    signature = await signer.sign(digest)
    return Deposit("open", "permit2", permit, signature, salt, terms.authorized_signer)


async def sign_top_up_permit(
    signer: Signer,
    domain: Domain,
    *,
    token: Address,
    channel_id: ChannelId,
    amount: int,
    nonce: int,
    deadline: int,
) -> Deposit:
    """Sign a Permit2 transfer whose witness lets it top up only this channel."""
    permit = TopUpPermit(
        funder=signer.address,
        token=token,
        amount=amount,
        nonce=nonce,
        deadline=deadline,
        channel_id=channel_id,
    )
    digest = top_up_permit_digest(
        domain.separator,
        token=token,
        amount=amount,
        spender=domain.taker,
        nonce=nonce,
        deadline=deadline,
        witness=top_up_witness(channel_id),
    )
    return Deposit("topUp", "permit2", permit, await signer.sign(digest), None, ZERO_ADDRESS)
