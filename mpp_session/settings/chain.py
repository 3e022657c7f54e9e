"""Settings of the chain, the payee, and the account that pays for gas."""

from typing import Annotated, Final
from urllib.parse import urlsplit

from msgspec import Meta

from mpp_session.settings.values import (
    HexAddress,
    Positive,
    Secret,
    Section,
    is_loopback,
    require_bearer,
    require_http_url,
)

__all__ = [
    "DEVELOPMENT_CHAINS",
    "Chain",
    "Payee",
    "Relayer",
    "names_key",
    "require_development",
]

DEVELOPMENT_CHAINS: Final = frozenset({1337, 31337})
"""Chains whose coins are worthless: only there may a setting hold a bare key."""


class Chain(Section, frozen=True):
    """The chain and escrow that hold the deposits."""

    rpc_url: Annotated[
        str,
        Meta(
            description="URL of a node of the chain. With a single node, its answers are trusted."
        ),
    ]
    id: Annotated[
        Positive,
        Meta(
            description="Id of the chain. The gateway does not start if the node serves another "
            "one."
        ),
    ]
    escrow: Annotated[HexAddress, Meta(description="Address of the session escrow.")]
    token: Annotated[HexAddress, Meta(description="Address of the ERC-20 token paid in.")]
    confirmations: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Blocks, the transaction's own included, before an open or top-up counts.",
        ),
    ] = 1
    rpc_timeout_s: Annotated[
        float, Meta(gt=0, le=120, description="Timeout of one call to the node.")
    ] = 10.0
    more_rpc_urls: Annotated[
        tuple[str, ...],
        Meta(
            description="Further nodes, asked in this order when the previous one does not "
            "answer. The gateway compares them, and an alarm rings when they "
            "disagree."
        ),
    ] = ()
    ws_url: Annotated[
        str | None,
        Meta(
            description="Websocket of a node, for announcements of new blocks. Without it, or "
            "while it is silent, `settlement.poll_interval_s` applies."
        ),
    ] = None

    def __post_init__(self) -> None:
        require_http_url("rpc_url", self.rpc_url)
        for url in self.more_rpc_urls:
            require_http_url("more_rpc_urls", url)
        if self.ws_url is not None and not self.ws_url.startswith(("ws://", "wss://")):
            raise ValueError("`ws_url` must be a ws or wss URL")


class Payee(Section, frozen=True):
    """The payee, and the key with which channels are settled and closed."""

    address: Annotated[HexAddress, Meta(description="Address that is paid.")]
    keystore_file: Annotated[
        str | None, Meta(description="Encrypted key of the payee (Web3 secret storage, JSON).")
    ] = None
    password_file: Annotated[
        str | None, Meta(description="File whose first line decrypts the keystore.")
    ] = None
    key: Annotated[
        Secret | None,
        Meta(
            description="The payee's key in hexadecimal, for development chains "
            "(31337, 1337) only, and from the environment only."
        ),
    ] = None
    signer_url: Annotated[
        str | None,
        Meta(
            description="Instead of a key: URL of a service that holds it and signs "
            "(docs/guide/operating.md). Its signatures are checked against `address`."
        ),
    ] = None
    signer_token: Annotated[
        Secret | None, Meta(description="Sent to `signer_url` as `Authorization: Bearer`.")
    ] = None

    def __post_init__(self) -> None:
        _require_one_key(self)


class Relayer(Section, frozen=True):
    """Another account that sends settles and closes and pays their gas; the payee only signs.

    Without it the payee's account sends them. A relayer serves one payee.
    """

    address: Annotated[
        HexAddress | None, Meta(description="Address of the account that pays the gas.")
    ] = None
    keystore_file: Annotated[str | None, Meta(description="Its encrypted key.")] = None
    password_file: Annotated[
        str | None, Meta(description="File whose first line decrypts the keystore.")
    ] = None
    key: Annotated[
        Secret | None,
        Meta(
            description="Its key in hexadecimal, for development chains only, and from the "
            "environment only."
        ),
    ] = None
    signer_url: Annotated[
        str | None, Meta(description="Instead of a key: URL of a service that holds it and signs.")
    ] = None
    signer_token: Annotated[
        Secret | None, Meta(description="Sent to `signer_url` as `Authorization: Bearer`.")
    ] = None

    def __post_init__(self) -> None:
        _require_one_key(self)


def _require_one_key(section: "Payee | Relayer") -> None:
    require_bearer("signer_token", section.signer_token)
    if (section.keystore_file is None) != (section.password_file is None):
        raise ValueError("`keystore_file` and `password_file` must be given together")
    keys = (section.keystore_file, section.key, section.signer_url)
    if sum(key is not None for key in keys) > 1:
        raise ValueError(
            "give either `keystore_file` with `password_file`, or `signer_url`, or `key`"
        )
    if section.signer_url is not None:
        require_http_url("signer_url", section.signer_url)
        if urlsplit(section.signer_url).scheme != "https" and not is_loopback(section.signer_url):
            raise ValueError("`signer_url` must be https, or on this machine")


def names_key(section: "Payee | Relayer") -> bool:
    """Whether the section names a key."""
    return any((section.keystore_file, section.key, section.signer_url))


def require_development(chain: Chain, **sections: Payee | Relayer) -> None:
    """Refuse a bare key on a chain with real money."""
    for name, section in sections.items():
        if section.key is not None and chain.id not in DEVELOPMENT_CHAINS:
            raise ValueError(
                f"`{name}.key` is allowed on development chains only, and this is chain "
                f"{chain.id}: use `keystore_file` and `password_file`"
            )
