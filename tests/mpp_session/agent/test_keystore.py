"""A password is the first line of its file, with any line ending; other files are refused.

What becomes of the key is tested with `mpp_session.agent.client.load_keystore`.
"""

from pathlib import Path

import pytest

from channel.errors import ConfigError
from mpp_session.agent.keystore import read_password


@pytest.mark.parametrize("written", [b"open", b"open\n", b"open\r\n", b"open\nand more\n"])
def test_a_password_is_the_first_line(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "password"
    path.write_bytes(written)
    assert read_password(path) == "open"


def test_what_is_no_password_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_password(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read: the file is not a regular file"):
        read_password(tmp_path)
    (tmp_path / "password").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not text"):
        read_password(tmp_path / "password")
