"""`prices reload` finds the gateways that run, and no other process."""

import os
from contextlib import closing
from pathlib import Path

from mpp_session.process.control_file import ControlFile, find_running

URL = "sqlite:////books.db"


def test_a_gateway_is_found_while_it_runs(tmp_path: Path) -> None:
    with closing(ControlFile(tmp_path / "state", URL)) as control:
        (found,) = find_running(tmp_path / "state", URL)
        assert (found.pid, found.reloads, found.problem) == (os.getpid(), 0, None)
        assert find_running(tmp_path / "state", "sqlite:////others.db") == []
        control.note("a bad row" * 100, "")
        control.note(None, "1 dollar")
        (found,) = find_running(tmp_path / "state", URL)
        assert (found.reloads, found.problem, found.prices) == (2, None, "1 dollar")
    assert find_running(tmp_path / "state", URL) == []


def test_a_file_that_was_left_behind_is_removed_and_not_believed(tmp_path: Path) -> None:
    """Its process id may be another program's by now."""
    with closing(ControlFile(tmp_path, URL)):
        (path,) = tmp_path.iterdir()
        content = path.read_bytes()
    path.write_bytes(content)
    path.chmod(0o600)
    assert find_running(tmp_path, URL) == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_the_gateway_serves_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with closing(ControlFile(tmp_path / "file" / "below", URL)) as control:
        control.note(None, "")
    assert find_running(tmp_path / "file" / "below", URL) == []
