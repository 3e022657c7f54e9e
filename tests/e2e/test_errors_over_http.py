"""What bad input gets, over a real socket and a real chain: the table of REQUIREMENTS, ERR.

Each test sends one thing that is wrong and holds the answer's status, type and headers, that no
handler ran, and that the books are what they were.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from channel.errors import ChainUnavailableError
from channel.state.channel_state import ChannelState
from channel.types import Address, ChannelId, ChannelKey, SignedVoucher, TxHash
from channel.wire.challenge import Challenge, parse_challenges
from channel.wire.credential import Credential, format_credential
from channel.wire.encoding import decode_base64url, encode_base64url, format_timestamp
from channel.wire.payload import (
    ClosePayload,
    VoucherPayload,
)
from channel.wire.problem import problem_uri
from channel.wire.receipt import parse_receipt
from settlement.dev.devnet import Devnet
from tests.e2e.selling import (
    DELTA,
    DEPOSIT,
    JOKE,
    PRICE,
    TOKENS,
    Provider,
    provide,
    sent_by_payee,
)
from tests.settlement.channels import send_blindly, set_paused
from tests.settlement.senders import are_pooled
from tests.settlement.wallets import deploy_wallet
from tests.waiting import HASTY_S, until

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def require_problem(
    answer: httpx.Response, status: int, kind: str, *, offers: bool = True
) -> dict[str, Any]:
    """Hold what every refusal has in common (ERR-01, ERR-03, CORE-06, CORE-07)."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert "payment-receipt" not in answer.headers
    problem: dict[str, Any] = msgspec.json.decode(answer.content)
    assert problem["type"] == problem_uri(kind)
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    challenges = parse_challenges(answer.headers.get_list("www-authenticate"))
    assert len(challenges) == (1 if offers else 0)
    return problem


async def require_unmoved(
    seller: Provider, before: ChannelState | None, *, served: int = 0
) -> None:
    assert await seller.books() == before
    assert seller.served == served


async def refused(
    seller: Provider, payload: Any, status: int, kind: str, **options: Any
) -> dict[str, Any]:
    """Send to the paid resource; hold the refusal and that nothing moved."""
    before = await seller.books()
    answer = await seller.send(payload, **options)
    problem = require_problem(answer, status, kind)
    await require_unmoved(seller, before)
    return problem


async def test_no_credential(seller: Provider) -> None:
    """CORE-01, CORE-02: 402, a challenge, and no side effect."""
    answer = await seller.client.get(JOKE)
    require_problem(answer, 402, "payment-required")
    assert seller.served == 0
    bearer = await seller.client.get(JOKE, headers={"authorization": "Bearer sk-1"})
    require_problem(bearer, 402, "payment-required")


async def test_head_without_a_credential_has_a_challenge_and_no_body(seller: Provider) -> None:
    """RESP-03."""
    answer = await seller.client.head(JOKE)
    assert (answer.status_code, answer.content) == (402, b"")
    assert parse_challenges(answer.headers.get_list("www-authenticate"))


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda envelope: {key: kept for key, kept in envelope.items() if key != name}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "Payment !!!",
        lambda _: "Payment " + encode_base64url(b"not json"),
        lambda _: "Payment " + encode_base64url(b"[]"),
        lambda _: "Payment " + encode_base64url(b"{}"),
        lambda _: "Payment " + encode_base64url(b"[" * 10_000),
        lambda _: "Payment",
        lambda text: text + "!",
        lambda text: text[:-3],
        lambda _: "Payment " + "A" * (65 * 1024),
    ],
    ids=["base64", "json", "array", "empty", "deep", "nothing", "junk", "cut", "oversize"],
)
async def test_a_malformed_envelope(seller: Provider, spoil: Callable[[str], str]) -> None:
    """CORE-03, CORE-14, F-02, F-04."""
    await seller.opened()
    text = format_credential(await seller.credential(seller.payer.voucher(100)))
    await refused(seller, spoil(text), 402, "malformed-credential")


def respell(credential: Credential, **members: Any) -> str:
    """Return the credential's text with members of its payload set, or dropped by None."""
    envelope = msgspec.json.decode(decode_base64url(format_credential(credential).split(" ")[1]))
    for name, member in members.items():
        place = envelope if name == "source" else envelope["payload"]
        if member is None:
            place.pop(name, None)
        else:
            place[name] = member
    return "Payment " + encode_base64url(msgspec.json.encode(envelope))


@pytest.mark.parametrize(
    "members",
    [
        {"action": "refund"},
        {"action": None},
        {"channelId": None},
        {"channelId": "0x12"},
        {"cumulativeAmount": 100},
        {"cumulativeAmount": "1_00"},
        {"cumulativeAmount": "-1"},
        {"cumulativeAmount": str(2**128)},
        {"signature": "0x"},
        {"signature": None},
        {"source": "did:pkh:eip155:01:0x12"},
        {"deposit": {"action": "topUp", "type": "permit2"}},
    ],
    ids=str,
)
async def test_a_malformed_payload(seller: Provider, members: dict[str, Any]) -> None:
    """CRED-04, CRED-06, ENC-02, ENC-04, F-01: 400, inside a readable envelope."""
    await seller.opened()
    credential = await seller.credential(seller.payer.voucher(100))
    await refused(seller, respell(credential, **members), 400, "malformed-credential")


@pytest.mark.parametrize("members", [{"source": None}, {"type": "transaction"}, {"salt": None}])
async def test_a_malformed_opening(seller: Provider, members: dict[str, Any]) -> None:
    """CRED-02, CRED-05."""
    await seller.payer.open()
    credential = await seller.credential(seller.payer.opening())
    await refused(seller, respell(credential, **members), 400, "malformed-credential")


async def test_an_opening_whose_id_does_not_follow_from_its_terms(seller: Provider) -> None:
    """OPEN-01: another payer's source cannot claim the channel."""
    await seller.payer.open()
    credential = await seller.credential(seller.payer.opening())
    chain_id = seller.chain.values.chain_id
    for source in ((chain_id, Address(b"\x01" * 20)), (1, seller.payer.address)):
        await refused(seller, replace(credential, source=source), 400, "malformed-credential")


async def test_another_method_or_intent(seller: Provider) -> None:
    """ERR: method-unsupported."""
    await seller.opened()
    credential = await seller.credential(seller.payer.voucher(100))
    for change in ({"method": "tempo"}, {"intent": "charge"}):
        echoed = replace(credential.challenge, **change)
        await refused(seller, replace(credential, challenge=echoed), 400, "method-unsupported")


def _cheaper(challenge: Challenge) -> Challenge:
    asked = msgspec.json.decode(decode_base64url(challenge.request))
    asked["amount"] = "1"
    return replace(challenge, request=encode_base64url(msgspec.json.encode(asked)))


@pytest.mark.parametrize(
    "tamper",
    [
        _cheaper,
        lambda challenge: replace(challenge, id="A" * 43),
        lambda challenge: replace(challenge, realm="other.example"),
        lambda challenge: replace(challenge, expires=format_timestamp(4_000_000_000)),
        lambda challenge: replace(challenge, expires=None),
        lambda challenge: replace(challenge, opaque=None),
        lambda challenge: replace(challenge, digest="sha-256=:AAAA:"),
        lambda challenge: replace(challenge, header="Payment-Authorization"),
        lambda challenge: replace(challenge, realm="jokes.example|evm", method="evm"),
    ],
    ids=["price", "id", "realm", "expires", "no-expiry", "opaque", "digest", "header", "slots"],
)
async def test_a_tampered_challenge(
    seller: Provider, tamper: Callable[[Challenge], Challenge]
) -> None:
    """CHAL-05, CHAL-09, F-10, F-112."""
    await seller.opened()
    credential = await seller.credential(seller.payer.voucher(100))
    spoiled = replace(credential, challenge=tamper(credential.challenge))
    await refused(seller, spoiled, 402, "session/challenge-not-found")


async def test_an_expired_challenge(seller: Provider) -> None:
    """CHAL-07, AMB-13: and the fresh one that comes with the refusal works."""
    await seller.opened()
    credential = await seller.credential(seller.payer.voucher(100))
    seller.clock.ahead_s = 301
    await refused(seller, credential, 402, "payment-expired")
    assert (await seller.send(seller.payer.voucher(100))).status_code == 200


async def test_a_challenge_of_another_route(seller: Provider) -> None:
    """CHAL-10, F-31."""
    await seller.opened()
    challenge = await seller.challenge(TOKENS)
    credential = await seller.credential(seller.payer.voucher(100), challenge=challenge)
    await refused(seller, credential, 402, "session/challenge-not-found")


def _high_s(signature: bytes) -> bytes:
    s = ORDER - int.from_bytes(signature[32:64])
    return signature[:32] + s.to_bytes(32) + bytes((55 - signature[64],))


@pytest.mark.parametrize(
    "spoil",
    [
        _high_s,
        lambda signature: signature[:64] + bytes((signature[64] - 27,)),
        lambda signature: signature[:64],
        lambda signature: bytes(32) + signature[32:],
        lambda signature: b"\xff" * 32 + signature[32:],
        lambda _: bytes(65),
    ],
    ids=["high-s", "v-0-or-1", "64-bytes", "r-0", "r-above-n", "zero"],
)
async def test_a_signature_that_the_escrow_would_not_take(
    seller: Provider, spoil: Callable[[bytes], bytes]
) -> None:
    """ENC-06, AMB-07, F-16, F-17."""
    await seller.opened()
    voucher = seller.payer.sign(100)
    spoiled = VoucherPayload(replace(voucher, signature=spoil(voucher.signature)))
    await refused(seller, spoiled, 402, "session/invalid-signature")


async def test_a_signer_who_may_not(seller: Provider) -> None:
    """VCH-02, AMB-15, SEC-03: a stranger; or the payer, over another chain, escrow or channel."""
    await seller.opened()
    payer, key = seller.payer, seller.payer.key
    stranger = seller.chain.account("stranger").private_key
    for voucher in (
        payer.sign(100, key=stranger),
        payer.sign(100, over=ChannelKey(1, key.escrow, key.channel_id)),
        payer.sign(100, over=ChannelKey(key.chain_id, Address(b"\x01" * 20), key.channel_id)),
        payer.sign(100, over=ChannelKey(key.chain_id, key.escrow, ChannelId(b"\x01" * 32))),
        replace(payer.sign(100), cumulative_amount=200),
    ):
        await refused(seller, VoucherPayload(voucher), 402, "session/signer-mismatch")


async def test_a_source_who_is_not_the_payer(seller: Provider) -> None:
    """CRED-03."""
    await seller.opened()
    credential = await seller.credential(seller.payer.voucher(100))
    stranger = (seller.chain.values.chain_id, seller.chain.account("stranger").address)
    await refused(seller, replace(credential, source=stranger), 402, "session/signer-mismatch")


async def test_a_voucher_above_the_deposit(seller: Provider) -> None:
    """VCH-02 step 8."""
    await seller.opened()
    problem = await refused(
        seller, seller.payer.voucher(DEPOSIT + 1), 402, "session/amount-exceeds-deposit"
    )
    assert problem["deposit"] == str(DEPOSIT)


async def test_a_voucher_below_the_delta(seller: Provider) -> None:
    """VCH-02 step 7, AMB-17: except one that reaches the deposit."""
    await seller.opened(DEPOSIT - DELTA)
    before = await seller.books()
    problem = require_problem(
        await seller.send(seller.payer.voucher(DEPOSIT - DELTA + DELTA - 1)),
        402,
        "session/delta-too-small",
    )
    assert problem["minVoucherDelta"] == str(DELTA)
    await require_unmoved(seller, before)
    assert (await seller.send(seller.payer.voucher(DEPOSIT))).status_code == 200


async def test_a_request_that_is_not_covered(seller: Provider) -> None:
    """ERR-01, CHAL-15, RESP-04, AMB-21: says what would be, and names the channel to go on with."""
    await seller.payer.open()
    answer = await seller.send(seller.payer.opening(0))
    problem = require_problem(answer, 402, "session/insufficient-balance")
    assert problem["requiredCumulative"] == str(DELTA)
    assert problem["acceptedCumulative"] == problem["spent"] == "0"
    assert problem["deposit"] == str(DEPOSIT)
    assert problem["channelId"] == "0x" + seller.payer.key.channel_id.hex()
    challenge = parse_challenges(answer.headers.get_list("www-authenticate"))[0]
    asked = msgspec.json.decode(decode_base64url(challenge.request))
    assert asked["methodDetails"]["channelId"] == problem["channelId"]
    assert seller.served == 0
    books = await seller.books()
    assert books is not None  # the channel is opened all the same
    assert (books.accepted, books.spent, books.reserved) == (0, 0, 0)


async def test_a_replayed_voucher_pays_once(seller: Provider) -> None:
    """VCH-04, F-24, F-26: as content it is spent, by itself it is 200 and moves nothing."""
    await seller.opened()
    voucher = seller.payer.voucher(DELTA)
    for _ in range(DELTA // PRICE):
        assert (await seller.send(voucher)).status_code == 200
    before = await seller.books()
    require_problem(await seller.send(voucher), 402, "session/insufficient-balance")
    assert (await seller.manage(voucher)).status_code == 200
    await require_unmoved(seller, before, served=2)


async def test_reordered_vouchers_end_at_the_highest(seller: Provider) -> None:
    """VCH-04, AMB-06, F-38: a late lower one is 200, and a forged one is not."""
    await seller.opened()
    assert (await seller.manage(seller.payer.voucher(300))).status_code == 200
    before = await seller.books()
    assert (await seller.manage(seller.payer.voucher(100))).status_code == 200
    forged = replace(seller.payer.sign(300), cumulative_amount=100)
    answer = await seller.send(VoucherPayload(forged))
    require_problem(answer, 402, "session/signer-mismatch")
    await require_unmoved(seller, before)


async def test_a_settled_voucher_buys_nothing(seller: Provider) -> None:
    """VCH-04, decision 5, F-32: it is public, also if a part of it is unspent."""
    await seller.opened(100)
    voucher = seller.payer.sign(100)
    await seller.settler.settle_channel(seller.payer.key, 100, voucher.signature)
    assert (await seller.manage(seller.payer.voucher(100))).status_code == 200
    answer = await seller.send(VoucherPayload(voucher))
    problem = require_problem(answer, 402, "session/insufficient-balance")
    assert problem["requiredCumulative"] == str(100 + DELTA)
    assert seller.served == 0


async def test_a_channel_that_is_not_there(seller: Provider) -> None:
    """ERR: 410 channel-not-found, also for one that exists on chain and was never opened here."""
    await seller.payer.open()
    for payload in (seller.payer.voucher(100), seller.payer.closing(100)):
        answer = await seller.send(payload)
        require_problem(answer, 410, "session/channel-not-found")
    assert await seller.books() is None


async def test_a_finalized_channel(seller: Provider) -> None:
    """VCH-05, CLOSE-05, OPEN-10: voucher and opening are 410; the close repeats its receipt."""
    await seller.opened()
    await seller.send(seller.payer.voucher(100))
    closing = seller.payer.closing(PRICE)
    closed = await seller.send(closing, method="POST")
    assert closed.status_code == 200
    before = await seller.books()
    for payload in (seller.payer.voucher(200), seller.payer.opening(200)):
        answer = await seller.send(payload)
        require_problem(answer, 410, "session/channel-finalized")
    again = await seller.send(closing, method="POST")
    receipts = [
        msgspec.json.decode(decode_base64url(one.headers["payment-receipt"]))
        for one in (closed, again)
    ]
    assert receipts[0]["txHash"] == receipts[1]["txHash"]
    unsigned = replace(closing.voucher, signature=bytes(65))
    forged = replace(closing, voucher=unsigned)
    answer = await seller.send(forged, method="POST")
    require_problem(answer, 402, "session/invalid-signature")  # F-67
    await require_unmoved(seller, before, served=1)


async def test_a_channel_with_a_pending_close(seller: Provider) -> None:
    """VCH-02 step 1, AMB-14: seen on chain, and refused from then on; a close still works."""
    await seller.opened(100)
    await seller.payer.request_close()
    for payload in (seller.payer.voucher(200), seller.payer.opening(200)):
        answer = await seller.send(payload)
        problem = require_problem(answer, 410, "session/channel-finalized")
        assert "pending close" in problem["detail"]
    books = await seller.books()
    assert books is not None
    assert (books.accepted, books.spent, seller.served) == (100, 0, 0)
    assert (await seller.send(seller.payer.closing(100), method="POST")).status_code == 200


async def test_an_opening_on_a_channel_with_a_pending_close(seller: Provider) -> None:
    """OPEN-04."""
    await seller.payer.open()
    await seller.payer.request_close()
    await refused(seller, seller.payer.opening(100), 410, "session/channel-finalized")


async def test_a_reverted_opening(seller: Provider) -> None:
    """OPEN-02, F-76: final immediately."""
    await seller.payer.open()
    tx_hash = await _revert(seller)
    opening = replace(seller.payer.opening(100), tx_hash=tx_hash)
    await refused(seller, opening, 409, "session/transaction-reverted")


async def _revert(seller: Provider) -> TxHash:
    """Mine a transaction that reverts: the same opening once more, sent blindly."""
    opened = await seller.chain.rpc.read(
        "eth_getTransactionByHash", "0x" + seller.payer.open_tx.hex()
    )
    calldata = bytes.fromhex(opened["input"][2:])
    return await send_blindly(seller.chain, seller.payer.key.escrow, calldata, by="payer")


async def test_an_opening_that_is_not_mined(chain: Devnet, tmp_path: Path) -> None:
    """OPEN-02: bounded wait, then 402 with Retry-After."""
    async with provide(chain, tmp_path, transaction_wait_s=HASTY_S) as seller:
        await seller.payer.open()
        opening = replace(seller.payer.opening(100), tx_hash=TxHash(b"\x01" * 32))
        answer = await seller.send(opening)
        require_problem(answer, 402, "verification-failed")
        assert answer.headers["retry-after"] == "2"
        assert await seller.books() is None


async def test_a_transaction_that_proves_something_else(seller: Provider) -> None:
    """OPEN-03, F-30, F-84: another channel's opening, and a top-up of another amount."""
    await seller.opened()
    first = seller.payer.open_tx
    top_up = await seller.payer.top_up(500)
    before = await seller.books()
    wrong = replace(top_up, additional_deposit=501)
    require_problem(await seller.send(wrong, method="POST"), 402, "verification-failed")
    await require_unmoved(seller, before)
    await seller.payer.open()
    opening = replace(seller.payer.opening(100), tx_hash=first)
    await refused(seller, opening, 402, "verification-failed")


async def test_a_top_up_counts_once_however_often_it_is_sent(seller: Provider) -> None:
    """TOPUP-03, TOPUP-06, F-29."""
    await seller.opened(100)
    top_up = await seller.payer.top_up(500)
    for _ in range(3):
        answer = await seller.send(top_up, method="POST")
        assert (answer.status_code, answer.content) == (200, b"")
        books = await seller.books()
        assert books is not None
        assert (books.deposit, books.accepted, books.spent) == (DEPOSIT + 500, 100, 0)


async def test_a_top_up_we_have_not_heard_of_is_found_on_chain(seller: Provider) -> None:
    """F-50: a voucher above the deposit looks once before it is refused."""
    await seller.opened()
    await seller.payer.top_up(500)
    assert (await seller.send(seller.payer.voucher(DEPOSIT + 500))).status_code == 200


async def test_a_top_up_of_a_channel_never_opened_here(seller: Provider) -> None:
    """TOPUP-07: the chain's word, accepted and spent as settled, and nothing is stored."""
    await seller.payer.open()
    answer = await seller.send(await seller.payer.top_up(500), method="POST")
    assert answer.status_code == 200
    receipt = msgspec.json.decode(decode_base64url(answer.headers["payment-receipt"]))
    assert (receipt["acceptedCumulative"], receipt["spent"]) == ("0", "0")
    assert await seller.books() is None


async def test_a_close_that_the_escrow_refuses_moves_nothing_and_the_channel_goes_on(
    seller: Provider,
) -> None:
    """CLOSE-04, ERR-02, F-39: here the settler has the key of another account."""
    await seller.opened(100)
    assert (await seller.send(seller.payer.voucher(100))).status_code == 200
    seller.settles.by = seller.settler_of("stranger")
    answer = await seller.send(seller.payer.closing(PRICE), method="POST")
    require_problem(answer, 409, "session/transaction-reverted")
    assert (await seller.send(seller.payer.voucher(100))).status_code == 200
    seller.settles.by = seller.settler
    closed = await seller.send(seller.payer.closing(2 * PRICE), method="POST")
    assert closed.status_code == 200
    payee = seller.chain.account("payee").address
    assert await seller.chain.token_balance(payee) >= 2 * PRICE


async def test_a_close_that_is_mined_and_reverts_is_a_close_that_was_not_made(
    chain: Devnet, tmp_path: Path
) -> None:
    """CLOSE-04, ERR-02, F-76: a contract takes its voucher back before the block."""
    async with provide(chain, tmp_path, takes_contract_signatures=True) as seller:
        wallet = await deploy_wallet(chain.deployer, "agrees")
        code = "0x" + (await chain.rpc.code(wallet)).hex()
        await seller.payer.open(signer=wallet)
        word = b"the contract says yes to this"
        voucher = replace(seller.payer.sign(100), signature=word)
        opening = replace(seller.payer.opening(), voucher=voucher)
        assert (await seller.send(opening)).status_code == 200
        sent = await sent_by_payee(seller)
        close = ClosePayload(replace(voucher, cumulative_amount=PRICE))
        async with chain.mining_paused():
            closing = asyncio.create_task(seller.send(close, method="POST"))
            await until(lambda: are_pooled(chain, 1))
            await chain.rpc.command("anvil_setCode", "0x" + wallet.hex(), "0x5f5ffd")  # reverts
        require_problem(await closing, 402, "session/invalid-signature")
        assert await sent_by_payee(seller) == sent + 1
        fact = await seller.reader.read_channel(seller.payer.key.channel_id)
        assert fact is not None
        assert (fact.is_finalized, fact.settled) == (False, 0)
        await chain.rpc.command("anvil_setCode", "0x" + wallet.hex(), code)
        more = VoucherPayload(replace(voucher, cumulative_amount=200))
        assert (await seller.send(more)).status_code == 200


async def test_two_credentials_in_one_request(seller: Provider) -> None:
    """CORE-10: two lines, one joined line, two fields."""
    await seller.opened()
    text = format_credential(await seller.credential(seller.payer.voucher(100)))
    before = await seller.books()
    for headers in (
        [("authorization", text), ("authorization", text)],
        [("authorization", f"{text}, {text}")],
        [("authorization", text), ("payment-authorization", text)],
    ):
        answer = await seller.client.get(JOKE, headers=headers)
        require_problem(answer, 400, "bad-request")
    await require_unmoved(seller, before)


async def test_more_vouchers_a_second_than_are_taken(chain: Devnet, tmp_path: Path) -> None:
    """VCH-09, CORE-15, F-99: and a stranger's forgeries do not use up the payer's rate."""
    async with provide(chain, tmp_path, vouchers_per_second=5) as seller:
        await seller.opened()
        seller.clock.stop()
        seller.clock.ahead_s += 2
        credential = await seller.credential(seller.payer.voucher(100))
        forged = replace(
            credential, payload=VoucherPayload(replace(seller.payer.sign(100), signature=bytes(65)))
        )
        statuses = [(await seller.send(forged, method="HEAD")).status_code for _ in range(8)]
        assert statuses[0] == 402
        # Concurrently, because each refusal is delayed.
        asked = [seller.send(credential, method="HEAD") for _ in range(8)]
        statuses = [answer.status_code for answer in await asyncio.gather(*asked)]
        assert (statuses.count(200), statuses.count(429)) == (5, 3)
        seller.clock.ahead_s += 1
        answers = await asyncio.gather(*[seller.send(credential) for _ in range(8)])
        refused = next(answer for answer in answers if answer.status_code == 429)
        require_problem(refused, 429, "rate-limited", offers=False)
        assert refused.headers["retry-after"] == "1"
        seller.clock.ahead_s += 1
        assert (await seller.send(credential)).status_code == 200


async def test_an_idempotency_key_for_another_request(seller: Provider) -> None:
    """IDEM-03: 422, and nothing is charged."""
    await seller.opened(100)
    headers = {"idempotency-key": "one"}
    voucher = seller.payer.voucher(100)
    assert (await seller.send(voucher, headers=headers)).status_code == 200
    before = await seller.books()
    answer = await seller.send(voucher, path=f"{JOKE}?about=ducks", headers=headers)
    require_problem(answer, 422, "idempotency-conflict", offers=False)
    await require_unmoved(seller, before, served=1)
    for key in ("", "x" * 256, "\x7f"):
        answer = await seller.send(voucher, headers={"idempotency-key": key})
        require_problem(answer, 400, "bad-request")


async def test_a_repeat_is_answered_from_the_books(seller: Provider) -> None:
    """IDEM-02, IDEM-04, F-26, F-27: also with a fresh challenge; never without a signature."""
    await seller.opened(100)
    headers = {"idempotency-key": "one"}
    voucher = seller.payer.voucher(100)
    first = await seller.send(voucher, headers=headers)
    again = await seller.send(voucher, headers=headers)
    assert first.text == again.text == "joke 1"
    assert first.headers["content-type"] == again.headers["content-type"]
    books = await seller.books()
    assert books is not None
    assert (books.spent, seller.served) == (PRICE, 1)
    forged = VoucherPayload(SignedVoucher(seller.payer.key.channel_id, 100, bytes(65)))
    answer = await seller.send(forged, headers=headers)
    require_problem(answer, 402, "session/invalid-signature")


async def test_a_handler_that_fails_is_not_charged(seller: Provider) -> None:
    """F-48, CORE-07."""
    await seller.opened(100)
    answer = await seller.send(seller.payer.voucher(100), path="/broken")
    assert (answer.status_code, answer.json()) == (500, {"error": "no joke today"})
    assert "payment-receipt" not in answer.headers
    books = await seller.books()
    assert books is not None
    assert (books.spent, books.reserved, books.available) == (0, 0, 100)


class _NodeDown:
    """The reader of an escrow whose node stops answering."""

    def __init__(self, chain: Devnet) -> None:
        self.chain_id = chain.values.chain_id
        self.escrow = chain.values.escrow

    async def _unavailable(self, *_: object, **__: object) -> Any:
        raise ChainUnavailableError("No node answers.")

    read_channel = read_transaction = is_valid_wallet_signature = _unavailable
    has_code = confirm_deposits = _unavailable


async def test_a_node_that_is_down_invites_no_payer_to_pay_again(
    chain: Devnet, tmp_path: Path
) -> None:
    """ERR's last line, F-15: 503, Retry-After, and no challenge."""
    async with provide(
        chain, tmp_path, reader=_NodeDown(chain), takes_contract_signatures=True
    ) as seller:
        await seller.payer.open()
        answer = await seller.send(seller.payer.opening(100))
        require_problem(answer, 503, "payment-unavailable", offers=False)
        assert answer.headers["retry-after"] == "5"
        wallet = replace(seller.payer.sign(100), signature=b"\x01" * 100)
        answer = await seller.send(replace(seller.payer.opening(), voucher=wallet))
        require_problem(answer, 503, "payment-unavailable", offers=False)
        assert await seller.books() is None


async def repeat_until_made(seller: Provider, payload: ClosePayload) -> httpx.Response:
    """Repeat a close for as long as it is answered as pending; return the other answer."""
    while True:
        answer = await seller.send(payload, method="POST")
        if answer.status_code != 503:
            return answer
        require_problem(answer, 503, "payment-unavailable", offers=False)
        assert int(answer.headers["retry-after"]) > 0


async def require_one_close(
    seller: Provider, closed: httpx.Response, amount: int, *, sent_before: int
) -> None:
    """Hold that one transaction closed the channel, and that every repeat is answered with it."""
    assert closed.status_code == 200, closed.text
    again = await seller.send(seller.payer.closing(amount + 1), method="POST")
    first, second = (parse_receipt(each.headers["payment-receipt"]) for each in (closed, again))
    assert first.tx_hash is not None
    assert first.tx_hash == second.tx_hash
    assert await sent_by_payee(seller) == sent_before + 1
    fact = await seller.reader.read_channel(seller.payer.key.channel_id)
    assert fact is not None
    assert (fact.is_finalized, fact.settled) == (True, amount)


async def test_a_close_that_cannot_be_broadcast_yet_is_found_by_its_repeat(
    chain: Devnet, tmp_path: Path
) -> None:
    """F-75: 503 without a challenge; the close is owed, and made with what was decided first."""
    async with provide(chain, tmp_path, close_timeout_s=1) as seller:
        seller.settles.by = None
        await seller.opened(100)
        sent = await sent_by_payee(seller)
        for amount in (50, 50, 60):  # the same request again, and another one
            answer = await seller.send(seller.payer.closing(amount), method="POST")
            require_problem(answer, 503, "payment-unavailable", offers=False)
            assert answer.headers["retry-after"] == "5"
            books = await seller.books()
            assert books is not None
            assert books.closing_with is not None
            assert books.closing_with.cumulative_amount == 50
        answer = await seller.send(seller.payer.voucher(200))
        require_problem(answer, 410, "session/channel-finalized")
        seller.settles.by = seller.settler
        closed = await repeat_until_made(seller, seller.payer.closing(60))
        await require_one_close(seller, closed, 50, sent_before=sent)


async def test_a_close_is_made_once_a_paused_token_moves_again(
    chain: Devnet, tmp_path: Path
) -> None:
    """F-75, F-79, F-87, decision 14: the payer is not at fault, and not asked to pay again.

    Nothing is broadcast and nothing reverts, so CLOSE-04 does not apply: the close stays decided.
    """
    async with provide(chain, tmp_path, close_timeout_s=1) as seller:
        await seller.opened(100)
        assert (await seller.send(seller.payer.voucher(100))).status_code == 200
        sent = await sent_by_payee(seller)
        await set_paused(chain, on=True)
        for _ in range(2):
            answer = await seller.send(seller.payer.closing(2 * PRICE), method="POST")
            problem = require_problem(answer, 503, "payment-unavailable", offers=False)
            assert answer.headers["retry-after"] == "5"
        (refused,) = await seller.journal.quarantined()
        assert (refused.key, refused.reason) == (seller.payer.key, "TOKEN_REFUSED")
        assert "the token refused to move" in problem["detail"]
        answer = await seller.send(seller.payer.voucher(200))
        require_problem(answer, 410, "session/channel-finalized")
        assert await sent_by_payee(seller) == sent
        await set_paused(chain, on=False)
        seller.clock.ahead_s += 15  # the first delay of the quarantine
        closed = await repeat_until_made(seller, seller.payer.closing(2 * PRICE))
        await require_one_close(seller, closed, 2 * PRICE, sent_before=sent)
