"""What an agent says about its requests: which task, for whom, and why.

    with attach_purpose(Purpose(task="quarterly report", reason="the third source agrees")):
        await client.get("https://api.example/search")

One request gets its own by `extensions={PURPOSE: Purpose(...)}`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec
from msgspec.structs import replace

__all__ = ["Alternative", "Purpose", "attach_purpose", "attached_purpose", "merge_purpose"]

_attached: ContextVar["Purpose | None"] = ContextVar("purpose", default=None)


class Alternative(msgspec.Struct, frozen=True):
    """Another offer that the agent looked at."""

    origin: str
    price: str = ""
    why_not: str = ""


class Purpose(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an agent says about one request: for the record, and for rules by task and tool.

    Text of the agent, so nothing here widens a limit.
    """

    task: str = ""
    on_behalf_of: str = ""
    reason: str = ""
    tool: str = ""
    """The MCP tool that is called."""
    trace_id: str = ""
    span_id: str = ""
    alternatives: tuple[Alternative, ...] = ()


@contextmanager
def attach_purpose(purpose: Purpose) -> Iterator[None]:
    """Send `purpose` with every request that is made in this context.

    A field that an inner purpose leaves empty keeps the value of the outer one.
    """
    token = _attached.set(merge_purpose(purpose, _attached.get()))
    try:
        yield
    finally:
        _attached.reset(token)


def merge_purpose(own: object, *others: Purpose | None) -> Purpose:
    """Return `own`, its empty fields filled from the purposes behind it, the first that has one.

    `own` may be what a request's extension holds; anything but a `Purpose` counts as none.
    """
    merged = own if isinstance(own, Purpose) else Purpose()
    for other in others:
        if other is not None:
            values = {
                name: getattr(other, name)
                for name in Purpose.__struct_fields__
                if not getattr(merged, name)
            }
            merged = replace(merged, **values)
    return merged


def attached_purpose() -> Purpose | None:
    """Return what `attach_purpose` set for this context; None without one."""
    return _attached.get()
