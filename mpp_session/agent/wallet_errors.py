"""Errors that cross the socket between a wallet and its agent: the same type on both sides.

An agent catches what it would catch if it paid by itself. The tables here are strict: an error of
another type, or with other fields, is a `WireError`, and an agent treats it as a refusal.
"""

from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec

from channel.errors import (
    AgentError,
    ApprovalPendingError,
    BodyNotReplayableError,
    BudgetExceededError,
    CannotFundError,
    ChainUnavailableError,
    ChannelBusyError,
    ChannelUnusableError,
    ChargePendingError,
    ConfigError,
    DepositPendingError,
    MppSessionError,
    OfferRefusedError,
    OverclaimError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
    PolicyRefusedError,
    ReceiptViolationError,
    RefusedOffer,
    StoppingError,
    StoreError,
    UnsettledClaimError,
    WireError,
)
from settlement.errors import NoGasError, UntrustedEscrowError, WalletSendsError

__all__ = ["WalletFailure", "decode_failure", "encode_failure", "status_of"]

_Said = int | float | str | None

_FIELDS: Final[Mapping[type[MppSessionError], Mapping[str, Any]]] = {
    AgentError: {},
    OfferRefusedError: {
        "setting": str | None,
        "offers": tuple[RefusedOffer, ...],
        "field": str,
        "asked": _Said,
        "allowed": _Said,
        "origin": str,
    },
    BudgetExceededError: {"limit": str, "asked": int, "allowed": int, "origin": str},
    PolicyRefusedError: {
        "reason": str,
        "code": str,
        "field": str | None,
        "asked": int | None,
        "allowed": int | None,
        "rule": str | None,
        "retry_at": float | None,
    },
    ApprovalPendingError: {"reason": str, "approval_id": str, "expires_at": float},
    CannotFundError: {"account": bytes, "origin": str, "needs": dict[str, str]},
    DepositPendingError: {"origin": str, "waited_s": float},
    ChargePendingError: {"origin": str, "amount": int, "until": str},
    OverclaimError: {"asked": int, "allowed": int, "received": int},
    UnsettledClaimError: {"asked": int, "allowed": int, "received": int, "lost": int},
    ReceiptViolationError: {"field": str, "said": _Said, "expected": _Said},
    PaymentRefusedError: {"status": int, "problem_type": str, "detail": str},
    PaymentOutcomeUnknownError: {"idempotency_key": str, "reason": str},
    ChannelBusyError: {},
    ChannelUnusableError: {},
    BodyNotReplayableError: {},
    StoreError: {},
    NoGasError: {"account": bytes},
    UntrustedEscrowError: {"escrow": bytes},
    WalletSendsError: {"wallet": bytes},
    ChainUnavailableError: {},
    ConfigError: {},
    StoppingError: {},
    WireError: {},
}
"""Each error that a wallet reports, with the attributes that it has and their types."""
_SHAPES: Final = {
    kind.__name__: (
        kind,
        msgspec.defstruct(
            f"{kind.__name__}Fields", list(fields.items()), forbid_unknown_fields=True
        ),
    )
    for kind, fields in _FIELDS.items()
}
_NETWORK: Final[Mapping[str, type[httpx.RequestError]]] = {
    kind.__name__: kind
    for kind in (
        httpx.CloseError,
        httpx.ConnectError,
        httpx.ConnectTimeout,
        httpx.DecodingError,
        httpx.LocalProtocolError,
        httpx.NetworkError,
        httpx.PoolTimeout,
        httpx.ProtocolError,
        httpx.ProxyError,
        httpx.ReadError,
        httpx.ReadTimeout,
        httpx.RemoteProtocolError,
        httpx.RequestError,
        httpx.TimeoutException,
        httpx.TransportError,
        httpx.UnsupportedProtocol,
        httpx.WriteError,
        httpx.WriteTimeout,
    )
}
_REFUSED: Final = (
    ApprovalPendingError,
    BudgetExceededError,
    CannotFundError,
    OfferRefusedError,
    PolicyRefusedError,
)
"""Nothing was signed, and the same request is refused again."""
_BUSY: Final = (ChannelBusyError, StoppingError, ChainUnavailableError, StoreError)


class WalletFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A failure as it crosses the socket."""

    name: str
    """The error's class: one of this project's, or one of httpx."""
    message: str
    fields: dict[str, Any] = msgspec.field(default_factory=dict)


def encode_failure(error: MppSessionError | httpx.RequestError) -> WalletFailure:
    """Return an error as values; one that has no entry here becomes its nearest base that has."""
    message = str(error) or type(error).__name__
    if isinstance(error, httpx.RequestError):
        return WalletFailure(name=_nearest(error, _NETWORK, "RequestError"), message=message)
    name = _nearest(error, _SHAPES, "AgentError")
    kind, _ = _SHAPES[name]
    fields = {field: getattr(error, field) for field in _FIELDS[kind]}
    return WalletFailure(
        name=name, message=message, fields={key: _plain(value) for key, value in fields.items()}
    )


def decode_failure(
    failure: WalletFailure, *, request: httpx.Request | None = None
) -> MppSessionError | httpx.RequestError:
    """Return the error that was encoded, to be raised. `request` belongs to an error of httpx.

    Raises:
        WireError: No such error crosses the socket, or its fields are others.
    """
    network = _NETWORK.get(failure.name)
    if network is not None:
        if failure.fields:
            raise WireError(f"{failure.name} has no fields, and the wallet sent some")
        return network(failure.message, request=request)
    if failure.name not in _SHAPES:
        raise WireError(f"expected the name of an error that a wallet reports: {failure.name!r}")
    kind, shape = _SHAPES[failure.name]
    try:
        values = msgspec.convert(failure.fields, shape)
    except msgspec.ValidationError as found:
        raise WireError(f"the wallet's {failure.name} cannot be read: {found}") from found
    error = kind.__new__(kind, failure.message)  # its constructor would make the message anew
    for name in _FIELDS[kind]:
        setattr(error, name, getattr(values, name))
    return error


def status_of(error: MppSessionError | httpx.RequestError) -> int:
    """Return the status by which a client that knows nothing of these names sees a failure.

    403: refused, and sending it again does not help. 503: not now. 504: the answer was lost, or it
    came too late. 502: the server, or the way to it, failed.
    """
    if isinstance(error, _REFUSED):
        return 403
    if isinstance(error, PaymentOutcomeUnknownError | httpx.TimeoutException):
        return 504
    return 503 if isinstance(error, _BUSY) else 502


def _nearest(error: Exception, names: Mapping[str, Any], otherwise: str) -> str:
    return next(
        (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in names), otherwise
    )


def _plain(value: object) -> object:
    """Return a value that JSON has; what a refusal merely shows becomes its words."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return str(value) if isinstance(value, bool) else value
    if isinstance(value, Mapping):
        return {str(key): str(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and all(isinstance(entry, RefusedOffer) for entry in value):
        return value
    return str(value)
