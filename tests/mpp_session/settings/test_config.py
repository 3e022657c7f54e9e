"""Settings: what is read from where, and what is refused before anything is served."""

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from channel.errors import ConfigError
from channel.tariff import Rate, Tariff
from channel.types import TokenUnit
from mpp_session.settings import Config, Secret, TowerConfig, names_key
from mpp_session.settings.config import (
    default_state_dir,
    list_settings,
    load_config,
    load_tower_config,
    without_keys,
)

SECRET = "a-secret-of-thirty-two-bytes-or-more"  # noqa: S105 -- a test's
KEY = "0x" + "11" * 32
RELAYER = "0x" + "4d" * 20

FILE: dict[str, dict[str, Any]] = {
    "upstream": {"url": "http://127.0.0.1:8080"},
    "price": {"per_unit": 25},
    "payment": {"realm": "llm.example", "secrets": [SECRET]},
    "chain": {
        "rpc_url": "http://127.0.0.1:8545",
        "id": 31337,
        "escrow": "0x" + "1a" * 20,
        "token": "0x" + "2b" * 20,
    },
    "payee": {"address": "0x" + "3c" * 20},
    "ledger": {"url": "sqlite:////var/lib/mpp-session/ledger.db"},
}
USDC = TokenUnit("USDC", 6)
ENVIRONMENT = {"MPP_SESSION_PAYEE_KEY": KEY, "PATH": "/bin"}


def write(path: Path, tables: dict[str, dict[str, Any]], **changes: Any) -> Path:
    """Write a file; `section__setting=value` changes one setting, None removes it."""
    changed = {section: dict(table) for section, table in tables.items()}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        changed.setdefault(section, {})[key] = value
    lines = []
    for section, table in changed.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml(value)}" for key, value in table.items() if value is not None]
    path.write_text("\n".join(lines))
    return path


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(toml(part) for part in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def load(tmp_path: Path, environment: dict[str, str] | None = None, **changes: Any) -> Config:
    path = write(tmp_path / "gateway.toml", FILE, **changes)
    return load_config(path, environment=environment or ENVIRONMENT)


def test_a_file_with_the_required_settings_is_enough(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.price_rows[0].per_unit == 25
    assert config.payment.secrets == (Secret(SECRET),)
    assert config.listen.port == 8402


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "gateway.toml", FILE, listen__port=1, listen__host="10.0.0.1")
    variables = {**ENVIRONMENT, "MPP_SESSION_LISTEN_PORT": "2", "MPP_SESSION_PRICE_PER_UNIT": "7"}
    config = load_config(path, environment=variables, flags={"listen.port": 3})
    assert config.listen.port == 3
    assert config.price_rows[0].per_unit == 7
    assert config.listen.host == "10.0.0.1"


def test_defaults_of_a_devnet_yield_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "gateway.toml", FILE)
    config = load_config(
        path, environment=ENVIRONMENT, defaults={"price.per_unit": 1, "listen.port": 99}
    )
    assert (config.price_rows[0].per_unit, config.listen.port) == (25, 99)


def test_lists_come_from_the_environment_separated_by_commas(tmp_path: Path) -> None:
    """CHAL-08: secrets rotate with overlap, so there may be several."""
    newer = SECRET[::-1]
    variables = {**ENVIRONMENT, "MPP_SESSION_PAYMENT_SECRETS": f"{newer}, {SECRET}"}
    config = load(tmp_path, variables)
    assert config.payment.secrets == (Secret(newer), Secret(SECRET))


def test_one_error_names_every_missing_setting() -> None:
    required = [setting.name for setting in list_settings().values() if setting.is_required]
    with pytest.raises(ConfigError) as caught:
        load_config(None, environment={})
    assert all(f"`{name}`" in str(caught.value) for name in required)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"payment__secretz": ["x"]}, "unknown setting `payment.secretz`; did you mean"),
        ({"paymnt__realm": "x"}, "unknown section `paymnt`; did you mean `payment`?"),
        ({"payee__key": KEY}, "is a secret: set MPP_SESSION_PAYEE_KEY instead"),
    ],
)
def test_unknown_names_in_the_file_are_refused_with_the_nearest_one(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """F-106: a renamed setting never falls back to its default in silence."""
    with pytest.raises(ConfigError, match=said.replace(".", r"\.").replace("?", r"\?")):
        load(tmp_path, **changes)


def test_an_unknown_environment_variable_with_our_prefix_is_refused(tmp_path: Path) -> None:
    """F-106: also when only the environment names it."""
    with pytest.raises(ConfigError, match="did you mean `MPP_SESSION_LEDGER_URL`"):
        load(tmp_path, {**ENVIRONMENT, "MPP_SESSION_LEDGER_URI": "x"})


PER_MILLION: dict[str, Any] = {
    "price__per_unit": None,
    "price__output": "0.40",
    "price__input": "0.10",
}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"listen__shutdown_s": math.inf}, "listen.shutdown_s"),
    ({"listen__host": ""}, "listen.host"),
    ({"listen__host": "local host"}, "listen.host"),
    ({"upstream__read_timeout_s": math.nan}, "upstream.read_timeout_s"),
    ({"upstream__connect_timeout_s": math.inf}, "upstream.connect_timeout_s"),
    ({"upstream__api_key": ""}, "`api_key` must be printable"),
    ({"upstream__api_key": "k\u00e9y"}, "`api_key` must be printable"),
    ({"upstream__url": "http://127.0.0.1:99999"}, "`url` must be an http"),
    ({"upstream__url": "http://mo del"}, "`url` must be an http"),
    ({"payee__signer_token": "two words"}, "`signer_token` must be printable"),
    ({"payment__secrets": ["short"]}, "at least 32"),
    ({"payment__secrets": []}, "payment.secrets"),
    ({"payment__secrets": [SECRET, "é" * 15]}, "at least 32"),
    ({"payment__realm": "a|b"}, "realm"),
    ({"payment__realm": ""}, "realm"),
    ({"payment__pause_timeout_s": 0}, "pause_timeout_s"),
    ({"payment__reservation_step_units": 0}, "reservation_step_units"),
    ({"payment__suggested_deposit": 0}, "suggested_deposit"),
    ({"ledger__url": "sqlite:///:memory:"}, "in memory"),
    ({"ledger__url": "sqlite:///file:x?mode=memory"}, "in memory"),
    ({"ledger__url": "mysql://x"}, "must begin with"),
    ({"price__per_unit": 0}, "price.per_unit"),
    ({"price__per_unit": -1}, "price.per_unit"),
    ({"chain__id": 0}, "chain.id"),
    ({"chain__id": 1}, "development chains only"),
    ({"chain__escrow": "0x12"}, "chain.escrow"),
    ({"chain__token": "2b" * 20}, "chain.token"),
    ({"chain__confirmations": 0}, "confirmations"),
    ({"chain__rpc_url": "ftp://node"}, "rpc_url"),
    ({"sponsoring__types": "hash"}, "types"),
    ({"payee__keystore_file": "key.json"}, "must be given together"),
    ({"payee__keystore_file": "k", "payee__password_file": "p"}, "either"),
    ({"upstream__url": "127.0.0.1:8080"}, "url"),
    ({"upstream__free": ["POST /v1/embeddings"]}, "free"),
    ({"upstream__fields": ["grammar", "n_predict"]}, "n_predict"),
    ({"upstream__fields": ["stream_options"]}, "stream_options"),
    ({"upstream__counts": "guess"}, "counts"),
    ({"upstream__counts": "tokens"}, "upstream.counts"),
    ({"settlement__sweep_interval_s": 61}, "sweep_interval_s"),
    ({"listen__port": 65536}, "listen.port"),
    ({"price__per_unit": 10**18 + 1}, "price.per_unit"),
    ({"upstream__max_tokens": 10**9 + 1}, "upstream.max_tokens"),
    ({"price__per_unit": None}, r"`price`: no price for output: set `output`, such as \"0.40\""),
    ({"price__output": "0.40"}, "`per_unit` and `output` are both given"),
    ({"price__minimum": "0.01"}, "`per_unit` and `minimum` are both given"),
    ({**PER_MILLION, "price__output": 0.4}, r"`price.output`: .*quotes, such as \"0.40\", found 0"),
    ({**PER_MILLION, "price__output": "0,40"}, r"`price.output`: .*found '0,40'"),
    ({**PER_MILLION, "price__input": "0.10 / 1M"}, r"`price.input`: .*found '0.10 / 1M'"),
    ({**PER_MILLION, "price__input": "-1"}, r"`price.input`: .*found '-1'"),
    ({**PER_MILLION, "price__input": None, "price__cached_input": "1"}, "`cached_input` needs"),
    ({**PER_MILLION, "settlement__settle_units": 9}, "set `settlement.settle_value`"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_would_lose_money_later_does_not_start(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """CHAL-08, CHAL-09, CHAL-04, F-69, F-102, F-106, F-107: refused with the setting's name."""
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, **changes)


def test_prices_for_a_million_tokens_become_exact_rates(tmp_path: Path) -> None:
    """A token that costs less than a base unit has a price all the same."""
    price = load(
        tmp_path,
        **PER_MILLION,
        price__cached_input="0.025 USDC",
        price__cache_write="0.125",
        price__reasoning="0.6",
        price__minimum="0.0001",
        price__maximum="0.5 usdc",
    ).price_rows[0]
    tariff = price.tariff(USDC)
    usage = {
        "output_token": 7,
        "input_token": 30,
        "cached_input_token": 20,
        "cache_write_token": 4,
        "reasoning_token": 10,
    }
    assert tariff.main == Rate("output_token", 400_000, 10**6)
    assert tariff.kinds == tuple(usage)
    assert (tariff.minimum, tariff.maximum) == (100, 500_000)
    scale = 10**4
    exact = {kind: Fraction(tariff.cost({kind: n * scale})) / scale for kind, n in usage.items()}
    assert exact == {
        "output_token": Fraction("2.8"),
        "input_token": 3,
        "cached_input_token": Fraction("0.5"),
        "cache_write_token": Fraction("0.5"),
        "reasoning_token": 6,
    }


def test_a_price_in_base_units_is_the_plain_tariff_of_before(tmp_path: Path) -> None:
    """Old clients know no other; no token's decimals are needed."""
    assert load(tmp_path).price_rows[0].tariff(None) == Tariff.of("llm_token", 25)


def test_prices_come_from_the_environment_too(tmp_path: Path) -> None:
    variables = {
        "MPP_SESSION_PRICE_INPUT": "0.10",
        "MPP_SESSION_PRICE_OUTPUT": "0.40 USDC",
        "MPP_SESSION_PRICE_MINIMUM": "0.000001",
    }
    price = load(tmp_path, {**ENVIRONMENT, **variables}, price__per_unit=None).price_rows[0]
    assert [rate.amount for rate in price.tariff(USDC).rates] == [400_000, 100_000]
    assert price.tariff(USDC).minimum == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"price__output": "0.40 EURC"}, "`price.output`: .*expected a price in USDC"),
        ({"price__output": "0"}, "`price`: output_token: .*must not be free"),
        ({"price__input": "0." + "0" * 29 + "1"}, "`price.input`: "),
        ({"price__input": "9" * 30}, "`price`: input_token costs over"),
        ({"price__minimum": "0.0000001"}, "`price.minimum`: .* at most 6 decimals"),
        ({"price__minimum": "2", "price__maximum": "1"}, "`price`: expected minimum and maximum"),
    ],
)
def test_a_price_that_does_not_fit_the_token_is_named(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    price = load(tmp_path, **{**PER_MILLION, **changes}).price_rows[0]
    with pytest.raises(ConfigError, match=said):
        price.tariff(USDC)


def test_a_token_without_decimals_has_prices_in_base_units_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set `price\.per_unit`, in base units, instead"):
        load(tmp_path, **PER_MILLION).price_rows[0].tariff(None)


def test_a_payee_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="payee"):
        load(tmp_path, {"PATH": "/bin"})


def test_a_relayer_needs_a_key_where_a_settler_is_started(tmp_path: Path) -> None:
    """F-81: and none where it runs elsewhere, though its gas is looked after here too."""
    with pytest.raises(ConfigError, match="`relayer` names no key"):
        load(tmp_path, relayer__address=RELAYER)
    config = load(tmp_path, relayer__address=RELAYER, settlement__start=False)
    assert config.relayer.address == RELAYER


def test_a_process_that_only_serves_gets_no_key(tmp_path: Path) -> None:
    """F-104, decision 14: neither the payee's nor the relayer's, nor where one is."""
    environment = {**ENVIRONMENT, "MPP_SESSION_RELAYER_SIGNER_TOKEN": "a-token"}
    config = load(
        tmp_path,
        environment,
        relayer__address=RELAYER,
        relayer__signer_url="https://signer.example",
    )
    serving = without_keys(config)
    for section in (serving.payee, serving.relayer):
        assert not names_key(section)
        assert section.password_file is None
        assert section.signer_token is None
    assert (serving.payee.address, serving.relayer.address) == (config.payee.address, RELAYER)
    assert not serving.settlement.start
    text = msgspec.json.encode(serving, enc_hook=lambda secret: secret.reveal()).decode()
    assert KEY[2:] not in text
    assert "signer.example" not in text
    assert "a-token" not in text


def tower(tmp_path: Path, environment: dict[str, str], **changes: Any) -> TowerConfig:
    path = write(tmp_path / "tower.toml", FILE, **{"relayer__address": RELAYER, **changes})
    return load_tower_config(path, environment=environment)


def test_a_tower_has_a_key_of_its_own_and_none_of_the_payees(tmp_path: Path) -> None:
    """Decision 14: it may read the gateway's file, but must not find the payee's key there."""
    own = {"MPP_SESSION_RELAYER_KEY": KEY}
    config = tower(tmp_path, own)
    assert config.relayer.key == Secret(KEY)
    with pytest.raises(ConfigError, match=r"give a watchtower only .payee.address."):
        tower(tmp_path, {**own, **ENVIRONMENT})
    with pytest.raises(ConfigError, match=r"relayer\.address"):
        tower(tmp_path, own, relayer__address=None)
    with pytest.raises(ConfigError, match="development chains only"):
        tower(tmp_path, own, chain__id=1)


def test_a_file_that_is_not_there_or_not_toml_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml", environment={})
    broken = tmp_path / "broken.toml"
    broken.write_text("[listen\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(broken, environment={})


def test_no_secret_is_in_the_text_of_a_config(tmp_path: Path) -> None:
    """F-103: neither the challenge secrets nor the payee's key."""
    text = repr(load(tmp_path)) + str(load(tmp_path))
    assert SECRET not in text
    assert KEY not in text


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, setting in list_settings().items() if not setting.description] == []


@pytest.mark.parametrize("state_home", [None, "", "relative"])
def test_a_user_without_a_home_hears_which_setting_names_a_directory(
    monkeypatch: pytest.MonkeyPatch, state_home: str | None
) -> None:
    """O-06: as in a container that runs as a user of its own; a relative path counts as none."""
    monkeypatch.delenv("HOME", raising=False)
    if state_home is None:
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_STATE_HOME", state_home)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(ConfigError, match=r"4000000 has no home directory.*`ledger\.state_dir`"):
        default_state_dir()
