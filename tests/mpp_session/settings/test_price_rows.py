"""`[[prices]]`: read whole, or refused with row and field."""

from pathlib import Path

import pytest

from channel.errors import ConfigError
from channel.types import TokenUnit
from mpp_session.settings.config import load_config
from mpp_session.settings.price_rows import read_price_file, read_price_rows

SETTINGS = """
[upstream]
url = "http://127.0.0.1:1"
[payment]
realm = "tests"
secrets = ["a secret of thirty-two bytes, or more"]
[chain]
rpc_url = "http://127.0.0.1:2"
id = 31337
escrow = "0x0000000000000000000000000000000000000001"
token = "0x0000000000000000000000000000000000000002"
[payee]
address = "0x0000000000000000000000000000000000000003"
[settlement]
start = false
[ledger]
url = "sqlite:////tmp/never-opened.db"
"""
ROWS = """
[[prices]]
model = "small"
output = "0.40"
valid_from = 2026-12-01T00:00:00Z
[[prices]]
model = "large-*"
input = "1"
output = "4"
"""


def test_rows_stand_in_the_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(SETTINGS + ROWS)
    config = load_config(file, environment={})
    assert [row.model for row in config.price_rows] == ["small", "large-*"]
    assert config.price is None


def test_or_in_a_file_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(SETTINGS + '[prices]\nfile = "prices.toml"\n')
    (tmp_path / "prices.toml").write_text(ROWS)
    config = load_config(file, environment={})
    assert [row.model for row in config.price_rows] == ["small", "large-*"]


def test_the_short_form_is_one_row_for_every_model(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(SETTINGS + '[price]\noutput = "0.40"\n')
    (row,) = load_config(file, environment={}).price_rows
    assert (row.model, row.endpoint, row.output) == ("*", "*", "0.40")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "no price for output"),
        (ROWS + '[price]\noutput = "1"\n', r"either `\[price\]`.*found both"),
        ("prices = 3", "unknown section `prices`"),
        ('[prices]\nrows = [{ output = "1" }]\n', "unknown setting `prices.rows`"),
    ],
)
def test_prices_are_given_once(tmp_path: Path, more: str, said: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"{more}{SETTINGS}" if "=" in more and "[" not in more else SETTINGS + more)
    with pytest.raises(ConfigError, match=said):
        load_config(file, environment={})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"model": "m"}, r"row 2 \(model m\): no price for output"),
        ({"model": "m", "output": 0.4}, r"row 2 \(model m\): `output`: .*in quotes.*found 0.4"),
        ({"model": "m", "outpt": "1"}, r"row 2 .*unknown field `outpt`; did you mean `output`"),
        ({"model": 3, "output": "1"}, r"row 2 \(model 3\): `model`: Expected `str`, got `int`"),
        ({"model": "", "output": "1"}, r"row 2 .*`model`"),
        ({"output": "1", "per_unit": 2}, r"row 2 .*`per_unit` and `output` are both given"),
        ({"endpoint": "embeddings"}, r"row 2 .*no price for output"),
        ("m", r"row 2 .*expected a table under `\[\[prices\]\]`, found 'm'"),
    ],
)
def test_an_error_names_row_and_field(table: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_price_rows([{"output": "1"}, table])


def test_embeddings_may_have_a_price_of_input_alone() -> None:
    (row,) = read_price_rows([{"endpoint": "embeddings", "input": "0.02"}])
    assert row.tariff(TokenUnit("dUSD", 6)).kinds == ("input_token",)
    with pytest.raises(ConfigError, match="no price for output"):
        read_price_rows([{"endpoint": "chat.completions", "input": "0.02"}])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("[[prices", "is not TOML"),
        (ROWS + "[chain]\nid = 1\n", "found `chain`"),
        ("", "expected an array of tables"),
        ("prices = []", "expected an array of tables"),
        (ROWS.replace('output = "4"', "output = 4"), r"row 2 \(model large-\*\): `output`"),
    ],
)
def test_a_file_of_prices_is_refused_whole(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "prices.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_price_file(file)


PATH: dict[str, object] = {"method": "GET", "path": "/things/{name}", "rates": {"request": 25}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": None}, "`path` needs `method` and `rates`"),
        ({"rates": {}}, "`path` needs `method` and `rates`"),
        ({"method": "HEAD"}, "method"),
        ({"path": "things"}, "path"),
        ({"path": "/a?b=1"}, "path"),
        ({"path": "/{a}/{a}"}, "each once"),
        ({"path": "/{a"}, "each once"),
        ({"path": "/{a:int}"}, "each once"),
        ({"output": "1"}, "`path` and `output` are both given"),
        ({"per_unit": 1}, "`path` and `per_unit` are both given"),
        ({"model": "small"}, "`path` and `model` are both given"),
        ({"endpoint": "completions"}, "`path` and `endpoint` are both given"),
        ({"rates": {"row": 1}}, "does not count"),
        ({"rates": {"Row": 1}}, "lower-case"),
        ({"rates": {"request": 1.5}}, "rates"),
        ({"usage": {"row": "json rows"}}, "does not price"),
        ({"usage": {"request": "json rows"}}, "does not price"),
        ({"rates": {"row": 1}, "usage": {"row": "rows"}}, "usage"),
        ({"unreported": "maximum"}, "needs `maximum`"),
        ({"unreported": "free"}, "unreported"),
    ],
)
def test_a_row_of_a_path_is_whole_or_refused(change: dict[str, object], said: str) -> None:
    fields = {name: value for name, value in {**PATH, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=f"row 1 .*{said}"):
        read_price_rows([fields])


@pytest.mark.parametrize("field", ["method", "rates", "usage"])
def test_fields_of_a_path_need_a_path(field: str) -> None:
    value: object = "GET" if field == "method" else {"row": "json rows"}
    with pytest.raises(ConfigError, match=f"`{field}` needs `path`"):
        read_price_rows([{"output": "1", field: value}])


def test_a_path_is_priced_in_money_or_in_base_units() -> None:
    (row,) = read_price_rows([{**PATH, "rates": {"request": 25}}])
    assert row.tariff(None).cost({"request": 2}) == 50
    (row,) = read_price_rows([{**PATH, "rates": {"byte": "0.05 / 1M"}, "maximum": "0.25"}])
    tariff = row.tariff(TokenUnit("USDC", 6))
    assert (tariff.cost({"byte": 10**6}), tariff.maximum) == (50_000, 250_000)
    with pytest.raises(ConfigError, match="whole number of base units"):
        row.tariff(None)
