"""What is sold, to whom, and where it comes from."""

import re
from typing import Annotated, Final, Literal

from msgspec import Meta

from channel.limits import (
    ABANDONED_UNITS_MAX,
    BODY_S_MAX,
    CHAIN_CHECKS_MAX,
    CHAIN_CHECKS_PER_SOURCE_MAX,
    CHALLENGE_LIFETIME_S,
    CONNECTIONS_MAX,
    HEAD_S_MAX,
    READ_S_MAX,
    REQUEST_BYTES_MAX,
    RESERVATION_LEASE_S,
    RESERVATION_STEP_UNITS,
    SECRET_BYTES_MIN,
    STREAM_PAUSE_S,
    VOUCHERS_PER_SECOND_MAX,
)
from mpp_session.settings.values import (
    INT64_MAX,
    TOKENS_MAX,
    Positive,
    Secret,
    Section,
    require_bearer,
    require_http_url,
)

__all__ = [
    "Listen",
    "Payment",
    "Price",
    "Upstream",
]

_PRICE_MAX: Final = 10**18  # a billion tokens at this price still fit `uint128`
_FREE_PATH: Final = re.compile(r"(GET|HEAD) /[!-~]*")

_NEVER_FIELDS: Final = frozenset(
    {
        "best_of",
        "continuous_usage_stats",
        "max_new_tokens",
        "min_tokens",
        "n_cmpl",
        "n_predict",
        "num_predict",
        "stream_interval",
        "stream_options",
        "timings_per_token",
        "use_beam_search",
    }
)
"""What no operator may list: each gets around a bound, or around the count."""


class Listen(Section, frozen=True):
    """Where the gateway answers."""

    host: Annotated[
        str, Meta(pattern="^[!-~]+$", description="Address to listen on; `0.0.0.0` for every one.")
    ] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ] = 8402
    shutdown_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
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
    start_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long each of several workers may take to start, on a slow host.",
        ),
    ] = 300.0
    connections_max: Annotated[
        int,
        Meta(
            ge=1,
            le=65_536,
            description="Clients connected to one process at a time. Where they are more, those "
            "that ask for nothing are let go. Fewer where the process may not open so many files.",
        ),
    ] = CONNECTIONS_MAX
    head_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long the head of a request may take to arrive, counted from the "
            "connection or the answer before.",
        ),
    ] = float(HEAD_S_MAX)
    body_timeout_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="How long a request's body may take to arrive."),
    ] = float(BODY_S_MAX)
    read_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long a client may read nothing of an answer that waits for it.",
        ),
    ] = float(READ_S_MAX)


class Upstream(Section, frozen=True):
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
        Literal["auto", "llama.cpp", "vllm", "usage", "chunks"],
        Meta(
            description="How the server says what it made; the larger of that and what was "
            "delivered is charged. `auto`: found out by asking the server. `llama.cpp` and `vllm` "
            "say it in every chunk. `usage`: the record at the end covers all choices of `n`. "
            "`chunks`: nothing is known; a chunk is a unit at least, and `n` must be 1."
        ),
    ] = "auto"
    fields: Annotated[
        tuple[str, ...],
        Meta(
            description="Further fields of requests that reach the model server, such as "
            "`grammar`. All that are neither here nor among the usual ones are left out."
        ),
    ] = ()
    media: Annotated[
        bool,
        Meta(
            description="Whether messages may hold images, sounds and files. What they cost to "
            "read is not charged, and a link is fetched by the model server."
        ),
    ] = False
    abandoned_units_max: Annotated[
        int,
        Meta(
            ge=0,
            le=TOKENS_MAX,
            description="Units that a channel may have had made and left unpaid, by leaving "
            "before an answer or not paying on, until it pays whole answers in advance. What "
            "it pays for makes up for it.",
        ),
    ] = ABANDONED_UNITS_MAX
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
            le=TOKENS_MAX,
            description="Greatest number of output tokens one request may ask for.",
        ),
    ] = 4096
    default_max_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=TOKENS_MAX,
            description="Bound given to a request that is not streamed and names none: so much "
            "is held, and what is not used given back. 0 refuses such a request.",
        ),
    ] = 1024
    body_bytes_max: Annotated[
        Positive,
        Meta(
            description="Greatest request body, in bytes: prompt, tools and all. What is read is "
            "not charged, only what is written, so this bounds what a request for one token "
            "may cost you. By default 16 bytes for each of 4096 tokens."
        ),
    ] = REQUEST_BYTES_MAX
    connect_timeout_s: Annotated[
        float,
        Meta(gt=0, le=600, description="How long a connection to the model server may take."),
    ] = 5.0
    read_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86_400,
            description="How long the model server may be silent before it is given up.",
        ),
    ] = 120.0

    def __post_init__(self) -> None:
        require_http_url("url", self.url)
        require_bearer("api_key", self.api_key)
        for path in self.free:
            if not _FREE_PATH.fullmatch(path):
                raise ValueError(f"`free` holds {path!r}; write it as `GET /path`")
        never = _NEVER_FIELDS.intersection(self.fields)
        if never:
            raise ValueError(
                f"`fields` holds {min(never)!r}, which gets around a bound or around the count"
            )


class Price(Section, frozen=True):
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


class Payment(Section, frozen=True):
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
        Meta(ge=0, le=INT64_MAX, description="Least rise between two vouchers, in base units."),
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
            "receipt and the model server is stopped. The model works on meanwhile, unpaid.",
        ),
    ] = float(STREAM_PAUSE_S)
    stream_policy: Annotated[
        Literal["replace", "reject", "allow"],
        Meta(
            description="What a new stream does to one that runs on the same channel, on any "
            "worker: it takes its place (the older one ends with its receipt), is refused with "
            "409, or runs beside it."
        ),
    ] = "replace"

    credential_header: Annotated[
        Literal["Payment-Authorization"] | None,
        Meta(
            description="Field that credentials travel in, where `Authorization` is the "
            "application's own. Clients learn it from the challenge."
        ),
    ] = None
    chain_checks_per_address: Annotated[
        int,
        Meta(
            ge=1,
            le=CHAIN_CHECKS_MAX,
            description="Openings, top-ups and wallets' signatures of one client address that may "
            "ask a node at a time; more get 429. Raise it where a proxy hides its clients, so that "
            "all of them have its address (`FORWARDED_ALLOW_IPS`).",
        ),
    ] = CHAIN_CHECKS_PER_SOURCE_MAX

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
