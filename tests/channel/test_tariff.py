"""Tariffs: exact rates, rounded up once, however a usage is cut."""

import json
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import ConfigError
from channel.limits import (
    AMOUNT_MAX,
    KIND_CHARS_MAX,
    PRICE_TEXT_CHARS_MAX,
    RATE_PER_MAX,
    RATES_MAX,
    USAGE_MAX,
)
from channel.tariff import (
    KINDS,
    Rate,
    RunningCost,
    Tariff,
    describe_rate,
    format_rate,
    is_kind,
    parse_money,
    parse_rate,
    plain_tariff,
)
from channel.types import TokenUnit
from tests.channel.tariff_model import VECTORS, disagreements, product_tariff, vectors
from tests.channel.vectors import Entry, name_of

USDC = TokenUnit("USDC", 6)
GOLDEN = json.loads(VECTORS.read_text(encoding="utf-8"))
NAMES = ("output_token", "input_token", "image")
TOKENS = st.builds(
    TokenUnit, st.sampled_from(["USDC", "dUSD", "base units", "LP/A", ""]), st.integers(0, 36)
)
RATES = st.builds(
    Rate,
    st.sampled_from(KINDS),
    st.integers(0, 10**9) | st.integers(0, AMOUNT_MAX),
    st.sampled_from([1, 3, 1000, 10**6, 2**49, RATE_PER_MAX]) | st.integers(1, RATE_PER_MAX),
    st.sampled_from([0, 0, 200_000, 10**9, USAGE_MAX]) | st.integers(0, USAGE_MAX),
)


@st.composite
def tariffs(draw: st.DrawFn) -> Tariff:
    """Draw rates with steps, free kinds and bounds of the whole; several may round equally."""
    rates: list[Rate] = []
    for place, kind in enumerate(NAMES[: draw(st.integers(1, 3))]):
        above = 0
        for step in range(draw(st.integers(1, 3))):
            above += draw(st.integers(1, 50)) if step else 0
            amount = draw(st.integers(0 if place or step else 1, 40))
            rates.append(Rate(kind, amount, draw(st.integers(1, 30)), above))
    minimum = draw(st.sampled_from([0, 0, 1, 20]))
    return Tariff(tuple(rates), minimum, draw(st.none() | st.integers(max(1, minimum), 200)))


PARTS = st.lists(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 90)), max_size=8)


def priced(tariff: Tariff, part: dict[str, int]) -> dict[str, int]:
    """Return what of a usage the tariff prices."""
    return {kind: units for kind, units in part.items() if kind in tariff.kinds}


def value(rate: Rate) -> Fraction:
    """Return what a unit costs in base units."""
    return Fraction(rate.amount, rate.per)


# -- what a request costs


@given(tariffs(), PARTS)
def test_however_a_usage_is_cut_the_parts_cost_the_whole(
    tariff: Tariff, parts: list[dict[str, int]]
) -> None:
    """TARIFF-02: rounded up once, on running totals, so cutting finer gains nothing."""
    running = RunningCost(tariff)
    total: dict[str, int] = {}
    for part in parts:
        more = priced(tariff, part)
        before = running.copy()
        announced = running.price_of(more)
        assert running.add(more) == announced >= 0
        total = {kind: total.get(kind, 0) + more.get(kind, 0) for kind in tariff.kinds}
        assert running.charged == tariff.cost(total)
        assert before.add(more) == announced, "the copy counts on by itself"
    assert running.usage == {kind: units for kind, units in total.items() if units}


@given(tariffs(), PARTS)
def test_a_request_costs_its_exact_price_and_less_than_one_base_unit_more(
    tariff: Tariff, parts: list[dict[str, int]]
) -> None:
    """TARIFF-01."""
    usage = priced(tariff, parts[0] if parts else {})
    exact = Fraction(0)
    for kind, units in usage.items():
        steps = [rate for rate in tariff.rates if rate.kind == kind]
        for unit in range(1, units + 1):  # each unit has the price of the last step below it
            exact += value(next(rate for rate in reversed(steps) if rate.above < unit))
    unbounded = Tariff(tariff.rates).cost(usage)
    assert exact <= unbounded < exact + 1
    expected = max(unbounded, tariff.minimum) if any(usage.values()) else 0
    assert tariff.cost(usage) == min(expected, tariff.maximum or expected)


@given(tariffs(), PARTS, st.integers(1, 90))
def test_units_of_the_main_kind_cost_the_same_by_the_short_way(
    tariff: Tariff, parts: list[dict[str, int]], units: int
) -> None:
    running = RunningCost(tariff)
    for part in parts:
        running.add(priced(tariff, part))
    twin = running.copy()
    assert running.add_main(units) == twin.add({tariff.main.kind: units})
    assert (running.charged, running.usage) == (twin.charged, twin.usage)
    assert running.main_units == running.usage[tariff.main.kind]


@given(tariffs(), PARTS, st.integers(0, 300))
def test_so_many_main_units_fit_an_amount_and_one_more_does_not(
    tariff: Tariff, parts: list[dict[str, int]], amount: int
) -> None:
    running = RunningCost(tariff)
    for part in parts:
        running.add(priced(tariff, part))
    main, fitting = tariff.main.kind, running.main_within(amount)
    assert running.price_of({main: fitting}) <= amount
    if running.main_units + fitting < USAGE_MAX:
        assert running.price_of({main: fitting + 1}) > amount


@given(tariffs(), PARTS)
def test_no_request_costs_more_than_the_maximum(
    tariff: Tariff, parts: list[dict[str, int]]
) -> None:
    running = RunningCost(tariff)
    for part in parts:
        running.add(priced(tariff, part))
        assert running.left >= 0
        if tariff.maximum is not None:
            assert running.charged <= tariff.maximum == running.left + running.charged


def test_a_second_implementation_agrees_on_random_cases() -> None:
    """TARIFF-01, TARIFF-02. A million: `python -m tests.channel.tariff_model`."""
    assert list(disagreements(20_000, seed=1)) == []


def test_a_usage_that_is_free_costs_the_minimum_and_none_costs_nothing() -> None:
    """TARIFF-01."""
    tariff = Tariff((Rate("output_token", 1, 10), Rate("image", 0)), minimum=5)
    assert tariff.cost({}) == tariff.cost({"image": 0, "output_token": 0}) == 0
    assert tariff.cost({"image": 1}) == 5
    running = RunningCost(tariff)
    assert [running.add({"image": 1}), running.add({}), running.add({"output_token": 51})] == [
        *(5, 0, 1)
    ]


def test_a_step_prices_only_the_units_above_it() -> None:
    """`"0.80 / 1M above 200K"`: the first 200,000 keep their price."""
    tariff = Tariff((Rate("row", 1), Rate("row", 3, 1, 10), Rate("row", 0, 1, 20)))
    assert [tariff.cost({"row": units}) for units in (9, 10, 11, 20, 21)] == [9, 10, 13, 40, 40]


# -- vectors


def test_the_vectors_are_those_of_the_second_implementation() -> None:
    assert vectors() == GOLDEN, f"python -m tests.channel.tariff_model --write makes {VECTORS}"


@pytest.mark.parametrize("entry", GOLDEN["prices"], ids=lambda entry: entry["text"])
def test_golden_prices_are_read(entry: Entry) -> None:
    rate = parse_rate("row", entry["text"], TokenUnit("T", entry["decimals"]))
    assert str(value(rate)) == entry["baseUnits"]


@pytest.mark.parametrize("entry", GOLDEN["tariffs"], ids=name_of)
def test_golden_usages_cost_what_the_second_implementation_says(entry: Entry) -> None:
    tariff = product_tariff(entry["tariff"])
    for case in entry["costs"]:
        assert str(tariff.cost(case["usage"])) == case["cost"], case
    assert tariff.unit() == (int(entry["amount"]), entry["unitType"])


# -- what is refused


NOT_COUNTS = [-1, 0.5, 1.0, True, "1", None]


@pytest.mark.parametrize("units", NOT_COUNTS)
def test_a_usage_that_is_no_count_is_refused_and_changes_nothing(units: Any) -> None:
    running = RunningCost(Tariff((Rate("row", 1), Rate("image", 2), Rate("image", 1, 1, 5))))
    running.add({"row": 1, "image": 1})
    for kind in ("row", "image"):
        with pytest.raises(ConfigError, match=f"{kind}: expected an int from 0"):
            running.add({"row": 1, kind: units})
        with pytest.raises(ConfigError, match=f"{kind}: expected an int from 0"):
            running.price_of({kind: units})
    with pytest.raises(ConfigError, match="row: expected an int from 0"):
        running.add_main(units)
    assert (running.charged, running.usage) == (3, {"row": 1, "image": 1})


def test_a_kind_without_a_rate_is_refused_with_those_that_have_one() -> None:
    tariff = Tariff((Rate("output_token", 1), Rate("input_token", 1)))
    with pytest.raises(ConfigError, match=r"of output_token, input_token, found 'image'.*with 0"):
        tariff.cost({"image": 0})


def test_a_cost_that_no_channel_can_hold_is_refused_and_never_lowered() -> None:
    """ENC-04: a lower charge would be a gift, and wrong on one side only."""
    tariff = Tariff.of("row", AMOUNT_MAX)
    running = RunningCost(tariff)
    assert running.add_main(1) == AMOUNT_MAX
    assert (running.left, running.main_within(0)) == (0, 0)
    with pytest.raises(ConfigError, match="more than any channel"):
        running.add_main(1)
    with pytest.raises(ConfigError, match="more than any channel"):
        tariff.cost({"row": 2})
    assert (running.charged, running.main_units) == (AMOUNT_MAX, 1)
    assert Tariff(tariff.rates, maximum=AMOUNT_MAX).cost({"row": 2}) == AMOUNT_MAX


@pytest.mark.parametrize("kind", ["", "Token", "output token", "4k", "_x", "tokén", "a\n", "a-b"])
def test_a_kind_is_a_lower_case_name(kind: str) -> None:
    assert not is_kind(kind)
    with pytest.raises(ConfigError, match="expected a kind of at most 64 lower-case letters"):
        Rate(kind, 1)


@pytest.mark.parametrize("kind", [*KINDS, "gpu_ms_h100", "x"])
def test_fixed_kinds_and_a_sellers_own_are_kinds(kind: str) -> None:
    assert is_kind(kind)
    assert Tariff.of(kind, 3).unit() == (3, kind)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("amount", [-1, AMOUNT_MAX + 1, 0.4, 4.0, True, "4", None]),
        ("per", [0, -1, RATE_PER_MAX + 1, 1e6, True, "1"]),
        ("above", [-1, USAGE_MAX + 1, 2e5, False, None]),
    ],
)
def test_a_number_of_a_rate_is_an_int_in_range(name: str, values: list[Any]) -> None:
    """TARIFF-08: 0.1 is no price."""
    for number in values:
        with pytest.raises(ConfigError, match=f"row: expected {name} as an int from"):
            Rate(**{"kind": "row", "amount": 1, name: number})


ROW = Rate("row", 1)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((), "1 to 32 rates"),
        ([ROW], "expected a tuple"),
        ((Rate("row", 0),), "row: the first rate is the main one and must not be free"),
        ((ROW, ROW), "row: expected one rate from the first unit on"),
        ((Rate("row", 1, 1, 5),), "found a rate above 5"),
        ((ROW, Rate("image", 1, 1, 5)), "image: expected one rate from the first unit on"),
        ((ROW, Rate("row", 1, 1, 5), Rate("row", 1, 1, 5)), "row: .*steps in order"),
        ((ROW, Rate("row", 1, 1, 5), Rate("row", 1, 1, 4)), "row: .*steps in order"),
    ],
)
def test_rates_that_contradict_each_other_are_refused(rates: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tariff(rates)


@pytest.mark.parametrize(
    ("minimum", "maximum"),
    [
        *[(-1, None), (0.5, None), (True, None), (AMOUNT_MAX + 1, None), (None, None)],
        *[(0, 0), (5, 4), (0, -1), (0, 0.5), (0, True), (0, AMOUNT_MAX + 1), (0.5, 4)],
    ],
)
def test_a_minimum_or_maximum_that_no_request_can_meet_is_refused(
    minimum: Any, maximum: Any
) -> None:
    with pytest.raises(ConfigError, match="the maximum above 0 and no less than the minimum"):
        Tariff((ROW,), minimum, maximum)


def test_equal_minimum_and_maximum_are_a_fixed_price() -> None:
    assert [Tariff((ROW,), 7, 7).cost({"row": units}) for units in (0, 1, 99)] == [0, 7, 7]


# -- what a reader of one rate is shown


def test_the_unit_is_the_fewest_that_cost_whole_base_units() -> None:
    assert Tariff((Rate("output_token", 150_000, 10**6),)).unit() == (3, "20_output_tokens")
    assert Tariff((Rate("output_token", 4 * 10**6, 10**6),)).unit() == (4, "output_token")


def test_only_one_whole_price_for_one_kind_is_plain() -> None:
    """CHAL-02: then `amount` and `unitType` say all."""
    assert Tariff.of("row", 3).is_plain
    assert Tariff((Rate("row", 6, 2),)).is_plain
    for tariff in (
        Tariff((Rate("row", 5, 2),)),
        Tariff((ROW, Rate("image", 1))),
        Tariff((ROW, Rate("row", 2, 1, 5))),
        Tariff((ROW,), minimum=1),
        Tariff((ROW,), maximum=1),
    ):
        assert not tariff.is_plain


def test_a_plain_request_is_priced_under_any_name_of_its_unit() -> None:
    assert plain_tariff("llm_token", 3) == Tariff.of("llm_token", 3)
    for name in ("", "LLM token", "k" * (KIND_CHARS_MAX + 1)):
        assert plain_tariff(name, 3) == Tariff.of("unit", 3)


def test_the_dearest_step_of_a_kind_is_found_however_it_is_stated() -> None:
    cheap, dear = Rate("row", 2, 3, 5), Rate("row", 700, 1000, 9)
    tariff = Tariff((Rate("row", 1, 2), cheap, dear))
    assert tariff.dearest("row") == dear
    assert (tariff.rate_of("row"), tariff.main) == (Rate("row", 1, 2), Rate("row", 1, 2))
    assert tariff.dearest("image") is tariff.rate_of("image") is None
    assert dear.exceeds(cheap)
    assert not cheap.exceeds(dear)
    assert not Rate("row", 4, 6).exceeds(cheap)


def test_equal_tariffs_are_one_key() -> None:
    first, second = (Tariff((Rate("row", 1, 3), Rate("image", 2)), 1, 9) for _ in range(2))
    assert {first: 1}[second] == 1
    assert first != Tariff(first.rates, 1)


# -- as people write it


@given(RATES, TOKENS)
def test_a_written_rate_is_read_again_exactly(rate: Rate, unit: TokenUnit) -> None:
    """TARIFF-08."""
    text = format_rate(rate, unit)
    again = parse_rate(rate.kind, text, unit)
    assert (value(again), again.above, again.kind) == (value(rate), rate.above, rate.kind)
    assert len(text) <= PRICE_TEXT_CHARS_MAX


@pytest.mark.parametrize(
    ("rate", "short", "long"),
    [
        (Rate("output_token", 400_000, 10**6), "0.40 USDC / 1M", "0.40 USDC / 1M output tokens"),
        (Rate("input_token", 2, 100), "0.02 USDC / 1M", "0.02 USDC / 1M input tokens"),
        (Rate("input_token", 75), "75 USDC / 1M", "75 USDC / 1M input tokens"),
        (Rate("image", 2_000), "0.002 USDC", "0.002 USDC / image"),
        (Rate("row", 1, 7), "0.000001 USDC / 7", "0.000001 USDC / 7 rows"),
        (Rate("byte", 1, 3), "0.000001 USDC / 3", "0.000001 USDC / 3 bytes"),
        (Rate("row", 1, 3000), "0.000001 USDC / 3K", "0.000001 USDC / 3K rows"),
        (Rate("output_token", 0), "0 USDC / 1M", "0 USDC / 1M output tokens"),
        (
            Rate("input_token", 25, 10, 200_000),
            "2.50 USDC / 1M above 200K",
            "2.50 USDC / 1M input tokens above 200K",
        ),
    ],
)
def test_rates_are_shown_as_the_market_quotes_them(rate: Rate, short: str, long: str) -> None:
    assert format_rate(rate, USDC) == short
    assert describe_rate(rate, USDC) == long


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0.15 usdc / 1M", Rate("row", 150_000, 10**6)),
        ("0.15/1M", Rate("row", 150_000, 10**6)),
        (" 0.15 / 1000 K ", Rate("row", 150_000, 10**6)),
        ("0.150", Rate("row", 150_000)),
        ("3", Rate("row", 3_000_000)),
        ("0.00000015", Rate("row", 15, 100)),
        ("0.0000001 / 1M", Rate("row", 1, 10**7)),
        ("2.5 / 1M above 200K", Rate("row", 2_500_000, 10**6, 200_000)),
        ("0", Rate("row", 0)),
    ],
)
def test_prices_are_read_as_people_write_them(text: str, rate: Rate) -> None:
    assert parse_rate("row", text, USDC) == rate


def test_the_manuals_prices_become_what_it_says() -> None:
    """docs/reference/tariff.md."""
    page = (VECTORS.parents[2] / "docs" / "reference" / "tariff.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| ([\d.]+ / 1M) \|(.+)\|$", page)
    assert len(rows) == 9
    for text, figures in rows:
        rate = parse_rate("output_token", text, USDC)
        tariff = Tariff((rate,))
        price, unit = tariff.unit()
        cost = tariff.cost({"output_token": 1000})
        shown = [str(rate.amount), str(rate.per), str(price), f"`{unit}`", str(cost)]
        assert [figure.strip() for figure in figures.split("|")] == shown
        assert format_rate(rate, USDC) == text.replace(" /", " USDC /")
    kinds = re.findall(r"(?m)^\| `([a-z_]+)` \| (?:one|a) ", page.split("## Kinds")[1])
    assert tuple(kinds) == KINDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row: expected a price such as 0.15 / 1M"),
        ("cheap", "row: expected a price such as 0.15 / 1M"),
        ("-0.15", "row: expected a price such as"),
        ("0,15", "row: expected a price such as"),
        ("1e-6", "row: expected a price in USDC, found '1e-6'"),
        ("0.15 euro / 1M", "row: expected a price in USDC, found '0.15 euro'"),
        (".5", "row: expected a price such as"),
        ("1. / 1M", "row: expected a price such as"),
        ("0.15 / ", "row: expected a price"),
        ("0.15 / 0", "row: expected per as an int from 1"),
        ("0.15 / 1m", "row: expected a price in USDC"),
        ("0.15 / 1M above", "row: expected a price in USDC"),
        ("\u0663 / 1M", "row: expected a price such as"),
        ("1 / 10000000B", "row: expected per as an int"),
        ("0.0000000000000000000001", "row: expected per as an int"),
        ("9" * 40, "row: expected amount as an int"),
        ("1 above 9007199254740992", "row: expected above as an int"),
    ],
)
def test_a_text_that_is_no_price_is_refused_with_the_kind(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rate("row", text, USDC)


def test_money_is_read_in_base_units_and_never_rounded() -> None:
    assert parse_money("0.25 usdc", USDC) == parse_money("0.250000000", USDC) == 250_000
    assert parse_money("0", USDC) == 0
    for text in ("0.0000001", "9" * 40):
        with pytest.raises(ConfigError, match="at most 6 decimals of USDC, within"):
            parse_money(text, USDC)
    for text in ("", "0.25 / 1M", "x", "0.25 usdt"):
        with pytest.raises(ConfigError, match="amount: expected an amount"):
            parse_money(text, USDC)


# -- bounds


def test_the_longest_kind_is_one_and_a_longer_is_none() -> None:
    assert Rate("k" * KIND_CHARS_MAX, 1).kind
    with pytest.raises(ConfigError, match="at most 64"):
        Rate("k" * (KIND_CHARS_MAX + 1), 1)


def test_so_many_rates_and_no_more() -> None:
    rates = tuple(Rate(f"k{n}", 1) for n in range(RATES_MAX + 1))
    assert Tariff(rates[:-1]).kinds[-1] == "k31"
    with pytest.raises(ConfigError, match="1 to 32 rates"):
        Tariff(rates)


def test_the_finest_rate_is_one_and_a_finer_is_none() -> None:
    assert Rate("row", 1, RATE_PER_MAX).per == RATE_PER_MAX
    with pytest.raises(ConfigError, match=r"row: expected per"):
        Rate("row", 1, RATE_PER_MAX + 1)


def test_a_request_uses_so_many_units_and_no_more() -> None:
    """RCPT-02: a receipt's numbers are safe integers."""
    running = RunningCost(Tariff((Rate("row", 1, 10**6),)))
    running.add({"row": USAGE_MAX - 1})
    assert running.main_within(10**30) == 1
    running.add_main(1)
    with pytest.raises(ConfigError, match="row: expected an int from 0 to 0 units, found 1"):
        running.add({"row": 1})
    with pytest.raises(ConfigError, match="row: expected an int from 0 to 0 units, found 1"):
        running.add_main(1)
    assert running.usage == {"row": USAGE_MAX}


def test_the_longest_price_is_read_and_a_longer_is_not() -> None:
    price = "0.15 / 1M"
    assert parse_rate("row", price.rjust(PRICE_TEXT_CHARS_MAX), USDC) == Rate("row", 150000, 10**6)
    with pytest.raises(ConfigError, match="row: expected a price such as"):
        parse_rate("row", price.rjust(PRICE_TEXT_CHARS_MAX + 1), USDC)
