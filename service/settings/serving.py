"""What is sold, to whom, and where it comes from."""

import re
from typing import Annotated, Final, Literal

from msgspec import Meta

from channel.limits import (
    BODY_S_MAX,
    CHALLENGE_LIFETIME_S,
    CONNECTIONS_MAX,
    HEAD_S_MAX,
    READ_S_MAX,
    RESERVATION_LEASE_S,
    RESERVATION_STEP_UNITS,
    SECRET_BYTES_MIN,
    STREAM_PAUSE_S_MAX,
    VOUCHERS_PER_SECOND_MAX,
)
from service.settings.values import (
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
            le=TOKENS_MAX,
            description="Greatest number of output tokens one request may ask for.",
        ),
    ] = 4096
    default_max_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=TOKENS_MAX,
            description="Bound given to a request that is not streamed and names none. "
            "0 refuses such a request.",
        ),
    ] = 0
    body_bytes_max: Annotated[Positive, Meta(description="Greatest request body, in bytes.")] = (
        4 * 1024 * 1024
    )
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
        if self.default_max_tokens > self.max_tokens:
            raise ValueError("`default_max_tokens` is above `max_tokens`")


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
