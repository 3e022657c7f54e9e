"""Finds out, by simulation at start, whether a token takes signed transfers (EIP-3009, F-21)."""

import secrets
from typing import Final

from msgspec.structs import replace

from channel.errors import ConfigError
from channel.types import Address
from channel.verify.signature import address_of, sign
from channel.verify.typed_data import transfer_authorization_digest
from settlement.charge.transfer import SignedTransfer, build_transfer_call
from settlement.errors import ContractRevertedError
from settlement.escrow.token_domain import TokenDomain, read_token_domain
from settlement.node.rpc import Rpc

__all__ = ["require_transfers"]

_FAR_FUTURE: Final = 2**48


async def require_transfers(
    rpc: Rpc, token: Address, *, payee: Address, sender: Address
) -> TokenDomain:
    """Return the domain under which the token takes a transfer to the payee by this sender.

    It must accept a transfer of nothing that a throw-away key signed, and refuse a forged one.

    Raises:
        ConfigError: It does not. The message says what was found.
        ChainUnavailableError: No node answers.
    """
    domain = await read_token_domain(rpc, token)
    if domain is None:
        raise ConfigError(
            "`rails.charge` is set, but the token takes no signed transfer: it has no EIP-712 "
            "domain that follows from its name and version"
        )
    transfer = _sign_nothing(domain.separator, payee)
    if why := await _refusal(rpc, token, sender, transfer):
        raise ConfigError(
            "`rails.charge` is set, but the token refuses an EIP-3009 transferWithAuthorization "
            f"to 0x{payee.hex()}: {why}"
        )
    forged = bytes([transfer.signature[0] ^ 1]) + transfer.signature[1:]
    forgery = replace(transfer, signature=forged)
    if not await _refusal(rpc, token, sender, forgery):
        raise ConfigError(
            "`rails.charge` is set, but the token accepts an EIP-3009 authorization with an "
            "invalid signature"
        )
    return domain


def _sign_nothing(separator: bytes, payee: Address) -> SignedTransfer:
    key, nonce = secrets.token_bytes(32), secrets.token_bytes(32)
    payer = address_of(key)
    digest = transfer_authorization_digest(
        separator,
        funder=payer,
        to=payee,
        value=0,
        valid_after=0,
        valid_before=_FAR_FUTURE,
        nonce=nonce,
    )
    return SignedTransfer(
        payer=payer,
        payee=payee,
        amount=0,
        valid_after=0,
        valid_before=_FAR_FUTURE,
        nonce=nonce,
        signature=sign(key, digest),
    )


async def _refusal(rpc: Rpc, token: Address, sender: Address, transfer: SignedTransfer) -> str:
    """Return why the token refuses the transfer, or an empty string if it accepts it."""
    try:
        await rpc.call(token, build_transfer_call(transfer), sender=sender)
    except ContractRevertedError as error:
        return error.text or error.reason.value
    return ""
