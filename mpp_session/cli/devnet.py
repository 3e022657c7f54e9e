"""`mpp-session devnet`: a local chain with everything deployed."""

import contextlib
import enum
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.output import format_id, print_json, print_pairs, say, step
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from settlement.dev.devnet import DevnetValues

__all__ = ["NAME", "Token", "command"]

NAME: Final = "devnet"

_STORES: Final = (".ledger.db", ".agent.db")
"""Where the gateway and the agent of a devnet keep what they know, in place of `.json`."""
_BESIDE: Final = ("-wal", "-shm", "-claims", ".lock", "")
_SQLITE: Final = b"SQLite format 3\0"


class Token(enum.StrEnum):
    """Which dollar is deployed."""

    DUSD = "dusd"
    USDC = "usdc"


def command(
    *,
    token: Annotated[
        Token, typer.Option(help="A small dollar of our own, or Circle's real USDC (from npm).")
    ] = Token.DUSD,
    port: Annotated[int, typer.Option(help="Port of the chain; 0 takes a free one.")] = 8545,
    out: Annotated[
        Path, typer.Option(help="Where addresses and keys are written, readable by you alone.")
    ] = Path("devnet.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the file's contents.")] = False,
) -> None:
    """Start a local chain with escrow, token, Permit2 and accounts. Ends with Ctrl-C.

    The accounts' keys are public: use them for nothing but this chain.

    \b
    mpp-session devnet
    mpp-session devnet --token usdc --port 0 --out /tmp/devnet.json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    asyncio.run(_run(token, port, out, as_json=as_json))


async def _run(token: Token, port: int, out: Path, *, as_json: bool) -> None:
    import asyncio

    from mpp_session.process.signals import stop_on_signals
    from settlement.dev.devnet import Devnet

    began = time.monotonic()
    stopping = asyncio.Event()
    await asyncio.to_thread(_require_ours, out)
    async with Devnet.start(token=token.value, port=port, progress=_progress(began)) as devnet:
        stop_on_signals(stopping)  # not before: what is being installed or started is just ended
        try:
            await asyncio.to_thread(_forget_earlier, out)
            await asyncio.to_thread(devnet.values.write, out)
        except OSError as error:
            raise CommandError(f"{out} cannot be written: {error.strerror}") from error
        step("Devnet is ready", time.monotonic() - began)
        try:
            _print(devnet.values, out, as_json=as_json)
            await stopping.wait()
        finally:
            await asyncio.to_thread(_forget, out, devnet.values.to_json())


def _require_ours(out: Path) -> None:
    """Check that nothing but a devnet's file would be written over (O-30).

    Raises:
        CommandError: Something else is there.
    """
    from mpp_session.devnet_file import read_devnet

    if out.exists() or out.is_symlink():
        read_devnet(out)


def _forget_earlier(out: Path) -> None:
    """Remove what gateway and agent kept of an earlier devnet of this name: its chain is gone.

    By their exact names, and databases alone: all else is the user's (O-30).
    """
    whole = out.resolve()
    for name in _STORES:
        store = whole.with_suffix(name)
        if _is_database(store):
            for suffix in _BESIDE:
                store.with_name(f"{store.name}{suffix}").unlink(missing_ok=True)


def _is_database(path: Path) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) in (_SQLITE, b"")


def _forget(out: Path, written: bytes) -> None:
    """Remove the file that this devnet wrote, unless another one has written its own since."""
    with contextlib.suppress(FileNotFoundError):
        if out.read_bytes() == written:
            out.unlink()


def _print(values: "DevnetValues", out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(values)
        return
    accounts = [(name, format_id(each.address)) for name, each in values.accounts.items()]
    print_pairs(
        [
            ("chain", f"{values.rpc_url} (chain id {values.chain_id})"),
            ("escrow", format_id(values.escrow)),
            (values.token_symbol, format_id(values.token)),
            *accounts,
        ]
    )
    say(f"\nKeys are in {out}. In another shell:\n")
    for line in (
        f"  mpp-session gateway --devnet {out} --upstream http://127.0.0.1:8080",
        f"  mpp-session pay http://127.0.0.1:8402 --devnet {out} --prompt 'Hello'",
    ):
        say(line, whole=True)  # to be copied in one piece
    say("\nCtrl-C stops the chain.")


def _progress(began: float) -> Callable[[str], None]:
    return lambda what: step(what, time.monotonic() - began)
