"""The way a deposit is made: the first that the server lists and the account can."""

from typing import Any

import pytest

from channel.chain import PayerMeans
from channel.client.policy.funding_method import FundingWay, choose_way, permit2_of, usable_types
from channel.errors import CannotFundError
from channel.types import Address
from channel.verify.typed_data import CANONICAL_PERMIT2
from tests.channel.client.provider import DOMAIN, PAYER, session_request

OTHER_PERMIT2 = Address(b"\x22" * 20)
ALL = ("permit2", "authorization", "hash")


def means_of(**changes: Any) -> PayerMeans:
    has: dict[str, Any] = {
        "balance": 1_000,
        "can_pay_gas": False,
        "token_domain": DOMAIN,
        "permit2_allowance": 0,
        "now": 0,
        "head_at": 0,
    }
    return PayerMeans(**(has | changes))


def choose(means: PayerMeans, amount: int = 100, **request: Any) -> FundingWay:
    asked = session_request(**({"fee_payer": True, "credential_types": ALL} | request))
    return choose_way(asked, means, amount=amount, account=PAYER, origin="https://api.example")


@pytest.mark.parametrize(
    ("types", "fee_payer", "usable"),
    [
        (("hash",), False, ("hash",)),
        (("hash",), True, ("hash",)),
        (("authorization", "permit2", "hash"), False, ("hash",)),
        (("authorization", "permit2", "hash"), True, ("authorization", "permit2", "hash")),
        (("permit2", "coupon", "permit2"), True, ("permit2",)),
        (("authorization",), False, ()),
    ],
)
def test_a_deposit_by_signature_is_made_only_at_the_servers_cost(
    types: tuple[str, ...], usable: tuple[str, ...], *, fee_payer: bool
) -> None:
    """CLIENT-02, CHAL-04: in the server's order, and never one that it does not list."""
    asked = session_request(credential_types=types, fee_payer=fee_payer)
    assert usable_types(asked) == usable


@pytest.mark.parametrize(
    ("means", "way"),
    [
        ({"permit2_allowance": 100}, FundingWay("permit2")),
        ({"permit2_allowance": 99}, FundingWay("authorization")),
        ({"permit2_allowance": None}, FundingWay("authorization")),
        ({"can_pay_gas": True}, FundingWay("permit2", is_approval_needed=True)),
        ({"can_pay_gas": True, "permit2_allowance": None}, FundingWay("authorization")),
        (
            {"can_pay_gas": True, "permit2_allowance": None, "token_domain": None},
            FundingWay("hash"),
        ),
    ],
)
def test_the_first_way_that_the_account_can_go_is_gone(
    means: dict[str, Any], way: FundingWay
) -> None:
    """CLIENT-02, F-90: an allowance that is missing is given once, if there is ether for it."""
    assert choose(means_of(**means)) == way


def test_what_is_missing_is_said_for_each_way() -> None:
    """CLIENT-02: the agent's operator learns what to send or to approve."""
    with pytest.raises(CannotFundError) as caught:
        choose(means_of(token_domain=None))
    assert caught.value.needs == {
        "permit2": "the token's approval of Permit2, or ether for gas to approve it once",
        "authorization": "a token that takes EIP-3009 signatures",
        "hash": "ether for gas",
    }
    assert "0x" + PAYER.hex() in str(caught.value)
    assert "https://api.example" in str(caught.value)


def test_an_account_without_the_money_is_refused_for_each_method() -> None:
    with pytest.raises(CannotFundError, match=r"needs 101 base units .* found 100"):
        choose(means_of(balance=100), amount=101)
    assert choose(means_of(balance=101), amount=101) == FundingWay("authorization")


def test_a_permit2_of_the_servers_own_is_never_approved() -> None:
    """F-91, CLIENT-03: an approval is for good; one given already is used, and signed for."""
    own: dict[str, Any] = {"permit2": OTHER_PERMIT2, "credential_types": ("permit2",)}
    with pytest.raises(CannotFundError, match="which is not given for you"):
        choose(means_of(can_pay_gas=True), **own)
    assert choose(means_of(permit2_allowance=100), **own) == FundingWay("permit2")
    with pytest.raises(CannotFundError, match="a Permit2 at 0x2222"):
        choose(means_of(permit2_allowance=None), **own)


def test_permit2_is_where_it_is_everywhere_unless_said() -> None:
    """CLIENT-03."""
    assert permit2_of(session_request()) == CANONICAL_PERMIT2
    assert permit2_of(session_request(permit2=OTHER_PERMIT2)) == OTHER_PERMIT2
