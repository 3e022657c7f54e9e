"""A ledger is chosen by URL; one that a restart would empty is refused."""

from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.ledger.sqlite import SqliteLedger
from channel.ledger.url import open_ledger
from tests.channel.books import KEY, opening


async def test_an_absolute_path_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a ledger.db"
    ledger = await open_ledger(f"sqlite:///{str(path).replace(' ', '%20')}", exclusive=True)
    assert isinstance(ledger, SqliteLedger)
    await ledger.apply(KEY, [opening(1)])
    await ledger.close()
    assert path.exists()


async def test_a_relative_path_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = await open_ledger("sqlite:///books.db", exclusive=False)
    await ledger.close()
    assert (tmp_path / "books.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ledger.db",
        "mysql://host/db",
        "memory://",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?cache=shared",
        "sqlite:///ledger.db?mode=memory",
        "sqlite://host/ledger.db",
    ],
)
async def test_anything_else_is_refused(url: str) -> None:
    """F-106."""
    with pytest.raises(ConfigError):
        await open_ledger(url, exclusive=True)
