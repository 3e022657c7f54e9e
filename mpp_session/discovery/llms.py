"""The text of `/llms.txt`: the service for language models, in Markdown (llmstxt.org; pure)."""

from collections.abc import Iterator

from channel.wire.encoding import format_checksum_address
from mpp_session.discovery.commands import commands
from mpp_session.discovery.service import Operation, Service

__all__ = ["llms_text"]


def llms_text(service: Service) -> str:
    """Return the text."""
    return "\n".join(_lines(service))


def _lines(service: Service) -> Iterator[str]:
    yield f"# {service.title}"
    yield f"\n> {service.description}\n"
    yield (
        f"Payment: token {format_checksum_address(service.token)} on chain {service.chain_id}, "
        "from a deposit in an escrow. The challenge of a 402 alone says what is paid."
    )
    yield "\n## Prices\n"
    for one in service.paid:
        yield f"- `{one.method} {one.path}`: {_said(one)}{one.price}"
        yield from (f"  - `{variant.name}`: {variant.price}" for variant in one.variants)
    if service.free:
        yield "\n## Free\n"
        yield from (f"- `{one.method} {one.path}`" for one in service.free)
    yield "\n## How to pay\n"
    for purpose, command in commands(service):
        yield f"{purpose}:\n\n```sh\n{command}\n```\n"
    yield "## Documents\n"
    base = service.url or ""
    yield f"- [OpenAPI]({base}/openapi.json): every operation with schemas, examples and offers"
    yield f"- [Page for people]({base}/): the same prices and commands"
    if service.contact is not None:
        yield f"- Contact: {service.contact}"
    yield ""


def _said(operation: Operation) -> str:
    summary = operation.description.summary
    return "" if summary == f"{operation.method} {operation.path}" else f"{summary}; "
