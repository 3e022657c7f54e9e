#!/usr/bin/env python3
"""What each part of reading and verifying a voucher costs, as ratios to raw verification.

    python scripts/bench_parts.py

1.00 is libsecp256k1 verifying one signature with a parsed key. Each figure is the best of many
short runs over different vouchers: short to find a quiet moment of a busy machine, different so
that the processor learns nothing by heart.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import msgspec
from coincurve import PrivateKey
from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found]
from coincurve.context import GLOBAL_CONTEXT

from channel.types import Address, ChannelId, ChannelKey, SignedVoucher
from channel.verify.challenge_id import ChallengeBinder
from channel.verify.signature import address_of, recover, sign
from channel.verify.typed_data import voucher_digest
from channel.verify.voucher import verify_voucher
from channel.wire.challenge import (
    Challenge,
    SessionRequest,
    format_opaque,
    format_session_request,
    parse_session_request,
)
from channel.wire.credential import (
    Credential,
    format_credential,
    parse_credential,
    select_credential,
)
from channel.wire.encoding import parse_timestamp
from channel.wire.payload import VoucherPayload
from channel.wire.receipt import Receipt, format_receipt

T = TypeVar("T")
ROUNDS = 20
VOUCHERS = 500
IN_A_RUN = 50
SECRET = secrets.token_bytes(32)
SIGNER = address_of(SECRET)
ESCROW = Address(secrets.token_bytes(20))
KEY = ChannelKey(8453, ESCROW, ChannelId(secrets.token_bytes(32)))
BINDER = ChallengeBinder([secrets.token_bytes(32)])


def best_us(work: Callable[[T], object], items: Sequence[T]) -> float:
    """Return the best run's time per item."""
    times = []
    for start in list(range(0, len(items), IN_A_RUN)) * ROUNDS:
        run = items[start : start + IN_A_RUN]
        began = time.perf_counter()
        for item in run:
            work(item)
        times.append((time.perf_counter() - began) / len(run) * 1e6)
    return min(times)


def make_challenge() -> Challenge:
    """Return a challenge as a gate issues it."""
    terms = SessionRequest(
        unit_price=25,
        currency=ESCROW,
        recipient=ESCROW,
        chain_id=8453,
        escrow=ESCROW,
        unit_type="llm_token",
        suggested_deposit=5_000_000,
        min_voucher_delta=10_000,
    )
    slots = {
        "realm": "api.example.com",
        "method": "evm",
        "intent": "session",
        "request": format_session_request(terms),
        "expires": "2026-04-01T12:05:00Z",
        "opaque": format_opaque({"nonce": secrets.token_hex(16), "route": "/v1/chat"}),
    }
    return Challenge(id=BINDER.bind(**slots), **slots)


def verify_raw(item: tuple[bytes, object, object]) -> object:
    """Verify with a parsed key and a parsed signature; `v` is not looked at."""
    digest, signature, key = item
    return lib.secp256k1_ecdsa_verify(GLOBAL_CONTEXT.ctx, signature, digest, key)


def main() -> None:
    """Print a line a part."""
    challenge = make_challenge()
    digests = [voucher_digest(KEY, amount) for amount in range(VOUCHERS)]
    vouchers = [
        SignedVoucher(KEY.channel_id, amount, sign(SECRET, digest))
        for amount, digest in enumerate(digests)
    ]
    headers = [format_credential(Credential(challenge, VoucherPayload(v))) for v in vouchers]
    echoes = [parse_credential(header).challenge for header in headers]
    unseen = msgspec.structs.replace(challenge, description="")  # which is never remembered
    public = PrivateKey(SECRET).public_key.public_key
    parsed = []
    for voucher in vouchers:
        parsed.append(ffi.new("secp256k1_ecdsa_signature *"))
        lib.secp256k1_ecdsa_signature_parse_compact(
            GLOBAL_CONTEXT.ctx, parsed[-1], voucher.signature[:64]
        )
    receipt = Receipt(
        challenge_id=challenge.id,
        channel_id=KEY.channel_id,
        chain_id=KEY.chain_id,
        accepted=250_000,
        spent=237_500,
        timestamp=1_775_045_100.5,
        units=500,
    )
    remembering = lru_cache(maxsize=100)(lambda voucher: verify_voucher(voucher, KEY, SIGNER))

    def through(header: str) -> str:
        selected = select_credential([header])
        credential = parse_credential(selected or "")
        echo, payload = credential.challenge, credential.payload
        if not BINDER.is_bound(echo) or parse_timestamp(echo.expires) < 0:
            raise SystemExit("the challenge is not ours")
        parse_session_request(echo.request)
        if isinstance(payload, VoucherPayload):
            verify_voucher(payload.voucher, KEY, SIGNER)
        return format_receipt(receipt)

    unit = best_us(verify_raw, list(zip(digests, parsed, [public] * VOUCHERS, strict=True)))
    print(f"raw verification with a cached key: {unit:.1f} us = 1.00")
    parts: list[tuple[str, float]] = [
        ("select and parse the credential", best_us(parse_credential, headers)),
        ("challenge id, seen for the first time", best_us(BINDER.is_bound, [unseen] * VOUCHERS)),
        ("challenge id, seen before", best_us(BINDER.is_bound, echoes)),
        ("EIP-712 digest", best_us(lambda n: voucher_digest(KEY, n), range(VOUCHERS))),
        (
            "recover the signer, v included",
            best_us(
                lambda pair: recover(*pair),
                [(d, v.signature) for d, v in zip(digests, vouchers, strict=True)],
            ),
        ),
        ("digest and recover", best_us(lambda v: verify_voucher(v, KEY, SIGNER), vouchers)),
        ("the same, with a memory that misses", best_us(remembering, vouchers)),
        ("receipt header", best_us(format_receipt, [receipt] * VOUCHERS)),
        ("header in, receipt out, no books", best_us(through, headers)),
    ]
    for what, us in parts:
        print(f"{what:38}{us:7.2f} us  {us / unit:5.2f}")


if __name__ == "__main__":
    main()
