"""O-54: the `anthropic` SDK, which takes no client but one of httpx2, pays through ours."""

import asyncio
import gc
import sys
import time
from typing import Any

import anthropic
import httpx2
import pytest
from msgspec.structs import replace

from channel.errors import BudgetExceededError, ConfigError, OfferRefusedError
from mpp_session import PayingClient, httpx2_transport, open_sync_client
from mpp_session.testing import TestChain, TestPayer, TestProvider
from tests.e2e.gateways import free_port
from tests.e2e.model_shop import JOKE_PRICE, TOKEN_PRICE, ModelShop
from tests.waiting import PATIENCE_S, until

ASKED: Any = {
    "model": "m",
    "max_tokens": 40,
    "messages": [{"role": "user", "content": "Go on."}],
}


class Sold:
    """A model server that is paid, and clients of both kinds."""

    def __init__(self, provider: TestProvider, payer: TestPayer, devnet: TestChain) -> None:
        self.shop = ModelShop()
        self.url = provider.serve(self.shop.app, self.shop.routes)
        self.payer = payer
        self._options: dict[str, Any] = {
            "rpc_url": devnet.values.rpc_url,
            "private_key": payer.account.private_key,
            "store": payer.store,
        }

    def open_sync(self, policy: Any = None) -> Any:
        return open_sync_client(policy=policy or self.payer.policy(), **self._options)

    def model(self, client: Any, *, url: str | None = None) -> anthropic.Anthropic:
        return anthropic.Anthropic(
            base_url=url or self.url,
            api_key="unused",
            max_retries=0,
            http_client=httpx2.Client(transport=httpx2_transport(client)),
        )

    def async_model(self, client: PayingClient) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(
            base_url=self.url,
            api_key="unused",
            max_retries=0,
            http_client=anthropic.DefaultAsyncHttpxClient(transport=httpx2_transport(client)),
        )


@pytest.fixture
def sold(provider: TestProvider, payer: TestPayer, devnet: TestChain) -> Sold:
    return Sold(provider, payer, devnet)


def test_anthropic_pays_streamed_and_in_one_piece(sold: Sold) -> None:
    """O-54: the synchronous SDK."""
    with sold.open_sync() as client:
        model = sold.model(client)
        with model.messages.stream(**ASKED) as stream:
            assert "".join(stream.text_stream) == sold.shop.text
        message = model.messages.create(**ASKED)
        assert message.content[0].to_dict()["text"] == sold.shop.text
        model.close()  # which leaves the paying client open
        (closed,) = client.payments.close()
    assert closed.settled == closed.spent == 2 * 40 * TOKEN_PRICE


async def test_anthropic_pays_from_coroutines(sold: Sold) -> None:
    """O-54: the asynchronous SDK, two calls side by side."""
    async with sold.payer.client() as client:
        model = sold.async_model(client)

        async def stream() -> str:
            async with model.messages.stream(**ASKED) as answer:
                return "".join([text async for text in answer.text_stream])

        text, message = await asyncio.gather(stream(), model.messages.create(**ASKED))
        assert text == message.content[0].to_dict()["text"] == sold.shop.text
        await model.close()
        closed = await client.payments.close()
    assert sum(account.settled for account in closed) == 2 * 40 * TOKEN_PRICE


def test_a_stream_that_is_left_is_paid_as_far_as_it_came(sold: Sold) -> None:
    """O-54: by `close`, and by the collector; the channel is good for the next call."""
    sold.shop.hold_after = 3
    with sold.open_sync() as client:
        model = sold.model(client)
        for leave in (lambda stream: stream.close(), lambda _: None):
            stream = model.messages.create(**ASKED, stream=True)
            kinds = [next(stream).type for _ in range(4)]
            assert kinds[-1] == "content_block_delta"
            leave(stream)
            del stream
            gc.collect()
        deadline = time.monotonic() + PATIENCE_S
        while sold.shop.ended < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        sold.shop.hold_after = None
        assert model.messages.create(**ASKED).type == "message"
        (closed,) = client.payments.close()
    assert 42 * TOKEN_PRICE <= closed.settled <= 46 * TOKEN_PRICE


async def test_a_cancelled_stream_ends(sold: Sold) -> None:
    """O-54: a deadline of the caller, while the model says nothing."""
    sold.shop.hold_after = 3
    async with sold.payer.client() as client:
        model = sold.async_model(client)

        async def read() -> None:
            async with asyncio.timeout(1), model.messages.stream(**ASKED) as stream:
                async for _ in stream:
                    pass

        with pytest.raises(TimeoutError):
            await read()
        await until(lambda: sold.shop.ended == 1)
        (closed,) = await client.payments.close()
        assert closed.settled == 3 * TOKEN_PRICE


def test_what_is_refused_is_said_and_not_tried_again(sold: Sold) -> None:
    """O-54, O-42: the SDK gets an answer, other callers an exception."""
    with sold.open_sync(sold.payer.policy({"llm_token": TOKEN_PRICE - 1})) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            sold.model(client).messages.create(**ASKED)
        assert caught.value.status_code == 402
        assert "per llm_token" in str(caught.value)
        with (
            httpx2.Client(transport=httpx2_transport(client)) as plain,
            pytest.raises(OfferRefusedError),
        ):
            plain.post(f"{sold.url}/v1/messages", json=ASKED)


def test_a_budget_that_ends_in_mid_stream_says_so(sold: Sold) -> None:
    """O-54, O-42: what is iterated over raises as it is."""
    sold.shop.words = ["word "] * 200
    policy = sold.payer.policy()
    small = replace(policy, limits=(replace(policy.limits[0], budget=100 * TOKEN_PRICE),))
    with sold.open_sync(small) as client, pytest.raises(BudgetExceededError):
        for _ in sold.model(client).messages.create(**ASKED, stream=True):
            pass


def test_errors_of_the_connection_are_those_of_httpx2(sold: Sold) -> None:
    """O-54: so that the SDK knows them; also in the middle of a body."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    sold.shop.hold_after = 0
    with sold.open_sync() as client:
        with pytest.raises(anthropic.APIConnectionError):
            sold.model(client, url=nowhere).messages.create(**ASKED)
        with httpx2.Client(transport=httpx2_transport(client), timeout=0.3) as plain:
            with pytest.raises(httpx2.ConnectError) as raised:
                plain.get(nowhere)
            assert raised.value.request.url.host == "127.0.0.1"
            with (
                pytest.raises(httpx2.ReadTimeout),
                plain.stream("POST", f"{sold.url}/v1/messages", json={"stream": True}) as answer,
            ):
                answer.read()


def test_bodies_are_sent_again_and_redirects_are_not_paid_for(sold: Sold) -> None:
    """O-54, CLIENT-10, F-93: also of iterators, which run once."""
    sold.shop.elsewhere = sold.url.replace("127.0.0.1", "localhost") + "/joke"
    with (
        sold.open_sync() as client,
        httpx2.Client(transport=httpx2_transport(client), base_url=sold.url) as plain,
    ):
        assert plain.post("/joke?a", content=iter([b"from a ", b"generator"])).is_success
        assert plain.post("/joke?b", content=b"bytes").is_success
        assert sold.shop.bodies == [b"from a generator", b"bytes"]
        with pytest.raises(OfferRefusedError, match="redirect"):
            plain.get("/moved", follow_redirects=True)
        (closed,) = client.payments.close()
    assert closed.settled == 2 * JOKE_PRICE


async def test_bodies_of_coroutines_are_sent_again(sold: Sold) -> None:
    """O-54: an asynchronous iterator."""

    async def pieces() -> Any:
        yield b"from a "
        yield b"generator"

    async with (
        sold.payer.client() as client,
        httpx2.AsyncClient(transport=httpx2_transport(client), base_url=sold.url) as plain,
    ):
        assert (await plain.post("/joke?a", content=pieces())).is_success
        assert sold.shop.bodies == [b"from a generator"]


def test_without_httpx2_the_reason_is_said(sold: Sold, monkeypatch: pytest.MonkeyPatch) -> None:
    """O-54: it is no requirement of this package."""
    monkeypatch.setitem(sys.modules, "httpx2", None)
    monkeypatch.delitem(sys.modules, "mpp_session.agent.httpx2_bridge", raising=False)
    with sold.open_sync() as client, pytest.raises(ConfigError, match="pip install httpx2"):
        httpx2_transport(client)
