"""Each field of each signed deposit wrong in turn, with Circle's USDC and the real Permit2.

What is refused is refused before anything is sent: the payee's account has no transaction more.
"""

import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from channel.client.funding.signing import Window
from channel.limits import AMOUNT_MAX
from channel.methods.evm.method import EVM
from channel.types import Address
from channel.verify.signature import sign
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.abi import Function
from tests.e2e.selling import DEPOSIT, PRICE
from tests.e2e.sponsored import GaslessPayer, Sponsored, sponsor_deposits

OTHER = Address(b"\x77" * 20)
PAUSE = Function("pause()")
BLACKLIST = Function("blacklist(address)")
CANCEL = Function("cancelAuthorization(address,bytes32,bytes)")

Spoil = Callable[[GaslessPayer, str], Awaitable[Any]]


@pytest.fixture
async def sponsored(usdc: TestChain, tmp_path: Path) -> AsyncIterator[Sponsored]:
    async with usdc.connect() as chain, sponsor_deposits(chain, tmp_path) as running:
        yield running


async def prepare(sponsored: Sponsored, kind: str) -> None:
    if kind == "permit2":
        await sponsored.payer.approve_permit2()


def changed(**changes: Any) -> Spoil:
    """Fields of the authorization other than what was signed and claimed."""

    async def spoil(payer: GaslessPayer, kind: str) -> Any:
        payload = await payer.opening(PRICE, kind)
        return replace(payload, authorization=replace(payload.authorization, **changes))

    return spoil


def claimed(**changes: Any) -> Spoil:
    """Fields of the payload other than what was signed."""

    async def spoil(payer: GaslessPayer, kind: str) -> Any:
        return replace(await payer.opening(PRICE, kind), **changes)

    return spoil


def signed_for(**domain: Any) -> Spoil:
    """A good signature, under another domain or for another escrow."""

    async def spoil(payer: GaslessPayer, kind: str) -> Any:
        payer.token_domain = replace(payer.token_domain, **domain)
        payer.permit2_domain = replace(payer.permit2_domain, **domain)
        payload = await payer.opening(PRICE, kind)
        if kind == "authorization" and "taker" in domain:
            fixed = replace(payload.authorization, to=payer.chain.values.escrow)
            return replace(payload, authorization=fixed)
        return payload

    return spoil


def within(after_s: int, before_s: int) -> Spoil:
    """A validity window by the chain's clock."""

    async def spoil(payer: GaslessPayer, kind: str) -> Any:
        now = (await payer.chain.rpc.block()).timestamp
        window = Window(now + after_s, now + before_s)
        return await payer.opening(PRICE, kind, window=window)

    return spoil


async def by_a_stranger(payer: GaslessPayer, kind: str) -> Any:
    payload = await payer.opening(PRICE, kind)
    stranger = payer.chain.account("stranger").private_key
    return replace(payload, signature=sign(stranger, secrets.token_bytes(32)))


async def compact(payer: GaslessPayer, kind: str) -> Any:
    """EIP-2098, which Permit2 itself would take (AMB-07)."""
    payload = await payer.opening(PRICE, kind)
    r, s, v = payload.signature[:32], payload.signature[32:64], payload.signature[64]
    packed = (int.from_bytes(s) | (v - 27) << 255).to_bytes(32)
    return replace(payload, signature=r + packed)


async def voucher_by_a_stranger(payer: GaslessPayer, kind: str) -> Any:
    payload = await payer.opening(PRICE, kind)
    digest = EVM.voucher_digest(payer.key, PRICE)
    forged = sign(payer.chain.account("stranger").private_key, digest)
    return replace(payload, voucher=replace(payload.voucher, signature=forged))


async def voucher_above_the_deposit(payer: GaslessPayer, kind: str) -> Any:
    return await payer.opening(DEPOSIT + 1, kind)


async def dust(payer: GaslessPayer, kind: str) -> Any:
    return await payer.opening(PRICE, kind, amount=99)


async def more_than_there_is(payer: GaslessPayer, kind: str) -> Any:
    return await payer.opening(PRICE, kind, amount=10**9 + 1)


async def merged_with_a_bad_voucher(payer: GaslessPayer, kind: str) -> Any:
    payload = payer.voucher(PRICE, await payer.opening_deposit(kind))
    return replace(payload, voucher=replace(payload.voucher, cumulative_amount=PRICE + 1))


BOTH: dict[str, tuple[Spoil, int, str]] = {
    "from": (changed(funder=OTHER), 400, "malformed-credential"),
    "to another payee": (claimed(salt=bytes([9] * 32)), 400, "malformed-credential"),
    "signer": (claimed(authorized_signer=OTHER), 400, "malformed-credential"),
    "signature": (by_a_stranger, 402, "session/invalid-signature|session/signer-mismatch"),
    "compact": (compact, 402, "session/invalid-signature"),
    "domain": (signed_for(separator=bytes(32)), 402, "session/signer-mismatch"),
    "escrow": (signed_for(taker=OTHER), 402, "session/signer-mismatch"),
    "expired": (within(-100, -1), 402, "verification-failed"),
    "expires too soon": (within(-100, 59), 402, "verification-failed"),
    "voucher": (voucher_by_a_stranger, 402, "session/signer-mismatch"),
    "voucher above": (voucher_above_the_deposit, 402, "session/amount-exceeds-deposit"),
    "dust": (dust, 402, "deposit-too-small"),
    "balance": (more_than_there_is, 402, "session/insufficient-balance"),
    "merged voucher": (merged_with_a_bad_voucher, 402, "session/signer-mismatch"),
}
AUTHORIZATION: dict[str, tuple[Spoil, int, str]] = {
    "to": (changed(to=OTHER), 400, "malformed-credential"),
    "value": (changed(value=DEPOSIT + 1), 402, "session/signer-mismatch"),
    "validAfter": (changed(valid_after=1), 402, "session/signer-mismatch"),
    "validBefore": (changed(valid_before=2**40), 402, "session/signer-mismatch"),
    "nonce": (changed(nonce=bytes(32)), 400, "malformed-credential"),
    "not yet": (within(3600, 7200), 402, "verification-failed"),
}
PERMIT: dict[str, tuple[Spoil, int, str]] = {
    "token": (changed(token=OTHER), 400, "malformed-credential"),
    "amount": (changed(amount=DEPOSIT + 1), 402, "session/signer-mismatch"),
    "nonce": (changed(nonce=99), 402, "session/signer-mismatch"),
    "deadline": (changed(deadline=2**40), 402, "session/signer-mismatch"),
    "witness payee": (changed(payee=OTHER), 400, "malformed-credential"),
    "witness salt": (changed(salt=bytes([9] * 32)), 400, "malformed-credential"),
    "witness signer": (changed(authorized_signer=OTHER), 400, "malformed-credential"),
}


@pytest.mark.parametrize(("kind", "own"), [("authorization", AUTHORIZATION), ("permit2", PERMIT)])
async def test_an_opening_with_a_wrong_field_costs_no_gas(
    sponsored: Sponsored, kind: str, own: dict[str, tuple[Spoil, int, str]]
) -> None:
    """OPEN-05, OPEN-06, OPEN-07, OPEN-12, VCH-07, AMB-26, F-98: refused, no transaction sent."""
    await prepare(sponsored, kind)
    ether = await sponsored.ether()
    for name, (spoil, status, expected) in (BOTH | own).items():
        capabilities = (sponsored.payer.token_domain, sponsored.payer.permit2_domain)
        answer = await sponsored.provider.send(await spoil(sponsored.payer, kind))
        sponsored.payer.token_domain, sponsored.payer.permit2_domain = capabilities
        assert answer.status_code == status, (name, answer.text)
        assert answer.json()["type"].split("problems/")[1] in expected.split("|"), name
    assert await sponsored.sent() == 0
    assert await sponsored.ether() == ether
    assert await sponsored.orders.list_open() == []
    served = await sponsored.provider.send(await sponsored.payer.opening(PRICE, kind))
    assert served.status_code == 200, served.text
    assert await sponsored.sent() == 1


@pytest.mark.parametrize("kind", ["authorization", "permit2"])
async def test_a_top_up_with_a_wrong_field_costs_no_gas(sponsored: Sponsored, kind: str) -> None:
    """TOPUP-02, TOPUP-04, TOPUP-06, VCH-07: refused, no transaction sent, the books untouched."""
    await prepare(sponsored, kind)
    provider, payer = sponsored.provider, sponsored.payer
    assert (await provider.manage(await payer.opening(PRICE, kind))).status_code == 200
    before = await provider.ledger.load(payer.key)
    good = await payer.top_up(kind)
    salt, key = payer.salt, payer.key
    payer.next_channel()
    of_no_channel = await payer.top_up(kind)
    payer.salt, payer.key = salt, key
    wrong: dict[str, tuple[Any, int]] = {
        "additionalDeposit": (replace(good, additional_deposit=501), 400),
        "signature": (
            replace(good, signature=bytes([good.signature[0] ^ 1]) + good.signature[1:]),
            402,
        ),
        "another channel than is signed": (replace(good, channel_id=bytes(32)), 400),
        "a channel that is not there": (of_no_channel, 410),
        "dust": (await payer.top_up(kind, amount=99), 402),
    }
    inner = good.authorization
    fields: dict[str, tuple[Any, int]] = {"funder": (OTHER, 400 if kind != "permit2" else 402)}
    if kind == "authorization":
        wrong["salt"] = (replace(good, salt=bytes([1] * 32)), 400)
        fields |= {"to": (OTHER, 400), "value": (501, 400), "nonce": (bytes(32), 400)}
        fields |= {"valid_before": (2**40, 402), "valid_after": (1, 402)}
    else:
        fields |= {"token": (OTHER, 400), "amount": (501, 400), "nonce": (99, 402)}
        fields |= {"deadline": (2**40, 402), "channel_id": (bytes(32), 400)}
    for field, (value, status) in fields.items():
        wrong[field] = (replace(good, authorization=replace(inner, **{field: value})), status)
    for name, (payload, status) in wrong.items():
        answer = await provider.send(payload, method="POST")
        assert answer.status_code == status, (name, answer.text)
    merged = payer.voucher(DEPOSIT + 501, await payer.top_up_deposit(kind, amount=500))
    answer = await provider.send(merged)
    assert answer.json()["type"].endswith("session/amount-exceeds-deposit"), answer.text
    assert await sponsored.sent() == 1
    assert await provider.ledger.load(payer.key) == before
    assert (await provider.manage(good)).status_code == 200
    assert await sponsored.sent() == 2


@pytest.mark.parametrize("kind", ["authorization", "permit2"])
async def test_an_amount_beyond_any_channel_stops_no_worker(
    sponsored: Sponsored, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-01, VCH-06: a sum above uint128 is the payer's mistake, not a contradiction of the books.

    A worker that finds one ends itself: any payer with a channel could have ended them all.
    """
    ended: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", ended.append)
    provider, payer = sponsored.provider, sponsored.payer
    assert (await provider.manage(await payer.opening(PRICE))).status_code == 200
    merged = payer.voucher(5 * PRICE, await payer.top_up_deposit(kind, amount=AMOUNT_MAX))
    answer = await provider.send(merged)
    assert (answer.status_code, ended) == (400, []), answer.text
    top_up = await provider.manage(await payer.top_up(kind, amount=AMOUNT_MAX))
    assert 400 <= top_up.status_code < 500, top_up.text
    assert (await provider.send(payer.voucher(5 * PRICE))).status_code == 200
    assert await sponsored.sent() == 1


async def test_what_only_the_token_knows_is_simulated(sponsored: Sponsored) -> None:
    """F-79, F-88, F-90, F-98: used, cancelled, blacklisted, paused; no transaction is sent."""
    provider, payer, chain = sponsored.provider, sponsored.payer, sponsored.chain
    assert (await provider.manage(await payer.opening(PRICE))).status_code == 200
    assert await sponsored.sent() == 1
    used = await payer.top_up()
    arguments = await _top_up_arguments(payer, used)
    await chain.sender("stranger").send(chain.values.escrow, arguments)
    again = replace(used, signature=used.signature)
    assert (await provider.manage(again)).status_code == 200  # adopted: it is what was wanted
    payer.next_channel()
    cancelled = await payer.opening(PRICE)
    await _cancel(payer, cancelled.authorization.nonce)  # type: ignore[arg-type]
    answer = await provider.send(cancelled)
    assert answer.json()["type"].endswith("session/insufficient-balance"), answer.text
    payer.next_channel()
    for calldata in (BLACKLIST.encode(payer.address), PAUSE.encode()):
        await chain.deployer.send(chain.values.token, calldata)
        answer = await provider.send(await payer.opening(PRICE))
        assert answer.json()["type"].endswith("session/insufficient-balance"), answer.text
    assert await sponsored.sent() == 1


async def test_a_permit_that_was_used_or_not_approved_costs_no_gas(sponsored: Sponsored) -> None:
    """OPEN-06, F-90: no allowance to Permit2, then a nonce that is taken."""
    provider, payer = sponsored.provider, sponsored.payer
    answer = await provider.send(await payer.opening(PRICE, "permit2"))
    assert answer.status_code in (402, 409), answer.text
    await payer.approve_permit2()
    assert (await provider.manage(await payer.opening(PRICE, "permit2"))).status_code == 200
    payer.next_channel()
    payer.permit_nonce -= 1
    answer = await provider.send(await payer.opening(PRICE, "permit2"))
    assert answer.status_code == 409, answer.text
    assert await sponsored.sent() == 1


async def _top_up_arguments(payer: GaslessPayer, payload: Any) -> bytes:
    inner = payload.authorization
    return abi.top_up_with_authorization.encode(
        payload.channel_id,
        payload.additional_deposit,
        payer.address,
        payload.salt,
        inner.valid_after,
        inner.valid_before,
        inner.nonce,
        payload.signature,
    )


async def _cancel(payer: GaslessPayer, nonce: bytes) -> None:
    from channel.verify.typed_data import keccak  # noqa: PLC0415

    type_hash = keccak(b"CancelAuthorization(address authorizer,bytes32 nonce)")
    struct = keccak(type_hash + payer.address.rjust(32, b"\0") + nonce)
    digest = keccak(b"\x19\x01" + payer.token_domain.separator + struct)
    calldata = CANCEL.encode(payer.address, nonce, sign(payer.private_key, digest))
    await payer.chain.sender("stranger").send(payer.chain.values.token, calldata)
