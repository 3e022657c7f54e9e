"""`mpp-session discovery` where no service answers."""

import pytest

from tests.mpp_session.cli.conftest import Run


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:8403", "http://["])
def test_without_a_service_it_says_what_to_do(run: Run, url: str) -> None:
    said = run("discovery", "pay-skills", "--admin", url)
    assert said.returncode == 1
    assert "start it, or name its operator's port with --admin" in said.stderr
    assert said.stdout == ""


def test_an_unknown_form_is_answered_with_those_there_are(run: Run) -> None:
    said = run("discovery", "yellow-pages")
    assert said.returncode == 2
    assert "pay-skills" in said.stderr
