"""Sponsored deposits as calls: by the contract's own ABI, and back."""

from typing import Any

import pytest
from eth_abi.abi import decode
from msgspec.structs import replace

from channel.chain import AuthorizedPull, PermittedPull, SponsoredDeposit
from channel.errors import InvariantError
from channel.types import Address, ChannelId, ChannelKey, ChannelTerms
from channel.verify.typed_data import keccak
from settlement import abi
from settlement.artifacts import load_artifact
from settlement.escrow.deposit_calls import (
    build_deposit_call,
    deposit_id,
    expires_at,
    parse_deposit_call,
)

PAYER, PAYEE, TOKEN, ESCROW, SIGNER = (Address(bytes([n]) * 20) for n in range(1, 6))
KEY = ChannelKey(31337, ESCROW, ChannelId(b"\xc1" * 32))
TERMS = ChannelTerms(PAYER, PAYEE, TOKEN, SIGNER)
AUTHORIZED = AuthorizedPull(valid_after=3, valid_before=5, nonce=b"\x0a" * 32)
PERMITTED = PermittedPull(nonce=7, deadline=9)
OPENING = SponsoredDeposit(
    key=KEY,
    opens=TERMS,
    salt=b"\x05" * 32,
    funder=PAYER,
    amount=1234,
    pull=AUTHORIZED,
    signature=b"signed",
)
CASES: dict[str, SponsoredDeposit] = {
    "openWithAuthorization": OPENING,
    "openWithPermit2": replace(OPENING, pull=PERMITTED),
    "topUpWithAuthorization": replace(OPENING, opens=None),
    "topUpWithPermit2": replace(OPENING, opens=None, pull=PERMITTED, salt=b""),
}


def by_name(name: str, calldata: bytes) -> dict[str, Any]:
    """Arguments by the names the contract gives them."""
    (entry,) = [e for e in load_artifact("SessionEscrow").abi if e.get("name") == name]
    types = [part["type"] for part in entry["inputs"]]
    assert calldata[:4] == keccak(f"{name}({','.join(types)})".encode())[:4]
    names = [part["name"] for part in entry["inputs"]]
    return dict(zip(names, decode(types, calldata[4:]), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_each_argument_goes_where_the_contract_expects_it(name: str) -> None:
    """CONTRACT-09, CONTRACT-10: none can change places with another of its type."""
    given = by_name(name, build_deposit_call(CASES[name]))
    expected: dict[str, Any] = {"from": "0x" + PAYER.hex(), "signature": b"signed"}
    if name.startswith("open"):
        expected |= {"payee": "0x" + PAYEE.hex(), "token": "0x" + TOKEN.hex(), "deposit": 1234}
        expected |= {"salt": OPENING.salt, "authorizedSigner": "0x" + SIGNER.hex()}
    else:
        expected |= {"channelId": KEY.channel_id, "additionalDeposit": 1234}
    if name.endswith("Permit2"):
        expected |= {"nonce": 7, "deadline": 9}
    else:
        expected |= {"validAfter": 3, "validBefore": 5, "nonce": AUTHORIZED.nonce}
        expected |= {"topUpSalt": OPENING.salt} if name.startswith("top") else {}
    assert given == expected


@pytest.mark.parametrize("name", CASES)
def test_a_call_says_what_it_does(name: str) -> None:
    call = parse_deposit_call(build_deposit_call(CASES[name]))
    assert (call.opens, call.amount, call.funder) == (name.startswith("open"), 1234, PAYER)
    nonce = None if name.endswith("Permit2") else AUTHORIZED.nonce
    assert (call.authorization_nonce, call.signature) == (nonce, b"signed")


def test_a_deposit_is_known_by_what_was_signed_and_not_by_how() -> None:
    """OPEN-10, F-98: a second signature of the same thing is the same deposit, sent once."""
    name = deposit_id(OPENING)
    assert deposit_id(replace(OPENING, signature=b"otherwise")) == name
    others: list[dict[str, Any]] = [
        {"amount": 1},
        {"salt": bytes(32)},
        {"funder": PAYEE},
        {"opens": None},
        {"pull": PERMITTED},
        {"pull": replace(AUTHORIZED, nonce=bytes(32))},
        {"key": replace(KEY, escrow=PAYEE)},
        {"key": replace(KEY, chain_id=1)},  # the same escrow may stand on many chains
    ]
    assert len({name, *[deposit_id(replace(OPENING, **other)) for other in others]}) == 9


def test_the_last_second_is_the_contracts_own() -> None:
    """EIP-3009's window excludes its end, Permit2's deadline does not."""
    assert expires_at(AUTHORIZED) == 4
    assert expires_at(PERMITTED) == 9


def test_any_other_call_is_a_bug() -> None:
    with pytest.raises(InvariantError):
        parse_deposit_call(abi.request_close.encode(KEY.channel_id))
