"""A key for each channel: the same one again for the same salt, and never shown."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.client.funding.keys import ChannelKeys, OneKey
from channel.client.funding.signer import LocalSigner
from channel.verify.signature import recover

SECRET = b"\x05" * 32
salts = st.binary(min_size=32, max_size=32)


@given(salts, salts)
def test_each_channel_has_a_key_of_its_own_and_keeps_it(one: bytes, other: bytes) -> None:
    """CLIENT-11: after a restart, too, for the key follows from secret and salt."""
    keys, restarted = ChannelKeys(SECRET), ChannelKeys(SECRET)
    assert keys.signer(one).address == restarted.signer(one).address
    assert (keys.signer(one).address == keys.signer(other).address) == (one == other)
    assert keys.signer(one).address != ChannelKeys(b"\x06" * 32).signer(one).address


async def test_a_channels_key_signs_for_its_address() -> None:
    signer = ChannelKeys(SECRET).signer(bytes(32))
    digest = b"\x07" * 32
    assert recover(digest, await signer.sign(digest)) == signer.address


def test_one_key_serves_every_channel() -> None:
    signer = LocalSigner(SECRET)
    assert OneKey(signer).signer(bytes(32)) is OneKey(signer).signer(SECRET) is signer


@pytest.mark.parametrize("spell", [repr, str])
def test_the_secret_is_never_printed(spell: object) -> None:
    """F-103."""
    assert spell(ChannelKeys(SECRET)) == "ChannelKeys(...)"  # type: ignore[operator]


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_the_secret_is_not_copied(copied: object) -> None:
    with pytest.raises(TypeError):
        copied(ChannelKeys(SECRET))  # type: ignore[operator]


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        ChannelKeys(SECRET[:31])
