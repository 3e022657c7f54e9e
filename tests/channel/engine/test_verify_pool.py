"""Many vouchers concurrently on several cores: each caller gets the answer to its own."""

import asyncio
from collections.abc import Iterator

import pytest

from channel.engine import verify_pool
from channel.engine.verify_pool import VerifyPool
from channel.errors import InvalidSignatureError, SignerMismatchError
from channel.methods.evm.method import EVM
from channel.types import Address, ChannelId, ChannelKey, SignedVoucher, VerifiedVoucher
from channel.verify.signature import address_of, sign

PRIVATE_KEY = b"\x11" * 32
SIGNER = address_of(PRIVATE_KEY)
KEY = ChannelKey(31337, Address(b"\xe5" * 20), ChannelId(b"\x0c" * 32))


def voucher(amount: int, *, signed_amount: int | None = None) -> SignedVoucher:
    """Return a voucher; a signature over another amount recovers another signer."""
    digest = EVM.voucher_digest(KEY, amount if signed_amount is None else signed_amount)
    return SignedVoucher(KEY.channel_id, amount, sign(PRIVATE_KEY, digest))


@pytest.fixture(params=[1, 2, 4], ids="{} threads".format)
def verifier(request: pytest.FixtureRequest) -> Iterator[VerifyPool]:
    made = VerifyPool(request.param, EVM.escrow.domain)
    yield made
    made.close()


async def ask_for(
    verifier: VerifyPool, vouchers: list[SignedVoucher]
) -> list[VerifiedVoucher | BaseException]:
    calls = [verifier.verify(one, KEY, SIGNER) for one in vouchers]
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_each_of_many_gets_its_own_answer_turn_after_turn(
    verifier: VerifyPool,
) -> None:
    """VCH-02, F-14: good, forged and malformed ones mixed, in crowds and alone."""
    amount = 0
    for crowd in (1, 40, 200, 3, 9, 1, 64):
        asked: list[SignedVoucher] = []
        expected: list[type] = []
        for _ in range(crowd):
            amount += 1
            if amount % 5 == 0:
                asked.append(voucher(amount, signed_amount=amount + 1))
                expected.append(SignerMismatchError)
            elif amount % 7 == 0:
                asked.append(SignedVoucher(KEY.channel_id, amount, bytes(65)))
                expected.append(InvalidSignatureError)
            else:
                asked.append(voucher(amount))
                expected.append(VerifiedVoucher)
        answers = await ask_for(verifier, asked)
        assert [type(answer) for answer in answers] == expected
        for one, answer in zip(asked, answers, strict=True):
            if isinstance(answer, VerifiedVoucher):
                assert answer == VerifiedVoucher(KEY, one.cumulative_amount, one.signature)


async def test_a_cancelled_caller_harms_no_other(verifier: VerifyPool) -> None:
    await ask_for(verifier, [voucher(amount) for amount in range(1, 30)])  # a crowd
    calls = [asyncio.ensure_future(verifier.verify(voucher(n), KEY, SIGNER)) for n in range(1, 40)]
    await asyncio.sleep(0)
    calls[3].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    others = [answer for number, answer in enumerate(answers) if number != 3]
    assert all(isinstance(answer, VerifiedVoucher) for answer in others)


async def test_the_loop_does_not_wait_for_a_helper_that_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A helper without a processor delays those it holds, not the event loop."""
    monkeypatch.setattr(verify_pool, "_LAST_ONE_S", 0)
    verifier = VerifyPool(2, EVM.escrow.domain)
    for _ in range(20):
        answers = await ask_for(verifier, [voucher(amount) for amount in range(1, 65)])
        assert all(isinstance(answer, VerifiedVoucher) for answer in answers)
    verifier.close()


async def test_after_the_end_the_loop_verifies_alone(verifier: VerifyPool) -> None:
    crowd = [voucher(amount) for amount in range(1, 30)]
    await ask_for(verifier, crowd)
    waiting = asyncio.ensure_future(ask_for(verifier, crowd))
    await asyncio.sleep(0)
    verifier.close()
    assert all(isinstance(answer, VerifiedVoucher) for answer in await waiting)
    assert all(isinstance(one, VerifiedVoucher) for one in await ask_for(verifier, crowd))
