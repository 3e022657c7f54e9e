"""Commands to paste: they show the refusal, and pay (pure)."""

import shlex
from collections.abc import Iterator

import msgspec

from channel.wire.encoding import format_checksum_address
from mpp_session.discovery.service import Operation, Service
from mpp_session.settings import DEVELOPMENT_CHAINS

__all__ = ["commands"]

_ANYWHERE = "https://HOST"
"""The address of a service that does not know its own."""


def commands(service: Service) -> Iterator[tuple[str, str]]:
    """Yield the purpose of each command, and the command for a POSIX shell."""
    base = service.url or _ANYWHERE
    paid = service.paid
    if not paid:
        return
    first = paid[0]
    url = shlex.quote(base + first.path)
    body = _body(first)
    curl = ["curl", "-i"]
    pay = ["mpp-session", "pay", url]
    if body is not None:
        curl += ["-X", first.method] if first.method != "POST" else []
        curl += ["-H", "'content-type: application/json'", "-d", shlex.quote(body)]
        pay += ["--json-body", shlex.quote(body)]
    elif first.method != "GET":
        curl += ["-X", first.method]
    if first.method != ("GET" if body is None else "POST"):
        pay += ["-X", first.method]
    yield "See what a request costs (HTTP 402, nothing is paid)", " ".join([*curl, url])
    if service.chain_id in DEVELOPMENT_CHAINS:
        yield "Pay for one on the local chain", " ".join([*pay, "--devnet", "devnet.json"])
        return
    pay += ["--rpc-url", "NODE", "--chain-id", str(service.chain_id)]
    pay += ["--token", format_checksum_address(service.token)]
    pay += ["--keystore", "KEY.json", "--password-file", "KEY.password"]
    yield "Pay for one, with your key and a node of the chain", " ".join(pay)


def _body(operation: Operation) -> str | None:
    body = operation.description.body
    if body is None or "example" not in body:
        return None
    return msgspec.json.encode(body["example"]).decode()
