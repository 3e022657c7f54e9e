"""`GET /v1/generation?id=`: what a paid request has cost, from the accounts, as OpenRouter answers.

The id is a request's reservation, or the id that its answer stated: only its client knows them. The
answer names no payer and no channel. What the accounts do not know is left out; it is never 0.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from channel.engine import RateLimiter
from channel.errors import BadRequestError, ProblemError
from channel.http.request import read_client
from channel.ledger.accounts import ChargeRow
from channel.ledger.interface import Ledger
from channel.limits import CHARGE_TEXT_CHARS_MAX, GENERATIONS_PER_SECOND_MAX
from channel.state.charges import ChargeOutcome, clean_text
from channel.types import TokenUnit
from mpp_session.gateway.costs import format_whole
from mpp_session.gateway.errors import GenerationUnknownError
from mpp_session.gateway.free import problem_response

__all__ = ["GENERATION_PATH", "Generations", "describe_generation", "read_answer_id"]

GENERATION_PATH: Final = "/v1/generation"

_OWN: Final = "gen-"
_ID: Final = re.compile(f"{_OWN}([0-9a-f]{{32}})")

_UNGUESSED_CHARS: Final = 20
"""A shorter id, such as Ollama's `chatcmpl-123`, could be guessed: it is not looked for."""
_TOKENS: Final = {
    "native_tokens_prompt": ("input_token", "cached_input_token", "cache_write_token"),
    "native_tokens_cached": ("cached_input_token",),
    "native_tokens_completion": ("output_token", "reasoning_token", "llm_token"),
    "native_tokens_reasoning": ("reasoning_token",),
}
"""OpenRouter's counts, and the kinds that each is the sum of."""


class _Response(msgspec.Struct):
    id: str = ""


class _Answer(msgspec.Struct):
    id: str = ""
    response: _Response | None = None
    """Of an event of `/v1/responses`."""


_answer_decoder: Final = msgspec.json.Decoder(_Answer)


class Generations:
    """The endpoint. It is free, and bounded for each client address."""

    def __init__(self, ledger: Ledger, now: Callable[[], float], unit: TokenUnit | None) -> None:
        self._ledger = ledger
        self._unit = unit
        self._rate = RateLimiter(
            GENERATIONS_PER_SECOND_MAX, now, what="questions for a generation in a second"
        )

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        try:
            self._rate.require(read_client(request.scope))
            asked = request.query_params.get("id", "")
            rows = await self._find(asked)
        except ProblemError as error:
            return problem_response(error)
        body = msgspec.json.encode({"data": describe_generation(asked, rows, self._unit)})
        headers = {"cache-control": "private, no-store"}
        return Response(body, headers=headers, media_type="application/json")

    async def _find(self, asked: str) -> Sequence[ChargeRow]:
        """Return the entries of one request.

        Raises:
            BadRequestError: The text does not have the form of an id.
            GenerationUnknownError: No request has it, or several have it.
        """
        found = _ID.fullmatch(asked)
        if found is not None:
            rows = await self._ledger.find_charges(bytes.fromhex(found[1]))
        elif not asked.startswith(_OWN) and _UNGUESSED_CHARS <= len(asked) <= CHARGE_TEXT_CHARS_MAX:
            rows = await self._ledger.find_answers(clean_text(asked))
        else:
            raise BadRequestError(
                "expected ?id= and the header x-generation-id of an answer, or the id in it, of "
                f"{_UNGUESSED_CHARS} characters or more"
            )
        if not rows:
            raise GenerationUnknownError(
                "No paid request of this id has ended here; its cost is known once it ends."
            )
        if len({row.reservation_id for row in rows}) > 1:
            raise GenerationUnknownError(
                "Several answers state this id. Ask with the header x-generation-id of one."
            )
        return rows


def describe_generation(
    asked: str, rows: Sequence[ChargeRow], unit: TokenUnit | None
) -> dict[str, Any]:
    """Return the answer for the entries of one request: one, or more in rare faults (pure).

    `total_cost` is an exact number of whole tokens, `cost_details.amount` a text of base units.
    """
    last = rows[-1]
    amount = sum(row.amount for row in rows)
    details: dict[str, Any] = {"amount": str(amount)}
    data: dict[str, Any] = {
        "id": asked,
        "created_at": datetime.fromtimestamp(last.at, UTC).isoformat().replace("+00:00", "Z"),
        "streamed": last.is_stream,
        "cancelled": last.outcome is ChargeOutcome.LEFT,
        "outcome": last.outcome.value,
        "cost_details": details,
    }
    if last.variant:
        data["model"] = last.variant
    if last.response_id:
        data["upstream_id"] = last.response_id
    if unit is not None:
        cost = msgspec.Raw(format_whole(amount, unit.decimals).encode())
        data["total_cost"] = data["usage"] = cost
        details["currency"] = unit.symbol
    if last.usage is not None:
        details["usage"] = dict(last.usage)
        data |= _count_tokens(last.usage)
    return data


def read_answer_id(answer: bytes) -> str:
    """Return the id that a whole answer, or a chunk of one, states; empty if it states none."""
    try:
        found = _answer_decoder.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return found.id if found.response is None else found.response.id


def _count_tokens(usage: Mapping[str, int]) -> dict[str, int]:
    counts = {}
    for name, kinds in _TOKENS.items():
        known = [usage[kind] for kind in kinds if kind in usage]
        if known:
            counts[name] = sum(known)
    for name in ("prompt", "completion"):
        if f"native_tokens_{name}" in counts:
            counts[f"tokens_{name}"] = counts[f"native_tokens_{name}"]
    return counts
