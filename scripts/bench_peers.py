"""The same work by other libraries, each in its own environment, none of them durable.

Each library's own server code reads a payment header, verifies the voucher, updates its state in
memory and writes the answer's header. The drivers are in scripts/peers/.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec

import _setup
from bench_samples import Row, Run, raw_us

__all__ = ["Peer", "install", "rows"]

VOUCHERS: Final = 300
SCRIPTS: Final = Path(__file__).parent / "peers"


class Peer(msgspec.Struct, frozen=True):
    """One library and the script that drives it: of Python, or a module of Node's."""

    name: str
    packages: tuple[str, ...]
    script: str

    @property
    def folder(self) -> Path:
        """Return where its environment is, named by what is in it."""
        return _setup.cache(f"peers/{'+'.join(self.packages)}")

    @property
    def is_of_node(self) -> bool:
        """Whether it is installed by npm and run by Node."""
        return self.script.endswith(".mjs")


PEERS: Final = (
    # coincurve is what makes x402's verification native; without it, it is slower by far.
    Peer("x402, batch settlement", ("x402[evm]==2.25.0", "coincurve"), "x402_voucher.py"),
    Peer("solana-pay-kit, session", ("solana-pay-kit==0.10.0",), "solana_pay_kit_voucher.py"),
    Peer("mppx, session", ("mppx@0.11.0", "viem@2.56.9"), "mppx_voucher.mjs"),
)


async def rows(run: Run) -> AsyncIterator[Row]:
    """Measure each peer that can be installed; report those that cannot."""
    for peer in PEERS:
        if peer.is_of_node and shutil.which("npm") is None:
            print(f"peers: {peer.name}: Node is not installed", file=sys.stderr)
            continue
        try:
            command = _install_node(peer) if peer.is_of_node else install(peer)
            taken = [(_best_us(command), raw_us()) for _ in range(run.repeats)]
        except subprocess.CalledProcessError as error:
            print(f"peers: {peer.name}: {error.stderr.strip()[-300:]}", file=sys.stderr)
            continue
        yield Row.paired(f"peer: {peer.name}", taken, besides=f"in memory; {peer.packages[0]}")


def install(peer: Peer) -> list[str]:
    """Return what runs the peer's script by its own Python; its environment is made once."""
    done = peer.folder / "installed"
    python = peer.folder / "bin" / "python"
    if not done.exists():
        shutil.rmtree(peer.folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(peer.folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-input", *peer.packages])
        done.touch()
    return [str(python), str(SCRIPTS / peer.script)]


def _install_node(peer: Peer) -> list[str]:
    """Return what runs a copy of the peer's script beside its packages, where Node looks."""
    done = peer.folder / "installed"
    if not done.exists():
        shutil.rmtree(peer.folder, ignore_errors=True)
        peer.folder.mkdir(parents=True)
        # Its peer dependencies are web frameworks and tools that no voucher passes through.
        quiet = ["--silent", "--no-audit", "--no-fund", "--legacy-peer-deps"]
        _run(["npm", "install", "--prefix", str(peer.folder), *quiet, *peer.packages])
        done.touch()
    script = shutil.copy(SCRIPTS / peer.script, peer.folder)
    return ["node", str(script)]


def _best_us(command: list[str]) -> float:
    """Return the best of short runs, as everything else of this size is measured."""
    times: list[float] = json.loads(_run([*command, str(VOUCHERS)]))
    return min(times)


def _run(command: list[str]) -> str:
    # Its packages only: ours must not be found.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout
