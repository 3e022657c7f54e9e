"""The demo from start to end: one agent, one channel, two questions, and the report."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, Self

from channel.client.policy.policy import Policy, TokenLimits
from channel.client.store.record import ChannelRecord
from channel.tariff import Tariff
from mpp_session.agent.amounts import TokenUnit
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.demo.chain_view import read_balances, read_channel, read_transactions
from mpp_session.demo.child import Child, run_child
from mpp_session.demo.model import MODEL_NAME
from mpp_session.demo.report import Answer, DemoReport
from mpp_session.errors import ChildError, CommandError
from mpp_session.settings import Money, Price
from settlement.dev.devnet import GASLESS, Devnet

__all__ = ["PROMPTS", "AnswerScreen", "Screen", "run_demo"]

PROMPTS: Final = (
    "What is the capital of France? Answer in one sentence.",
    "Write two sentences about why honest accounts matter.",
)
INPUT_PRICE: Final = "0.10"
OUTPUT_PRICE: Final = "0.40"
"""For a million tokens each, in whole tokens of the demo's dollar."""
_MAX_TOKENS: Final = 120
_CHECKED: Final = r"(\d+) voucher signatures checked"


class Screen(Protocol):
    """Shows the demo's progress."""

    def step(self, what: str, seconds: float) -> None:
        """Show that a step is done, and how long it took."""

    def answer(self, prompt: str) -> "AnswerScreen":
        """Start to show an answer."""


class AnswerScreen(Protocol):
    """Shows one answer as it arrives."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def token(self, text: str, tokens: int, paid: int) -> None:
        """Show more text, and update the meter."""


async def run_demo(screen: Screen, folder: Path) -> DemoReport:
    """Run the demo and return its figures, each read back from its source.

    `folder` receives the ledger, the agent's store and the logs.

    Raises:
        CommandError: A part did not start or failed; see `ChildError.log_tail`.
        MppSessionError: A payment failed.
    """
    async with AsyncExitStack() as open_:
        clock = _Clock(screen)
        devnet = await open_.enter_async_context(Devnet.start())
        await asyncio.to_thread(devnet.values.write, folder / "devnet.json")
        clock.done("A local chain with an escrow and an agent without ether")
        model = await open_.enter_async_context(_run_model(folder))
        clock.done(f"{MODEL_NAME} behind llama.cpp's server")
        token = TokenUnit(devnet.values.token_symbol, devnet.values.token_decimals)
        tariff = Price(input=Money(INPUT_PRICE), output=Money(OUTPUT_PRICE)).tariff(token)
        before, first_block = await read_balances(devnet), await devnet.rpc.block_number()
        async with _run_gateway(folder, model.found[1]) as gateway:
            clock.done(
                f"The gateway, {INPUT_PRICE} / {OUTPUT_PRICE} {token.symbol} for 1M tokens in / out"
            )
            answers, account = await _be_an_agent(devnet, gateway, folder, screen, tariff)
            clock.restart()
        clock.done("The gateway has stopped, its ledger is closed")
        fact = await read_channel(devnet, account.key.channel_id)
        if fact is None or not fact.is_finalized:
            raise CommandError("the escrow does not show the channel as closed")
        return DemoReport(
            token=token,
            tariff=tariff,
            answers=tuple(answers),
            vouchers_signed=account.vouchers,
            signature_checks=await _count_checks(gateway),
            transactions=tuple(await read_transactions(devnet, after_block=first_block)),
            deposit=fact.deposit,
            paid=fact.settled,
            receipt_spent=account.spent,
            before=before,
            after=await read_balances(devnet),
        )


def _run_model(folder: Path) -> Any:
    command = [sys.executable, "-m", "mpp_session.demo.model"]
    return run_child(
        "the model server", command, log=folder / "model.log", ready=r"listening on (http://\S+)"
    )


@asynccontextmanager
async def _run_gateway(folder: Path, upstream: str) -> AsyncIterator[Child]:
    command = [sys.executable, "-m", "mpp_session.cli", "gateway", "--until-eof", "--port=0"]
    command += [f"--devnet={folder / 'devnet.json'}", f"--upstream={upstream}"]
    command += ["--counts=llama.cpp"]
    command += [f"--input-price={INPUT_PRICE}", f"--output-price={OUTPUT_PRICE}"]
    log = folder / "gateway.log"
    ready = r"listening on (http://\S+)"
    async with run_child("the gateway", command, log=log, ready=ready) as child:
        try:
            yield child
        except ChildError:
            raise
        except Exception as error:
            raise ChildError(f"the agent could not pay: {error}", await child.tail()) from error


async def _be_an_agent(
    devnet: Devnet, gateway: Child, folder: Path, screen: Screen, tariff: Tariff
) -> tuple[list[Answer], ChannelRecord]:
    """Ask, pay as the answers arrive, and close."""
    values = devnet.values
    policy = Policy(
        limits=(
            TokenLimits(
                chain_id=values.chain_id,
                token=values.token,
                unit_price_max={
                    "input_token": f"{INPUT_PRICE} / 1M",
                    "output_token": f"{OUTPUT_PRICE} / 1M",
                },
                unit=TokenUnit(values.token_symbol, values.token_decimals),
                deposit_max=10**values.token_decimals,
                budget=10**values.token_decimals,
            ),
        ),
        allow_loopback_http=True,
    )
    url = gateway.found[1]
    async with open_client(
        rpc_url=values.rpc_url,
        private_key=values.accounts[GASLESS].private_key,
        policy=policy,
        store=folder / "agent.db",
    ) as client:
        answers = [await _ask(client, url, prompt, screen, tariff) for prompt in PROMPTS]
        clock = _Clock(screen)
        closed = await client.payments.close(url)
        clock.done("The channel is closed, the unused deposit is refunded")
    if len(closed) != 1:
        raise CommandError(f"two answers were paid from {len(closed)} channels instead of one")
    return answers, closed[0]


async def _ask(
    client: PayingClient, url: str, prompt: str, screen: Screen, tariff: Tariff
) -> Answer:
    """Ask one question through the plain OpenAI client, and show the answer as it arrives."""
    import openai  # noqa: PLC0415 -- only the demo needs it, and it is slow to import

    began = time.monotonic()
    before = await _paid(client)
    http_client: Any = client  # openai's types accept only httpx.AsyncClient of its own version
    model = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", http_client=http_client)
    stream = await model.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=_MAX_TOKENS,
        temperature=0,
    )
    text, tokens, read, made = "", 0, 0, 0
    with screen.answer(prompt) as shown:
        async for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                text, tokens = text + piece, tokens + 1
                shown.token(piece, tokens, tariff.cost({"output_token": tokens}))
            if chunk.usage is not None:
                read, made = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        units, cost = (now - then for now, then in zip(await _paid(client), before, strict=True))
        shown.token("", units, cost)
    return Answer(prompt, text, read, made, units, cost, time.monotonic() - began)


async def _paid(client: PayingClient) -> tuple[int, int]:
    """Return output tokens and base units that the receipts charge so far."""
    channels = await client.payments.channels()
    return sum(one.units for one in channels), sum(one.spent for one in channels)


async def _count_checks(gateway: Child) -> int:
    found = await gateway.search(_CHECKED)
    return int(found[1]) if found is not None else 0


class _Clock:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._began = time.monotonic()

    def restart(self) -> None:
        self._began = time.monotonic()

    def done(self, what: str) -> None:
        self._screen.step(what, time.monotonic() - self._began)
        self.restart()
