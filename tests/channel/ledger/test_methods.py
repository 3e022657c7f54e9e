"""Two payment methods in one ledger: what one does never shows in the channels of the other."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from channel.ledger.interface import Ledger
from channel.methods.registry import METHODS
from channel.state.commands import AcceptVoucher, OpenChannel
from channel.types import ZERO_ADDRESS, Address, ChannelId, ChannelKey, SignedVoucher
from channel.verify.signature import address_of, sign
from tests.channel.books import fact

SECRET = b"\x11" * 32
STEPS = st.lists(
    st.tuples(st.integers(0, len(METHODS) - 1), st.integers(0, 1), st.integers(1, 900)),
    max_size=12,
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, name=st.binary(min_size=32, max_size=32))
async def test_channels_of_two_methods_and_chains_stay_apart(
    ledger: Ledger, steps: list[tuple[int, int, int]], name: bytes
) -> None:
    """Decision 13: one channel id in the escrows of all methods, on two chains."""
    payer = address_of(SECRET)
    accepted: dict[ChannelKey, int] = {}
    escrows = [Address(bytes([0xE0 + number]) * 20) for number in range(len(METHODS))]
    keys = {
        (number, chain): ChannelKey(7 + chain, escrow, ChannelId(name))
        for number, escrow in enumerate(escrows)
        for chain in range(2)
    }

    async def pay(number: int, chain: int, amount: int) -> None:
        method, key = METHODS[number], keys[number, chain]
        digest = method.voucher_digest(key, amount)
        voucher = SignedVoucher(key.channel_id, amount, sign(SECRET, digest))
        verified = method.verify_voucher(voucher, key, payer)
        if key in accepted:
            command: AcceptVoucher | OpenChannel = AcceptVoucher(verified, 0, 1)
        else:
            terms = replace(fact().terms, payer=payer, authorized_signer=ZERO_ADDRESS)
            opened = replace(fact(), key=key, terms=terms, deposit=1_000, settled=0)
            command = OpenChannel(opened, verified, 1)
        (await ledger.apply(key, [command])).require()
        accepted[key] = max(amount, accepted.get(key, 0))

    for step in steps:
        await pay(*step)
    for key in keys.values():
        state = await ledger.load(key)
        assert (None if state is None else state.accepted) == accepted.get(key)
