"""Chooses how a deposit is made: the first method that the server lists and the account has (pure).

The order is the server's (CLIENT-02). `authorization` and `permit2` cost the payer a signature and
the server the gas, so they are used only if the server states that it pays; `hash` is the payer's
own transaction.
"""

from typing import Final, Literal, cast

import msgspec

from channel.chain import PayerMeans
from channel.errors import CannotFundError
from channel.types import Address
from channel.verify.typed_data import CANONICAL_PERMIT2
from channel.wire.challenge import SessionRequest

__all__ = ["FundingType", "FundingWay", "choose_way", "permit2_of", "usable_types"]

FundingType = Literal["authorization", "permit2", "hash"]

_BY_SIGNATURE: Final = ("authorization", "permit2")


class FundingWay(msgspec.Struct, frozen=True):
    """A possible funding method."""

    type: FundingType
    is_approval_needed: bool = False
    """Permit2 must be approved first, with a transaction of the account."""


def usable_types(request: SessionRequest) -> tuple[FundingType, ...]:
    """Return the funding methods that an offer accepts, in its order; unknown ones are left out.

    `authorization` and `permit2` only if the server pays the gas (CLIENT-02, CHAL-04).
    """
    return tuple(
        cast("FundingType", kind)
        for kind in dict.fromkeys(request.credential_types)
        if kind == "hash" or (kind in _BY_SIGNATURE and request.fee_payer)
    )


def permit2_of(request: SessionRequest) -> Address:
    """Return the address of this offer's Permit2 (CLIENT-03)."""
    return CANONICAL_PERMIT2 if request.permit2 is None else request.permit2


def choose_way(
    request: SessionRequest, means: PayerMeans, *, amount: int, account: Address, origin: str
) -> FundingWay:
    """Return the first listed method by which the account can deposit `amount`.

    Raises:
        CannotFundError: There is none; the error states what each method needs.
    """
    if means.balance < amount:
        token = f"of token 0x{request.currency.hex()}"
        needs = {"any deposit": f"needs {amount} base units {token}, found {means.balance}"}
        raise CannotFundError(account=account, origin=origin, needs=needs)
    needs = {}
    for kind in usable_types(request):
        need = _missing(kind, request, means, amount)
        if need is None:
            is_short = kind == "permit2" and (means.permit2_allowance or 0) < amount
            return FundingWay(kind, is_approval_needed=is_short)
        needs[kind] = need
    raise CannotFundError(account=account, origin=origin, needs=needs)


def _missing(
    kind: FundingType, request: SessionRequest, means: PayerMeans, amount: int
) -> str | None:
    """Return what this method needs and the account lacks, or None."""
    if kind == "hash":
        return None if means.can_pay_gas else "ether for gas"
    if kind == "authorization":
        return None if means.token_domain is not None else "a token that takes EIP-3009 signatures"
    return _missing_for_permit2(request, means, amount)


def _missing_for_permit2(request: SessionRequest, means: PayerMeans, amount: int) -> str | None:
    if means.permit2_allowance is None:
        return f"a Permit2 at 0x{permit2_of(request).hex()}"
    if means.permit2_allowance >= amount:
        return None
    # An approval is permanent: never give one to a contract that only the server names (F-91).
    if permit2_of(request) != CANONICAL_PERMIT2:
        return f"the token's approval of 0x{permit2_of(request).hex()}, which is not given for you"
    if not means.can_pay_gas:
        return "the token's approval of Permit2, or ether for gas to approve it once"
    return None
