"""What the golden vectors say about the contract's interface, and that none goes unused."""

from typing import Any

import pytest
from eth_abi.abi import encode

from channel.verify.typed_data import keccak
from channel.wire.encoding import format_checksum_address, parse_address, parse_hex
from tests.channel.vectors import EVM, WIRE, Entry, entry_of, hex32, name_of

CONSTANTS: dict[str, Any] = EVM["constants"]
ARGUMENTS = {
    "open": "address,address,uint128,bytes32,address",
    "openWithAuthorization": (
        "address,address,uint128,bytes32,address,address,uint256,uint256,bytes32,bytes"
    ),
    "openWithPermit2": "address,address,uint128,bytes32,address,address,uint256,uint256,bytes",
    "settle": "bytes32,uint128,bytes",
    "topUp": "bytes32,uint128",
    "topUpWithAuthorization": "bytes32,uint128,address,bytes32,uint256,uint256,bytes32,bytes",
    "topUpWithPermit2": "bytes32,uint128,address,uint256,uint256,bytes",
    "close": "bytes32,uint128,bytes",
    "requestClose": "bytes32",
    "withdraw": "bytes32",
    "settleWithAuthorization": "bytes32,uint128,uint256,uint256,bytes,bytes",
    "closeWithAuthorization": "bytes32,uint128,uint256,uint256,bytes,bytes",
    "computeChannelId": "address,address,address,bytes32,address",
    "getChannel": "bytes32",
    "getVoucherDigest": "bytes32,uint128",
    "domainSeparator": "",
    "CLOSE_GRACE_PERIOD": "",
    "VOUCHER_TYPEHASH": "",
    "receiveWithAuthorization_bytes": "address,address,uint256,uint256,uint256,bytes32,bytes",
    "receiveWithAuthorization_vrs": (
        "address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32"
    ),
    "authorizationState": "address,bytes32",
    "permitWitnessTransferFrom": (
        "((address,uint256),uint256,uint256),(address,uint256),address,bytes32,string,bytes"
    ),
    "nonceBitmap": "address,uint256",
    "isValidSignature": "bytes32,bytes",
}
SELECTORS = CONSTANTS["selectors"] | CONSTANTS["externalSelectors"]


def selector(signature: str) -> str:
    return "0x" + keccak(signature.encode())[:4].hex()


@pytest.mark.parametrize("name", SELECTORS)
def test_golden_selectors_are_those_of_the_drafts_signatures(name: str) -> None:
    """CONTRACT table: functions of the escrow, of tokens, Permit2 and wallets."""
    function = name.removesuffix("_bytes").removesuffix("_vrs")  # marks of overloads
    assert selector(f"{function}({ARGUMENTS[name]})") == SELECTORS[name]


@pytest.mark.parametrize("name", CONSTANTS["errorSelectors"])
def test_golden_error_selectors(name: str) -> None:
    """CONTRACT-13."""
    assert selector(f"{name}()") == CONSTANTS["errorSelectors"][name]


def arguments_of(entry: Entry) -> list[Any]:
    """Return a call's arguments, from the entry itself or from the signed entry it names."""
    signed = {e["name"]: e for e in EVM["permit2Open"] + EVM["permit2TopUp"]}
    payees = {e["name"]: e for e in EVM["closeAuthorization"]}
    source = entry.get("from", "")
    if entry["function"] == "openWithPermit2":
        e = signed[source]
        terms = [e["payee"], e["token"], int(e["amount"]), hex32(e, "salt"), e["authorizedSigner"]]
        return [*terms, e["from"], int(e["nonce"]), int(e["deadline"]), bytes_of(e["signature"])]
    if entry["function"] == "topUpWithPermit2":
        e = signed[source]
        head = [hex32(e, "channelId"), int(e["amount"]), e["from"]]
        return [*head, int(e["nonce"]), int(e["deadline"]), bytes_of(e["signature"])]
    if entry["function"] == "closeWithAuthorization":
        e = payees[source]
        head = [hex32(e, "channelId"), int(e["cumulativeAmount"])]
        return [*head, int(e["nonce"]), int(e["deadline"]), bytes_of(e["signature"]), b""]
    if entry["function"] == "topUp":  # names an entry that the file leaves out
        top_up = entry_of(WIRE["credentials"], "topUp_hash")["payload"]
        return [hex32(top_up, "channelId"), int(top_up["additionalDeposit"])]
    return [value_of(argument) for argument in entry["args"]]


def bytes_of(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def value_of(argument: str) -> object:
    """Return an argument of a call: decimal, address or bytes."""
    if not argument.startswith("0x"):
        return int(argument)
    return argument if len(argument) == 42 else bytes_of(argument)


@pytest.mark.parametrize("entry", EVM["calldata"], ids=name_of)
def test_golden_calls_are_the_abi_encoding_of_their_arguments(entry: Entry) -> None:
    """CONTRACT table, RELAY-01, RELAY-02, OPEN-06, TOPUP-04, CLOSE-07."""
    types = ARGUMENTS[entry["function"]].split(",")
    call = bytes_of(CONSTANTS["selectors"][entry["function"]]) + encode(types, arguments_of(entry))
    assert "0x" + call.hex() == entry["data"]


def test_every_list_of_the_vectors_has_its_tests() -> None:
    """A list added to the vectors fails here until a test reads it."""
    assert {name for name, value in EVM.items() if isinstance(value, list)} == {
        "channelId",
        "voucher",
        "eip3009Open",
        "eip3009TopUp",
        "permit2Open",
        "permit2TopUp",
        "settleAuthorization",
        "closeAuthorization",
        "voucherNegative",
        "calldata",
    }
    assert {name for name, value in WIRE.items() if isinstance(value, list)} == {
        "challenges",
        "credentials",
        "receipts",
        "sse",
        "multi",
    }


def addresses_in(value: object) -> list[str]:
    if isinstance(value, dict):
        return [a for inner in value.values() for a in addresses_in(inner)]
    if isinstance(value, list):
        return [a for inner in value for a in addresses_in(inner)]
    is_address = isinstance(value, str) and len(value) == 42 and value.startswith("0x")
    return [str(value)] if is_address else []


def test_every_address_of_the_vectors_carries_its_checksum() -> None:
    """ENC-01: EIP-55, as another implementation writes it."""
    found = addresses_in({n: v for n, v in EVM.items() if n != "calldata"})
    assert len(found) > 100
    assert [a for a in found if format_checksum_address(parse_address(a)) != a] == []


def test_the_bounds_in_the_vectors_are_ours() -> None:
    """ENC-04, ENC-06."""
    order = parse_hex(CONSTANTS["secp256k1_n"], 32)
    half = parse_hex(CONSTANTS["secp256k1_half_n"], 32)
    assert int.from_bytes(half, "big") == int.from_bytes(order, "big") // 2
    assert CONSTANTS["uint128_max"] == str(2**128 - 1)
