"""A PostgreSQL for tests: the one `DATABASE_URL` names, or one that a package brings.

Every test gets an empty schema of its own.
"""

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlencode

import asyncpg
import pytest
from blockbuster import BlockBuster

__all__ = ["_asyncpg_may_stat", "postgres_server", "postgres_url"]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    with warnings.catch_warnings():  # of a missing XDG_RUNTIME_DIR, which it does not need
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pgserver", reason="no wheel here: set DATABASE_URL")
    # not below pytest's own folder: as root the server runs as another user, who must get there
    folder = Path(tempfile.mkdtemp(prefix="mpp-session-pg-"))
    folder.chmod(0o755)
    server = pgserver.get_server(folder / "data")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


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
    await connection.execute(f"DROP SCHEMA {schema} CASCADE")
    await connection.close()
