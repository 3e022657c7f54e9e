"""`docs/reference/cli.md`, written from the commands themselves.

python -m mpp_session.cli.page > docs/reference/cli.md
"""

import inspect
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from typer.core import TyperGroup

from mpp_session.cli.app import APP

__all__ = ["list_commands", "render_commands"]

_HEAD = """\
# Commands

```sh
mpp-session --help
```

{table}

Exit codes: 0 done; 1 failed; 2 wrong usage or settings; 130 interrupted. An error is one line on
standard error. Amounts are shown in the token, with its symbol. With `--json` they are whole
numbers in base units: 1 dollar of a 6-decimal token is 1000000.

*Written from `mpp_session/cli` by `python -m mpp_session.cli.page`; do not edit.*
"""


_KEEP_LINES = "\b"
"""Begins a paragraph whose lines stay as they are."""
_TYPE_NAMES = {int: "whole number", float: "number", str: "text", Path: "path"}


def render_commands() -> str:
    """Return the page."""
    program: Any = typer.main.get_command(APP)
    commands = dict(list_commands(program))
    rows = [
        f"| [`{name}`](#{_anchor(name)}) | {_first_line(command)} |"
        for name, command in commands.items()
    ]
    table = "\n".join(["| command | does |", "|---|---|", *rows])
    sections = [_section(name, command) for name, command in commands.items()]
    return _HEAD.format(table=table) + "".join(sections)


def list_commands(group: Any) -> Iterator[tuple[str, Any]]:
    """Every command by what is typed for it, those of groups included."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            for inner, its_command in list_commands(command):
                yield f"{name} {inner}", its_command
        else:
            yield name, command


def _anchor(name: str) -> str:
    """The anchor of `## mpp-session NAME`."""
    return f"mpp-session-{name}".replace(" ", "-")


def _first_line(command: Any) -> str:
    return _escape(inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " "))


def _section(name: str, command: Any) -> str:
    parts = [f"\n## mpp-session {name}\n"]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = paragraph.removeprefix(_KEEP_LINES).strip("\n")
        is_example = paragraph.startswith(_KEEP_LINES)
        parts.append(f"```sh\n{lines}\n```\n" if is_example else f"{lines}\n")
    parameters = [parameter for parameter in command.params if not parameter.hidden]
    if parameters:
        parts.append("| argument or option | value | |\n|---|---|---|")
        parts += [_row(parameter) for parameter in parameters]
        parts[-1] += "\n"
    return "\n".join(parts)


def _row(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if is_argument else parameter.opts
    names = [*names, *parameter.secondary_opts]
    text = _escape(" ".join((parameter.help or "").split()))
    return f"| {', '.join(f'`{name}`' for name in names)} | {_value(parameter)} | {text} |"


def _value(parameter: Any) -> str:
    """What the parameter takes and what it is if not given; nothing for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    name = _type_name(parameter.type_descriptor.annotation)
    if parameter.required:
        return f"{name}, required"
    return name if parameter.default in {None, ()} else f"{name}, default `{parameter.default}`"


def _type_name(hint: Any) -> str:
    if get_origin(hint) is list:
        return f"{_type_name(get_args(hint)[0])}, may be repeated"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(f"`{choice.value}`" for choice in hint)
    return _TYPE_NAMES[hint]


def _escape(text: str) -> str:
    """What would end a cell or begin a tag, as text."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(render_commands())
