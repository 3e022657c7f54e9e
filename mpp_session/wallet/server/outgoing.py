"""What an agent asks the wallet to send: the target, and the fields that go with it (pure).

The wallet makes a new request of its own. Nothing of the agent's connection is copied into it but
the method, the named fields and the body's bytes.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from typing import Final

import httpx

from channel.errors import PolicyRefusedError, WireError
from channel.limits import TARGET_BYTES_MAX
from mpp_session.agent.wallet_wire import PREFIX, TARGET
from mpp_session.wallet.types import Code

__all__ = ["parse_target", "passed_fields", "require_one_length"]

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_VISIBLE: Final = re.compile(r"[!-~]+")


def parse_target(text: str, *, allow_loopback: bool, own_ports: Collection[int] = ()) -> httpx.URL:
    """Return the URL that a request is for.

    Args:
        text: As the agent spells it.
        allow_loopback: Whether this machine itself may be the target, also over plain http.
        own_ports: Ports at which the wallet itself listens. They are never a target.

    Raises:
        WireError: It is not an absolute URL in visible ASCII, or names a user or a fragment.
        PolicyRefusedError: It is not https, or it is this machine.
    """
    if len(text) > TARGET_BYTES_MAX or not _VISIBLE.fullmatch(text):
        raise WireError(
            f"expected {TARGET} as an absolute URL in at most {TARGET_BYTES_MAX} visible ASCII "
            "characters"
        )
    try:
        url = httpx.URL(text)
        url.host  # noqa: B018 -- is decoded here
    except (httpx.InvalidURL, UnicodeError) as error:
        raise WireError(f"{TARGET} is not a URL: {error}") from None
    if url.userinfo or url.fragment or "#" in text or "\\" in text:
        raise WireError(f"expected {TARGET} without a user, a fragment and a backslash")
    if url.scheme not in {"http", "https"} or not url.host:
        raise _refused(f"{url.scheme or text}: the wallet sends requests to https only")
    if not _is_spelt_plainly(url.host):
        raise _refused(f"{url.host}: expected a name, or an address in its usual form")
    is_here = _is_here(url.host)
    if is_here and not allow_loopback:
        raise _refused(
            f"{url.host} is this machine: the policy allows it with `allow_loopback_http`"
        )
    if url.scheme == "http" and not is_here:
        raise _refused(f"{url.host} over plain http: the wallet sends requests to https only")
    if is_here and url.port in own_ports:
        raise _refused(f"port {url.port} is the wallet's own")
    return url


def passed_fields(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Return the fields of a request or an answer that go on to the next hop.

    Left out are those between two hops, those that `Connection` names, and every `Wallet-` field.
    """
    fields = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw]
    named = {
        word.strip().lower()
        for name, value in fields
        if name == "connection"
        for word in value.split(",")
    }
    return [
        (name, value)
        for name, value in fields
        if name not in _HOP_BY_HOP and name not in named and not name.startswith(PREFIX)
    ]


def require_one_length(raw: Iterable[tuple[bytes, bytes]]) -> None:
    """Check that a request says its length in one way only.

    Raises:
        WireError: It has `Content-Length` beside `Transfer-Encoding`: two readers would disagree
            about where it ends.
    """
    names = {name.lower() for name, _ in raw}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise WireError("expected Content-Length or Transfer-Encoding, and found both")


def _is_spelt_plainly(host: str) -> bool:
    """Whether a host is a name, or an address as every reader reads it, so not 127.1."""
    last = host.rstrip(".").rpartition(".")[2].lower()
    if ":" not in host and not _NUMBER.fullmatch(last):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_here(host: str) -> bool:
    """Whether a host is this machine, or an address that only this machine's network gives out."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None) or found
    return bool(mapped.is_loopback or mapped.is_unspecified or mapped.is_link_local)


def _refused(reason: str) -> PolicyRefusedError:
    return PolicyRefusedError(reason, code=Code.ORIGIN_NOT_ALLOWED, field=TARGET)
