"""Our client pays pympp's server and x402's, with Circle's own USDC on Anvil."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile_facilitator import HostileServer  # type: ignore[import-untyped]
from starlette.responses import RedirectResponse, Response
from x402.http import FacilitatorConfig, HTTPFacilitatorClient

from channel.client.funding.keys import OneKey
from channel.client.funding.signer import AccountSigner
from channel.client.policy.policy import Policy, TokenLimits
from channel.client.store.sqlite import PaymentStore
from channel.errors import (
    BudgetExceededError,
    ChargePendingError,
    OfferRefusedError,
    PaymentOutcomeUnknownError,
)
from channel.types import Address
from mpp_session.agent.client import PayingClient, build_client
from mpp_session.testing import TestChain
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.tx.manager import TxManager
from tests.e2e.charging import JOKE, open_shop
from tests.foreign.shops import PRICE, Shop, local_facilitator, pympp_shop, settle_on, x402_shop

WAYS = ("charge", "x402")


@pytest.fixture(scope="module")
def usdc() -> Iterator[TestChain]:
    with TestChain("usdc") as chain:
        chain.fund(chain.account("payer").address, amount=10 * PRICE)
        yield chain


@pytest.fixture
async def chain(usdc: TestChain) -> AsyncIterator[Devnet]:
    async with usdc.connect() as connected:
        yield connected


@pytest.fixture
async def shops(usdc: TestChain, chain: Devnet) -> AsyncIterator[dict[str, Shop]]:
    token, payee = usdc.values.token, usdc.account("payee").address
    chain_id = usdc.values.chain_id
    async with (
        pympp_shop(token, payee, chain_id, settle_on(chain)) as pympp,
        x402_shop(local_facilitator(usdc), token, payee, f"eip155:{chain_id}") as x402,
    ):
        yield {"pympp": pympp, "x402": x402}


def policy_of(chain: Devnet, *pays: Any, **limits: Any) -> Policy:
    values: dict[str, Any] = {
        "chain_id": chain.values.chain_id,
        "token": chain.values.token,
        "unit_price_max": {},
        "deposit_max": 0,
        "budget": 5 * PRICE,
        "charge_max": PRICE,
    }
    return Policy(
        limits=(TokenLimits(**(values | limits)),), pays=pays or WAYS, allow_loopback_http=True
    )


class Line(httpx.AsyncHTTPTransport):
    """A connection on which answers can be lost, after the server has made them."""

    loses = 0
    on_402: Callable[[], None] = staticmethod(lambda: None)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if response.status_code == 402:
            self.on_402()
        if self.loses and response.status_code != 402:
            self.loses -= 1
            await response.aclose()
            raise httpx.ReadError("the answer is lost", request=request)
        return response


class Elsewhere(PayerAccount):
    """The account, on a chain that has the number of another."""

    def __init__(self, sender: TxManager, chain_id: int) -> None:
        super().__init__(sender)
        self._other = chain_id

    @property
    def chain_id(self) -> int:
        return self._other or super().chain_id


@asynccontextmanager
async def paying(
    chain: Devnet, folder: Path, policy: Policy, *, line: Line | None = None, chain_id: int = 0
) -> AsyncIterator[PayingClient]:
    store = await PaymentStore.open(folder / "agent.db")
    account = Elsewhere(TxManager(chain.rpc, chain.signer("payer")), chain_id)
    async with build_client(
        policy=policy,
        keys=OneKey(AccountSigner(account)),
        store=store,
        chains=[account],
        transport=line or Line(),
    ) as client:
        yield client
    await store.close()


async def earned(chain: Devnet) -> int:
    return await chain.token_balance(chain.account("payee").address)


@pytest.mark.parametrize(
    ("name", "way"), [("pympp", "charge"), ("pympp", "x402"), ("x402", "x402")]
)
async def test_each_foreign_server_is_paid_to_the_base_unit(
    chain: Devnet, shops: dict[str, Shop], tmp_path: Path, name: str, way: Any
) -> None:
    """CLIENT-13, CLIENT-14: and the receipt of each names the transaction."""
    before, shop = await earned(chain), shops[name]
    async with paying(chain, tmp_path, policy_of(chain, way)) as client:
        answer = await client.get(f"{shop.url}/joke")
        assert (answer.status_code, answer.json()) == (200, {"joke": "A chain walks into a bar."})
        (record,) = await client.payments.charges()
    assert (record.way, record.state, record.amount) == (way, "done", PRICE)
    assert record.reference.startswith("0x")
    assert (await earned(chain) - before, shop.served) == (PRICE, 1)


@pytest.mark.parametrize(("name", "way"), [("pympp", "charge"), ("x402", "x402")])
async def test_a_lost_answer_is_asked_for_again_with_the_same_authorization(
    chain: Devnet, shops: dict[str, Shop], tmp_path: Path, name: str, way: Any
) -> None:
    """F-26: by the client itself, and by a program that is started again over the same store."""
    before, shop, line = await earned(chain), shops[name], Line()
    line.loses = 2
    async with paying(chain, tmp_path, policy_of(chain, way), line=line) as client:
        with pytest.raises(PaymentOutcomeUnknownError if way == "charge" else ChargePendingError):
            await client.get(f"{shop.url}/joke")
    async with paying(chain, tmp_path, policy_of(chain, way)) as client:
        if way == "x402":
            with pytest.raises(ChargePendingError, match="settled by block"):
                await client.get(f"{shop.url}/joke")
        else:
            assert (await client.get(f"{shop.url}/joke")).status_code == 403  # it was used
        (record,) = await client.payments.charges()
    assert record.state == "sent"
    assert await earned(chain) - before == PRICE


async def test_a_402_after_the_payment_is_not_paid_again(
    chain: Devnet, shops: dict[str, Shop], tmp_path: Path
) -> None:
    """F-97: until the first authorization can no longer be settled, by the chain's own clock."""
    before, shop = await earned(chain), shops["pympp"]
    async with paying(chain, tmp_path, policy_of(chain)) as client:
        async with httpx.AsyncClient() as stranger:
            unpaid = await stranger.get(f"{shop.url}/joke")
        offers = {"WWW-Authenticate": unpaid.headers["WWW-Authenticate"]}
        shop.before = lambda: Response(None, 402, offers)
        with pytest.raises(ChargePendingError, match="settled by block"):
            await client.get(f"{shop.url}/joke")
        for _ in range(2):  # the same signature, which pympp has used
            assert (await client.get(f"{shop.url}/joke")).status_code == 403
        assert await earned(chain) - before == PRICE
        (record,) = await client.payments.charges()
        assert record.state == "sent"


async def test_a_price_that_changes_after_the_offer_is_not_paid(
    chain: Devnet, shops: dict[str, Shop], tmp_path: Path
) -> None:
    """F-95: the signature is over the amount that was offered, and no second one is made."""
    before, shop, line = await earned(chain), shops["pympp"], Line()
    shop.price = "0.005"

    def raise_price() -> None:
        shop.price = "0.009"

    line.on_402 = raise_price
    async with paying(chain, tmp_path, policy_of(chain), line=line) as client:
        for _ in range(2):
            with pytest.raises(ChargePendingError, match="over 5000 base units"):
                await client.get(f"{shop.url}/joke")
        assert [record.amount for record in await client.payments.charges()] == [5_000]
    assert (await earned(chain), shop.served) == (before, 0)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"charge_max": None}, r"the policy allows none \(set TokenLimits.charge_max\)"),
        ({"charge_max": PRICE - 1}, "the policy allows 1 to 9999"),
        ({"recipients": frozenset()}, r"the policy allows none \(set TokenLimits.recipients\)"),
        ({"token": Address(b"t" * 20)}, r"\(set Policy.limits\)"),
    ],
)
async def test_beyond_the_limits_nothing_is_signed(
    chain: Devnet, shops: dict[str, Shop], tmp_path: Path, limits: Any, said: str
) -> None:
    """CLIENT-01, O-53: each of both offers is named with the setting that refuses it."""
    async with paying(chain, tmp_path, policy_of(chain, **limits)) as client:
        with pytest.raises(OfferRefusedError, match=said) as refused:
            await client.get(f"{shops['pympp'].url}/joke")
        assert [offer.amount for offer in refused.value.offers] == [PRICE, PRICE]
        assert len({offer.setting for offer in refused.value.offers}) == 1
        assert await client.payments.charges() == []


async def test_the_budget_counts_charges_and_repetitions_once(
    chain: Devnet, shops: dict[str, Shop], tmp_path: Path
) -> None:
    """F-96: what is over it is not signed; a repetition is not counted again."""
    before, shop, line = await earned(chain), shops["pympp"], Line()
    line.loses = 1
    policy = policy_of(chain, budget=2 * PRICE)
    async with paying(chain, tmp_path, policy, line=line) as client:
        shop.before = lambda: None
        for key in ("a", "b", "c"):
            url = f"{shop.url}/joke?{key}"
            if key == "c":
                with pytest.raises(BudgetExceededError):
                    await client.get(url)
            else:
                assert (await client.get(url)).status_code in (200, 403)
        assert len(await client.payments.charges()) == 2
    assert await earned(chain) - before == 2 * PRICE


async def test_nothing_is_signed_for_another_origin_nor_twice_for_one_request(
    chain: Devnet, shops: dict[str, Shop], tmp_path: Path
) -> None:
    """F-93, CLIENT-10: after a redirect to another origin, or once it was paid on the way."""
    before, first, other = await earned(chain), shops["pympp"], shops["x402"]
    first.before = lambda: RedirectResponse(f"{other.url}/joke")
    async with paying(chain, tmp_path, policy_of(chain)) as client:
        with pytest.raises(OfferRefusedError, match="payment after a redirect from"):
            await client.get(f"{first.url}/joke", follow_redirects=True)
        first.before = lambda: RedirectResponse(f"{first.url}/joke?again")
        with pytest.raises(OfferRefusedError, match="a second payment"):
            await client.get(f"{first.url}/joke?once", follow_redirects=True)
        assert len(await client.payments.charges()) == 2  # of the first hop of each
    assert (await earned(chain) - before, other.served) == (2 * PRICE, 0)


async def test_the_caller_s_own_key_pays_once_for_good(
    chain: Devnet, shops: dict[str, Shop], tmp_path: Path
) -> None:
    """F-26: a request that names its key and was served is not paid again."""
    before, url = await earned(chain), f"{shops['pympp'].url}/joke"
    async with paying(chain, tmp_path, policy_of(chain)) as client:
        for status in (200, 403):
            answer = await client.get(url, headers={"Idempotency-Key": "order-1"})
            assert answer.status_code == status
        assert (await client.get(url)).status_code == 200
        assert len(await client.payments.charges()) == 2
    assert await earned(chain) - before == 2 * PRICE


@pytest.mark.parametrize("way", WAYS)
async def test_our_own_server_takes_one_transfer_for_one_request(
    chain: Devnet, tmp_path: Path, way: Any
) -> None:
    """F-26: also where its answer was lost, which it takes for served."""
    before, line = await earned(chain), Line()
    async with (
        open_shop(chain, tmp_path) as shop,
        paying(chain, tmp_path, policy_of(chain, way), line=line) as client,
    ):
        assert (await client.get(f"{shop.url}{JOKE}")).status_code == 200
        line.loses = 1
        with pytest.raises(ChargePendingError, match="settled by block"):
            await client.get(f"{shop.url}{JOKE}?lost")
        records = await client.payments.charges()
        assert [(one.way, one.state) for one in records] == [(way, "done"), (way, "sent")]
        assert shop.served == 2
    assert await earned(chain) - before == 2 * PRICE


@contextmanager
def open_hostile(mode: str) -> Iterator[HostileServer]:
    with HostileServer(mode, client_timeout_s=0.2) as hostile:
        yield hostile
    vars(hostile)["_httpd"].server_close()  # which it leaves open


HOSTILE = (
    *("accept_then_timeout", "5xx_after_settle", "double_402", "slow_answer"),
    *("reconcile_unavailable", "reconcile_soft_404", "clean"),
)


@pytest.mark.parametrize("mode", HOSTILE)
async def test_a_facilitator_that_settles_and_denies_it_is_not_paid_twice(
    chain: Devnet, tmp_path: Path, mode: str
) -> None:
    """F-26: hostile-facilitator behind x402's server, our client asks three times."""
    with open_hostile(mode) as hostile:
        config = FacilitatorConfig(url=f"http://127.0.0.1:{hostile.port}", timeout=0.3)
        token, payee = chain.values.token, chain.account("payee").address
        network = "eip155:84532"  # the one that it claims to serve
        async with x402_shop(HTTPFacilitatorClient(config), token, payee, network) as shop:
            policy = policy_of(chain, "x402", chain_id=84532)
            async with paying(chain, tmp_path, policy, chain_id=84532) as client:
                for _ in range(3):
                    try:
                        if (await client.get(f"{shop.url}/joke")).is_success:
                            break
                    except ChargePendingError:
                        pass
                records = await client.payments.charges()
    assert (hostile.distinct_payments, len(records)) == (1, 1)
    assert hostile.unidentified_calls == 0
