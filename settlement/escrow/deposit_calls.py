"""Encodes sponsored deposits as calls of the escrow, and decodes them (pure)."""

import msgspec

from channel.chain import AuthorizedPull, PermittedPull, SponsoredDeposit
from channel.errors import InvariantError
from channel.types import Address
from channel.verify.typed_data import keccak
from settlement import abi

__all__ = ["DepositCall", "build_deposit_call", "deposit_id", "expires_at", "parse_deposit_call"]

_SELECTOR_BYTES = 4


class DepositCall(msgspec.Struct, frozen=True, gc=False):
    """What a deposit call does, decoded from its calldata."""

    opens: bool
    amount: int
    funder: Address
    authorization_nonce: bytes | None
    """The EIP-3009 nonce; None for Permit2, whose events do not contain it."""
    signature: bytes


def build_deposit_call(deposit: SponsoredDeposit) -> bytes:
    """Return the calldata that makes this deposit."""
    pull, opens = deposit.pull, deposit.opens
    if opens is None:
        head: tuple[object, ...] = (deposit.key.channel_id, deposit.amount, deposit.funder)
        if isinstance(pull, AuthorizedPull):
            return abi.top_up_with_authorization.encode(
                *head,
                deposit.salt,
                pull.valid_after,
                pull.valid_before,
                pull.nonce,
                deposit.signature,
            )
        return abi.top_up_with_permit2.encode(*head, pull.nonce, pull.deadline, deposit.signature)
    terms = (opens.payee, opens.token, deposit.amount, deposit.salt, opens.authorized_signer)
    if isinstance(pull, AuthorizedPull):
        return abi.open_with_authorization.encode(
            *terms,
            deposit.funder,
            pull.valid_after,
            pull.valid_before,
            pull.nonce,
            deposit.signature,
        )
    return abi.open_with_permit2.encode(
        *terms, deposit.funder, pull.nonce, pull.deadline, deposit.signature
    )


def deposit_id(deposit: SponsoredDeposit) -> bytes:
    """Return 32 bytes that identify a deposit by its content; signing again gives the same id."""
    unsigned = msgspec.structs.replace(deposit, signature=b"")
    place = deposit.key.chain_id.to_bytes(32) + deposit.key.escrow
    return bytes(keccak(place + build_deposit_call(unsigned)))


def expires_at(pull: AuthorizedPull | PermittedPull) -> int:
    """Return the last second, in chain time, in which the escrow accepts a deposit."""
    return max(0, pull.valid_before - 1) if isinstance(pull, AuthorizedPull) else pull.deadline


def parse_deposit_call(calldata: bytes) -> DepositCall:
    """Return what a call made by `build_deposit_call` does.

    Raises:
        InvariantError: A bug: another function built the calldata.
    """
    selector = calldata[:_SELECTOR_BYTES]
    for function in (abi.open_with_authorization, abi.open_with_permit2):
        if function.selector == selector:
            _, _, amount, _, _, funder, *_, nonce, signature = function.decode_arguments(calldata)
            is_permit = function is abi.open_with_permit2
            return _call(True, amount, funder, None if is_permit else nonce, signature)  # noqa: FBT003
    for function in (abi.top_up_with_authorization, abi.top_up_with_permit2):
        if function.selector == selector:
            _, amount, funder, *_, nonce, signature = function.decode_arguments(calldata)
            is_permit = function is abi.top_up_with_permit2
            return _call(False, amount, funder, None if is_permit else nonce, signature)  # noqa: FBT003
    raise InvariantError(f"0x{selector.hex()} makes no deposit")


def _call(
    opens: bool,  # noqa: FBT001
    amount: int,
    funder: str,
    nonce: bytes | None,
    signature: bytes,
) -> DepositCall:
    address = Address(bytes.fromhex(funder.removeprefix("0x")))
    return DepositCall(opens, amount, address, nonce, signature)
