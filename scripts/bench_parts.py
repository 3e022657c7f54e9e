"""The cost of each part of reading and verifying a voucher, as ratios to raw verification."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import eth_account
import msgspec
from eth_account.messages import encode_typed_data

from bench_samples import Row, Run, best_us, raw_us
from bench_world import (
    CHAIN_ID,
    ESCROW,
    PAYER,
    PAYER_KEY,
    PRICE,
    SECRET,
    MemoryLedger,
    World,
    key_of,
)
from channel.methods.evm.method import EVM
from channel.types import SignedVoucher
from channel.verify.challenge_id import ChallengeBinder
from channel.verify.signature import recover, sign
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    VoucherPayload,
)
from channel.wire.receipt import Receipt, format_receipt

__all__ = ["rows"]

VOUCHERS: Final = 500
KEY: Final = key_of(0)


def _eth_account(voucher: SignedVoucher) -> object:
    """Verify a voucher with eth_account, as its documentation shows."""
    message = encode_typed_data(
        {
            "name": "EVM Payment Channel",
            "version": "1",
            "chainId": CHAIN_ID,
            "verifyingContract": "0x" + ESCROW.hex(),
        },
        {
            "Voucher": [
                {"name": "channelId", "type": "bytes32"},
                {"name": "cumulativeAmount", "type": "uint128"},
            ]
        },
        {"channelId": voucher.channel_id, "cumulativeAmount": voucher.cumulative_amount},
    )
    signer = eth_account.Account.recover_message(message, signature=voucher.signature)
    if bytes.fromhex(signer[2:]) != PAYER:
        raise SystemExit("eth_account recovered another address")
    return signer


async def rows(run: Run) -> AsyncIterator[Row]:
    """Measure each part alone."""
    world = World(MemoryLedger())  # for its challenge
    challenge = world.challenge
    amounts = range(PRICE, PRICE * (VOUCHERS + 1), PRICE)
    digests = [EVM.voucher_digest(KEY, amount) for amount in amounts]
    vouchers = [
        SignedVoucher(KEY.channel_id, amount, sign(PAYER_KEY, digest))
        for amount, digest in zip(amounts, digests, strict=True)
    ]
    headers = [format_credential(Credential(challenge, VoucherPayload(v))) for v in vouchers]
    echoes = [EVM.parse_credential(header).challenge for header in headers]
    binder = ChallengeBinder([SECRET])
    unseen = msgspec.structs.replace(challenge, description="")  # which is never remembered
    receipt = Receipt(
        method=EVM.name,
        challenge_id=challenge.id,
        channel_id=KEY.channel_id,
        chain_id=CHAIN_ID,
        accepted=250_000,
        spent=237_500,
        timestamp=1_775_045_100.5,
        units=500,
    )
    signatures = [(d, v.signature) for d, v in zip(digests, vouchers, strict=True)]
    parts: list[tuple[str, Callable[[Any], object], Sequence[Any]]] = [
        ("read a credential's header", EVM.parse_credential, headers),
        ("challenge id, first time", binder.is_bound, [unseen] * VOUCHERS),
        ("challenge id, seen before", binder.is_bound, echoes),
        ("EIP-712 digest", lambda amount: EVM.voucher_digest(KEY, amount), amounts),
        ("recover the signer, v included", lambda pair: recover(*pair), signatures),
        (
            "verify a voucher: digest and signer",
            lambda v: EVM.verify_voucher(v, KEY, PAYER),
            vouchers,
        ),
        ("write a receipt's header", format_receipt, [receipt] * VOUCHERS),
        ("peer: eth_account, verify alone", _eth_account, vouchers[:100]),
    ]
    raws = [raw_us() for _ in range(run.repeats)]
    yield Row(
        name="raw verification, cached key", unit="us", samples=raws, ratios=[1.0] * len(raws)
    )
    for name, work, items in parts:
        taken = [(best_us(work, items, rounds=2), raw_us()) for _ in range(run.repeats)]
        yield Row.paired(name, taken)
