"""What can be promised is asked of the chain: nothing is believed by name."""

import pytest

from channel.errors import ConfigError
from settlement.abi import Function
from settlement.addresses import PERMIT2
from settlement.dev.devnet import MULTICALL3, Devnet
from settlement.escrow.reader import EscrowReader
from settlement.sponsor.capabilities import Capabilities, probe

PAUSE = Function("pause()")
BLACKLIST = Function("blacklist(address)")
SWALLOWS = "0x60206000f3"  # returns a word of zeros to every call
REVERTS = "0x60006000fd"  # refuses every call


async def found(chain: Devnet, reader: EscrowReader) -> Capabilities:
    return await probe(reader, chain.values.token)


async def put_code(chain: Devnet, place: bytes, code: str) -> None:
    await chain.rpc.command("anvil_setCode", "0x" + place.hex(), code)


async def test_everything_works_on_a_devnet(chain: Devnet, reader: EscrowReader) -> None:
    """CHAL-04, F-21: the domain is the token's own word."""
    capabilities = await found(chain, reader)
    assert capabilities.able == ("authorization", "permit2")
    assert len(capabilities.token_domain) == 32
    assert capabilities.require(()) == ("authorization", "permit2")
    assert capabilities.require(("permit2",)) == ("permit2",)


@pytest.mark.parametrize("what", ["pause", "blacklist"])
async def test_a_token_that_would_refuse_is_not_promised(
    chain: Devnet, reader: EscrowReader, what: str
) -> None:
    """F-88, decision 15: paused, or our escrow on its blacklist."""
    calldata = PAUSE.encode() if what == "pause" else BLACKLIST.encode(reader.escrow)
    await chain.deployer.send(chain.values.token, calldata)
    capabilities = await found(chain, reader)
    assert "authorization" not in capabilities.able
    with pytest.raises(ConfigError, match="promises authorization"):
        capabilities.require(("authorization",))


async def test_a_token_without_the_overload_is_found_out(
    chain: Devnet, reader: EscrowReader
) -> None:
    """F-88: a domain and no standard `receiveWithAuthorization`: bridged dollars."""
    permit2 = "0x" + (await chain.rpc.code(PERMIT2)).hex()
    await put_code(chain, chain.values.token, permit2)
    capabilities = await found(chain, reader)
    assert capabilities.able == ("permit2",)
    assert "does not take" in capabilities.obstacles["authorization"]
    assert capabilities.require(()) == ("permit2",)


async def test_a_token_without_a_domain_is_found_out(chain: Devnet, reader: EscrowReader) -> None:
    """F-21."""
    await put_code(chain, chain.values.token, "0x" + (await chain.rpc.code(MULTICALL3)).hex())
    assert "no DOMAIN_SEPARATOR" in (await found(chain, reader)).obstacles["authorization"]


async def test_a_contract_that_takes_everything_is_found_out(
    chain: Devnet, reader: EscrowReader
) -> None:
    """F-88: like a wrapped coin whose fallback succeeds: unsigned calls pass, too."""
    await put_code(chain, chain.values.token, SWALLOWS)
    capabilities = await found(chain, reader)
    assert "with an invalid signature" in capabilities.obstacles["authorization"]
    await put_code(chain, reader.escrow, SWALLOWS)
    assert "escrow has no" in (await found(chain, reader)).obstacles["permit2"]


@pytest.mark.parametrize("code", ["0x", SWALLOWS, REVERTS])
async def test_permit2_must_be_what_it_is(chain: Devnet, reader: EscrowReader, code: str) -> None:
    """CHAL-04, F-90: code at its place that signs as it does."""
    await put_code(chain, PERMIT2, code)
    capabilities = await found(chain, reader)
    assert capabilities.able == ("authorization",)
    with pytest.raises(ConfigError, match="promises permit2"):
        capabilities.require(("authorization", "permit2"))


async def test_nothing_that_works_is_nothing_to_promise(
    chain: Devnet, reader: EscrowReader
) -> None:
    """CHAL-04: the message says why, for each way."""
    await put_code(chain, PERMIT2, "0x")
    await chain.deployer.send(chain.values.token, PAUSE.encode())
    with pytest.raises(ConfigError, match=r"authorization: .*permit2: "):
        (await found(chain, reader)).require(())
