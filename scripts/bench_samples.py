"""Samples and medians for the rows of the benchmarks."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec
from coincurve import PrivateKey
from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found]
from coincurve.context import GLOBAL_CONTEXT

from channel.verify.signature import sign

__all__ = ["Row", "Run", "best_us", "raw_us"]

T = TypeVar("T")
RUN: Final = 50
KEY: Final = b"\x11" * 32
DIGESTS: Final = [number.to_bytes(32, "big") for number in range(1, 501)]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. The goal applies to `ratio`."""

    name: str
    unit: str
    samples: Sequence[float]
    ratios: Sequence[float] = ()
    goal: float | None = None
    is_more_better: bool = False
    besides: str = ""

    @classmethod
    def paired(
        cls,
        name: str,
        pairs: Sequence[tuple[float, float]],
        *,
        goal: float | None = None,
        besides: str = "",
    ) -> Self:
        """Return a row of microseconds, each sample beside what it is a ratio to."""
        return cls(
            name=name,
            unit="us",
            samples=[us for us, _ in pairs],
            ratios=[us / beside for us, beside in pairs],
            goal=goal,
            besides=besides,
        )

    @property
    def ratio(self) -> float | None:
        """Median of the ratios."""
        return statistics.median(self.ratios) if self.ratios else None

    def as_json(self) -> dict[str, Any]:
        """Return the row with the names that docs/engineering/performance.md gives."""
        return {
            "name": self.name,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "goal": self.goal,
            "unit": self.unit,
            "median": round(statistics.median(self.samples), 3),
            "min": round(min(self.samples), 3),
            "max": round(max(self.samples), 3),
            "besides": self.besides,
        }

    def as_cells(self) -> list[str]:
        """Return the row as the table shows it."""
        ratio, goal = self.ratio, self.goal
        mark = ""
        if ratio is not None and goal is not None:
            is_met = ratio >= goal if self.is_more_better else ratio <= goal
            mark = " " if is_met else "!"
        return [
            self.name,
            f"{statistics.median(self.samples):,.2f}",
            f"{min(self.samples):,.2f}",
            f"{max(self.samples):,.2f}",
            self.unit,
            "" if ratio is None else f"{ratio:.2f}{mark}",
            "" if goal is None else f"{goal:g}",
            self.besides,
        ]


class Run(msgspec.Struct, frozen=True):
    """Where to put files, and how often to repeat."""

    folder: Path
    is_quick: bool

    @property
    def repeats(self) -> int:
        """Samples a row."""
        return 3 if self.is_quick else 7


def best_us(work: Callable[[T], object], items: Sequence[T], *, rounds: int = 5) -> float:
    """Return the time per item of the best short run.

    The run is short, to find a quiet moment of a busy machine, and uses different items, so that
    branch prediction and caches do not help.
    """
    times = []
    for start in list(range(0, len(items), RUN)) * rounds:
        run = items[start : start + RUN]
        began = time.perf_counter()
        for item in run:
            work(item)
        times.append((time.perf_counter() - began) / len(run) * 1e6)
    return min(times)


def _parsed() -> list[tuple[bytes, Any]]:
    parsed = []
    for digest in DIGESTS:
        signature = ffi.new("secp256k1_ecdsa_signature *")
        lib.secp256k1_ecdsa_signature_parse_compact(
            GLOBAL_CONTEXT.ctx, signature, sign(KEY, digest)[:64]
        )
        parsed.append((digest, signature))
    return parsed


_PARSED: Final = _parsed()
_PUBLIC: Final = PrivateKey(KEY).public_key.public_key


def raw_us() -> float:
    """Return what libsecp256k1 needs to verify one signature with a parsed key: 1.00."""
    context = GLOBAL_CONTEXT.ctx
    return best_us(lambda p: lib.secp256k1_ecdsa_verify(context, p[1], p[0], _PUBLIC), _PARSED)
