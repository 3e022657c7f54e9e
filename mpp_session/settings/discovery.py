"""Settings of what is published about a service, for agents, registries and people."""

import re
from typing import Annotated, Final, Literal

from msgspec import Meta

from mpp_session.settings.values import Section, require_http_url

__all__ = ["Discovery"]

_EMAIL: Final = re.compile(r"[^@\s<>]+@[^@\s<>]+")


class Discovery(Section, frozen=True, kw_only=True):
    """What is published about the service: `/openapi.json`, `/llms.txt` and a page at `/`.

    A gateway publishes them without further settings. An application publishes them with
    `sell(..., discovery=True)`. Their prices are those of the challenges.
    """

    enabled: Annotated[
        bool,
        Meta(description="Whether they are published; if not, a gateway answers 404."),
    ] = True
    title: Annotated[
        Annotated[str, Meta(min_length=1, max_length=100)] | None,
        Meta(description="Name of the service; `payment.realm` if not set."),
    ] = None
    description: Annotated[
        Annotated[str, Meta(min_length=1, max_length=1000)] | None,
        Meta(description="What the service sells, in plain text."),
    ] = None
    contact: Annotated[
        Annotated[str, Meta(max_length=255)] | None,
        Meta(
            description="An e-mail address or a URL. Registries send an owner's messages there.",
        ),
    ] = None
    url: Annotated[
        Annotated[str, Meta(max_length=255)] | None,
        Meta(
            description="Public address of the service, such as `https://llm.example.com`, for "
            "links and commands. Without it: `https://` and `payment.realm`, if that is a host "
            "name, else the address that the gateway listens on.",
        ),
    ] = None
    compat: Annotated[
        tuple[Literal["agentcash", "x402", "a2a"], ...],
        Meta(
            description="Registries whose own forms are published as well; none by default. "
            "`agentcash`: members of `/openapi.json` for AgentCash, MPPScan and x402scan, which "
            "the draft does not allow. `x402`: `/.well-known/x402`. `a2a`: "
            "`/.well-known/agent-card.json`."
        ),
    ] = ()
    currency: Annotated[
        str,
        Meta(
            pattern="^[A-Z]{3}$",
            description="Currency that one whole token is worth one of (ISO 4217). Only the "
            "members of `compat` state it.",
        ),
    ] = "USD"

    def __post_init__(self) -> None:
        if self.url is not None:
            require_http_url("url", self.url)
        if self.contact is not None and not _EMAIL.fullmatch(self.contact):
            try:
                require_http_url("contact", self.contact)
            except ValueError:
                raise ValueError(
                    f"expected `contact` as an e-mail address or a URL, found {self.contact!r:.80}"
                ) from None
