"""Views and constants, against the draft's golden data where there is any."""

import json
from pathlib import Path
from typing import Any

import pytest

from channel.verify.typed_data import keccak
from local_chain import ZERO_ADDRESS, Chain, Contract
from settlement.artifacts import load_artifact
from tests.settlement.contracts.world import DEPOSIT, ChannelView, World

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "evm_session.json").read_text(encoding="utf-8")
)


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def test_get_channels_returns_many_in_order(world: World) -> None:
    """AMB-18: as getChannel, unknown ones all zero."""
    ids = [world.open(salt=1), b"\x01" * 32, world.open(salt=2, signer=world.signer.address)]
    found = [ChannelView(*fields) for fields in world.escrow.call("getChannels", ids)]
    assert found == [world.channel(channel_id) for channel_id in ids]
    assert found[1] == (False, 0, ZERO_ADDRESS, ZERO_ADDRESS, ZERO_ADDRESS, ZERO_ADDRESS, 0, 0)
    assert found[2].authorized_signer == world.signer.address
    assert world.escrow.call("getChannels", []) == ()


def test_the_constants_are_what_the_engine_expects(world: World) -> None:
    """CONTRACT-07, CONTRACT-14."""
    constants = VECTORS["constants"]
    assert world.escrow.call("VOUCHER_TYPEHASH") == unhex(constants["typeHashes"]["Voucher"])
    assert world.escrow.call("PERMIT2") == constants["permit2"].lower()
    assert world.escrow.call("TOKEN") == world.token.address
    assert world.escrow.call("DEPOSIT_MAX") == 2**88 - 1
    assert world.escrow.call("CLOSE_GRACE_PERIOD") == 900


def test_the_domain_names_itself(world: World) -> None:
    """CONTRACT-14: EIP-5267, and the separator derived from it."""
    fields, name, version, chain_id, place, salt, extensions = world.escrow.call("eip712Domain")
    assert (fields, name, version) == (b"\x0f", "EVM Payment Channel", "1")
    assert (chain_id, place) == (world.chain.chain_id, world.escrow.address)
    assert (salt, extensions) == (bytes(32), ())


@pytest.mark.parametrize("vector", VECTORS["voucher"], ids=lambda v: v["name"])
def test_the_contract_agrees_with_the_golden_vouchers(
    chain: Chain, world: World, vector: dict[str, Any]
) -> None:
    """CONTRACT-08: at the vector's address and chain id, same separator, digest and verdict."""
    chain_id, place = chain.chain_id, vector["escrow"]
    try:
        chain.rpc("anvil_setChainId", vector["chainId"])
        chain.rpc("anvil_setCode", place, "0x" + chain.code(world.escrow.address).hex())
        escrow = Contract(chain, place, load_artifact("SessionEscrow").abi)
        assert escrow.call("domainSeparator") == unhex(vector["domainSeparator"])
        channel_id, amount = unhex(vector["channelId"]), int(vector["cumulativeAmount"])
        digest = escrow.call("getVoucherDigest", channel_id, amount)
        assert digest == unhex(vector["digest"])
        signature = unhex(vector["signature"])
        assert escrow.call("isValidVoucherSigner", vector["signer"], digest, signature)
    finally:
        chain.rpc("anvil_setChainId", chain_id)


@pytest.mark.parametrize("vector", VECTORS["channelId"], ids=lambda v: v["name"])
def test_the_contract_agrees_with_the_golden_channel_ids(
    chain: Chain, world: World, vector: dict[str, Any]
) -> None:
    """CONTRACT-01: at the vector's address and chain id."""
    chain_id = chain.chain_id
    try:
        chain.rpc("anvil_setChainId", vector["chainId"])
        chain.rpc("anvil_setCode", vector["escrow"], "0x" + chain.code(world.escrow.address).hex())
        escrow = Contract(chain, vector["escrow"], load_artifact("SessionEscrow").abi)
        terms = [vector[name] for name in ("payer", "payee", "token")]
        terms += [unhex(vector["salt"]), vector["authorizedSigner"]]
        assert escrow.call("computeChannelId", *terms) == unhex(vector["channelId"])
    finally:
        chain.rpc("anvil_setChainId", chain_id)


def test_the_domain_follows_a_fork_of_the_chain(chain: Chain, world: World) -> None:
    """CONTRACT-08, SEC-03: after a chain split the separator is the new chain's."""
    before = world.escrow.call("domainSeparator")
    chain_id = chain.chain_id
    try:
        chain.rpc("anvil_setChainId", 99)
        assert world.escrow.call("domainSeparator") != before
    finally:
        chain.rpc("anvil_setChainId", chain_id)
    assert world.escrow.call("domainSeparator") == before


@pytest.mark.parametrize("call", VECTORS["calldata"], ids=lambda c: c["function"])
def test_the_golden_calldata_is_ours(world: World, call: dict[str, Any]) -> None:
    """CONTRACT-01 to 10: the abi encodes the worked examples to the same bytes."""
    selector = unhex(call["data"])[:4]
    signatures = {
        keccak(f"{entry['name']}({','.join(p['type'] for p in entry['inputs'])})".encode())[:4]
        for entry in load_artifact("SessionEscrow").abi
        if entry["type"] == "function"
    }
    assert selector in signatures
    if call["function"] == "open":
        payee, token, deposit, salt, signer = call["args"]
        data = world.escrow.encode("open", payee, token, int(deposit), unhex(salt), signer)
        assert data == unhex(call["data"])
    assert DEPOSIT
