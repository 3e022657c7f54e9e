"""Delayed refusals: only the sender of a flood waits."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from channel.errors import (
    ChallengeNotFoundError,
    InsufficientBalanceError,
    InvalidSignatureError,
    LedgerUnavailableError,
    MalformedCredentialError,
    PaymentRequiredError,
    ProblemError,
    SignerMismatchError,
    TooManyRequestsError,
)
from channel.http import PaymentGate
from channel.http.tarpit import Tarpit
from channel.limits import BAD_CREDENTIALS_PER_SECOND_MAX, UNPAID_PER_SECOND_MAX
from channel.types import SignedVoucher
from channel.wire.credential import format_credential
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.http.test_middleware import ROUTES, App
from tests.channel.selling import PRICE, Clock, Visit, ask, open_provider
from tests.waiting import PATIENCE_S, put_ahead

SCOPE: dict[str, Any] = {"client": ("203.0.113.1", 50000)}
OTHER: dict[str, Any] = {"client": ("203.0.113.2", 50000)}
BROKE = InsufficientBalanceError(required_cumulative=1, accepted=0, spent=0, deposit=0)


async def is_late(tarpit: Tarpit, refusal: ProblemError, scope: dict[str, Any] = SCOPE) -> bool:
    waiting = asyncio.ensure_future(tarpit.wait(refusal, scope))
    await asyncio.sleep(0)
    done = waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})
    return not done


async def test_the_payer_is_served_immediately_while_forgers_wait() -> None:
    """F-99: a forgery's refusal comes late beyond a rate, from one address, and no other's."""
    clock = Clock()
    tarpit = Tarpit(clock)
    forged = SignerMismatchError("Another key signed it.")
    kinds = [await is_late(tarpit, forged) for _ in range(BAD_CREDENTIALS_PER_SECOND_MAX + 5)]
    assert kinds == [False] * BAD_CREDENTIALS_PER_SECOND_MAX + [True] * 5
    assert await is_late(tarpit, InvalidSignatureError("r"))
    assert await is_late(tarpit, MalformedCredentialError("?"))
    assert not await is_late(tarpit, forged, OTHER)
    assert not await is_late(tarpit, forged, {"client": None})
    clock.advance(1)
    assert not await is_late(tarpit, forged)


async def test_first_offers_come_late_beyond_a_rate_from_one_address() -> None:
    """O-22: a client can ask for prices without end and without paying."""
    clock = Clock()
    tarpit = Tarpit(clock)
    unpaid = PaymentRequiredError("This resource must be paid for.")
    kinds = [await is_late(tarpit, unpaid) for _ in range(UNPAID_PER_SECOND_MAX + 1)]
    assert kinds == [False] * UNPAID_PER_SECOND_MAX + [True]
    assert not await is_late(tarpit, unpaid, OTHER)
    assert not await is_late(tarpit, SignerMismatchError("Another key signed it."))


@pytest.mark.parametrize(
    "refusal",
    [BROKE, ChallengeNotFoundError("expired"), LedgerUnavailableError("disk")],
    ids=["too little paid", "expired", "our fault"],
)
async def test_errors_of_honest_payers_are_answered_immediately(refusal: ProblemError) -> None:
    """At any rate: the error is not their fault, or the next request corrects it."""
    tarpit = Tarpit(Clock())
    assert not any([await is_late(tarpit, refusal) for _ in range(50)])


async def test_a_rate_that_was_passed_is_said_late() -> None:
    """VCH-09: a client over its rate is not invited to send the next immediately."""
    assert await is_late(Tarpit(Clock()), TooManyRequestsError("slow down"))


async def test_so_many_wait_and_no_more() -> None:
    """F-100: requests beyond are answered immediately, and places are free after the wait."""
    tarpit = Tarpit(Clock(), delay_s=0.01, waiting_max=3)
    refusal = TooManyRequestsError("slow down")
    waiting = [asyncio.ensure_future(tarpit.wait(refusal, SCOPE)) for _ in range(5)]
    await asyncio.sleep(0)
    assert [one.done() for one in waiting] == [False, False, False, True, True]
    await asyncio.gather(*waiting)
    assert await is_late(tarpit, refusal)


async def test_a_flood_of_forgeries_does_not_keep_the_payer_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-99, VCH-09: same channel, same address, and the payer's voucher is taken meanwhile."""
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        gate = PaymentGate(App(), engine=provider.engine, routes=ROUTES)
        gate.tarpit = Tarpit(provider.engine.now, delay_s=PATIENCE_S)  # however busy the machine
        challenge = (await ask(gate, "GET", "/paid")).challenge
        opening = provider.payer.credential(challenge, provider.payer.opening())
        assert (await ask(gate, "HEAD", "/paid", opening)).status == 200
        forged = VoucherPayload(SignedVoucher(provider.payer.key.channel_id, PRICE, bytes(65)))
        headers = {"authorization": format_credential(provider.payer.credential(challenge, forged))}
        flood = [Visit(gate, "GET", "/paid", headers=headers) for _ in range(40)]
        paid = provider.payer.credential(challenge, provider.payer.voucher(PRICE))
        assert (await ask(gate, "GET", "/paid", paid)).status == 200
        assert sum(not visit.sent for visit in flood) >= 20
        put_ahead(PATIENCE_S, monkeypatch)
        refused = [await visit.answer() for visit in flood]
        assert {answer.status for answer in refused} == {402}  # no wallet is asked about them
