"""Settings of the operator's own port: metrics, health and dashboard."""

import ipaddress
from typing import Annotated, Final

from msgspec import Meta

from mpp_session.settings.values import Secret, Section

__all__ = ["ADMIN_PORT", "TOKEN_CHARS_MIN", "Admin"]

ADMIN_PORT: Final = 8403
TOKEN_CHARS_MIN: Final = 32


class Admin(Section, frozen=True, kw_only=True):
    """The gateway's second socket, for its operator: dashboard, `/metrics` and health.

    It sells nothing and has no TLS, so it is open to this machine only. With several workers the
    first one answers for all.
    """

    enabled: Annotated[bool, Meta(description="Whether the gateway opens this socket.")] = True
    host: Annotated[
        str,
        Meta(
            pattern="^[!-~]+$",
            description="Address to listen on: `127.0.0.1`, `::1`, or any other with "
            "`allow_remote`.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(
            description=f"Port to listen on; 0 chooses a free one. If not set: {ADMIN_PORT}, or a "
            "free one if another program has it. The log names it.",
        ),
    ] = None
    allow_remote: Annotated[
        bool,
        Meta(
            description="Whether `host` may be an address that other machines reach. Its "
            "metrics say what the gateway earns: let only a network of your own reach it."
        ),
    ] = False
    token: Annotated[
        Secret | None,
        Meta(
            description="Log-in token of the dashboard, 32 characters or more. If not set, the "
            "gateway makes one and keeps it in `dashboard.token` of `ledger.state_dir`, readable "
            "by its user alone."
        ),
    ] = None
    names: Annotated[
        tuple[str, ...],
        Meta(
            description="Host names under which the port is asked for, beside `localhost`, `host` "
            "and addresses of this machine's loopback. A request for any other name is refused, "
            "because a web page may have led a browser here."
        ),
    ] = ()

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token.reveal()) < TOKEN_CHARS_MIN:
            raise ValueError(
                f"expected `admin.token` with {TOKEN_CHARS_MIN} characters or more, found "
                f"{len(self.token.reveal())}: make one with `openssl rand -hex 32`"
            )
        if not self.allow_remote and not _is_loopback(self.host):
            raise ValueError(
                f"expected `admin.host` as an address of this machine's loopback, found "
                f"{self.host}: set 127.0.0.1, or `admin.allow_remote = true` if the network that "
                "reaches it is your own"
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
