"""Writes HTML. Every text is escaped unless it is `Markup`, which only this module makes."""

import html
from collections.abc import Iterable
from typing import Final, TypeAlias, Union

__all__ = ["Child", "Markup", "el", "join"]

_VOID: Final = frozenset({"input", "link", "meta", "hr", "br"})


class Markup(str):
    """HTML that is written already: it is not escaped again."""

    __slots__ = ()


Child: TypeAlias = Union[str, int, Iterable["Child"], None]  # noqa: UP007 - refers to itself
"""Content of an element. Text is escaped; None and an empty sequence write nothing."""


def join(*children: Child) -> Markup:
    """Return the children one after the other."""
    return Markup("".join(map(_write, children)))


def el(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """Return one element.

    An attribute's underscores become hyphens, and one at its end is dropped: `class_`, `data_key`.
    None and False leave the attribute out; True writes its name alone.
    """
    written = "".join(
        _attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def _attribute(name: str, value: str | int | bool | None) -> str:  # noqa: FBT001 - HTML's own kind
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(str(value))}"'


def _write(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int):
        return html.escape(str(child))
    return "".join(map(_write, child))
