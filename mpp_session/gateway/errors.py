"""Errors between the gateway and the model server. None of them is ever charged."""

from channel.errors import OperatorError, PeerError

__all__ = [
    "ConnectTimeoutError",
    "GenerationUnknownError",
    "ModelNotSoldError",
    "ModelServerDownError",
    "NotServedError",
    "RequestTooLargeError",
    "UnsupportedCodingError",
    "UpstreamError",
    "UpstreamTimeoutError",
]


class ConnectTimeoutError(TimeoutError):
    """There was no connection in time: the model server has not seen the request."""


class UpstreamError(OperatorError):
    """The model server cannot be reached, broke off, or sent an answer that cannot be priced."""

    status = 502
    problem_type = "upstream-failed"
    title = "Model Server Failed"


class ModelServerDownError(OperatorError):
    """The model server does not answer: nothing is sold, and deposits are refused (O-27)."""

    status = 503
    problem_type = "upstream-unavailable"
    title = "Model Server Unavailable"
    retry_after_s = 5


class UpstreamTimeoutError(UpstreamError):
    """The model server was silent for too long."""

    status = 504
    problem_type = "upstream-timeout"
    title = "Model Server Timeout"


class NotServedError(PeerError):
    """The gateway does not offer this method and path."""

    status = 404
    problem_type = "not-found"
    title = "Not Found"
    offers_challenge = False


class ModelNotSoldError(PeerError):
    """No price is listed for this model under this endpoint: it is not sold."""

    status = 404
    problem_type = "model-not-sold"
    title = "Model Not Sold"
    offers_challenge = False


class GenerationUnknownError(PeerError):
    """The books have no request of this id: it runs still, was never paid, or was pruned."""

    status = 404
    problem_type = "generation-unknown"
    title = "Generation Unknown"
    offers_challenge = False


class RequestTooLargeError(PeerError):
    """The request's body is above the configured bound."""

    status = 413
    problem_type = "content-too-large"
    title = "Content Too Large"
    offers_challenge = False


class UnsupportedCodingError(PeerError):
    """The request's body is compressed: the gateway neither unpacks it nor passes it on (O-23)."""

    status = 415
    problem_type = "unsupported-coding"
    title = "Unsupported Content Coding"
    offers_challenge = False
