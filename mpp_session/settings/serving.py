"""Settings of what is sold: the gateway's socket, the model server, prices and challenges."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from msgspec import Meta, field

from channel.errors import ConfigError
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
from channel.tariff import Rate, Tariff, describe_rate, is_kind, parse_money, parse_rate
from channel.types import TokenUnit
from mpp_session.settings.values import (
    INT64_MAX,
    TOKENS_MAX,
    Money,
    Positive,
    Secret,
    Section,
    require_bearer,
    require_http_url,
)

__all__ = [
    "MEASURED_KINDS",
    "Listen",
    "Payment",
    "Price",
    "PriceRow",
    "Prices",
    "Upstream",
    "describe_tariff",
]

_PRICE_MAX: Final = 10**18  # a billion tokens at this price still fit `uint128`
_PATTERN: Final = "^[!-~]([ -~]{0,254}[!-~])?$"
_ROW_PATH: Final = "^/[!\"$-'*->@-~]*$"
"""Without `?`, `#`, `(` and `)`: a template, as the routes of the gate have it."""
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::path)?\}")
_SOURCE: Final = r"^(json [^ .]+(\.[^ .]+)*|header [!#$%&'*+.^_`|~0-9A-Za-z-]+)$"
MEASURED_KINDS: Final = frozenset({"request", "second", "byte"})
"""Kinds of units that the gateway counts itself, without a statement of the server."""
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
"""Fields that no operator may pass on: each evades a bound or the count."""


class Listen(Section, frozen=True):
    """The socket on which the gateway answers."""

    host: Annotated[
        str, Meta(pattern="^[!-~]+$", description="Address to listen on; `0.0.0.0` for all.")
    ] = "127.0.0.1"
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Port to listen on; 0 chooses a free one.")
    ] = 8402
    shutdown_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long running answers may take to end after SIGTERM. Streams end "
            "immediately, each with its final receipt.",
        ),
    ] = 10.0
    workers: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Number of serving processes, on one socket. More than one needs a "
            "PostgreSQL ledger. A process that is killed is started again.",
        ),
    ] = 1
    start_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long each of several workers may take to start. Raise it on a slow "
            "host.",
        ),
    ] = 300.0
    connections_max: Annotated[
        int,
        Meta(
            ge=1,
            le=65_536,
            description="Most clients connected to one process at a time. Beyond it, connections "
            "without a request are closed. The number is lower if the process may not"
            " open that many files.",
        ),
    ] = CONNECTIONS_MAX
    head_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="How long the head of a request may take to arrive, from the connection "
            "or the previous answer.",
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
            description="How long a client may leave an answer unread.",
        ),
    ] = float(READ_S_MAX)


class Upstream(Section, frozen=True):
    """The model server behind the gateway."""

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
            description="How the server reports what it generated; the larger of that and of what"
            " was delivered is charged. `auto`: detected by asking the server. "
            "`llama.cpp` and `vllm` report it in every chunk. `usage`: the record at "
            "the end covers all choices of `n`. `chunks`: nothing is reported; a "
            "chunk counts as one unit or more, and `n` must be 1."
        ),
    ] = "auto"
    fields: Annotated[
        tuple[str, ...],
        Meta(
            description="Further request fields to pass to the model server, such as `grammar`. "
            "Fields that are neither here nor among the usual ones are dropped."
        ),
    ] = ()
    media: Annotated[
        bool,
        Meta(
            description="Whether messages may contain images, sounds and files. Reading them is "
            "charged for no more tokens than the request has bytes, and the model server fetches "
            "links."
        ),
    ] = False
    abandoned_units_max: Annotated[
        int,
        Meta(
            ge=0,
            le=TOKENS_MAX,
            description="Units that a channel may leave generated but unpaid, because its client "
            "left before an answer or stopped paying. Beyond it the channel must pay "
            "whole answers in advance, until its payments make up for them.",
        ),
    ] = ABANDONED_UNITS_MAX
    free: Annotated[
        tuple[str, ...],
        Meta(
            description="Requests passed on without payment. Every other request is answered 404, "
            "except the paths that are sold. `GET /v1/models` is answered by the gateway "
            "itself: the models that have a price."
        ),
    ] = ("GET /v1/models", "GET /health")
    max_tokens: Annotated[
        int,
        Meta(
            ge=1,
            le=TOKENS_MAX,
            description="Most output tokens that one request may ask for.",
        ),
    ] = 4096
    default_max_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=TOKENS_MAX,
            description="Bound for a request that is not streamed and names none. As much is "
            "reserved, and the unused part released. 0 refuses such a request.",
        ),
    ] = 1024
    body_bytes_max: Annotated[
        Positive,
        Meta(
            description="Largest request body in bytes: prompt, tools and all. Without "
            "`price.input` this bounds what the input of a request for one token may cost you. The "
            "default is 16 bytes for each of 4096 tokens."
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
            description="How long the model server may be silent before the request is given up.",
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
                f"`fields` holds {min(never)!r}, which would evade a bound or the count: remove it"
            )


class Price(Section, frozen=True):
    """What a request costs: `per_unit` for output alone, or prices for a million tokens.

    Prices for a million tokens are amounts of the token, such as `"0.40"` of a dollar token; its
    symbol may follow (`"0.40 USDC"`). Give `output`, and usually `input`. A kind of tokens without
    a price of its own costs what the wider kind costs: cached input as `input`, reasoning as
    `output`. Without `input` the prompt is free.
    """

    per_unit: Annotated[
        Annotated[int, Meta(ge=1, le=_PRICE_MAX)] | None,
        Meta(
            description="Base units of the token for one output token, instead of the prices "
            "below: with a 6-decimal dollar token, 25 is $25 per million. The unit is called "
            "`llm_token`, and the prompt is free.",
        ),
    ] = None
    output: Annotated[
        Money | None,
        Meta(description='Price of a million output tokens, such as `"0.40"`.'),
    ] = None
    input: Annotated[
        Money | None,
        Meta(
            description='Price of a million tokens of the prompt, such as `"0.10"`. The template '
            "that the model server puts around the messages counts."
        ),
    ] = None
    cached_input: Annotated[
        Money | None,
        Meta(
            description="Price of a million tokens of the prompt that the model server reports as "
            "read from its cache."
        ),
    ] = None
    cache_write: Annotated[
        Money | None,
        Meta(
            description="Price of a million tokens of the prompt that the model server reports as "
            "written to its cache."
        ),
    ] = None
    reasoning: Annotated[
        Money | None,
        Meta(
            description="Price of a million output tokens that the model server reports as "
            "reasoning, or sends as such."
        ),
    ] = None
    minimum: Annotated[
        Money | None,
        Meta(description="Least price of one request that used any tokens."),
    ] = None
    maximum: Annotated[
        Money | None,
        Meta(description="Greatest price of one request with any usage."),
    ] = None

    def __post_init__(self) -> None:
        others = [name for name, _ in _KINDS if getattr(self, name) is not None]
        others += [name for name in ("minimum", "maximum") if getattr(self, name) is not None]
        if self.per_unit is None and self.output is None and self._sells_output:
            raise ValueError(
                'no price for output: set `output`, such as "0.40" for a million tokens, or '
                "`per_unit` in base units"
            )
        if self.per_unit is not None and others:
            raise ValueError(
                f"`per_unit` and `{others[0]}` are both given: remove `per_unit`, or all prices "
                "for a million tokens"
            )
        for name in ("cached_input", "cache_write"):
            if getattr(self, name) is not None and self.input is None:
                raise ValueError(f"`{name}` needs `input`, the price of the other input tokens")

    @property
    def _sells_output(self) -> bool:
        return True

    def tariff(self, unit: TokenUnit | None) -> Tariff:
        """Return the tariff of a request, in base units of the token.

        Raises:
            ConfigError: A price names another token, is out of range, or is finer than the token
                allows; or it needs the token's decimals, and `unit` is None. The error names the
                setting.
        """
        if self.per_unit is not None:
            return Tariff.of("llm_token", self.per_unit)
        rates = self._rates(unit)
        least, most = (
            None if price is None else _read(name, parse_money, price, _require(name, unit))
            for name, price in (("minimum", self.minimum), ("maximum", self.maximum))
        )
        for rate in rates:
            if rate.exceeds(Rate(rate.kind, _PRICE_MAX)):
                raise ConfigError(f"`price`: {rate.kind} costs over {_PRICE_MAX} base units")
        try:
            return Tariff(tuple(rates), least or 0, most)
        except ConfigError as error:
            raise ConfigError(f"`price`: {error}") from None

    def _rates(self, unit: TokenUnit | None) -> list[Rate]:
        return [
            _read(name, parse_rate, kind, f"{price} / 1M", _require("output", unit))
            for name, kind in _KINDS
            if (price := getattr(self, name)) is not None
        ]


class PriceRow(Price, frozen=True, kw_only=True):
    """What the requests for some models, or for a path of any other server, cost.

    The first row that fits a request counts.
    """

    method: Annotated[
        Literal["GET", "POST", "PUT", "PATCH", "DELETE"] | None,
        Meta(description="With `path`: the method of the requests that it prices."),
    ] = None
    path: Annotated[
        Annotated[str, Meta(pattern=_ROW_PATH)] | None,
        Meta(
            description="A path of the server instead of a model: `/weather/{city}`, or "
            "`/files/{rest:path}` with everything below. Its requests are passed on as they are."
        ),
    ] = None
    rates: Annotated[
        dict[str, str | int],
        Meta(
            description="With `path`: the price of each kind of unit, such as "
            '`{ request = "0.001", byte = "0.05 / 1M" }`, the main one first. `request`, '
            "`second` and `byte` are counted by the gateway; any other kind is yours and needs "
            "`usage`. A whole number is in base units."
        ),
    ] = field(default_factory=dict)
    usage: Annotated[
        dict[str, Annotated[str, Meta(pattern=_SOURCE)]],
        Meta(
            description="With `path`: where the server states how many units of a kind a request "
            'used, such as `{ row = "json usage.rows" }` for a member of its JSON answer, or '
            '`{ page = "header x-pages" }`.'
        ),
    ] = field(default_factory=dict)
    unreported: Annotated[
        Literal["refuse", "maximum"],
        Meta(
            description="What happens to an answer in one piece that does not state its `usage` "
            "as a whole number: it is not passed on (502, nothing is charged), or it costs "
            "`maximum`."
        ),
    ] = "refuse"
    model: Annotated[
        str,
        Meta(
            pattern=_PATTERN,
            description="The models that it prices: a name as clients send it, or a pattern, in "
            "which `*` stands for any characters.",
        ),
    ] = "*"
    endpoint: Annotated[
        str,
        Meta(
            pattern="^[!-~]{1,255}$",
            description="The endpoint that it prices: `chat.completions`, `completions`, "
            "`responses`, `embeddings`; `*` for all.",
        ),
    ] = "*"
    valid_from: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(
            description="When it begins to count, with a time zone: `2026-12-01T00:00:00Z`. Put it "
            "before the row that counts until then.",
        ),
    ] = None
    description: Annotated[
        Annotated[str, Meta(min_length=1, max_length=500)] | None,
        Meta(description="Shown with the price."),
    ] = None
    context_length: Annotated[
        Annotated[int, Meta(ge=1, le=TOKENS_MAX)] | None,
        Meta(description="Most tokens of prompt and answer. For display."),
    ] = None
    max_output: Annotated[
        Annotated[int, Meta(ge=1, le=TOKENS_MAX)] | None,
        Meta(description="Most tokens of an answer. For display."),
    ] = None
    modalities: Annotated[
        tuple[Literal["text", "image", "audio", "video", "file"], ...],
        Meta(min_length=1, description="What the models take. For display."),
    ] = ("text",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is None:
            for name in ("method", "rates", "usage"):
                if getattr(self, name):
                    raise ValueError(f"`{name}` needs `path`, the path of the server that is sold")
            return
        others = [name for name, _ in _KINDS if getattr(self, name) is not None]
        others += ["per_unit"] if self.per_unit is not None else []
        others += [name for name in ("model", "endpoint") if getattr(self, name) != "*"]
        if others:
            raise ValueError(
                f"`path` and `{others[0]}` are both given: a path is priced by `rates`"
            )
        if self.method is None or not self.rates:
            raise ValueError("`path` needs `method` and `rates`")
        names = _PARAMETER.findall(self.path)
        if len({*names}) < len(names) or set("{}").intersection(_PARAMETER.sub("", self.path)):
            raise ValueError("`path` names its parts as `{name}` or `{name:path}`, each once")
        self._require_sources()

    def _require_sources(self) -> None:
        """Check that each kind is counted in one way.

        Raises:
            ValueError: A kind is not.
        """
        for kind in self.usage:
            if kind == "request" or kind not in self.rates:
                raise ValueError(f"`usage` states {kind!r}, which `rates` does not price by it")
        for kind in self.rates:
            if not is_kind(kind):
                raise ValueError(
                    f"`rates` names {kind!r}: use lower-case letters, digits and _, a letter first"
                )
            if kind not in MEASURED_KINDS and kind not in self.usage:
                raise ValueError(
                    f"`rates` prices {kind!r}, which the gateway does not count: name where the "
                    "server states it in `usage`"
                )
        if self.unreported == "maximum" and self.maximum is None:
            raise ValueError('`unreported = "maximum"` needs `maximum`')

    @property
    def is_in_money(self) -> bool:
        """Whether a price of it is in whole tokens, which need the token's decimals."""
        if self.path is None:
            return self.per_unit is None
        bounds = (self.minimum, self.maximum)
        return any(isinstance(price, str) for price in (*self.rates.values(), *bounds))

    @property
    def sold_path(self) -> str | None:
        """Method and path of another server, as in `GET /weather/{city}`; None for models."""
        return None if self.path is None else f"{self.method} {self.path}"

    @property
    def _sells_output(self) -> bool:
        is_embedding = self.endpoint == "embeddings" and self.input is not None
        return self.path is None and not is_embedding

    def _rates(self, unit: TokenUnit | None) -> list[Rate]:
        if self.path is None:
            return super()._rates(unit)
        return [_read_path_rate(kind, price, unit) for kind, price in self.rates.items()]


class Prices(Section, frozen=True):
    """Different prices for several models: a `[[prices]]` table for each, or a file of them.

    Instead of `[price]`, which is one price for every model.
    """

    file: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="A TOML file of `[[prices]]` tables. A relative path is relative to the "
            "file that names it.",
        ),
    ] = None
    rows: tuple[PriceRow, ...] = ()
    """The tables, of this file or of the other."""


def describe_tariff(tariff: Tariff, unit: TokenUnit | None) -> str:
    """Return a gateway's tariff as people read it: `0.10 USDC / 1M input tokens, ...`."""
    if unit is None:
        amount, name = tariff.unit()
        return f"{amount} base units / {name.replace('_', ' ')}"
    rates = sorted(tariff.rates, key=lambda rate: _SHOWN.get(rate.kind, len(_SHOWN)))
    parts = [describe_rate(rate, unit) for rate in rates]
    if tariff.minimum:
        parts.append(f"at least {unit.format(tariff.minimum)}")
    if tariff.maximum is not None:
        parts.append(f"at most {unit.format(tariff.maximum)}")
    return ", ".join(parts)


_SHOWN: Final = {
    kind: place
    for place, kind in enumerate(
        (
            "llm_token",
            "input_token",
            "cached_input_token",
            "cache_write_token",
            "output_token",
            "reasoning_token",
        )
    )
}
"""The order of the kinds of tokens; others follow in the order of their tariff."""
_KINDS: Final = (
    ("output", "output_token"),
    ("input", "input_token"),
    ("cached_input", "cached_input_token"),
    ("cache_write", "cache_write_token"),
    ("reasoning", "reasoning_token"),
)
"""Settings and the kinds of usage that they price; the first is the main rate of a tariff."""

_Read = TypeVar("_Read")


def _require(name: str, unit: TokenUnit | None) -> TokenUnit:
    if unit is None:
        raise ConfigError(
            f"`price.{name}` is in whole tokens, and the token tells no decimals: set "
            "`price.per_unit`, in base units, instead"
        )
    return unit


def _read_path_rate(kind: str, price: str | int, unit: TokenUnit | None) -> Rate:
    name = f"rates.{kind}"
    if isinstance(price, int):
        return _read(name, Rate, kind, price)
    if unit is None:
        raise ConfigError(
            f"`price.{name}` is in whole tokens, and the token tells no decimals: write a whole "
            "number of base units instead"
        )
    return _read(name, parse_rate, kind, price, unit)


def _read(name: str, parse: Callable[..., _Read], *arguments: Any) -> _Read:
    try:
        return parse(*arguments)
    except ConfigError as error:
        raise ConfigError(f"`price.{name}`: {error}") from None


class Payment(Section, frozen=True):
    """What challenges demand of clients."""

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
            description="Deposit proposed to clients, in base units. A hint: the client's policy "
            "decides."
        ),
    ] = None
    min_voucher_delta: Annotated[
        int,
        Meta(ge=0, le=INT64_MAX, description="Least increase between two vouchers, in base units."),
    ] = 0
    vouchers_per_second: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Most valid vouchers accepted a second on one channel."),
    ] = VOUCHERS_PER_SECOND_MAX
    reservation_step_units: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="Units that a stream reserves with one durable write. It is also the most"
            " a client can pay for without receiving it when the gateway is killed.",
        ),
    ] = RESERVATION_STEP_UNITS
    reservation_lease_s: Annotated[
        int,
        Meta(
            ge=5,
            le=3600,
            description="How long after its last sign of life the reservation of a stream or "
            "request is ended.",
        ),
    ] = RESERVATION_LEASE_S
    pause_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="How long a stream waits for the next voucher before it ends with its "
            "receipt and the model server is stopped. The model meanwhile generates "
            "unpaid output.",
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
            description="Header field for credentials, if `Authorization` is the application's "
            "own. Clients learn it from the challenge."
        ),
    ] = None
    chain_checks_per_address: Annotated[
        int,
        Meta(
            ge=1,
            le=CHAIN_CHECKS_MAX,
            description="Most openings, top-ups and contract-wallet signatures of one client "
            "address that may be checked with a node at a time; more get 429. Raise "
            "it where a proxy hides its clients, so that all of them have its address"
            " (`FORWARDED_ALLOW_IPS`).",
        ),
    ] = CHAIN_CHECKS_PER_SOURCE_MAX

    def __post_init__(self) -> None:
        if "|" in self.realm or not self.realm.isascii() or not self.realm.isprintable():
            raise ValueError("`realm` must be printable ASCII without `|`")
        for secret in self.secrets:
            size = len(secret.reveal().encode())
            if size < SECRET_BYTES_MIN:
                raise ValueError(
                    f"`secrets` has one of {size} bytes; use at least {SECRET_BYTES_MIN} bytes "
                    "(python -c 'import secrets; print(secrets.token_urlsafe(32))')"
                )
