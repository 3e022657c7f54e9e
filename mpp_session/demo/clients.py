"""The clients of the rails' demo: five of others and the session's, each in its own process.

None of them is part of this project. The user installs the Python packages. The npm packages are
used where a checkout has them, else installed once into the user's cache folder.
"""

import asyncio
import base64
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from mpp_session.errors import CommandError
from mpp_session.settings.config import bare_environment
from settlement.dev.npm import Progress, find_node, npm_packages

__all__ = [
    "CLIENTS",
    "NPM_PACKAGES",
    "Answer",
    "Client",
    "PayerTerms",
    "Rail",
    "pay",
    "prepare",
    "require_python",
]

Rail: TypeAlias = Literal["charge", "x402", "session"]

NPM_PACKAGES: Final = {
    "@x402/evm": "2.27.0",
    "@x402/fetch": "2.27.0",
    "mppx": "0.11.0",
    "viem": "2.57.20",
}
"""The versions of `tests/foreign/package.json`."""

_PYTHON_PACKAGES: Final = ("mpp", "x402")
_CHECKOUT: Final = Path(__file__).parents[2] / "tests" / "foreign" / "node_modules"
_PROGRAM: Final = Path(__file__).with_name("payers.mjs")
_PATIENCE_S: Final = 120.0
_TAIL_LINES: Final = 5


class Client(msgspec.Struct, frozen=True):
    """A program that pays."""

    name: str
    """Also the name of its account on the devnet."""
    title: str
    rail: Rail
    is_npm: bool = False


CLIENTS: Final = (
    Client("mppx", "mppx 0.11.0, npm", "charge", is_npm=True),
    Client("pympp", "pympp, Python", "charge"),
    Client("x402-python", "x402, Python", "x402"),
    Client("x402-npm", "@x402/fetch 2.27.0, npm", "x402", is_npm=True),
    Client("mppx-x402", "mppx 0.11.0, npm", "x402", is_npm=True),
    Client("session", "mpp-session", "session"),
)


class PayerTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs to pay; it reads them as JSON from standard input."""

    key: str
    """Its private key, in hexadecimal: a devnet's, and so public."""
    chain_id: int
    token: str
    """An address with its checksum."""
    token_name: str
    token_version: str
    """Name and version of the token's EIP-712 domain."""
    decimals: int = 6
    rpc_url: str = ""
    unit: str = ""
    price: int = 0
    store: str = ""
    """The last four are for a session alone: node, unit, greatest price of one, file."""


class Answer(msgspec.Struct, frozen=True):
    """What a client got for its money."""

    status: int = 0
    text: str = ""
    receipt: str | None = None
    """Its `Payment-Receipt`."""
    response: str | None = None
    """Its `PAYMENT-RESPONSE`."""
    error: str = ""
    """Or what it raised."""

    @property
    def reference(self) -> str:
        """What its receipt names: a transaction, or for a session the channel. Empty if nothing."""
        receipt, response = _decode(self.receipt), _decode(self.response)
        for value in (
            receipt.get("channelId"),
            receipt.get("reference"),
            response.get("transaction"),
        ):
            if isinstance(value, str) and value:
                return value
        return ""


def _decode(header: str | None) -> dict[str, Any]:
    """Return the JSON of a receipt; nothing if it is none, for the report then says so."""
    text = (header or "").replace("+", "-").replace("/", "_").rstrip("=")
    try:
        decoded = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def require_python() -> None:
    """Check that the clients from Python's index are installed.

    Raises:
        CommandError: One is missing. The message says what to do.
    """
    missing = [name for name in _PYTHON_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"the demo of the rails needs {' and '.join(missing)}: scripts/demo --rails of a "
            "checkout installs them; elsewhere pip install 'mpp-session[charge]' 'x402[evm,httpx]'"
        )


async def prepare(
    folder: Path, *, progress: Progress, cache: Path | None = None
) -> dict[bool, list[str]]:
    """Return the command that starts a client, without its arguments: by `Client.is_npm`.

    The program for npm's clients is copied into `folder`, beside a link to their packages: node
    looks for packages above the program.

    Raises:
        AnvilError: npm is missing, or cannot install them. The message says what to do.
    """
    node = await asyncio.to_thread(find_node)
    modules = await npm_packages(NPM_PACKAGES, checkout=_CHECKOUT, progress=progress, cache=cache)
    program = await asyncio.to_thread(_place, folder, modules)
    python = [sys.executable, "-m", "mpp_session.demo.payers"]
    return {True: [node, str(program)], False: python}


def _place(folder: Path, modules: Path) -> Path:
    home = Path(tempfile.mkdtemp(dir=folder, prefix="npm-"))
    (home / "node_modules").symlink_to(modules, target_is_directory=True)
    return Path(shutil.copy(_PROGRAM, home))


async def pay(command: list[str], client: str, url: str, terms: PayerTerms) -> Answer:
    """Let a client pay for a URL once; what goes wrong is in the answer's `error`."""
    process = await asyncio.create_subprocess_exec(
        *command,
        client,
        url,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=bare_environment(),
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            output, errors = await process.communicate(msgspec.json.encode(terms))
    except TimeoutError:
        return Answer(error=f"it did not end within {_PATIENCE_S:g} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return msgspec.json.decode(output, type=Answer)
    except msgspec.MsgspecError:
        tail = errors.decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        return Answer(error=f"it ended with code {process.returncode}: {' / '.join(tail)}")
