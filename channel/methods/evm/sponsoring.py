"""Checks a signed deposit before the payee pays gas for it (OPEN-05, OPEN-06, TOPUP-04).

Pure: it compares every field with the channel's terms, so that the forwarded deposit can do only
what its payload claims. What only the chain knows (time, nonces, balances) is simulated later.
"""

from typing import TypeAlias

from channel.chain import AuthorizedPull, PermittedPull, SponsoredDeposit
from channel.errors import MalformedPayloadError, SignerMismatchError
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenPermit2,
    TopUpAuthorization,
    TopUpPermit2,
    build_open,
    build_top_up,
)
from channel.types import Address, ChannelKey, ChannelTerms
from channel.verify.signature import recover
from channel.verify.typed_data import (
    open_nonce,
    open_permit_digest,
    open_witness,
    permit2_domain_separator,
    receive_authorization_digest,
    top_up_nonce,
    top_up_permit_digest,
    top_up_witness,
)
from channel.wire.funding import (
    Deposit,
    OpenPermit,
    TopUpPermit,
    TransferAuthorization,
)
from channel.wire.payload import (
    VoucherPayload,
)

__all__ = [
    "SponsoredOpening",
    "SponsoredTopUp",
    "build_opening_deposit",
    "build_top_up_deposit",
    "require_key_signature",
    "split_merged",
]

SponsoredOpening: TypeAlias = OpenAuthorization | OpenPermit2
SponsoredTopUp: TypeAlias = TopUpAuthorization | TopUpPermit2


def split_merged(payload: VoucherPayload, deposit: Deposit) -> SponsoredOpening | SponsoredTopUp:
    """Return a voucher's deposit as the separate payload that it stands for (VCH-06)."""
    if deposit.action == "open":
        return build_open(deposit, payload.voucher)
    return build_top_up(deposit, payload.channel_id)


def build_opening_deposit(
    key: ChannelKey, payload: SponsoredOpening, terms: ChannelTerms
) -> SponsoredDeposit:
    """Return the deposit that opens the channel with these terms and does nothing else.

    Raises:
        MalformedPayloadError: A field contradicts the terms, the offer or the escrow.
    """
    funding = payload.authorization
    if isinstance(funding, TransferAuthorization):
        _require_to_escrow(key, funding)
        if funding.nonce != open_nonce(terms, payload.salt):
            raise _wrong("nonce", "not the one of these terms")
    else:
        _require_token(funding, terms.token)
        if funding.payee != terms.payee:
            raise _wrong("witness.payee", "not the recipient")
        if funding.salt != payload.salt:
            raise _wrong("witness.salt", "not the payload's")
        if funding.authorized_signer != terms.authorized_signer:
            raise _wrong("witness.authorizedSigner", "not the payload's")
    return _deposit(key, funding, payload.salt, payload.signature, opens=terms)


def build_top_up_deposit(
    key: ChannelKey, payload: SponsoredTopUp, token: Address
) -> SponsoredDeposit:
    """Return the deposit that tops up this channel and does nothing else. Anyone may fund it.

    `token` is the token of the offer, which is the channel's.

    Raises:
        MalformedPayloadError: A field contradicts the channel, the offer or the escrow.
    """
    if isinstance(payload, TopUpAuthorization):
        transfer, salt = payload.authorization, payload.salt
        _require_to_escrow(key, transfer)
        expected = top_up_nonce(
            payload.channel_id,
            additional_deposit=payload.additional_deposit,
            funder=transfer.funder,
            salt=salt,
        )
        if transfer.value != payload.additional_deposit:
            raise _wrong("value", "not additionalDeposit")
        if transfer.nonce != expected:
            raise _wrong("nonce", "not the one of this top-up")
        return _deposit(key, transfer, salt, payload.signature, opens=None)
    permit = payload.authorization
    _require_token(permit, token)
    if permit.amount != payload.additional_deposit:
        raise _wrong("permitted.amount", "not additionalDeposit")
    if permit.channel_id != payload.channel_id:
        raise _wrong("witness.channelId", "not the channel")
    return _deposit(key, permit, b"", payload.signature, opens=None)


def require_key_signature(deposit: SponsoredDeposit, token: bytes, terms: ChannelTerms) -> None:
    """Check that the funder's key signed it. A contract wallet's signature fails here, too.

    `token` is the token's domain separator.

    Raises:
        InvalidSignatureError: Not canonical, or no key could have made it.
        SignerMismatchError: Another key made it.
    """
    if recover(_digest(deposit, token, terms), deposit.signature) != deposit.funder:
        raise SignerMismatchError("The deposit was not signed by its funder.")


def _digest(deposit: SponsoredDeposit, token: bytes, terms: ChannelTerms) -> bytes:
    pull, escrow = deposit.pull, deposit.key.escrow
    if isinstance(pull, AuthorizedPull):
        return receive_authorization_digest(
            token,
            funder=deposit.funder,
            to=escrow,
            value=deposit.amount,
            valid_after=pull.valid_after,
            valid_before=pull.valid_before,
            nonce=pull.nonce,
        )
    opens = deposit.opens
    if opens is None:
        build, witness = top_up_permit_digest, top_up_witness(deposit.key.channel_id)
    else:
        build = open_permit_digest
        witness = open_witness(opens.payee, deposit.salt, opens.authorized_signer)
    return build(
        permit2_domain_separator(deposit.key.chain_id),
        token=terms.token,
        amount=deposit.amount,
        spender=escrow,
        nonce=pull.nonce,
        deadline=pull.deadline,
        witness=witness,
    )


def _deposit(
    key: ChannelKey,
    funding: TransferAuthorization | OpenPermit | TopUpPermit,
    salt: bytes,
    signature: bytes,
    *,
    opens: ChannelTerms | None,
) -> SponsoredDeposit:
    if isinstance(funding, TransferAuthorization):
        amount = funding.value
        pull: AuthorizedPull | PermittedPull = AuthorizedPull(
            funding.valid_after, funding.valid_before, funding.nonce
        )
    else:
        amount, pull = funding.amount, PermittedPull(funding.nonce, funding.deadline)
    return SponsoredDeposit(
        key=key,
        opens=opens,
        salt=salt,
        funder=funding.funder,
        amount=amount,
        pull=pull,
        signature=signature,
    )


def _require_to_escrow(key: ChannelKey, funding: TransferAuthorization) -> None:
    if funding.to != key.escrow:
        raise _wrong("to", "not the escrow")


def _require_token(funding: OpenPermit | TopUpPermit, token: Address) -> None:
    if funding.token != token:
        raise _wrong("permitted.token", "not the currency")


def _wrong(field: str, what: str) -> MalformedPayloadError:
    return MalformedPayloadError(f"payload.authorization.{field}: {what}.")
