"""The page on commands is what the program takes, no more and no less."""

from pathlib import Path

from mpp_session.cli.page import render_commands

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"


def test_the_page_is_current() -> None:
    """O-70: `scripts/docs --write` writes it from the commands."""
    assert PAGE.read_text() == render_commands()
