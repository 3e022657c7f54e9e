"""A key signs what it is given, and never shows itself."""

import copy
import json
import pickle
from pathlib import Path

import pytest

from channel.client.funding.signer import LocalSigner
from channel.methods.evm.method import EVM
from channel.types import Address, ChannelId, ChannelKey
from channel.verify.signature import recover, sign
from tests.channel.client.provider import PAYER, PAYER_KEY

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "evm_session.json").read_text())[
    "voucher"
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
async def test_signatures_are_canonical_and_never_the_same_twice(vector: dict[str, str]) -> None:
    """ENC-06, O-21: without entropy what another implementation makes; a signer adds entropy."""
    private_key = bytes.fromhex(vector["privateKey"][2:])
    signer = LocalSigner(private_key)
    key = ChannelKey(
        int(vector["chainId"]),
        Address(bytes.fromhex(vector["escrow"][2:])),
        ChannelId(bytes.fromhex(vector["channelId"][2:])),
    )
    digest = EVM.voucher_digest(key, int(vector["cumulativeAmount"]))
    assert "0x" + sign(private_key, digest).hex() == vector["signature"]
    made = {await signer.sign(digest) for _ in range(3)}
    assert len(made) == 3
    assert {recover(digest, signature) for signature in made} == {signer.address}
    assert "0x" + signer.address.hex() == vector["signer"].lower()


def test_a_signer_never_prints_its_key() -> None:
    """F-103."""
    signer = LocalSigner(PAYER_KEY)
    assert PAYER_KEY.hex() not in f"{signer!r} {signer}"
    assert PAYER.hex() in repr(signer)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_signer_is_not_copied(copied: object) -> None:
    with pytest.raises(TypeError):
        copied(LocalSigner(PAYER_KEY))  # type: ignore[operator]


@pytest.mark.parametrize("key", [b"", b"\x01" * 31, bytes(32), b"\xff" * 32])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        LocalSigner(key)
