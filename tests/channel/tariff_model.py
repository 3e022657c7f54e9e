"""A second implementation of tariffs, on fractions, from what the manual says (tests only).

It reads the wire's own form and shares no code with the product. It makes tests/vectors/tariff.json
and is compared with the product on random cases:

    python -m tests.channel.tariff_model --cases 1000000 [--seed 7]
    python -m tests.channel.tariff_model --write
"""

import argparse
import base64
import json
import random
import re
import time
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

from channel.tariff import Rate, RunningCost, Tariff

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "tariff.json"
Wire = dict[str, Any]
Units = dict[str, int]


# -- what a request costs


def exact_price(tariff: Wire, usage: Units) -> Fraction:
    """Return the price before rounding, minimum and maximum: unit by unit, in whole bands."""
    price = Fraction(0)
    for kind, units in usage.items():
        rates = [rate for rate in tariff["rates"] if rate["kind"] == kind]
        left = units
        for rate in reversed(rates):  # the last step first: it takes what is above it
            taken = max(0, left - rate.get("above", 0))
            price += Fraction(int(rate["amount"]), rate.get("per", 1)) * taken
            left -= taken
    return price


def cost(tariff: Wire, usage: Units) -> int:
    """Return what a request with this usage costs."""
    if sum(usage.values()) == 0:
        return 0
    charged = max(ceil(exact_price(tariff, usage)), int(tariff.get("minimum", "0")))
    return min(charged, int(tariff["maximum"])) if "maximum" in tariff else charged


def main_unit(tariff: Wire) -> tuple[str, str]:
    """Return `amount` and `unitType` of the request."""
    first = tariff["rates"][0]
    price = Fraction(int(first["amount"]), first.get("per", 1))
    count, kind = price.denominator, first["kind"]
    return str(price.numerator), kind if count == 1 else f"{count}_{kind}s"


def read_price(text: str, decimals: int) -> Fraction:
    """Return base units for one unit: `"0.15 / 1M"`."""
    money, _, count = text.partition("/")
    per = count.strip() or "1"
    units = int(per.rstrip("KMB")) * {"K": 1000, "M": 10**6, "B": 10**9}.get(per[-1], 1)
    return Fraction(money.strip()) * Fraction(10**decimals, units)


# -- what is refused


def refused_member(wire: object) -> str | None:
    """Return the member for which a tariff is refused; None when it is sound."""
    if not isinstance(wire, dict):
        return "tariff"
    return next(_refused_members(wire), None)


def _refused_members(wire: Wire) -> Iterator[str]:
    yield from (name for name in wire if name not in ("rates", "minimum", "maximum"))
    rates = wire.get("rates")
    if not isinstance(rates, list) or not 1 <= len(rates) <= 32:
        yield "rates"
        return
    yield from filter(None, map(_refused_of_rate, rates))
    for name in ("minimum", "maximum"):
        if not _is_amount(wire.get(name, "0")):
            yield name
    if "maximum" in wire and int(wire["maximum"]) < max(1, int(wire.get("minimum", "0"))):
        yield "maximum"
    if rates[0]["amount"] == "0":
        yield str(rates[0]["kind"])
    reached: dict[str, int] = {}
    for rate in rates:
        kind, above = rate["kind"], rate.get("above", 0)
        if (kind in reached) != (above > 0) or above <= reached.get(kind, -1):
            yield str(kind)
        reached[kind] = above


def _refused_of_rate(rate: object) -> str | None:
    if not isinstance(rate, dict):
        return "rates"
    for name in rate:
        if name not in ("kind", "amount", "per", "above"):
            return str(name)
    kind = rate.get("kind")
    if not isinstance(kind, str) or not re.fullmatch("[a-z][a-z0-9_]{0,63}", kind):
        return "kind"
    if not _is_amount(rate.get("amount")):
        return "amount"
    for name, least, most in (("per", 1, 10**15), ("above", 0, 2**53 - 1)):
        value = rate.get(name, 1)
        if type(value) is not int or not least <= value <= most:
            return name
    return None


def _is_amount(value: object) -> bool:
    if not isinstance(value, str) or not re.fullmatch("0|[1-9][0-9]*", value):
        return False
    return int(value) < 2**128


# -- random cases


def random_tariff(chance: random.Random) -> Wire:
    """Return a sound tariff: coarse and fine rates, free kinds, steps, bounds of the whole."""
    rates: list[Wire] = []
    for place, kind in enumerate(chance.sample(["a", "b", "c", "d"], chance.choice([1, 2, 2, 3]))):
        above = 0
        for step in range(chance.choice([1, 1, 1, 2, 4])):
            amount = chance.randrange(10 ** chance.randrange(1, 9))
            if place == step == 0:
                amount += 1
            rate: Wire = {"kind": kind, "amount": str(amount)}
            if chance.random() < 0.8:
                rate["per"] = chance.choice([2, 3, 7, 1000, 10**6, 10**9, 10**15 - 11])
            if step:
                above += chance.choice([1, 2, 50, 1000])
                rate["above"] = above
            rates.append(rate)
    wire: Wire = {"rates": rates}
    if chance.random() < 0.3:
        wire["minimum"] = str(chance.choice([1, 2, 100]))
    if chance.random() < 0.3:
        wire["maximum"] = str(chance.choice([100, 101, 10**6]))
    return wire


def random_parts(chance: random.Random, kinds: tuple[str, ...]) -> list[Units]:
    """Return the usages that a request is charged for one after the other."""
    most = chance.choice([1, 3, 60, 2000, 10**6])
    return [
        {kind: chance.randrange(most + 1) for kind in kinds if chance.random() < 0.7}
        for _ in range(chance.choice([1, 2, 3, 5]))
    ]


def product_tariff(wire: Wire) -> Tariff:
    """Return the product's value for a sound wire form."""
    return Tariff(
        tuple(
            Rate(rate["kind"], int(rate["amount"]), rate.get("per", 1), rate.get("above", 0))
            for rate in wire["rates"]
        ),
        int(wire.get("minimum", "0")),
        int(wire["maximum"]) if "maximum" in wire else None,
    )


def total(parts: list[Units]) -> Units:
    """Return the usage that these parts make together."""
    return {kind: sum(part.get(kind, 0) for part in parts) for kind in sorted({*"abcd"})}


def disagreements(cases: int, seed: int) -> Iterator[str]:
    """Yield each random case for which the product and this module differ."""
    chance = random.Random(seed)  # noqa: S311 - cases, not secrets
    for case in range(cases):
        if case % 10 == 0:
            wire = random_tariff(chance)
            tariff = product_tariff(wire)
        parts = random_parts(chance, tariff.kinds)
        expected = cost(wire, total(parts))
        running = RunningCost(tariff)
        rises = []
        for part in parts:
            main_only = part.keys() == {tariff.main.kind}
            rises.append(
                running.add_main(part[tariff.main.kind]) if main_only else running.add(part)
            )
        if not sum(rises) == running.charged == expected or min(rises) < 0:
            yield f"case {case}: {json.dumps(wire)} {parts}: {rises}, expected {expected}"


# -- vectors

_REQUEST: Wire = {
    "currency": "0x5425890298aed601595a70AB815c96711a31Bc65",
    "recipient": "0x742d35Cc6634c0532925a3b844bC9e7595F8fE00",
    "methodDetails": {
        "chainId": 196,
        "escrowContract": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    },
}
_M = 10**6


def _tariffs() -> Iterator[tuple[str, Wire]]:
    for name, dear, cheap in (
        ("embedding", "20000", "20000"),
        ("small_model", "400000", "100000"),
        ("large_model", "75000000", "15000000"),
    ):
        rates = [("output_token", dear), ("input_token", cheap)]
        yield name, {"rates": [{"kind": k, "amount": a, "per": _M} for k, a in rates]}
    yield (
        "cache_and_reasoning",
        {
            "rates": [
                {"kind": "output_token", "amount": "2500000", "per": _M},
                {"kind": "reasoning_token", "amount": "2500000", "per": _M},
                {"kind": "input_token", "amount": "300000", "per": _M},
                {"kind": "cached_input_token", "amount": "30000", "per": _M},
                {"kind": "cache_write_token", "amount": "375000", "per": _M},
            ]
        },
    )
    yield (
        "steps",
        {
            "rates": [
                {"kind": "output_token", "amount": "10000000", "per": _M},
                {"kind": "input_token", "amount": "1250000", "per": _M},
                {"kind": "input_token", "amount": "2500000", "per": _M, "above": 200_000},
                {"kind": "input_token", "amount": "0", "above": 1_000_000},
            ]
        },
    )
    yield (
        "minimum_and_maximum",
        {
            "rates": [{"kind": "output_token", "amount": "400000", "per": _M}],
            "minimum": "100",
            "maximum": "50000",
        },
    )
    yield (
        "free_input",
        {
            "rates": [
                {"kind": "output_token", "amount": "600000", "per": _M},
                {"kind": "input_token", "amount": "0"},
            ],
            "minimum": "1",
        },
    )
    yield "thirds", {"rates": [{"kind": "row", "amount": "1", "per": 3}]}
    per_byte = {"kind": "byte", "amount": "9", "per": 1024}
    yield "request_and_bytes", {"rates": [{"kind": "request", "amount": "250"}, per_byte]}
    most = {"kind": "gpu_ms_h100", "amount": str(2**128 - 1), "per": 10**15}
    yield "own_kind", {"rates": [most]}


_USAGES: list[Units] = [
    {},
    {"output_token": 0, "input_token": 0},
    {"output_token": 1},
    {"output_token": 1000},
    {"output_token": 35, "input_token": 57},
    {"input_token": 200_000},
    {"input_token": 200_001},
    {"input_token": 5_000_000, "output_token": 2},
    {"output_token": 125_001},
    {"output_token": 2**53 - 1},
    {"input_token": 40, "cached_input_token": 1000, "cache_write_token": 7, "reasoning_token": 9},
    {"row": 1},
    {"row": 3},
    {"row": 4},
    {"request": 1, "byte": 1025},
    {"gpu_ms_h100": 1},
]


def _malformed() -> Iterator[tuple[str, Any]]:
    rate = {"kind": "output_token", "amount": "4", "per": 10}
    yield "text", "output_token"
    yield "no_rates", {}
    yield "rates_null", {"rates": None}
    yield "rates_empty", {"rates": []}
    yield "rates_too_many", {"rates": [{"kind": f"k{n}", "amount": "1"} for n in range(33)]}
    yield "rate_text", {"rates": ["4"]}
    yield "unknown_member", {"rates": [rate], "discount": "1"}
    yield "unknown_member_of_rate", {"rates": [{**rate, "until": 5}]}
    yield "no_kind", {"rates": [{"amount": "4"}]}
    for name, kind in (("capital", "Token"), ("empty", ""), ("long", "k" * 65), ("digit", "4k")):
        yield f"kind_{name}", {"rates": [{**rate, "kind": kind}]}
    for name, amount in (
        ("number", 4),
        ("decimal", "0.4"),
        ("negative", "-4"),
        ("zero_first", "04"),
        ("exponent", "4e5"),
        ("beyond", str(2**128)),
        ("null", None),
    ):
        yield f"amount_{name}", {"rates": [{**rate, "amount": amount}]}
        yield f"minimum_{name}", {"rates": [rate], "minimum": amount}
        yield f"maximum_{name}", {"rates": [rate], "maximum": amount}
    for name, per in (("zero", 0), ("text", "10"), ("decimal", 1.5), ("true", True)):
        yield f"per_{name}", {"rates": [{**rate, "per": per}]}
    yield "per_beyond", {"rates": [{**rate, "per": 10**15 + 1}]}
    for name, above in (("negative", -1), ("text", "9"), ("decimal", 9.5), ("beyond", 2**53)):
        yield f"above_{name}", {"rates": [rate, {**rate, "above": above}]}
    yield "maximum_zero", {"rates": [rate], "maximum": "0"}
    yield "maximum_below_minimum", {"rates": [rate], "minimum": "5", "maximum": "4"}
    yield "main_rate_free", {"rates": [{"kind": "output_token", "amount": "0"}]}
    yield "kind_twice", {"rates": [rate, rate]}
    yield "steps_out_of_order", {"rates": [rate, {**rate, "above": 9}, {**rate, "above": 5}]}
    yield "steps_equal", {"rates": [rate, {**rate, "above": 9}, {**rate, "above": 9}]}
    yield "step_without_start", {"rates": [rate, {"kind": "image", "amount": "1", "above": 9}]}


_PRICES = [
    ("0.02 / 1M", 6), ("0.15/1M", 6), ("0.40 / 1M", 6), ("75 / 1M", 6), ("0.002", 6), ("1", 0),
    ("0.00000015", 6), ("0.075 / 1M", 2), ("1.25 / 1K", 18), ("3 / 7", 6), ("0.5 / 2B", 6),
]  # fmt: skip


def vectors() -> Wire:
    """Return what tests/vectors/tariff.json holds."""
    tariffs = []
    for name, wire in _tariffs():
        kinds = {rate["kind"] for rate in wire["rates"]}
        amount, unit_type = main_unit(wire)
        request = {**_REQUEST, "amount": amount, "unitType": unit_type, "tariff": wire}
        text = json.dumps(request, sort_keys=True, separators=(",", ":"))
        tariffs.append(
            {
                "name": name,
                "tariff": wire,
                "amount": amount,
                "unitType": unit_type,
                "request": base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
                "costs": [
                    {
                        "usage": usage,
                        "exact": str(exact_price(wire, usage)),
                        "cost": str(cost(wire, usage)),
                    }
                    for usage in _USAGES
                    if usage.keys() <= kinds and cost(wire, usage) < 2**128
                ],
            }
        )
    return {
        "tariffs": tariffs,
        "prices": [
            {"text": text, "decimals": decimals, "baseUnits": str(read_price(text, decimals))}
            for text, decimals in _PRICES
        ],
        "malformed": [
            {"name": name, "tariff": wire, "member": refused_member(wire)}
            for name, wire in _malformed()
        ],
    }


def main() -> int:
    """Compare on random cases, or write the vectors; 1 when a case differs."""
    parser = argparse.ArgumentParser(description="Compare the tariff with its second form.")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="write tests/vectors/tariff.json")
    given = parser.parse_args()
    if given.write:
        VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n", encoding="utf-8")
        return 0
    began = time.perf_counter()
    found = list(disagreements(given.cases, given.seed))
    print(*found[:10], sep="\n", end="\n" if found else "")  # noqa: T201
    seconds = time.perf_counter() - began
    print(f"{given.cases:,} cases, seed {given.seed}: {len(found)} differ, {seconds:.0f} s")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
