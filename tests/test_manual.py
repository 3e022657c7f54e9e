"""The manual is true: what it lists exists, what exists is listed, its examples run."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperCommand, TyperGroup

import channel.errors
from channel.client.policy.decisions import RetryState, decide
from channel.wire.problem import Problem
from mpp_session.cli.app import APP
from settlement.alarms import AlarmKind

ROOT = Path(__file__).resolve().parent.parent


def test_every_problem_is_documented() -> None:
    """docs/reference/errors.md has each answer that a peer can get, and each other error."""
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    named = [getattr(channel.errors, name) for name in channel.errors.__all__]
    errors = [each for each in named if issubclass(each, Exception)]
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
    """CLIENT-08: the table in docs/reference/errors.md is the client's own."""
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    section = text.partition("## What our client does")[2].partition("##")[0]
    listed = re.findall(r"(?m)^\| (\d+) \| `(\S+)` \| (.+) \|$", section)
    problems = {
        (error.status, error.problem_type)
        for error in vars(channel.errors).values()
        if hasattr(error, "problem_type") and hasattr(error, "status")
    }
    assert {(int(status), kind) for status, kind, _ in listed} == problems
    for status, kind, step in listed:
        assert decide(int(status), Problem(type=kind), RetryState(has_paid=True)).value == step


def test_every_command_and_option_explains_itself() -> None:
    """And the manual shows each command."""
    text = "".join(page.read_text() for page in [ROOT / "README.md", *ROOT.glob("docs/*/*.md")])
    program = typer.main.get_command(APP)
    assert isinstance(program, TyperGroup)
    for name, command in commands_of(program):
        assert command.help, name
        assert f"mpp-session {name}" in text or f"scripts/{name}" in text, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def commands_of(group: TyperGroup) -> Iterator[tuple[str, TyperCommand]]:
    """Every command by what is typed for it, those of groups included."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            for inner, its_command in commands_of(command):
                yield f"{name} {inner}", its_command
        else:
            assert isinstance(command, TyperCommand)
            yield name, command


def test_the_manual_says_what_to_do_about_each_alarm() -> None:
    """docs/guide/operating.md has a row for each, under the name that the log has."""
    text = (ROOT / "docs" / "guide" / "operating.md").read_text()
    assert set(re.findall(r"(?m)^\| `([a-z-]+)` \| .+ \| .+ \|$", text)) == {
        kind.value for kind in AlarmKind
    }


def test_the_runbook_has_steps_for_each_alarm() -> None:
    """O-81, O-89: in order, under its name, beside the table."""
    text = (ROOT / "docs" / "guide" / "operating.md").read_text()
    runbook = text.split("\n## Runbook\n")[1].split("\n## ")[0]
    heads = re.findall(r"(?m)^\*\*(.+?)\.\*\* 1\. ", runbook)
    named = {name for head in heads for name in re.findall(r"`([\w-]+)`", head)}
    assert named == {kind.value for kind in AlarmKind}


def test_every_link_of_the_manual_leads_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)


def test_requirements_and_failures_say_which_tests_cover_them() -> None:
    """Each id has a test or a reason, and each id that a test names is in a document."""
    checked = subprocess.run(
        [sys.executable, "scripts/requirements", "--check"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
