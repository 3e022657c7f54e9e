"""The manual is true: what it lists exists, what exists is listed, its examples run."""

import re
from pathlib import Path

import channel.errors
from channel.client.decisions import Tried, decide
from channel.wire.problem import Problem

ROOT = Path(__file__).resolve().parent.parent


def test_every_problem_is_documented() -> None:
    """docs/errors.md has a line for each answer a peer can get, and for each other error."""
    text = (ROOT / "docs" / "errors.md").read_text()
    errors = [getattr(channel.errors, name) for name in channel.errors.__all__]
    answers = {
        (str(error.status), error.problem_type, "yes" if error.offers_challenge else "no")
        for error in errors
        if hasattr(error, "problem_type")
    }
    assert set(re.findall(r"(?m)^\| (\d+) \| `(\S+)` \| (yes|no) ", text)) == answers
    others = [
        error.__name__
        for error in errors
        if not issubclass(error, channel.errors.PeerError) and not error.__subclasses__()
    ]
    assert [name for name in others if f"`{name}`" not in text] == []


def test_the_manual_says_what_the_client_does_about_each_problem() -> None:
    """CLIENT-08: the table in docs/errors.md is the client's own."""
    text = (ROOT / "docs" / "errors.md").read_text()
    section = text.partition("## What our client does")[2].partition("##")[0]
    listed = re.findall(r"(?m)^\| (\d+) \| `(\S+)` \| (.+) \|$", section)
    problems = {
        (error.status, error.problem_type)
        for error in vars(channel.errors).values()
        if hasattr(error, "problem_type") and hasattr(error, "status")
    }
    assert {(int(status), kind) for status, kind, _ in listed} == problems
    for status, kind, step in listed:
        assert decide(int(status), Problem(type=kind), Tried(has_paid=True)).value == step
