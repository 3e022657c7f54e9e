"""The demo from start to end: one wallet, one agent, one channel, two questions, the report."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, Self

import msgspec

from channel.tariff import Tariff
from channel.types import ChannelId
from mpp_session.agent.amounts import TokenUnit
from mpp_session.demo.chain_view import read_balances, read_channel, read_transactions
from mpp_session.demo.child import Child, run_child
from mpp_session.demo.events import Answered, Asked, Closed, Event, Held, Piece, Refused
from mpp_session.demo.model import MODEL_NAME
from mpp_session.demo.report import DemoReport
from mpp_session.demo.wallet import Wallet, read_trail, run_wallet
from mpp_session.errors import ChildError, CommandError
from mpp_session.settings import Money, Price
from settlement.dev.devnet import Devnet

__all__ = ["AnswerScreen", "Screen", "run_demo"]

INPUT_PRICE: Final = "0.10"
OUTPUT_PRICE: Final = "0.40"
"""For a million tokens each, in whole tokens of the demo's dollar."""
_LINE_BYTES: Final = 2**20
_CHECKED: Final = r"(\d+) voucher signatures checked"


class Screen(Protocol):
    """Shows the demo's progress."""

    def step(self, what: str, seconds: float) -> None:
        """Show that a step is done, and how long it took."""

    def note(self, what: str) -> None:
        """Show something that happened."""

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

    `folder` receives the ledger, the wallet's books and the logs.

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
            async with run_wallet(
                folder,
                devnet.values,
                origin=gateway.found[1],
                input_price=INPUT_PRICE,
                output_price=OUTPUT_PRICE,
            ) as wallet:
                clock.done("The wallet: it has the key and the policy, the agent has a token")
                owner = _Owner(wallet, screen, tariff)
                await owner.follow(gateway)
                clock.restart()
        clock.done("The gateway and the wallet have stopped, their books are closed")
        if len(owner.closed) != 1:
            count = len(owner.closed)
            raise CommandError(f"two answers were paid from {count} channels instead of one")
        (account,) = owner.closed
        fact = await read_channel(devnet, ChannelId(account.channel_id))
        trail = await asyncio.to_thread(read_trail, wallet.home, account.channel_id)
        screen.note(f"The wallet's audit trail of this payment; {trail.verdict}:")
        for step in trail.steps:
            screen.note(f"{step.seq:>6}  {step.kind}: {step.text}")
        if fact is None or not fact.is_finalized:
            raise CommandError("the escrow does not show the channel as closed")
        return DemoReport(
            token=token,
            tariff=tariff,
            answers=tuple(owner.answers),
            refused=tuple(owner.refused),
            approved=owner.approved,
            trail=trail,
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


class _Owner:
    """Shows what the agent does, and answers what its wallet asks."""

    def __init__(self, wallet: Wallet, screen: Screen, tariff: Tariff) -> None:
        self.answers: list[Answered] = []
        self.closed: list[Closed] = []
        self.refused: list[Refused] = []
        self.approved = 0
        self._wallet = wallet
        self._screen = screen
        self._tariff = tariff
        self._shown: AnswerScreen | None = None
        self._clock = _Clock(screen)

    async def follow(self, gateway: Child) -> None:
        """Run the agent, in a process of its own, until it has closed its channel."""
        command = [sys.executable, "-m", "mpp_session.demo.agent"]
        arguments = [self._wallet.address, str(self._wallet.token_file), gateway.found[1]]
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES
        )
        try:
            async for line in _lines_of(process):
                await self._see(msgspec.json.decode(line, type=Event))
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        if process.returncode:
            raise CommandError(f"the agent ended with code {process.returncode}")
        self._clock.done("The channel is closed, the unused deposit is refunded")

    async def _see(self, event: Event) -> None:
        match event:
            case Refused():
                self._screen.note(f"The wallet refuses ({event.code}): {event.reason}")
                self.refused.append(event)
            case Held():
                self._screen.note(f"The wallet asks its owner: {event.reason}")
                await self._wallet.approve(event.approval_id)
                self._screen.note("The owner approves.")
                self.approved += 1
            case Asked(prompt):
                self._shown = self._screen.answer(prompt)
                self._shown.__enter__()
            case Closed():
                self.closed.append(event)
            case _:
                self._show(event)

    def _show(self, event: Piece | Answered) -> None:
        if self._shown is None:
            raise CommandError("the agent shows an answer to no question")
        if isinstance(event, Piece):
            paid = self._tariff.cost({"output_token": event.tokens})
            self._shown.token(event.text, event.tokens, paid)
            return
        self._shown.token("", event.units, event.cost)
        self._shown.__exit__(None, None, None)
        self.answers.append(event)
        self._clock.restart()


async def _lines_of(process: asyncio.subprocess.Process) -> AsyncIterator[bytes]:
    while process.stdout is not None and (line := await process.stdout.readline()):
        yield line
    await process.wait()


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
