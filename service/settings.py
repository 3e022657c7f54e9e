"""Every setting of the program: name, type, bounds, default and what it is for.

One frozen struct a section. `docs/configuration.md` is written from this file, and a test
compares the two. Values are checked here as far as they can be without a node or a file;
`service.wiring` checks the rest before anything is served.
"""

import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from channel.limits import (
    AUTHORIZATION_MARGIN_S,
    CHALLENGE_LIFETIME_S,
    CHANNELS_CACHED_MAX,
    GRACE_PERIOD_S_MIN,
    RESERVATION_LEASE_S,
    RESERVATION_STEP_UNITS,
    SECRET_BYTES_MIN,
    SPONSORED_DEPOSIT_MIN,
    SPONSORED_PER_SOURCE_MAX,
    STREAM_PAUSE_S_MAX,
    VOUCHERS_PER_SECOND_MAX,
)

__all__ = [
    "Chain",
    "Config",
    "Exposure",
    "Ledger",
    "Listen",
    "Payee",
    "Payment",
    "Price",
    "ProviderConfig",
    "Relayer",
    "Secret",
    "Settlement",
    "SettlerConfig",
    "Sponsoring",
    "Tower",
    "TowerConfig",
    "Upstream",
    "WatchConfig",
    "names_key",
]

DEVELOPMENT_CHAINS: Final = frozenset({1337, 31337})
"""Chains whose money is worth nothing: the only ones on which a bare key is taken."""

_INT64_MAX: Final = 2**63 - 1
_TOKENS_MAX: Final = 10**9
_PRICE_MAX: Final = 10**18  # a billion tokens at this price still fit `uint128`
_FREE_PATH: Final = re.compile(r"(GET|HEAD) /[!-~]*")

HexAddress = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{40}$")]
Positive = Annotated[int, Meta(ge=1, le=_INT64_MAX)]


class Secret:
    """A text that is never printed: not by `repr`, `str`, a log or a trace (F-103)."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for the one place that needs it."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(...)"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file."""


def _require_one_key(section: "Payee | Relayer") -> None:
    if (section.keystore_file is None) != (section.password_file is None):
        raise ValueError("`keystore_file` and `password_file` go together")
    keys = (section.keystore_file, section.key, section.signer_url)
    if sum(key is not None for key in keys) > 1:
        raise ValueError(
            "give either `keystore_file` with `password_file`, or `signer_url`, or `key`"
        )
    if section.signer_url is not None:
        _require_http_url("signer_url", section.signer_url)
        if urlsplit(section.signer_url).scheme != "https" and not _is_loopback(section.signer_url):
            raise ValueError("`signer_url` must be https, or on this machine")


def names_key(section: "Payee | Relayer") -> bool:
    """Whether it says where a key is."""
    return any((section.keystore_file, section.key, section.signer_url))


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}


def _require_http_url(name: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"`{name}` must be an http or https URL")
    if parts.query or parts.fragment:
        raise ValueError(f"`{name}` must have neither query nor fragment")


class Listen(_Section, frozen=True):
    """Where the gateway answers."""

    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ] = 8402
    shutdown_s: Annotated[
        float,
        Meta(
            gt=0,
            description="How long running answers may take to end after SIGTERM. Streams end at "
            "once, each with its final receipt.",
        ),
    ] = 10.0
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Processes that serve, on one socket. More than one needs a PostgreSQL "
            "ledger. One that is killed is started again.",
        ),
    ] = 1


class Upstream(_Section, frozen=True):
    """The model server that does the work."""

    url: Annotated[
        str,
        Meta(description="Base URL of an OpenAI-compatible server, without `/v1`."),
    ]
    api_key: Annotated[
        Secret | None,
        Meta(
            description="Sent to the model server as `Authorization: Bearer`. Clients' own "
            "`Authorization` is never passed on."
        ),
    ] = None
    counts: Annotated[
        Literal["chunks", "llama.cpp"],
        Meta(
            description="How units of a stream are counted. `chunks`: one content chunk is one "
            "unit, for any server. `llama.cpp`: the server is asked for its own exact count of "
            "tokens in every chunk (`timings_per_token`)."
        ),
    ] = "chunks"
    free: Annotated[
        tuple[str, ...],
        Meta(
            description="What is passed on without payment. Everything else but "
            "`POST /v1/chat/completions` is 404."
        ),
    ] = ("GET /v1/models", "GET /health")
    max_tokens: Annotated[
        int,
        Meta(
            ge=1,
            le=_TOKENS_MAX,
            description="Greatest number of output tokens one request may ask for.",
        ),
    ] = 4096
    default_max_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=_TOKENS_MAX,
            description="Bound given to a request that is not streamed and names none. "
            "0 refuses such a request.",
        ),
    ] = 0
    body_bytes_max: Annotated[Positive, Meta(description="Greatest request body, in bytes.")] = (
        4 * 1024 * 1024
    )
    connect_timeout_s: Annotated[
        float, Meta(gt=0, description="How long a connection to the model server may take.")
    ] = 5.0
    read_timeout_s: Annotated[
        float,
        Meta(gt=0, description="How long the model server may be silent before it is given up."),
    ] = 120.0

    def __post_init__(self) -> None:
        _require_http_url("url", self.url)
        for path in self.free:
            if not _FREE_PATH.fullmatch(path):
                raise ValueError(f"`free` holds {path!r}; write it as `GET /path`")
        if self.default_max_tokens > self.max_tokens:
            raise ValueError("`default_max_tokens` is above `max_tokens`")


class Price(_Section, frozen=True):
    """What an output token costs."""

    per_unit: Annotated[
        int,
        Meta(
            ge=1,
            le=_PRICE_MAX,
            description="Base units of the token for one unit of output: with a 6-decimal dollar "
            "token 25 is $25 per million units.",
        ),
    ]


class Payment(_Section, frozen=True):
    """What clients are asked for, and how."""

    realm: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            description="Name of the protected service in every challenge, usually its host "
            "name. Never taken from a request.",
        ),
    ]
    secrets: Annotated[
        tuple[Secret, ...],
        Meta(
            min_length=1,
            description=f"Keys that bind challenges, at least {SECRET_BYTES_MIN} bytes each. The "
            "first one signs; put a new one in front to rotate and drop the old one once its "
            "challenges have expired. The same on every worker.",
        ),
    ]
    challenge_lifetime_s: Annotated[
        int, Meta(ge=30, le=86400, description="How long a challenge and its price hold.")
    ] = CHALLENGE_LIFETIME_S
    suggested_deposit: Annotated[
        Positive | None,
        Meta(
            description="Deposit proposed to clients, in base units. A hint: their policy decides."
        ),
    ] = None
    min_voucher_delta: Annotated[
        int,
        Meta(ge=0, le=_INT64_MAX, description="Least rise between two vouchers, in base units."),
    ] = 0
    vouchers_per_second: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Valid vouchers taken a second on one channel."),
    ] = VOUCHERS_PER_SECOND_MAX
    reservation_step_units: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="Units a stream reserves ahead with one durable write. It is also the "
            "most a client can pay for without receiving it when the gateway is killed.",
        ),
    ] = RESERVATION_STEP_UNITS
    reservation_lease_s: Annotated[
        int,
        Meta(
            ge=5,
            le=3600,
            description="After this long without a sign of life a stream's or request's "
            "reservation is ended for it.",
        ),
    ] = RESERVATION_LEASE_S
    pause_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="How long a stream waits for the next voucher before it ends with its "
            "receipt and the model server is stopped.",
        ),
    ] = float(STREAM_PAUSE_S_MAX)
    stream_policy: Annotated[
        Literal["replace", "reject", "allow"],
        Meta(
            description="What a new stream does to one that runs on the same channel, on whatever "
            "worker: it takes its place (the older one ends with its receipt), is refused with "
            "409, or runs beside it."
        ),
    ] = "replace"

    def __post_init__(self) -> None:
        if "|" in self.realm or not self.realm.isascii() or not self.realm.isprintable():
            raise ValueError("`realm` must be printable ASCII without `|`")
        for secret in self.secrets:
            size = len(secret.reveal().encode())
            if size < SECRET_BYTES_MIN:
                raise ValueError(
                    f"`secrets` holds one of {size} bytes; at least {SECRET_BYTES_MIN} are needed "
                    "(python -c 'import secrets; print(secrets.token_urlsafe(32))')"
                )


class Chain(_Section, frozen=True):
    """Where deposits are."""

    rpc_url: Annotated[str, Meta(description="Node of the chain. Its answers are trusted.")]
    id: Annotated[
        Positive, Meta(description="Chain the node must be on, or the gateway does not start.")
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
        float, Meta(gt=0, le=120, description="Deadline of one call to the node.")
    ] = 10.0
    more_rpc_urls: Annotated[
        tuple[str, ...],
        Meta(
            description="Further nodes, asked in this order when the one before does not answer. "
            "They are held against each other, and an alarm rings when they disagree."
        ),
    ] = ()
    ws_url: Annotated[
        str | None,
        Meta(
            description="Websocket of a node that tells of new blocks. Without it, or while it is "
            "silent, `settlement.poll_interval_s` decides."
        ),
    ] = None

    def __post_init__(self) -> None:
        _require_http_url("rpc_url", self.rpc_url)
        for url in self.more_rpc_urls:
            _require_http_url("more_rpc_urls", url)
        if self.ws_url is not None and not self.ws_url.startswith(("ws://", "wss://")):
            raise ValueError("`ws_url` must be a ws or wss URL")


class Payee(_Section, frozen=True):
    """Who is paid, and with which key channels are settled and closed."""

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
            description="Instead of a key: a service that keeps it and signs (docs/operating.md). "
            "What it answers is checked against `address`."
        ),
    ] = None
    signer_token: Annotated[
        Secret | None, Meta(description="Sent to `signer_url` as `Authorization: Bearer`.")
    ] = None

    def __post_init__(self) -> None:
        _require_one_key(self)


class Relayer(_Section, frozen=True):
    """Another account that sends settles and closes and pays their gas; the payee only signs.

    Without it the payee sends them itself. One relayer serves one payee.
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
        str | None, Meta(description="Instead of a key: a service that keeps it and signs.")
    ] = None
    signer_token: Annotated[
        Secret | None, Meta(description="Sent to `signer_url` as `Authorization: Bearer`.")
    ] = None

    def __post_init__(self) -> None:
        _require_one_key(self)


class Ledger(_Section, frozen=True):
    """Where the books are kept."""

    url: Annotated[
        str,
        Meta(
            description="`sqlite:///absolute/path.db` for one gateway process, "
            "`postgresql://...` for several. Never in memory."
        ),
    ]
    channels_cached: Annotated[
        int,
        Meta(
            ge=2,
            description="Channels kept in the gateway's memory beside the disk, those used last: "
            "about 1 kB each. The voucher of one that is not costs a read.",
        ),
    ] = CHANNELS_CACHED_MAX

    def __post_init__(self) -> None:
        if ":memory:" in self.url or "mode=memory" in self.url or self.url == "sqlite://":
            raise ValueError("`url` names a ledger in memory: a restart would lose what is owed")
        if not self.url.startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise ValueError("`url` must begin with sqlite:/// or postgresql://")


class Settlement(_Section, frozen=True):
    """Watching the chain and closing in time."""

    sweep_interval_s: Annotated[
        float,
        Meta(
            gt=0,
            le=GRACE_PERIOD_S_MIN / 10,
            description="How often every open channel is read from the chain, whatever events "
            "said: 10,000 channels cost about 20 calls.",
        ),
    ] = 15.0
    poll_interval_s: Annotated[
        float,
        Meta(
            gt=0,
            le=60,
            description="How often the chain's head is asked for, to see a requested close soon.",
        ),
    ] = 2.0
    settle_value: Annotated[
        Positive,
        Meta(description="Settle a channel once so much of it is delivered and unsettled."),
    ] = 1_000_000
    settle_age_s: Annotated[
        Positive,
        Meta(description="Settle a channel once something of it is unsettled for so long."),
    ] = 24 * 3600
    settle_units: Annotated[
        Positive | None,
        Meta(description="Settle a channel once so many units at today's price are unsettled."),
    ] = None
    close_idle_s: Annotated[
        int,
        Meta(
            ge=0,
            description="Close a channel to which no new voucher came for so long, and give the "
            "rest back to its payer. 0: never.",
        ),
    ] = 30 * 24 * 3600
    defend_min: Annotated[
        Positive,
        Meta(
            description="Least amount delivered and unsettled for which a close that its payer "
            "asked for is answered by ours. Below it the payer may just withdraw."
        ),
    ] = 1
    token_price_wei: Annotated[
        Positive | None,
        Meta(
            description="What one whole token is worth in wei of the chain's own coin, roughly: "
            "a dollar at 2,500 dollars an ether is 400000000000000. With it, what does not "
            "press waits while gas is dear; without it gas is not weighed."
        ),
    ] = None
    token_decimals: Annotated[
        int, Meta(ge=0, le=36, description="Decimals of the token, for `token_price_wei`.")
    ] = 6
    gas_share_max_percent: Annotated[
        int,
        Meta(ge=1, le=100, description="Of what a settle brings, for its gas, unless it presses."),
    ] = 5
    start: Annotated[
        bool,
        Meta(
            description="Start `mpp-session settle` beside the gateway and keep it running. "
            "`false` where it runs elsewhere: then the gateway needs no key at all."
        ),
    ] = True
    gas_budget_wei: Annotated[
        Positive,
        Meta(
            description="What the gas of one channel's settle or close may cost at most, or what "
            "is at risk on it by `token_price_wei`, whichever is more. A quarter of it while "
            "nothing presses, all of it before a deadline."
        ),
    ] = 10**16
    max_fee_wei: Annotated[
        Positive | None,
        Meta(description="Never bid more than this per unit of gas. Unset: the budget decides."),
    ] = None
    batch_max: Annotated[
        int, Meta(ge=1, le=400, description="Channels in one transaction, at most.")
    ] = 100
    close_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="How long a client's close waits to be mined before it is told to ask "
            "again.",
        ),
    ] = 30.0


class Exposure(_Section, frozen=True):
    """What may be at risk, in base units of the token."""

    channel_max: Annotated[
        Positive | None,
        Meta(
            description="Most that may be promised and unsettled on one channel (`accepted - "
            "settled`); settling begins at half of it. A voucher beyond is refused with "
            "`exposure-limit`."
        ),
    ] = None
    total_max: Annotated[
        Positive | None,
        Meta(
            description="Most that may be delivered, or held for what runs, and unsettled on all "
            "channels together (`spent + reserved - settled`); settling begins at half of it. "
            "Beyond it nothing is served. With several gateway processes each further one may "
            "pass it by what it takes within one `settlement.sweep_interval_s`."
        ),
    ] = None
    closes_reserved_min: Annotated[
        int,
        Meta(
            ge=0,
            description="For how many closes there must be gas at twice today's price, if fewer "
            "channels are open. Below that no new channel is taken (`openings-paused`).",
        ),
    ] = 20


class Sponsoring(_Section, frozen=True):
    """Paying the gas of payers' openings and top-ups, so that they need no ether."""

    fee_payer: Annotated[
        bool,
        Meta(
            description="Submit deposits that payers only sign, at the gas of the account that "
            "settles. Challenges then say `feePayer`. What cannot be kept does not start."
        ),
    ] = False
    types: Annotated[
        tuple[Literal["authorization", "permit2"], ...],
        Meta(
            description="Ways of signing that are offered, the preferred one first. Empty: every "
            "one that works on this chain with this token, which is found out at start."
        ),
    ] = ()
    deposit_min: Annotated[
        Positive, Meta(description="Least deposit that is worth its gas, in base units.")
    ] = SPONSORED_DEPOSIT_MIN
    gas_budget_wei: Annotated[
        int,
        Meta(
            ge=10**9,
            le=_INT64_MAX,
            description="Most gas that is paid for payers within an hour, whoever they are.",
        ),
    ] = 2 * 10**16
    gas_price_max_wei: Annotated[
        Positive, Meta(description="Most that is paid for a unit of gas.")
    ] = 50 * 10**9
    deposits_per_payer: Annotated[
        Positive, Meta(description="Deposits within an hour that are paid for one payer.")
    ] = 5
    deposits_per_address: Annotated[
        Positive,
        Meta(
            description="Deposits within an hour that are paid for one client address (an IPv6 "
            "network counts as one), for each worker."
        ),
    ] = SPONSORED_PER_SOURCE_MAX
    margin_s: Annotated[
        int,
        Meta(
            ge=30,
            le=3600,
            description="How long a signed deposit must still be valid by the chain's clock.",
        ),
    ] = AUTHORIZATION_MARGIN_S
    wait_s: Annotated[
        float,
        Meta(
            gt=0,
            le=120,
            description="How long a client waits for its deposit to be mined before it is told "
            "to ask again.",
        ),
    ] = 15.0


class Tower(_Section, frozen=True):
    """Defence from another machine: settles signed ahead, and the watchtower that sends them."""

    export_file: Annotated[
        str | None,
        Meta(
            description="The settler appends settles that it has signed ahead to this file, for "
            "`mpp-session settle --watchtower` elsewhere. Unset: none are signed."
        ),
    ] = None
    uncovered_max: Annotated[
        Positive,
        Meta(
            description="Most that may be delivered on a channel, in base units, without a settle "
            "signed ahead for it; a newer one is signed beyond."
        ),
    ] = 100_000
    uncovered_age_s: Annotated[
        Positive,
        Meta(description="How long less than that may go without, too."),
    ] = 300
    life_s: Annotated[
        Positive,
        Meta(
            description="How long a settle signed ahead is good; renewed when half of it is gone. "
            "At least eight grace periods: what is left of it must outlive an outage and the "
            "grace period after it."
        ),
    ] = 30 * 24 * 3600
    act_percent: Annotated[
        int,
        Meta(
            ge=1,
            le=90,
            description="How much of a grace period the tower leaves to the payee's own settler "
            "before it settles instead.",
        ),
    ] = 50


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it takes to look at books and chain, and to know what is due: no key, no secret."""

    chain: Chain
    ledger: Ledger
    settlement: Settlement = Settlement()
    exposure: Exposure = Exposure()


def _require_development(chain: Chain, **sections: Payee | Relayer) -> None:
    """Refuse a bare key where it would guard real money."""
    for name, section in sections.items():
        if section.key is not None and chain.id not in DEVELOPMENT_CHAINS:
            raise ValueError(
                f"`{name}.key` is taken on development chains only, and this is chain "
                f"{chain.id}; use a keystore"
            )


class SettlerConfig(WatchConfig, frozen=True, kw_only=True):
    """What the settler must know, wherever it runs."""

    payee: Payee
    relayer: Relayer = Relayer()
    tower: Tower = Tower()
    price: Price | None = None
    """For settling by units."""

    def __post_init__(self) -> None:
        _require_development(self.chain, payee=self.payee, relayer=self.relayer)


class TowerConfig(WatchConfig, frozen=True, kw_only=True):
    """What a watchtower must know. Its ledger holds its own journal and nothing else."""

    payee: Payee
    relayer: Relayer = Relayer()
    tower: Tower = Tower()

    def __post_init__(self) -> None:
        if self.relayer.address is None:
            raise ValueError("`relayer.address` is missing: the account that pays the tower's gas")
        if names_key(self.payee):
            raise ValueError(
                "`payee` names a key: a watchtower has none of the payee's, only `payee.address`"
            )
        _require_development(self.chain, relayer=self.relayer)


class ProviderConfig(SettlerConfig, frozen=True, kw_only=True):
    """What whoever is paid must say: for a gateway, or for an application of one's own."""

    payment: Payment
    sponsoring: Sponsoring = Sponsoring()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.settlement.start:
            return
        sections: dict[str, Payee | Relayer] = {"payee": self.payee}
        if self.relayer.address is not None:
            sections["relayer"] = self.relayer
        for name, section in sections.items():
            if not names_key(section):
                raise ValueError(
                    f"`{name}` names no key: give either `keystore_file` with `password_file`, or "
                    "`signer_url`, or say `settlement.start = false` and run `mpp-session settle` "
                    "where the key is"
                )


class Config(ProviderConfig, frozen=True, kw_only=True):
    """All settings of one gateway. It exists only when every one of them is in range."""

    upstream: Upstream
    price: Price
    listen: Listen = Listen()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.listen.workers > 1 and self.ledger.url.startswith("sqlite:"):
            raise ValueError(
                "`listen.workers` above 1 needs a ledger in PostgreSQL: a SQLite file belongs to "
                "one gateway process"
            )
