"""The committed artifacts name everything the draft names, bit for bit."""

import json
from pathlib import Path

import pytest

from channel.verify.typed_data import keccak
from local_chain import abi_type, signature
from settlement.artifacts import ContractName, load_artifact

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "evm_session.json").read_text(encoding="utf-8")
)
CONSTANTS = VECTORS["constants"]
EVENTS = {
    "ChannelOpened(bytes32,address,address,address,address,bytes32,uint256)",
    "TopUp(bytes32,address,address,uint256,uint256)",
    "Settled(bytes32,address,address,uint256,uint256,uint256)",
    "CloseRequested(bytes32,address,address,uint256)",
    "CloseRequestCancelled(bytes32,address,address)",
    "ChannelClosed(bytes32,address,address,uint256,uint256)",
}


def signatures(name: ContractName, kind: str) -> dict[str, str]:
    """Canonical signature of each entry of one kind, by selector."""
    found = [signature(entry) for entry in load_artifact(name).abi if entry["type"] == kind]
    return {"0x" + keccak(text.encode())[:4].hex(): text for text in found}


@pytest.mark.parametrize(("name", "selector"), CONSTANTS["selectors"].items())
def test_every_function_of_the_draft_has_its_selector(name: str, selector: str) -> None:
    """CONTRACT-01 to 10, CONTRACT-14, RELAY-01: selectors are the draft's."""
    assert signatures("SessionEscrow", "function")[selector].startswith(f"{name}(")


@pytest.mark.parametrize(("name", "selector"), CONSTANTS["errorSelectors"].items())
def test_every_error_of_the_draft_has_its_selector(name: str, selector: str) -> None:
    """CONTRACT-13: error selectors are the draft's."""
    assert signatures("SessionEscrow", "error")[selector] == f"{name}()"


def test_every_event_has_the_deployed_shape() -> None:
    """CONTRACT-14: events as deployed for tempo v1, three indexed ids first."""
    found = set(signatures("SessionEscrow", "event").values())
    assert found >= EVENTS
    names = {event.split("(")[0] for event in EVENTS}
    for entry in load_artifact("SessionEscrow").abi:
        if entry["type"] == "event" and entry["name"] in names:
            indexed = [part["name"] for part in entry["inputs"] if part["indexed"]]
            assert indexed == ["channelId", "payer", "payee"]


def test_get_channel_returns_the_fields_in_the_deployed_order() -> None:
    """AMB-18: finalized, closeRequestedAt, payer, payee, token, signer, deposit, settled."""
    (entry,) = [e for e in load_artifact("SessionEscrow").abi if e.get("name") == "getChannel"]
    assert abi_type(entry["outputs"][0]) == (
        "(bool,uint64,address,address,address,address,uint128,uint128)"
    )


def test_the_dollar_has_both_overloads_of_eip_3009() -> None:
    """RELAY-06: the token offers the bytes overload; the v, r, s one is there for wallets."""
    functions = signatures("DevUSD", "function")
    external = CONSTANTS["externalSelectors"]
    assert external["receiveWithAuthorization_bytes"] in functions
    assert external["receiveWithAuthorization_vrs"] in functions
    assert external["authorizationState"] in functions


def test_code_matches_only_itself() -> None:
    """Code read from a chain is compared byte for byte, immutables apart."""
    artifact = load_artifact("SessionEscrow")
    filled = bytearray(artifact.deployed_bytecode)
    for start, length in artifact.immutables:
        filled[start : start + length] = b"\x11" * length
    assert artifact.matches(bytes(filled))
    filled[0] ^= 1
    assert not artifact.matches(bytes(filled))
    assert not artifact.matches(b"")


def test_the_escrow_and_its_factory_fit_the_code_size_limit() -> None:
    """EIP-170: 24,576 bytes."""
    assert len(load_artifact("SessionEscrow").deployed_bytecode) <= 24_576
    assert len(load_artifact("EscrowFactory").deployed_bytecode) <= 24_576
