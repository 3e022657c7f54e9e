"""What one request used, by the kinds of tokens that its tariff prices (pure).

Input is charged once, with the first output: as the server's tokenizer counted it before the model
ran, or as the server's usage reports it, whichever is more. While neither is known, or a cache's
share has a price of its own and is not reported yet, input waits for the report, until the end.
"""

from functools import lru_cache
from typing import Final

import msgspec

from channel.limits import PROMPT_TOKENS_BESIDE
from channel.tariff import Tariff, Usage, cheapest_of, dearest_of
from channel.types import TokenUnit
from mpp_session.gateway.counting import BYTES_PER_TOKEN, PromptReport
from mpp_session.gateway.prompt import PromptCount

__all__ = ["Bill", "Kinds"]

_INPUT: Final = "input_token"
_CACHED: Final = "cached_input_token"
_WRITTEN: Final = "cache_write_token"
_OUTPUT: Final = "output_token"
_REASONING: Final = "reasoning_token"


class Kinds(msgspec.Struct, frozen=True):
    """The kinds that a tariff prices, out of those that a model server reports."""

    tariff: Tariff
    output: str | None
    """The main kind: an output token. None where input alone has a price."""
    dearest_output: str | None
    input: bool
    cached: bool
    written: bool
    reasoning: bool
    dearest_input: str
    cheapest_input: str

    @classmethod
    def of(cls, tariff: Tariff) -> "Kinds":
        """Return the kinds of a gateway's tariff, of which output is the main one."""
        return _kinds_of(tariff)

    @property
    def is_plain(self) -> bool:
        """Whether output alone has a price, and one only."""
        return self.output is not None and not (self.input or self.reasoning)

    def made(self, usage: Usage) -> int:
        """Return the output tokens in a usage."""
        return usage.get(self.output or "", 0) + usage.get(_REASONING, 0)


@lru_cache(maxsize=1024)
def _kinds_of(tariff: Tariff) -> Kinds:
    rates = {rate.kind: rate for rate in tariff.rates}
    inputs = [rates[kind] for kind in (_INPUT, _CACHED, _WRITTEN) if kind in rates]
    main = tariff.main if tariff.main not in inputs else rates.get(_OUTPUT)
    outputs = [rates[kind] for kind in (_REASONING,) if kind in rates]
    outputs = outputs if main is None else [main, *outputs]
    return Kinds(
        tariff=tariff,
        output=None if main is None else main.kind,
        dearest_output=dearest_of(outputs).kind if outputs else None,
        input=_INPUT in rates,
        cached=_CACHED in rates,
        written=_WRITTEN in rates,
        reasoning=_REASONING in rates,
        dearest_input=dearest_of(inputs).kind if inputs else _INPUT,
        cheapest_input=cheapest_of(inputs).kind if inputs else _INPUT,
    )


class Bill:
    """What one request is charged. Each token is returned once, when it is due."""

    def __init__(
        self,
        kinds: Kinds,
        counted: PromptCount,
        *,
        bytes_received: int,
        unit: TokenUnit | None = None,
    ) -> None:
        """Begin with the count of the prompt before the model ran."""
        self.kinds = kinds
        self.unit = unit
        """In which the cost is shown."""
        self.used: dict[str, int] = {}
        """Everything returned so far, by kind."""
        self._counted = counted
        self._bytes_received = bytes_received
        self._read = 0
        self._reasoning = 0

    def most(self, units: int) -> dict[str, int]:
        """Return the dearest usage of the whole prompt and so many output tokens."""
        usage = {} if self.kinds.dearest_output is None else {self.kinds.dearest_output: units}
        if self.kinds.input:
            usage[self.kinds.dearest_input] = self._counted.tokens
        return usage

    def output(self, units: int, reasoning: int) -> dict[str, int]:
        """Return the usage of more output tokens; `reasoning` is the count of all so far."""
        kinds = self.kinds
        if kinds.output is None:
            return {}
        if not kinds.reasoning or reasoning <= self._reasoning:
            return self._use({kinds.output: units})
        thought = min(units, reasoning - self._reasoning)
        self._reasoning += thought
        return self._use({kinds.output: units - thought, _REASONING: thought})

    def _use(self, usage: Usage) -> dict[str, int]:
        """Note what is due, and return it without kinds of which nothing is."""
        due = {kind: number for kind, number in usage.items() if number}
        for kind, number in due.items():
            self.used[kind] = self.used.get(kind, 0) + number
        return due

    def prompt(
        self, report: PromptReport, *, is_over: bool = False, is_left: bool = False
    ) -> dict[str, int]:
        """Return the usage of the prompt that is due now.

        Args:
            report: What the server reported so far.
            is_over: Nothing more will be reported: the answer is complete.
            is_left: The answer ends early. A share of a cache that the server might still have
                reported is not held against the payer.
        """
        kinds = self.kinds
        if not kinds.input:
            return {}
        is_shared = (kinds.cached and report.cached is None) or (
            kinds.written and report.written is None
        )
        is_counted = self._counted.is_exact or report.tokens is not None
        if (is_shared or not is_counted) and not (is_over or is_left):
            return {}
        tokens = self.tokens(report)
        more = tokens - self._read
        if more <= 0:
            return {}
        if self._read:
            self._read = tokens
            return self._use({_INPUT: more})
        self._read = tokens
        if is_left and is_shared:
            return self._use({kinds.cheapest_input: tokens})
        cached = min(report.cached or 0, tokens) if kinds.cached else 0
        written = min(report.written or 0, tokens - cached) if kinds.written else 0
        return self._use({_INPUT: tokens - cached - written, _CACHED: cached, _WRITTEN: written})

    def tokens(self, report: PromptReport) -> int:
        """Return the number of the prompt's tokens, as far as it is known."""
        counted = self._counted
        if counted.is_exact:
            found = max(counted.tokens, report.tokens or 0)
        elif report.tokens is not None:
            found = report.tokens
        else:
            found = -(-self._bytes_received // BYTES_PER_TOKEN)
        return min(found, self._most())

    def _most(self) -> int:
        return self._bytes_received + PROMPT_TOKENS_BESIDE
