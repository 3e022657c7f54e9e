"""`mpp-session discovery`: what is published of a running service, as registries take it."""

import enum
from typing import Annotated, Final

import typer

from mpp_session.cli.output import say
from mpp_session.errors import CommandError

__all__ = ["NAME", "Form", "command"]

NAME: Final = "discovery"
_TIMEOUT_S: Final = 10.0
_OK: Final = 200


class Form(enum.StrEnum):
    """The forms, by the name of `mpp_session.discovery.forms.FORMS`."""

    OPENAPI = "openapi"
    LLMS = "llms"
    X402 = "x402"
    A2A = "a2a"
    MCP = "mcp"
    MPP_DEV = "mpp.dev"
    PAY_SKILLS = "pay-skills"


def command(
    form: Annotated[Form, typer.Argument(help="Which form.")],
    *,
    admin: Annotated[
        str, typer.Option(help="URL of the service's operator's port; the service's log names it.")
    ] = "http://127.0.0.1:8403",
) -> None:
    """Print a running service in the form that a registry takes.

    A gateway and an application behind `sell` serve openapi and llms themselves, and x402 and a2a
    with the setting `discovery.compat`. The others are for you to submit: mcp is server.json of the
    MCP registry, mpp.dev an entry of the directory's services.ts, pay-skills a PAY.md. All state
    the prices that the service's challenges demand.

    \b
    mpp-session discovery pay-skills > PAY.md
    mpp-session discovery openapi > openapi.json
    mpp-session discovery mpp.dev --admin http://127.0.0.1:9000
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import httpx

    url = f"{admin.rstrip('/')}/discovery/{form.value}"
    try:
        answer = httpx.get(url, timeout=_TIMEOUT_S, trust_env=False)
    except (httpx.TransportError, httpx.InvalidURL, ValueError) as error:
        raise CommandError(
            f"no service answers at {admin}: start it, or name its operator's port with --admin; "
            f"its log has the line `the operator's port` ({error})"
        ) from None
    if answer.status_code != _OK:
        raise CommandError(answer.text.strip() or f"{url} answers {answer.status_code}")
    say(answer.text.rstrip("\n"), whole=True)
