"""Reads file, environment and flags into one frozen `Config`; alone reads `os.environ`.

A flag overrides the environment, the environment the file. An unknown name is refused with the
nearest setting, so that a misspelt or renamed setting never silently falls back to its default
(F-106).
"""

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from channel.errors import ConfigError
from mpp_session.settings import (
    Config,
    Price,
    PriceRow,
    ProviderConfig,
    Secret,
    SettlerConfig,
    TowerConfig,
    WatchConfig,
)
from mpp_session.settings.price_rows import read_price_file, read_price_rows
from mpp_session.settings.values import decode_value

__all__ = [
    "COUNTS_VARIABLE",
    "ENVIRONMENT_PREFIX",
    "Setting",
    "bare_environment",
    "counts_folder",
    "default_state_dir",
    "list_row_fields",
    "list_settings",
    "load_config",
    "load_price_rows",
    "load_provider_config",
    "load_settler_config",
    "load_tower_config",
    "load_values",
    "load_watch_config",
    "section_type",
    "settler_environment",
    "take_passed_sockets",
    "wants_traces",
    "without_keys",
]

_log: Final = logging.getLogger(__name__)

ENVIRONMENT_PREFIX: Final = "MPP_SESSION_"
COUNTS_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which processes count together: prometheus-client reads it when imported."""
_SQLITE: Final = "sqlite:///"
_Kind = TypeVar("_Kind", bound=WatchConfig)

_ORDER: Final = (
    "upstream",
    "price",
    "prices",
    "payment",
    "listen",
    "limits",
    "discovery",
    "admin",
    "chain",
    "payee",
    "relayer",
    "ledger",
    "settlement",
    "exposure",
    "sponsoring",
    "rails",
    "tower",
)
"""Descriptions of the sections, for the page of settings."""
_ROWS: Final = "prices.rows"
"""The name here of the `[[prices]]` tables, which are no setting: only a file has them."""
_ENVIRONMENT_ONLY: Final = frozenset({"payee.key", "relayer.key"})


class Setting(msgspec.Struct, frozen=True):
    """One setting, as documented."""

    name: str
    """`section.setting`."""
    type: Any
    """As annotated, with bounds."""
    default: Any
    """`msgspec.NODEFAULT` if the setting is required."""
    description: str

    @property
    def section(self) -> str:
        """The section of the setting."""
        return self.name.partition(".")[0]

    @property
    def environment_name(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.name.replace(".", "_").upper()

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is msgspec.NODEFAULT


def list_settings() -> dict[str, Setting]:
    """Return every setting by its name, in the order of the documentation."""
    found = {}
    for section in sorted(msgspec.structs.fields(Config), key=lambda f: _ORDER.index(f.name)):
        kind = section_type(section.type)
        hints = get_type_hints(kind, include_extras=True)
        for field in msgspec.structs.fields(kind):
            name = f"{section.name}.{field.name}"
            if name == _ROWS:
                continue
            hint = hints[field.name]
            found[name] = Setting(name, hint, field.default, _description(hint))
    return found


def list_row_fields() -> list[Setting]:
    """Return the fields of a `[[prices]]` table that `[price]` has not."""
    hints = get_type_hints(PriceRow, include_extras=True)
    defaults = {
        field.name: field.default
        if field.default_factory is msgspec.NODEFAULT
        else field.default_factory()
        for field in msgspec.structs.fields(PriceRow)
    }
    return [
        Setting(f"prices.{name}", hints[name], default, _description(hints[name]))
        for name, default in defaults.items()
        if name not in Price.__struct_fields__
    ]


def section_type(hint: Any) -> type[msgspec.Struct]:
    """Return the type of a section, which may be optional."""
    found: type[msgspec.Struct] = next(iter(get_args(hint)), hint)
    return found


def load_config(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Read and check all settings of a gateway.

    Args:
        path: A TOML file with one table a section; None for no file.
        environment: Variables `MPP_SESSION_SECTION_SETTING`; the process's own if None.
        flags: Values by `section.setting` that override the others.
        defaults: Values by `section.setting` that the others override, such as a devnet's
            addresses.

    Raises:
        ConfigError: The file cannot be read, a name is unknown, or a value is missing or invalid.
    """
    given = load_values(path, environment=environment, flags=flags, defaults=defaults)
    rows = _read_rows(given)
    if rows:
        given[_ROWS] = rows
    elif not any(name.startswith("price.") for name in given):
        given["price.output"] = None  # the error says how to give a price
    return _convert(given, Config)


def _read_rows(given: Mapping[str, Any]) -> tuple[PriceRow, ...]:
    """Return the rows of prices, of the file of settings or of another one."""
    file, rows = given.get("prices.file"), given.get(_ROWS)
    if file is not None and rows is not None:
        raise ConfigError("`prices.file` and `[[prices]]` are both given: remove one")
    if file is not None:
        return read_price_file(Path(str(file)))
    return () if rows is None else read_price_rows(rows)


def load_provider_config(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> ProviderConfig:
    """Read and check the settings of an application that sells by itself, without a gateway.

    Arguments and errors as `load_config`. A setting that only a gateway uses is refused in the
    file, which belongs to this application. In the environment, which programs share, it is only
    logged.
    """
    given = load_values(path, environment=environment, defaults=defaults)
    kept = _only(given, ProviderConfig)
    unused = given.keys() - kept.keys() - (defaults or {}).keys()
    if "settlement.settle_units" not in kept:
        unused |= {name for name in kept if name.startswith("price.")} - (defaults or {}).keys()
    in_file = {} if path is None else _read_file(path, list_settings())
    if unused & in_file.keys():
        raise ConfigError(
            f"{path}: `{min(unused & in_file.keys())}` is for a gateway only: remove it, an "
            "application has its own server, routes and prices"
        )
    for name in sorted(unused):
        _log.warning("`%s` has no effect: an application has its own server and prices", name)
    return _convert(kept, ProviderConfig)


def load_watch_config(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[WatchConfig, str, str]:
    """Read the settings needed to read ledger and chain; no key is needed.

    Also returns the addresses of the payee, and of the account that sends and pays the gas.
    Arguments and errors as `load_config`.
    """
    given = load_values(path, environment=environment, flags=flags, defaults=defaults)
    config = _convert(_only(given, WatchConfig), WatchConfig)
    payee = str(given.get("payee.address", ""))
    gas_account = str(given.get("relayer.address") or payee)
    for name, value in (("payee.address", payee), ("relayer.address", gas_account)):
        if not re.fullmatch("0x[0-9a-fA-F]{40}", value):
            variable = list_settings()[name].environment_name
            raise ConfigError(
                f"`{name}` is missing or no address: set it in the file or {variable}"
            )
    return config, payee, gas_account


def load_price_rows(
    path: Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[PriceRow, ...]:
    """Read and check the prices of a gateway's settings, and no others; empty if there are none.

    Raises:
        ConfigError: As for `load_config`.
    """
    given = load_values(path, flags=flags, defaults=defaults)
    rows = _read_rows(given)
    prices = {
        name.partition(".")[2]: value
        for name, value in given.items()
        if name.partition(".")[0] == "price"
    }
    if rows and prices:
        raise ConfigError("`[price]` and `[[prices]]` are both given: remove one")
    if not prices:
        return rows
    try:
        return (msgspec.convert(prices, PriceRow, strict=False, dec_hook=decode_value),)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(error)) from None


def load_settler_config(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> SettlerConfig:
    """Read and check a settler's part of a gateway's settings; ignores the other settings.

    Arguments and errors as `load_config`.
    """
    given = load_values(path, environment=environment, flags=flags, defaults=defaults)
    return _convert(_only(given, SettlerConfig), SettlerConfig)


def load_tower_config(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> TowerConfig:
    """Read and check a watchtower's settings. Arguments and errors as `load_config`."""
    given = load_values(path, environment=environment, flags=flags, defaults=defaults)
    return _convert(_only(given, TowerConfig), TowerConfig)


def default_state_dir() -> Path:
    """Return the default directory for state that must not be in the database.

    Raises:
        ConfigError: The process's user has no home directory.
    """
    state_home = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state_home.is_absolute():  # the XDG specification says to ignore any other
        return state_home / "mpp-session"
    try:
        home = Path("/var/lib") if os.geteuid() == 0 else Path.home() / ".local/state"
    except RuntimeError as error:
        raise ConfigError(
            f"user {os.geteuid()} has no home directory for the ledger's marker: set "
            "`ledger.state_dir` to a directory that outlives this process and this container"
        ) from error
    return home / "mpp-session"


def counts_folder() -> str | None:
    """Return the folder in which the processes of one gateway count together; None if alone."""
    return os.environ.get(COUNTS_VARIABLE) or None


def wants_traces() -> bool:
    """Whether the standard variables of OpenTelemetry name an exporter of traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    if exporter not in ("", "otlp"):
        if exporter != "none":
            _log.warning("OTEL_TRACES_EXPORTER is %r: expected otlp or none", exporter)
        return False
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter == "otlp" or any(os.environ.get(name) for name in named)


def bare_environment() -> dict[str, str]:
    """Return this process's environment without our settings, for a worker."""
    return {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}


def take_passed_sockets() -> int:
    """Return how many sockets systemd passes to this process: `sd_listen_fds(3)`.

    The variables that announce them are removed, so that no child of this process takes them.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    return int(count) if pid == str(os.getpid()) and count.isdecimal() else 0


def settler_environment(config: SettlerConfig) -> dict[str, str]:
    """Return the environment in which a settler reads exactly these settings.

    It is this process's environment with every `MPP_SESSION_*` variable replaced. Settings that the
    settler does not use, such as the secrets of challenges, are left out.
    """
    kept = bare_environment()
    for setting in list_settings().values():
        section, _, key = setting.name.partition(".")
        if section in SettlerConfig.__struct_fields__:
            value = getattr(getattr(config, section), key, None)
            if value is not None:
                kept[setting.environment_name] = _environment_text(value)
    return kept


def without_keys(config: Config) -> Config:
    """Return the settings for a serving process: no key, and no settler to start (decision 14)."""
    nothing = dict.fromkeys(
        ("keystore_file", "password_file", "key", "signer_url", "signer_token"), None
    )
    return replace(
        config,
        payee=replace(config.payee, **nothing),
        relayer=replace(config.relayer, **nothing),
        settlement=replace(config.settlement, start=False),
    )


def _environment_text(value: Any) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, tuple):
        return ",".join(map(_environment_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _only(given: Mapping[str, Any], kind: type[WatchConfig]) -> dict[str, Any]:
    sections = kind.__struct_fields__
    return {name: given[name] for name in given if name.partition(".")[0] in sections}


def _convert(given: Mapping[str, Any], kind: type[_Kind]) -> _Kind:
    sections = {field.name for field in msgspec.structs.fields(kind) if field.required}
    sections |= {name.partition(".")[0] for name in given}
    missing = [
        setting
        for setting in list_settings().values()
        if setting.is_required and setting.section in sections and setting.name not in given
    ]
    if missing:
        names = ", ".join(f"`{setting.name}`" for setting in missing)
        raise ConfigError(
            f"missing: {names} (set in the file, or {missing[0].environment_name} and so on)"
        )
    # A section without required settings still has rules: an empty one is refused by them.
    tables: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for name, value in given.items():
        section, _, key = name.partition(".")
        tables.setdefault(section, {})[key] = value
    try:
        return msgspec.convert(tables, kind, strict=False, dec_hook=decode_value)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(error)) from None


def load_values(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the given settings by `section.setting`, with names checked and values unchecked.

    For commands that need one of them. Arguments and errors as `load_config`.
    """
    settings = list_settings()
    from_file = {} if path is None else _read_file(path, settings)
    if "prices.file" in from_file and path is not None:
        from_file["prices.file"] = str(path.parent / str(from_file["prices.file"]))
    from_environment = _read_environment(
        os.environ if environment is None else environment, settings
    )
    given: dict[str, Any] = {}
    _resolve_ledger(from_file, Path() if path is None else path.parent)
    from_flags = dict(flags or {})
    _resolve_ledger(from_flags, Path())
    _require_absolute(from_environment)
    for source in (defaults or {}, from_file, from_environment, from_flags):
        for name, value in source.items():
            if name not in settings and name != _ROWS:
                raise ConfigError(_unknown("setting", name, settings))
            given[name] = value
    return given


def _is_relative(url: str) -> bool:
    rest = url.removeprefix(_SQLITE) if url.startswith(_SQLITE) else ""
    return bool(rest) and not rest.startswith(("/", ":", "file:", "%2F", "%2f"))


def _resolve_ledger(values: dict[str, Any], folder: Path) -> None:
    """Let a SQLite file of a relative path mean the same file from wherever it is named (O-67).

    In the file of settings it is relative to that file, as a flag to the folder it is typed in.
    """
    url = str(values.get("ledger.url", ""))
    if _is_relative(url):
        root = quote(str(folder.resolve()).rstrip("/"))
        values["ledger.url"] = f"{_SQLITE}{root}/{url.removeprefix(_SQLITE)}"


def _require_absolute(values: Mapping[str, Any]) -> None:
    """Check that the environment names no books by a relative path: it outlives its folder.

    Raises:
        ConfigError: It does; from another folder that would be other books.
    """
    url = str(values.get("ledger.url", ""))
    if _is_relative(url):
        there = quote(str(Path(url.removeprefix(_SQLITE)).resolve()))
        raise ConfigError(
            f"`ledger.url` of the environment is {url}, another file in each folder: write "
            f"{_SQLITE}{there}"
        )


def _read_file(path: Path, settings: Mapping[str, Setting]) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        remedy = "" if path.exists() else "; `mpp-session init` writes such a file"
        raise ConfigError(f"{path} cannot be read: {error.strerror}{remedy}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    sections = {name.partition(".")[0] for name in settings}
    found = {}
    for section, table in tables.items():
        if section == "prices" and isinstance(table, list):
            found[_ROWS] = table
            continue
        if section not in sections or not isinstance(table, dict):
            raise ConfigError(f"{path}: {_unknown('section', section, sections)}")
        for key, value in table.items():
            name = f"{section}.{key}"
            if name not in settings:
                raise ConfigError(f"{path}: {_unknown('setting', name, settings)}")
            if name in _ENVIRONMENT_ONLY:
                raise ConfigError(
                    f"{path}: `{name}` is a secret: set {settings[name].environment_name} instead"
                )
            found[name] = value
    return found


def _read_environment(
    environment: Mapping[str, str], settings: Mapping[str, Setting]
) -> dict[str, Any]:
    """Read every variable with our prefix; lists are separated by commas."""
    by_variable = {setting.environment_name: setting for setting in settings.values()}
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        setting = by_variable.get(variable)
        if setting is None:
            raise ConfigError(_unknown("environment variable", variable, by_variable))
        is_list = get_origin(get_args(setting.type)[0]) is tuple
        found[setting.name] = (
            [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        )
    return found


def _explain(error: msgspec.ValidationError) -> str:
    """Reword `... - at `$.payment.secrets`` so that the setting comes first."""
    text, _, where = str(error).rpartition(" - at `$.")
    return f"`{where.rstrip('`')}`: {text}" if text else str(error)


def _unknown(what: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"unknown {what} `{name}`{hint}"


def _description(hint: Any) -> str:
    for extra in get_args(hint)[1:]:
        if isinstance(extra, msgspec.Meta) and extra.description:
            return extra.description
    return ""
