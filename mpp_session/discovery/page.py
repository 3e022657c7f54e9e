"""The page at `/` for people: what this is, what it costs, commands to paste (pure).

It fetches nothing and runs nothing. The policy allows its one style by its hash.
"""

import html
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from channel.wire.encoding import format_checksum_address
from mpp_session.discovery.commands import commands
from mpp_session.discovery.service import Operation, Service

__all__ = ["PAGE_POLICY", "service_page"]

_STYLE: Final = (
    ":root{color-scheme:light dark}"
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:46rem;margin:0 auto;padding:1rem;"
    "overflow-wrap:anywhere}"
    "pre{overflow-x:auto;overflow-wrap:normal;padding:.75rem;border:1px solid;border-radius:.4rem}"
    "code{font-family:ui-monospace,monospace}"
    "dt{margin-top:.75rem}dd{margin-left:1rem}"
)
PAGE_POLICY: Final = (
    "default-src 'none'; "
    f"style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def service_page(service: Service) -> str:
    """Return the page, HTML."""
    return "\n".join(_lines(service))


def _lines(service: Service) -> Iterator[str]:
    title = html.escape(service.title)
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta name="description" content="{html.escape(service.description)}">'
    yield f"<title>{title}</title><style>{_STYLE}</style></head>"
    yield f"<body><main><h1>{title}</h1>"
    yield f"<p>{html.escape(service.description)}</p>"
    yield "<h2>Prices</h2><dl>"
    for one in service.paid:
        yield f"<dt><code>{_name(one)}</code></dt><dd>{html.escape(one.price)}{_variants(one)}</dd>"
    yield "</dl>"
    yield (
        f"<p>Paid in the token <code>{format_checksum_address(service.token)}</code> on chain "
        f"{service.chain_id}, from a deposit in an escrow. What is not spent goes back to you.</p>"
    )
    if service.free:
        names = ", ".join(f"<code>{_name(one)}</code>" for one in service.free)
        yield f"<p>Free: {names}.</p>"
    yield "<h2>How to pay</h2>"
    for purpose, command in commands(service):
        yield f"<p>{html.escape(purpose)}:</p><pre><code>{html.escape(command)}</code></pre>"
    yield "<p>The command and the Python package are called <code>mpp-session</code>.</p>"
    yield "<h2>For programs</h2><ul>"
    yield '<li><a href="openapi.json">openapi.json</a>: operations, schemas, offers</li>'
    yield '<li><a href="llms.txt">llms.txt</a>: this page for language models</li></ul>'
    if service.contact is not None:
        yield f"<p>Contact: {_contact(service.contact)}</p>"
    yield "</main></body></html>\n"


def _name(operation: Operation) -> str:
    return html.escape(f"{operation.method} {operation.path}")


def _variants(operation: Operation) -> str:
    items = [
        f"<li><code>{html.escape(one.name)}</code>: {html.escape(one.price)}</li>"
        for one in operation.variants
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _contact(contact: str) -> str:
    text = html.escape(contact)
    scheme = "" if "://" in contact else "mailto:"
    return f'<a href="{scheme}{text}">{text}</a>'
