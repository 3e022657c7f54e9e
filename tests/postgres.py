"""PostgreSQL for tests: the server that `DATABASE_URL` names, or one from a package.

Every test gets an empty schema of its own.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg
import pytest
from blockbuster import BlockBuster

START_S = 100
PORT = "5432"

_clusters: dict[str, tuple[Path, dict[str, Any]]] = {}
"""Servers that run here: where the programs are, and how they are started."""


class Standby:
    """A copy of a server, which follows it while it runs."""

    def __init__(self, run: Callable[..., AbstractContextManager[str]]) -> None:
        self.running = run
        """Run it for a block, with further settings of a command line, and give its URL."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    package = importlib.util.find_spec("pgserver")
    if package is None or package.origin is None:
        pytest.skip("no wheel here: set DATABASE_URL")
    # not below pytest's own folder: as root the server runs as another user, who must get there
    folder = Path(tempfile.mkdtemp(prefix="mpp-session-pg-"))
    folder.chmod(0o755)
    try:
        with _serving(Path(package.origin).parents[1], folder) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _serving(packages: Path, folder: Path) -> Iterator[str]:
    """Run a server for this process alone: the package's own function locks the whole machine."""
    how: dict[str, Any] = {"cwd": folder, "env": _without_settings(os.environ)}
    if os.geteuid() == 0:  # PostgreSQL does not run as root, and others cannot read root's folders
        for found in packages.glob("pgserver*"):
            shutil.copytree(found, folder / found.name)
        packages = folder
        shutil.chown(folder, "nobody")
        how |= {"user": "nobody", "extra_groups": []}
    programs = packages / "pgserver" / "pginstall" / "bin"
    _clusters[str(folder)] = (programs, how)
    create = [f"{programs}/initdb", "-D", "data", "-U", "postgres", "--auth=trust"]
    create += ["--encoding=UTF8", "--no-locale", "--no-sync"]
    made = subprocess.run(create, **how, capture_output=True, text=True, check=False)  # noqa: S603
    assert made.returncode == 0, made.stdout + made.stderr
    with _running(programs, how, folder, "data", PORT) as url:
        yield url


@contextmanager
def standby(server_url: str) -> Iterator[Standby]:
    """A standby of `postgres_server`, connected to it.

    Skips where this process did not start the server.
    """
    folder = Path(parse_qs(urlsplit(server_url).query)["host"][0])
    if str(folder) not in _clusters:
        pytest.skip("DATABASE_URL names a server of which no copy can be made")
    programs, how = _clusters[str(folder)]
    port = str(int(PORT) + 1)
    copy = [f"{programs}/pg_basebackup", "-h", f"{folder}", "-p", PORT, "-U", "postgres"]
    copy += ["-D", "standby", "-R", "-X", "stream", "-c", "fast", "--no-sync"]
    made = subprocess.run(copy, **how, capture_output=True, text=True, check=False)  # noqa: S603
    assert made.returncode == 0, made.stdout + made.stderr
    try:
        yield Standby(partial(_running, programs, how, folder, "standby", port))
    finally:
        shutil.rmtree(folder / "standby")


@contextmanager
def _running(
    programs: Path, how: dict[str, Any], folder: Path, data: str, port: str, *settings: str
) -> Iterator[str]:
    """Run a server on a folder of data, until the end of the block."""
    listen = ["-k", f"{folder}", "-p", port, "-c", "listen_addresses=", *settings]
    with (folder / f"{data}.log").open("w") as log:
        server = subprocess.Popen(  # noqa: S603
            [f"{programs}/postgres", "-D", data, *listen], **how, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_S
        is_ready = [f"{programs}/pg_isready", "-q", "-h", f"{folder}", "-p", port]
        while subprocess.run(is_ready, **how, check=False).returncode != 0:  # noqa: S603
            said = (folder / f"{data}.log").read_text()
            assert server.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        yield "postgresql://postgres@/postgres?" + urlencode({"host": folder, "port": port})
    finally:
        server.send_signal(signal.SIGINT)  # immediately, even with clients
        server.wait(START_S)


def _without_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that PostgreSQL's programs read."""
    return {name: value for name, value in variables.items() if not name.startswith("PG")}


@pytest.fixture
def _asyncpg_may_stat(_no_blocking_call: BlockBuster) -> None:
    """asyncpg looks for a password file when it connects, which is no hot path."""
    for function in _no_blocking_call.functions.values():
        function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_arguments"})


@pytest.fixture
async def postgres_url(postgres_server: str, _asyncpg_may_stat: None) -> AsyncIterator[str]:
    """The URL of an empty schema."""
    schema = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres_server)
    await connection.execute(f"CREATE SCHEMA {schema}")
    joined = "&" if "?" in postgres_server else "?"
    yield postgres_server + joined + urlencode({"search_path": schema})
    for _ in range(10):  # the server may still work for a client that was killed
        with suppress(asyncpg.DeadlockDetectedError):
            await connection.execute(f"DROP SCHEMA {schema} CASCADE")
            break
    await connection.close()
