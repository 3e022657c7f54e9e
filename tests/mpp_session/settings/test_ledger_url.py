"""O-67: a ledger of a relative path is one file for commands from any folder."""

from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.ledger.url import sqlite_path
from mpp_session.settings.config import load_values

NAMES = ["books.db", "data/books.db", "../books.db", "./a b.db"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["settings", "settings with % and ?#"])
def test_in_the_file_it_is_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    """O-67: two folders, one ledger."""
    home, elsewhere = tmp_path / folder, tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "gateway.toml").write_text(f'[ledger]\nurl = "sqlite:///{name}"\n')
    found = set()
    for where, path in ((home, Path("gateway.toml")), (elsewhere, home / "gateway.toml")):
        monkeypatch.chdir(where)
        url = load_values(path, environment={})["ledger.url"]
        found.add(sqlite_path(url).resolve())
    assert found == {(home / name).resolve()}


def test_as_a_flag_it_is_relative_to_the_folder_it_is_typed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-67: and reaches a settler or a worker whole."""
    monkeypatch.chdir(tmp_path)
    flags = {"ledger.url": "sqlite:///books.db"}
    url = load_values(None, environment={}, flags=flags)["ledger.url"]
    assert sqlite_path(url) == tmp_path / "books.db"
    assert flags == {"ledger.url": "sqlite:///books.db"}


def test_in_the_environment_it_is_refused_and_the_whole_path_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-67: a service's environment outlives the folder it was written in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="another file in each folder") as caught:
        load_values(None, environment={"MPP_SESSION_LEDGER_URL": "sqlite:///books.db"})
    assert f"sqlite:///{tmp_path}/books.db" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["sqlite:////var/lib/x.db", "sqlite:///:memory:", "sqlite:///file:x", "postgresql://db/x", ""],
)
def test_all_else_is_left_as_it_is(url: str) -> None:
    """O-67."""
    for flags, environment in (
        ({"ledger.url": url}, {}),
        ({}, {"MPP_SESSION_LEDGER_URL": url}),
    ):
        assert load_values(None, environment=environment, flags=flags)["ledger.url"] == url
