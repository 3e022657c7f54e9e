"""O-54: a synchronous client pays as the asynchronous one does, and the `openai` SDK over it."""

import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from msgspec.structs import replace

from channel.client.policy.policy import Policy
from channel.errors import BudgetExceededError, ConfigError, OfferRefusedError
from mpp_session import SyncPayingClient, open_sync_client
from mpp_session.testing import TestChain, TestPayer, TestProvider
from tests.e2e.gateways import free_port
from tests.e2e.model_shop import JOKE_PRICE, TOKEN_PRICE, ModelShop
from tests.waiting import PATIENCE_S

MESSAGES: Any = [{"role": "user", "content": "Go on."}]
ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(
    r"<!-- runs as (\S+) -->\n```python\n(.*?)```",
    (ROOT / "docs" / "guide" / "paying.md").read_text(),
    re.DOTALL,
)


class Sold:
    """A model server that is paid, and the payer's side of it."""

    def __init__(self, provider: TestProvider, payer: TestPayer, devnet: TestChain) -> None:
        self.shop = ModelShop()
        self.provider = provider
        self.payer = payer
        self.devnet = devnet
        self.url = provider.serve(self.shop.app, self.shop.routes)

    @contextmanager
    def client(self, policy: Policy | None = None, **options: Any) -> Iterator[SyncPayingClient]:
        with open_sync_client(
            rpc_url=self.devnet.values.rpc_url,
            private_key=self.payer.account.private_key,
            policy=policy or self.payer.policy(),
            store=self.payer.store,
            **options,
        ) as client:
            yield client

    def model(self, client: SyncPayingClient, *, url: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{url or self.url}/v1",
            api_key="unused",
            max_retries=0,
            http_client=cast("Any", client),
        )

    def stream(self, client: SyncPayingClient) -> Any:
        return self.model(client).chat.completions.create(model="m", messages=MESSAGES, stream=True)

    def wait_for_end(self, streams: int) -> None:
        """Wait until the server has noticed that so many streams have ended."""
        deadline = time.monotonic() + PATIENCE_S
        while self.shop.ended < streams:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def sold(provider: TestProvider, payer: TestPayer, devnet: TestChain) -> Sold:
    return Sold(provider, payer, devnet)


def words_of(stream: Any, at_most: int = 10**6) -> list[str]:
    words = []
    for chunk in stream:
        words.append(chunk.choices[0].delta.content)
        if len(words) == at_most:
            break
    return words


def test_openai_pays_streamed_and_in_one_piece(sold: Sold) -> None:
    """O-54: TypeError before; every token is paid for once, on one channel."""
    with sold.client() as client:
        assert words_of(sold.stream(client)) == sold.shop.words
        whole = sold.model(client).chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=40
        )
        assert whole.choices[0].message.content == sold.shop.text
        (account,) = client.payments.channels()
        assert account.spent == 2 * 40 * TOKEN_PRICE  # by the receipt behind its [DONE], too
        (closed,) = client.payments.close(sold.url)
        assert client.payments.summary()[0].channels_closed == 1
        assert client.payments.find_opening(closed.key.channel_id) is not None
    assert closed.spent == closed.settled == 2 * 40 * TOKEN_PRICE
    assert isinstance(client, httpx.Client)


def test_plain_requests_pay_from_many_threads_on_one_channel(sold: Sold) -> None:
    """O-54, F-41: the next client, asynchronous or not, goes on with the same channel."""
    with sold.client(base_url=sold.url) as client:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.get("/joke"), range(16)))
        assert {answer.status_code for answer in answers} == {200}

    async def go_on() -> Any:
        async with sold.payer.client() as same:
            await same.get(f"{sold.url}/joke")
            return await same.payments.close()

    (closed,) = asyncio.run(go_on())
    assert closed.settled == 17 * JOKE_PRICE


def test_a_stream_that_is_closed_early_is_paid_as_far_as_it_came(sold: Sold) -> None:
    """O-54: the server stops, and the channel is good for the next call."""
    sold.shop.hold_after = 5
    with sold.client() as client:
        stream = sold.stream(client)
        assert len(words_of(stream, 3)) == 3
        stream.close()
        stream.close()
        sold.wait_for_end(1)
        sold.shop.hold_after = None
        assert words_of(sold.stream(client)) == sold.shop.words
        (closed,) = client.payments.close()
    # Of the first stream at least what was read, at most what was sent.
    assert 43 * TOKEN_PRICE <= closed.settled <= 45 * TOKEN_PRICE
    assert closed.settled == closed.spent


class Interrupt(Exception):  # noqa: N818 -- as KeyboardInterrupt is named
    """What Ctrl-C is in this test."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_ctrl_c_in_mid_stream_ends_the_stream_and_leaves_the_channel_good(sold: Sold) -> None:
    """O-54: the reader waits for a word that never comes."""
    sold.shop.hold_after = 3
    with sold.client() as client:
        stream = sold.stream(client)
        with interrupted_after(0.5), pytest.raises(Interrupt):
            words_of(stream)
        sold.wait_for_end(1)
        sold.shop.hold_after = None
        assert client.get(f"{sold.url}/joke").status_code == 200
        (closed,) = client.payments.close()
    assert closed.settled == 3 * TOKEN_PRICE + JOKE_PRICE


def test_a_stream_that_is_dropped_is_closed_by_the_collector(sold: Sold) -> None:
    """O-54: `break` without `close` is what most loops over an SDK's stream do."""
    sold.shop.hold_after = 3
    with sold.client() as client:
        stream = sold.stream(client)
        assert len(words_of(stream, 2)) == 2
        del stream
        gc.collect()
        sold.wait_for_end(1)
        (account,) = client.payments.channels()
        assert account.counted >= 2 * TOKEN_PRICE
        assert len(client.payments.close()) == 1


def test_a_client_that_is_closed_ends_its_streams(sold: Sold) -> None:
    """O-54: nothing waits for ever; what is closed afterwards is closed already."""
    sold.shop.hold_after = 3
    with sold.client() as client:
        stream = sold.stream(client)
        assert len(words_of(stream, 2)) == 2
    sold.wait_for_end(1)
    stream.close()
    with pytest.raises((RuntimeError, StopIteration)):
        next(iter(stream.response.stream))
    with pytest.raises(RuntimeError, match="closed"):
        client.get(sold.url)
    with pytest.raises(RuntimeError, match="closed"):
        client.payments.channels()


def test_a_client_that_is_closed_while_a_thread_reads_lets_it_go(sold: Sold) -> None:
    """O-54: the reader gets an error, and does not hang."""
    sold.shop.hold_after = 3
    ended: list[BaseException] = []

    def read(stream: Any, begun: threading.Event) -> None:
        try:
            for _ in stream:
                begun.set()
        except Exception as error:  # noqa: BLE001 -- whichever it is
            ended.append(error)

    with sold.client() as client:
        begun = threading.Event()
        reader = threading.Thread(target=read, args=(sold.stream(client), begun))
        reader.start()
        assert begun.wait(PATIENCE_S)
    reader.join(PATIENCE_S)
    assert not reader.is_alive()
    assert len(ended) == 1


def test_what_is_refused_is_raised_or_said(sold: Sold) -> None:
    """O-54, O-42: a caller of httpx gets an exception, an SDK an answer."""
    policy = sold.payer.policy({"llm_token": TOKEN_PRICE - 1, "request": JOKE_PRICE - 1})
    with sold.client(policy) as client:
        with pytest.raises(OfferRefusedError):
            client.get(f"{sold.url}/joke")
        with pytest.raises(openai.APIStatusError) as caught:
            sold.stream(client)
        assert caught.value.status_code == 402
        assert "per llm_token" in str(caught.value)
        assert client.payments.channels() == []
    with sold.client(policy, answers_refusals=True) as client:
        assert client.get(f"{sold.url}/joke").status_code == 402


def test_a_budget_that_ends_in_mid_stream_says_so(sold: Sold) -> None:
    """O-54, O-42: what is iterated over raises as it is."""
    sold.shop.words = ["word "] * 200
    policy = sold.payer.policy()
    (limits,) = policy.limits
    small = replace(policy, limits=(replace(limits, budget=100 * TOKEN_PRICE),))
    with sold.client(small) as client:
        with pytest.raises(BudgetExceededError):
            words_of(sold.stream(client))
        sold.wait_for_end(1)


def test_a_server_that_is_not_there_is_a_connection_error(sold: Sold) -> None:
    """O-54: httpx's own errors come through, and an SDK knows them."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    with sold.client() as client:
        with pytest.raises(httpx.ConnectError) as raised:
            client.get(nowhere)
        assert raised.value.request.url.host == "127.0.0.1"
        with pytest.raises(openai.APIConnectionError):
            sold.model(client, url=nowhere).chat.completions.create(model="m", messages=MESSAGES)


def test_a_slow_answer_is_a_timeout(sold: Sold) -> None:
    """O-54: the timeouts of the synchronous client hold on the other thread."""
    sold.shop.hold_after = 0
    with sold.client() as client:
        body = {"messages": MESSAGES, "stream": True}
        url = f"{sold.url}/v1/chat/completions"
        with (
            pytest.raises(httpx.ReadTimeout),
            client.stream("POST", url, json=body, timeout=0.3) as answer,
        ):
            answer.read()


def pieces() -> Iterator[bytes]:
    yield b"from a "
    yield b"generator"


@pytest.mark.parametrize("content", [b"", b"bytes", pieces], ids=["empty", "bytes", "generator"])
def test_bodies_of_all_kinds_are_sent_again_after_the_402(sold: Sold, content: Any) -> None:
    """O-54: what the caller gives as an iterator runs once."""
    with sold.client() as client:
        given = content() if callable(content) else content
        answer = client.post(f"{sold.url}/joke?again", content=given)
        assert answer.status_code == 200
    assert sold.shop.bodies == [b"from a generator" if callable(content) else content]


def test_a_file_is_sent(sold: Sold, tmp_path: Path) -> None:
    """O-54: multipart, as an SDK uploads."""
    (tmp_path / "note.txt").write_text("hello")
    with sold.client() as client, (tmp_path / "note.txt").open("rb") as file:
        assert client.post(f"{sold.url}/joke", files={"note": file}).status_code == 200
    assert b"hello" in sold.shop.bodies[0]


def test_nothing_is_paid_behind_a_redirect_to_another_origin(sold: Sold) -> None:
    """O-54, CLIENT-10, F-93: the synchronous client makes each hop a request of its own."""
    sold.shop.elsewhere = sold.url.replace("127.0.0.1", "localhost") + "/joke"
    with sold.client(base_url=sold.url) as client:
        assert client.get("/joke").status_code == 200
        with pytest.raises(OfferRefusedError, match="redirect"):
            client.get("/moved", follow_redirects=True)
        assert len(client.payments.channels()) == 1


def test_what_cannot_be_opened_is_said_and_leaves_no_thread(
    payer: TestPayer, tmp_path: Path
) -> None:
    """O-54: the errors of `open_client`."""
    policy = payer.policy()
    before = threading.active_count()
    with (
        pytest.raises(ConfigError, match="private key"),
        open_sync_client(
            rpc_url="http://127.0.0.1:9", private_key=b"short", policy=policy, store=tmp_path
        ),
    ):
        pytest.fail("opened")
    assert threading.active_count() == before


FORGETFUL = """
import sys
from pathlib import Path
from mpp_session import Policy, TokenLimits, open_sync_client, read_devnet
devnet = read_devnet(Path("devnet.json"))
limits = TokenLimits(chain_id=devnet.chain_id, token=devnet.token,
    unit_price_max={"llm_token": 50, "request": 1000}, deposit_max=10**6, budget=10**6)
opened = open_sync_client(rpc_url=devnet.rpc_url, private_key=devnet.accounts["payer"].private_key,
    policy=Policy(limits=(limits,), allow_loopback_http=True), store="agent.db")
client = opened.__enter__()
body = {"messages": [], "stream": True}
request = client.build_request("POST", sys.argv[1] + "/v1/chat/completions", json=body)
answer = client.send(request, stream=True)
stream = answer.iter_bytes()
print(next(stream))
"""


def test_a_program_that_never_closes_its_client_ends(sold: Sold, tmp_path: Path) -> None:
    """O-54: with a stream half read; the thread keeps no process alive, nor the collector."""
    sold.devnet.values.write(tmp_path / "devnet.json")
    sold.shop.hold_after = 3
    done = subprocess.run(  # noqa: S603 -- a fixed script
        [sys.executable, "-c", FORGETFUL, sold.url],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "data:" in done.stdout


@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_the_manuals_examples_run(sold: Sold, tmp_path: Path, name: str, code: str) -> None:
    """O-54: docs/guide/paying.md, with the openai and the anthropic SDK."""
    names: dict[str, Any] = {
        "RPC_URL": sold.devnet.values.rpc_url,
        "KEY": sold.payer.account.private_key,
        "URL": sold.url,
        "policy": sold.payer.policy(),
    }
    exec(code.replace("agent.db", str(tmp_path / "agent.db")), names)  # noqa: S102 -- our manual
    assert names["channel"].settled == 40 * TOKEN_PRICE
    if name == "sync.py":
        assert names["words"] == sold.shop.words
    else:
        assert names["answer"].content[0].text == sold.shop.text


def test_the_manual_has_an_example_of_each() -> None:
    """O-54: so that the test above cannot pass by finding nothing."""
    assert [name for name, _ in EXAMPLES] == ["sync.py", "claude.py"]
