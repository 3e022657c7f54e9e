"""A charge is signed once for a request, wherever the client stops and however it is answered."""

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from channel.client.policy.policy import Policy
from channel.errors import (
    BudgetExceededError,
    CannotFundError,
    ChargePendingError,
    OfferRefusedError,
    PaymentRefusedError,
)
from channel.verify.signature import recover
from channel.verify.typed_data import charge_nonce, transfer_authorization_digest
from channel.wire.encoding import decode_base64url, format_timestamp
from tests.channel.client.conftest import OpenAgent, policy_of
from tests.channel.client.policy.test_choice import SESSION, charge_line, exact, header_of
from tests.channel.client.provider import DOMAIN, NOW, PAYEE, PAYER, PaperChain

if TYPE_CHECKING:
    from collections.abc import Callable

PRICE = 30


class StoppedError(BaseException):
    """The process stops here."""


class Shop(httpx.AsyncBaseTransport):
    """Sells by charge and x402; settles each nonce once, on the paper chain."""

    def __init__(self, chain: PaperChain) -> None:
        self.chain = chain
        self.served = 0
        self.asked = 0
        self.seen: list[dict[str, str]] = []
        """The authorizations that came, with repetitions."""
        self.before: Callable[[], None] = lambda: None
        """Called with a payment that has not arrived yet."""
        self.after: Callable[[], httpx.Response | None] = lambda: None
        """Called once it is settled; answers instead of the goods."""
        self.session: list[str] = []
        """Challenges beside its own."""
        self.sessions = 0
        self.now = NOW

    @property
    def nonces(self) -> set[str]:
        return {one["nonce"] for one in self.seen}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        paid = self.read(request)
        if paid is None:
            self.asked += 1
            expires = format_timestamp(self.now + 300)
            line = charge_line(id=f"offer-{self.asked}", expires=expires)
            headers = [("WWW-Authenticate", one) for one in (*self.session, line)]
            return httpx.Response(402, headers=[*headers, ("PAYMENT-REQUIRED", header_of(exact()))])
        if not paid:
            return httpx.Response(400)
        self.before()
        self.verify(paid)
        self.seen.append(paid)
        self.chain.used.add(bytes.fromhex(paid["nonce"][2:]))
        answer = self.after()
        if answer is None:
            self.served += 1
            answer = httpx.Response(200, content=b"a joke")
        return answer

    def read(self, request: httpx.Request) -> dict[str, str] | None:
        if "PAYMENT-SIGNATURE" in request.headers:
            payment = json.loads(base64.b64decode(request.headers["PAYMENT-SIGNATURE"]))
            assert payment["accepted"] == exact()
            payload = payment["payload"]
            return {**payload["authorization"], "signature": payload["signature"]}
        if "Authorization" not in request.headers:
            return None
        envelope = json.loads(decode_base64url(request.headers["Authorization"].split()[1]))
        challenge = envelope["challenge"]
        if challenge["intent"] != "charge":
            self.sessions += 1
            return {}
        payload = envelope["payload"]
        nonce = charge_nonce(challenge["id"], challenge["realm"])
        assert payload["nonce"] == "0x" + nonce.hex()
        return {**payload}

    def verify(self, paid: dict[str, str]) -> None:
        digest = transfer_authorization_digest(
            DOMAIN,
            funder=PAYER,
            to=PAYEE,
            value=PRICE,
            valid_after=int(paid["validAfter"]),
            valid_before=int(paid["validBefore"]),
            nonce=bytes.fromhex(paid["nonce"][2:]),
        )
        assert int(paid["value"]) == PRICE
        assert recover(digest, bytes.fromhex(paid["signature"][2:])) == PAYER


@pytest.fixture
def shop(chain: PaperChain) -> Shop:
    return Shop(chain)


def policy(*pays: Any, **limits: Any) -> Policy:
    return policy_of({"charge_max": PRICE, **limits}, pays=pays or ("charge", "x402"))


def stop() -> Any:
    raise StoppedError


async def stop_signing(digest: bytes) -> bytes:
    raise StoppedError(digest)


@pytest.mark.parametrize("way", ["charge", "x402"])
@pytest.mark.parametrize(
    "place", ["before it is signed", "before it arrives", "once it is settled"]
)
async def test_wherever_the_process_stops_the_request_is_paid_once(
    open_agent: OpenAgent, chain: PaperChain, shop: Shop, way: Any, place: str
) -> None:
    """F-26: the next process over the same store sends the same authorization, if any was sent."""
    signing = chain.sign
    agent = await open_agent(policy(way), transport=shop)
    if place == "before it is signed":
        chain.sign = stop_signing  # type: ignore[method-assign]
    elif place == "before it arrives":
        shop.before = stop
    else:
        shop.after = stop
    with pytest.raises(StoppedError):
        await agent.client.get("/joke")
    states = [record.state for record in await agent.store.charges()]
    chain.sign = signing  # type: ignore[method-assign]
    shop.before, shop.after = lambda: None, lambda: None
    agent = await open_agent(policy(way), transport=shop)
    assert (await agent.client.get("/joke")).content == b"a joke"
    assert (len(shop.nonces), shop.served) == (1, 1)
    last = (await agent.store.charges())[-1]
    assert last.state == "done"
    if place == "before it is signed":
        assert states == ["planned"]
    else:
        assert states == ["sent"]
        assert len(await agent.store.charges()) == 1


async def test_equal_requests_side_by_side_pay_each_for_itself(
    open_agent: OpenAgent, shop: Shop
) -> None:
    """And one after the other as well: a request that was served is not a repetition."""
    agent = await open_agent(policy(), transport=shop)
    answers = await asyncio.gather(*(agent.client.get("/joke") for _ in range(3)))
    answers.append(await agent.client.get("/joke"))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert (len(shop.nonces), shop.served) == (4, 4)


async def test_a_second_authorization_waits_for_the_end_of_the_first(
    open_agent: OpenAgent, chain: PaperChain, shop: Shop
) -> None:
    """F-111: by the chain's clock; a fast clock of this machine alone changes nothing."""
    agent = await open_agent(policy(), transport=shop, now=lambda: shop.now)
    shop.after = lambda: httpx.Response(402, headers={"WWW-Authenticate": charge_line()})
    for _ in range(2):
        with pytest.raises(ChargePendingError, match="settled by block 1"):
            await agent.client.get("/joke")
    shop.now += 300 + 120
    with pytest.raises(ChargePendingError):
        await agent.client.get("/joke")
    assert len(shop.nonces) == 1
    chain.now, shop.after = shop.now, lambda: None
    assert (await agent.client.get("/joke")).status_code == 200
    assert len(shop.nonces) == 2
    assert [record.state for record in await agent.store.charges()] == ["over", "done"]


async def test_an_answer_that_is_no_success_keeps_the_authorization(
    open_agent: OpenAgent, shop: Shop
) -> None:
    """F-26: the caller gets it, and an equal request sends the same signature."""
    agent = await open_agent(policy(), transport=shop)
    shop.after = lambda: httpx.Response(503)
    for _ in range(2):
        assert (await agent.client.get("/joke")).status_code == 503
    shop.after = lambda: None
    assert (await agent.client.get("/joke")).status_code == 200
    assert (await agent.client.get("/joke?other")).status_code == 200
    assert [len(shop.nonces), len(shop.seen), shop.served] == [2, 4, 2]


async def test_a_charge_counts_towards_the_budgets(open_agent: OpenAgent, shop: Shop) -> None:
    """F-96: of the origin and of all origins; a repetition counts once."""
    agent = await open_agent(policy(budget=2 * PRICE, budget_total=2 * PRICE), transport=shop)
    shop.after = lambda: httpx.Response(503)
    for _ in range(3):
        await agent.client.get("/one")
    await agent.client.get("/two")
    with pytest.raises(BudgetExceededError):
        await agent.client.get("/three")
    with pytest.raises(BudgetExceededError, match="all origins"):
        await agent.client.get("https://other.example/four")
    assert len(shop.nonces) == 2


@pytest.mark.parametrize(
    ("means", "need"),
    [({"balance": PRICE - 1}, "found 29"), ({"token_domain": None}, "EIP-3009 signatures")],
)
async def test_an_account_that_cannot_pay_signs_nothing(
    open_agent: OpenAgent, chain: PaperChain, shop: Shop, means: dict[str, Any], need: str
) -> None:
    chain.means = means
    agent = await open_agent(policy(), transport=shop)
    with pytest.raises(CannotFundError, match=need):
        await agent.client.get("/joke")
    assert await agent.store.charges() == []


async def test_streams_and_servers_that_were_paid_before_get_a_session(
    open_agent: OpenAgent, shop: Shop
) -> None:
    """Where both are offered, a charge pays the first request alone."""
    agent = await open_agent(policy("session", "charge"), transport=shop)
    shop.session = [SESSION]
    assert (await agent.client.get("/joke")).status_code == 200
    assert (len(shop.nonces), shop.sessions) == (1, 0)
    for url in ("/joke?more", "https://other.example/stream"):
        with pytest.raises(PaymentRefusedError):  # this shop knows no sessions
            await agent.client.get(url, headers={"Accept": "text/event-stream"})
    with pytest.raises(PaymentRefusedError):
        await agent.client.get("/joke?again")
    assert len(shop.nonces) == 1
    assert shop.sessions >= 3


async def test_an_offer_that_was_answered_is_not_answered_again(
    open_agent: OpenAgent, shop: Shop
) -> None:
    """F-30: its nonce is the token's, so two requests cannot share it."""
    agent = await open_agent(policy("charge"), transport=shop)
    assert (await agent.client.get("/joke")).status_code == 200
    shop.asked = 0  # it makes the same offer again
    with pytest.raises(OfferRefusedError, match="an offer that was answered before"):
        await agent.client.get("/joke")
    assert len(shop.nonces) == 1
