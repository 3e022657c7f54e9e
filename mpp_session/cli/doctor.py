"""`mpp-session doctor`: what keeps a gateway from serving, and the remedy of each fault."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mpp_session.cli.checks import conclude, show_checks
from mpp_session.cli.options import AsJson, ConfigPath
from mpp_session.cli.output import count, print_json

if TYPE_CHECKING:
    from mpp_session.gateway.checkup import ModelServer
    from mpp_session.operator.doctor import Check
    from mpp_session.settings import Config

__all__ = ["NAME", "command"]

NAME: Final = "doctor"


def command(
    *,
    config: ConfigPath = None,
    devnet: Annotated[
        Path | None, typer.Option(help="Of a gateway that is started with --devnet.")
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(help="Base URL of the model server, without /v1.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Also write a report for support. It has no secrets."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what a gateway needs, and name each remedy.

    Each check is one line, and each fault has a remedy below it. Settings come from where
    `mpp-session gateway` takes them. Nothing is changed; the model server is asked for one token.

    It exits with 0 when it finds no fault, 1 when it finds one, 2 when the settings are invalid.
    Advice does not count as a fault.

    \b
    mpp-session doctor --config gateway.toml
    mpp-session doctor --devnet devnet.json --upstream http://127.0.0.1:8080
    mpp-session doctor -c gateway.toml --json --bundle report.json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    import asyncio

    from channel.errors import ConfigError
    from mpp_session.cli.gateway import devnet_defaults
    from mpp_session.operator.doctor import Verdict, unreadable
    from mpp_session.settings.config import load_config

    settings: Config | None = None
    try:
        settings = load_config(
            config,
            flags={"upstream.url": upstream} if upstream is not None else {},
            defaults=devnet_defaults(devnet, config) if devnet is not None else None,
        )
    except ConfigError as error:
        checks, code = unreadable(error), 2
        show_checks(checks, as_json=as_json)
    else:
        checks = asyncio.run(_examine(settings, config, as_json=as_json))
        code = 1 if any(check.verdict is Verdict.FAULT for check in checks) else 0
    if as_json:
        print_json({"checks": checks, "ok": code == 0})
    else:
        conclude(checks)
    if bundle is not None:
        _write_bundle(bundle, settings, checks)
    raise typer.Exit(code)


async def _examine(settings: "Config", path: Path | None, *, as_json: bool) -> "list[Check]":
    from mpp_session.operator.doctor import examine

    checks = []
    async for check in examine(settings, path):
        checks.append(check)
        show_checks([check], as_json=as_json)
    for check in [*await _model_server(settings), await _outside(settings)]:
        checks.append(check)
        show_checks([check], as_json=as_json)
    return checks


async def _outside(settings: "Config") -> "Check":
    """Look at the gateway as its clients do: through the proxy in front of it."""
    from mpp_session.gateway.paced import look_from_outside
    from mpp_session.operator.doctor import Check, Verdict

    name, url = "proxy", settings.discovery.url
    if url is None:
        return Check(name, Verdict.SKIPPED, "`discovery.url` names no public address")
    found = await look_from_outside(url.rstrip("/"), settings.payment.realm)
    if found.fault:
        verdict = Verdict.FAULT if found.is_reached else Verdict.ADVICE
        return Check(name, verdict, found.fault, found.remedy)
    return Check(name, Verdict.OK, f"{url} passes event streams on as they come")


async def _model_server(settings: "Config") -> "list[Check]":
    from mpp_session.gateway.checkup import look_at_model_server
    from mpp_session.operator.doctor import Check, Verdict

    name, url = "model server", settings.upstream.url
    if all(row.path is not None for row in settings.price_rows):
        return await _server(settings)
    found = await look_at_model_server(settings.upstream)
    if found.fault is not None:
        remedy = "start it, or correct `upstream.url` or `upstream.api_key`"
        down = Check("tokenizer", Verdict.SKIPPED, "the model server is not there")
        return [Check(name, Verdict.FAULT, f"{url}: {found.fault}", remedy), down]
    models = ", ".join(found.models) or "names no model"
    if not found.has_usage:
        server = Check(
            name,
            Verdict.ADVICE,
            f"{url}: {models}; its answers report no usage, so tokens are estimated from bytes",
            "use a server that reports `usage`, such as llama.cpp or vLLM",
        )
    else:
        server = Check(name, Verdict.OK, f"{url}: {models}; output counted as {found.kind}")
    return [server, _tokenizer(settings, found)]


async def _server(settings: "Config") -> "list[Check]":
    """Look at a server of which only paths are sold: it is asked for none of them."""
    from mpp_session.gateway.checkup import look_at_server
    from mpp_session.operator.doctor import Check, Verdict

    url, fault = settings.upstream.url, await look_at_server(settings.upstream)
    if fault is not None:
        remedy = "start it, or correct `upstream.url` or `upstream.api_key`"
        return [Check("server", Verdict.FAULT, f"{url}: {fault}", remedy)]
    sold = count(len({row.sold_path for row in settings.price_rows}), "path")
    return [Check("server", Verdict.OK, f"{url} answers; {sold} sold, and no model")]


def _tokenizer(settings: "Config", found: "ModelServer") -> "Check":
    """Judge whether the input is counted before the model runs, if it has a price."""
    from mpp_session.operator.doctor import Check, Verdict

    name = "tokenizer"
    if all(row.input is None for row in settings.price_rows):
        return Check(name, Verdict.SKIPPED, "input has no price")
    if found.counts_prompts:
        return Check(name, Verdict.OK, "the model server counts prompts before it runs")
    charged = "its usage is charged" if found.has_usage else "a token for four bytes is charged"
    return Check(
        name,
        Verdict.ADVICE,
        f"the model server does not count prompts: a token for each byte is reserved, {charged}",
        "use a server with a tokenizer's endpoint, such as llama.cpp, vLLM or SGLang",
    )


def _write_bundle(path: Path, settings: "Config | None", checks: "list[Check]") -> None:
    """Write what support needs: versions, settings without secrets, the checks."""
    import platform
    import sys

    import msgspec

    from channel.errors import ConfigError
    from mpp_session import __version__

    report: dict[str, Any] = {
        "mpp_session": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "checks": checks,
        "settings": _without_keys(msgspec.to_builtins(settings, enc_hook=repr)),
    }
    document = msgspec.json.format(msgspec.json.encode(report), indent=2)
    try:
        path.write_bytes(document + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _without_keys(value: Any) -> Any:
    """Cut every URL to its host: nodes and databases have keys and passwords in theirs."""
    from urllib.parse import urlsplit

    if isinstance(value, dict):
        return {name: _without_keys(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_keys(entry) for entry in value]
    if isinstance(value, str) and "://" in value:
        parts = urlsplit(value)
        return f"{parts.scheme}://{parts.hostname or parts.path}"
    return value
