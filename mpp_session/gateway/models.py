"""`GET /v1/models` and `/v1/models/{id}`: what is sold and at which price, free, from the table."""

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from channel.errors import ProblemError
from channel.limits import ANSWER_DEPTH_MAX
from channel.wire.depth import is_shallow
from mpp_session.gateway.endpoints.chat import FIELDS
from mpp_session.gateway.errors import ModelNotSoldError, NotServedError, UpstreamError
from mpp_session.gateway.free import problem_response
from mpp_session.gateway.model_prices import ModelPrices
from mpp_session.gateway.upstream import Upstream
from mpp_session.prices.models import ServedModel, list_models

__all__ = ["ModelList"]

_FRESH_S: Final = 5.0
_OK: Final = 200
_PARAMETERS: Final = FIELDS & {
    "frequency_penalty",
    "logit_bias",
    "max_tokens",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
}
"""Those of OpenRouter's names that the gateway passes on."""


class _Models(msgspec.Struct):
    data: list[ServedModel]


class ModelList:
    """The endpoint, and what the model server listed last."""

    def __init__(
        self,
        upstream: Upstream,
        prices: ModelPrices,
        endpoints: Sequence[str],
        *,
        owner: str,
        timeout_s: float,
    ) -> None:
        self._upstream = upstream
        self._prices = prices
        self._endpoints = endpoints
        self._owner = owner
        self._timeout_s = timeout_s
        self._began_at = int(prices.now())
        self._served: tuple[ServedModel, ...] = ()
        self._asked_at: float | None = None

    async def answer(self, request: Request) -> Response:
        """Answer with the list, or with the one model that the path names."""
        try:
            asked = request.path_params.get("model")
            if asked == "":
                raise NotServedError("This gateway does not serve this path.")
            models = await self._list()
            found = {"object": "list", "data": models} if asked is None else _pick(models, asked)
        except ProblemError as error:
            return problem_response(error)
        return Response(msgspec.json.encode(found), media_type="application/json")

    async def _list(self) -> list[dict[str, Any]]:
        """Return what is sold. The model server is asked only if a row is for a pattern.

        Raises:
            UpstreamError: It is needed, and does not say what it serves.
        """
        table = self._prices.table
        is_needed = any(listing.is_pattern for listing in table.listings)
        return list_models(
            table,
            self._endpoints,
            await self._list_served() if is_needed else (),
            at=self._prices.now(),
            created=self._began_at,
            owner=self._owner,
            parameters=_PARAMETERS,
        )

    async def _list_served(self) -> Sequence[ServedModel]:
        """Return the model server's models, at most some seconds old.

        Raises:
            UpstreamError: It does not answer, or not with a list of models.
        """
        if self._asked_at is not None and time.monotonic() - self._asked_at < _FRESH_S:
            return self._served
        try:
            status, body = await self._upstream.get("/v1/models", self._timeout_s)
            if status != _OK:
                raise UpstreamError(f"The model server answers its list of models with {status}.")
            if not is_shallow(body, ANSWER_DEPTH_MAX):
                raise UpstreamError("The model server's list of models cannot be read.")
            self._served = tuple(msgspec.json.decode(body, type=_Models).data)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamError("The model server does not list its models.") from error
        self._asked_at = time.monotonic()
        return self._served


def _pick(models: Sequence[dict[str, Any]], asked: str) -> dict[str, Any]:
    """Return one model.

    Raises:
        ModelNotSoldError: It is not listed.
    """
    for model in models:
        if model["id"] == asked:
            return model
    raise ModelNotSoldError(f"The model {asked[:100]!r} is not sold here: see GET /v1/models.")
