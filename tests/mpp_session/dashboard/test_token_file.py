"""The token's file is made once, for its user alone."""

from pathlib import Path

import pytest

from channel.errors import ConfigError
from mpp_session.dashboard.token_file import read_or_make_token


def test_it_is_made_once_and_only_its_user_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "dashboard.token"
    made = read_or_make_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_make_token(path) == made
    assert len(made.reveal()) >= 32


def test_each_is_another(tmp_path: Path) -> None:
    assert read_or_make_token(tmp_path / "a") != read_or_make_token(tmp_path / "b")


def test_one_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dashboard.token"
    read_or_make_token(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_or_make_token(path)


def test_one_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dashboard.token"
    path.write_text("short\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="32 characters"):
        read_or_make_token(path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"ledger\.state_dir"):
        read_or_make_token(tmp_path / "file" / "dashboard.token")
