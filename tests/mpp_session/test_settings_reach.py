"""O-93: every setting reaches the object it is for, as what it is.

All of them are set to values of their own, none of which is a default, and everything of a gateway,
a settler and a watchtower is built. Then each value is looked for in the fields of what was built:
a number anywhere, a text or a choice in the field that is named for it.
A new setting that nothing is built from fails here by itself.
"""

import asyncio
import functools
import math
import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest

from channel.verify.challenge_id import ChallengeBinder
from channel.wire.challenge import Challenge, SessionRequest
from mpp_session import settings
from mpp_session.devnet_file import devnet_settings
from mpp_session.errors import CommandError
from mpp_session.gateway.app import Gateway
from mpp_session.gateway.serve import _build_server
from mpp_session.gateway.upstream import Upstream
from mpp_session.gateway.workers import run_workers
from mpp_session.keys import open_signer
from mpp_session.process.child import start_settler
from mpp_session.process.settler import build_settler
from mpp_session.process.tower import TowerParts
from mpp_session.settings import Config, WatchConfig
from mpp_session.settings.config import Setting, list_settings, load_config, load_tower_config
from mpp_session.settings.values import Section
from mpp_session.testing.chain import TestChain
from mpp_session.wiring import build_parts
from settlement.tx.journal.sqlite import SqliteJournal

GIVEN = {
    "chain.id": "it is the node's; another is refused",
    "listen.port": "the socket is bound before anything is built",
    "admin.port": "the socket is bound before anything is built",
    "listen.start_timeout_s": "read where a worker is started: below",
    "settlement.start_timeout_s": "read where a settler is started: below",
    "listen.workers": "more than one is more processes: tests/e2e/test_workers.py",
}
"""Numbers that no object keeps, and why."""

DERIVED: dict[str, Callable[[Any], float]] = {
    "ledger.channels_cached": lambda entries: entries // 2,  # two generations of a cache
    "ledger.charges_days": lambda days: days * 86_400,
    "listen.shutdown_s": math.ceil,  # uvicorn counts whole seconds
    "sponsoring.gas_budget_wei": lambda wei: wei // 10**9,  # orders are kept in gwei
    "rails.gas_budget_wei": lambda wei: wei // 10**9,
}
"""What an object keeps instead of the number itself."""

PRICES = {
    "input": ("0.11", 110_000),
    "output": ("0.42", 420_000),
    "cached_input": ("0.03", 30_000),
    "cache_write": ("0.14", 140_000),
    "reasoning": ("0.53", 530_000),
    "minimum": ("0.000007", 7),
    "maximum": ("0.9", 900_000),
}
"""Prices as they are set, and in base units of a token with six decimals."""

ELSEWHERE = {
    **dict.fromkeys(
        ("admin.enabled", "admin.host", "admin.allow_remote", "admin.names", "admin.token"),
        "opened after everything is built: tests/mpp_session/gateway/test_operator_port.py",
    ),
    "listen.host": "the socket is bound before anything is built: tests/e2e",
    "discovery.enabled": "false, and nothing is built: tests/mpp_session/gateway/test_app.py",
    "payee.keystore_file": "one of three ways to give a key: tests/mpp_session/test_keys.py",
    "payee.password_file": "as the keystore",
    "payee.signer_url": "as `relayer.signer_url`, by the same code",
    "payee.signer_token": "as `relayer.signer_token`, by the same code",
    **dict.fromkeys(
        [f"price.{name}" for name in PRICES],
        "instead of price.per_unit: test_every_price_of_a_million_tokens_is_in_the_offer",
    ),
    "prices.file": "instead of `[price]`: tests/mpp_session/settings/test_price_rows.py",
    "relayer.keystore_file": "as the payee's, by the same code",
    "relayer.password_file": "as the payee's, by the same code",
}
"""Texts that are not given here, and why."""

Changed = dict[str, float]


def kind_of(setting: Setting) -> tuple[type | None, list[msgspec.Meta]]:
    """Return whether it is an int or a float, and its bounds; None for all else."""
    found: list[msgspec.Meta] = []
    hint = setting.type
    while True:
        if get_origin(hint) in {types.UnionType, Union}:
            hint = next(each for each in get_args(hint) if each is not type(None))
        elif hasattr(hint, "__metadata__"):
            found += [each for each in hint.__metadata__ if isinstance(each, msgspec.Meta)]
            hint = get_args(hint)[0]
        else:
            return (hint if hint in {int, float} else None), found


def most(setting: Setting) -> float:
    _, metas = kind_of(setting)
    return min([x for m in metas for x in (m.le, m.lt) if x is not None], default=2**62)


def another(setting: Setting, number: int) -> float:
    """Return a value within bounds that no other setting has, and no default."""
    kind, metas = kind_of(setting)
    low = max([x for m in metas for x in (m.ge, m.gt) if x is not None], default=0)
    high = most(setting)
    default = setting.default if isinstance(setting.default, int | float) else None
    near = 1000 if default is None else default
    shift = 0.001 * (number + 1) if kind is float else 1 + number
    far = [near + apart + shift for apart in (100_000, 500)] if kind is int else []
    candidates = [*far, near + shift, near - shift, low + shift, high - shift]
    value = next(x for x in candidates if low < x < high and x != default)
    return value if kind is float else int(value)


@pytest.fixture
def changed() -> Changed:
    numbers = [s for s in list_settings().values() if kind_of(s)[0] and s.name not in GIVEN]
    numbers.sort(key=most)  # the narrowest first: they have room for small numbers alone
    return {each.name: another(each, index) for index, each in enumerate(numbers)}


def leaves(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield every plain value that can be reached from an object, with how; not by settings."""
    seen: set[int] = set()
    todo = [("", root)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, Enum):
            yield path, value.name.lower()
            continue
        if isinstance(value, int | float | str | bytes | Path):
            yield path, value
            continue
        if id(value) in seen or isinstance(
            value, type | types.ModuleType | WatchConfig | msgspec.Meta
        ):
            continue
        if isinstance(value, Section) and not isinstance(value, settings.Upstream):
            continue  # that of the model server is kept as it is by what asks it
        seen.add(id(value))
        todo += [(f"{path}.{name}", each) for name, each in fields(value)]


def fields(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), each) for key, each in [*value.items()])
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(index), each) for index, each in enumerate([*value]))
    elif isinstance(value, functools.partial):
        yield from fields([value.func, value.args, value.keywords])
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
    elif isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        yield from ((name, cell.cell_contents) for name, cell in cells)
    elif isinstance(value, types.CoroutineType):
        yield from fields(value.cr_frame.f_locals if value.cr_frame else {})
    elif (type(value).__module__ or "").split(".")[0] in {
        *("channel", "settlement", "mpp_session", "httpx", "aiohttp", "uvicorn", "starlette"),
    }:
        names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        names += [*getattr(type(value), "__struct_fields__", ()), *getattr(value, "__dict__", {})]
        for name in dict.fromkeys(names):
            try:
                yield name, object.__getattribute__(value, name)
            except AttributeError:
                continue


WORDS: dict[str, Any] = {
    "upstream.url": "http://127.0.0.1:9/models",
    "upstream.api_key": "the-key-of-the-model-server",
    "upstream.counts": "usage",
    "upstream.fields": ["grammar"],
    "upstream.media": True,
    "upstream.free": ["GET /free"],
    "payment.realm": "reached",
    "payment.secrets": [
        "the first secret, of thirty-two bytes",
        "the second one, of thirty-two bytes",
    ],
    "payment.stream_policy": "reject",
    "payment.credential_header": "Payment-Authorization",
    "discovery.title": "The title",
    "discovery.description": "What is sold.",
    "discovery.contact": "seller@reached.example",
    "discovery.url": "https://reached.example",
    "discovery.compat": ["agentcash"],
    "discovery.currency": "EUR",
    "chain.ws_url": "ws://127.0.0.1:9/heads",
    "ledger.charges": False,
    "relayer.signer_url": "http://127.0.0.1:9/sign",
    "relayer.signer_token": "the-token-of-the-signer",
    "settlement.start": False,
    "sponsoring.fee_payer": True,
    "sponsoring.types": ["authorization"],
    "rails.charge": True,
    "rails.x402": False,
}
"""Texts, choices and switches as they are set, beside those of a devnet and of the test's folder:
none is the default."""


@pytest.fixture
async def built(
    devnet: TestChain, tmp_path: Path, changed: Changed
) -> AsyncIterator[dict[str, Any]]:
    (tmp_path / "state").mkdir()
    local = devnet.values.rpc_url.replace("127.0.0.1", "localhost")
    defaults = {
        **devnet_settings(devnet.values),
        **WORDS,
        "relayer.address": "0x" + devnet.account("deployer").address.hex(),
        "chain.more_rpc_urls": [local],
        "ledger.url": f"sqlite:///{tmp_path / 'gateway.db'}",
        "ledger.state_dir": str(tmp_path / "state"),
        "tower.export_file": str(tmp_path / "settles"),
        **changed,
    }
    config = load_config(None, environment={}, defaults=defaults)
    sender = devnet.account("deployer")
    keys = {"payee.key", "relayer.signer_url", "relayer.signer_token"}
    away = {name: value for name, value in defaults.items() if name not in keys}
    tower_config = load_tower_config(
        None,
        environment={},
        defaults={
            **away,
            "relayer.address": "0x" + sender.address.hex(),
            "relayer.key": "0x" + sender.private_key.hex(),
        },
    )
    async with AsyncExitStack() as open_:
        parts = await open_.enter_async_context(build_parts(config))
        upstream = await open_.enter_async_context(Upstream.connect(config.upstream))
        gateway = Gateway(config, parts.engine, upstream, stop=lambda: None)
        tasks = parts.background()
        for task in tasks.values():
            open_.callback(task.close)
        settler_parts = await open_.enter_async_context(build_settler(config))
        manager, settler, watcher, export = await settler_parts.build()
        open_.push_async_callback(settler.aclose)
        account = await open_.enter_async_context(open_signer(tower_config.relayer))
        journal = await SqliteJournal.open(
            tmp_path / "tower.db", chain_id=config.chain.id, account=account.address
        )
        open_.push_async_callback(journal.close)
        tower = TowerParts(
            tower_config, tmp_path / "settles", settler_parts.reader, journal, account
        ).build()
        open_.push_async_callback(tower[1].aclose)
        yield {
            "gateway": [gateway, upstream, parts, tasks, _build_server(gateway, config.listen)],
            "settler": [manager, settler, watcher, export, settler_parts],
            "tower": tower,
        }


async def test_every_number_is_in_what_is_built(built: dict[str, Any], changed: Changed) -> None:
    found = {value for _, value in leaves(built) if not isinstance(value, bool)}
    wanted = {n: DERIVED[n](value) if n in DERIVED else value for n, value in changed.items()}
    missing = {name: value for name, value in wanted.items() if value not in found}
    assert missing == {}, "a setting without its use, or in another unit"


PLACES = {
    "chain.confirmations": [
        "gateway: settings.confirmations",
        "gateway: limits.confirmations",
        "gateway: limits.compare_depth",
        "gateway: observer.confirmations",
        "settler: limits.confirmations",
        "settler: limits.compare_depth",
        "settler: observer.confirmations",
        "tower: limits.confirmations",
    ],
    "exposure.channel_max": [
        "gateway: limits.channel_max",
        "gateway: policy.exposure_max",
        "settler: policy.exposure_max",
        "settler: limits.channel_max",
    ],
    "exposure.total_max": ["gateway: limits.total_max", "settler: limits.total_max"],
    "exposure.signer_max": ["gateway: limits.signer_max"],
    "exposure.contract_signed_max": ["gateway: limits.contract_signed_max"],
    "exposure.closes_reserved_min": [
        "gateway: limits.closes_reserved_min",
        "settler: limits.closes_reserved_min",
    ],
    "payment.vouchers_per_second": [
        "gateway: settings.vouchers_per_second",
        "gateway: rate.per_second",
    ],
    "settlement.settle_value": ["settler: policy.settle_value"],
    "settlement.settle_age_s": ["settler: policy.settle_age_s"],
    "settlement.settle_units": ["settler: policy.settle_units"],
    "settlement.close_idle_s": ["settler: policy.close_idle_s"],
    "settlement.defend_min": ["settler: policy.defend_min"],
    "settlement.token_price_wei": [
        "settler: policy.token_price_wei",
        "settler: budget.token_price_wei",
    ],
    "settlement.gas_budget_wei": ["settler: budget.floor_wei", "tower: budget.floor_wei"],
    "settlement.gas_hour_max_wei": ["settler: hour.limit_wei"],
    "settlement.max_fee_wei": ["settler: fees.max_fee_wei", "tower: fees.max_fee_wei"],
    "settlement.batch_max": ["settler: limits.batch_max"],
    "settlement.sweep_interval_s": ["gateway: limits.interval_s", "settler: limits.interval_s"],
}
"""Where what decides about money has to be, each of them: a program, an object, its field."""


async def test_what_decides_about_money_is_in_each_place(
    built: dict[str, Any], changed: Changed
) -> None:
    """As it is in every object that must agree, and not only in one of them."""
    found = {(place(path), value) for path, value in leaves(built)}
    missing = [
        f"{name} in {each}"
        for name, places in PLACES.items()
        for each in places
        if (each, changed[name]) not in found
    ]
    assert missing == []


def place(path: str) -> str:
    names = path.removeprefix(".").split(".")
    program, owner, field = names[0], names[-2], names[-1]
    return f"{program}: {owner.lstrip('_')}.{field.lstrip('_')}"


WORD_PLACES: dict[str, list[tuple[str, Any]]] = {
    "upstream.url": [("gateway: upstream.url", "http://127.0.0.1:9/models")],
    "upstream.api_key": [
        ("gateway: own_headers.authorization", "Bearer the-key-of-the-model-server")
    ],
    "upstream.counts": [("gateway: readiness.counts", "usage")],
    "upstream.fields": [("gateway: fields.0", "grammar")],
    "upstream.media": [("gateway: settings.media", True)],
    "upstream.free": [("gateway: 3.path", "/free")],
    "payment.realm": [("gateway: settings.realm", "reached")],
    "payment.stream_policy": [("gateway: route.stream_policy", "reject")],
    "payment.credential_header": [("gateway: settings.credential_header", "Payment-Authorization")],
    "discovery.title": [("gateway: service.title", "The title")],
    "discovery.description": [("gateway: service.description", "What is sold.")],
    "discovery.contact": [("gateway: service.contact", "seller@reached.example")],
    "discovery.url": [("gateway: service.url", "https://reached.example")],
    "discovery.compat": [("gateway: compat.0", "agentcash")],
    "discovery.currency": [("gateway: service.currency", "EUR")],
    "chain.ws_url": [
        ("gateway: blocks.ws_url", "ws://127.0.0.1:9/heads"),
        ("settler: blocks.ws_url", "ws://127.0.0.1:9/heads"),
    ],
    "ledger.charges": [
        ("gateway: accounts.is_kept", False),
        ("settler: accounts.is_kept", False),
    ],
    "relayer.signer_url": [("settler: sender.url", "http://127.0.0.1:9/sign")],
    "relayer.signer_token": [("settler: headers.authorization", "Bearer the-token-of-the-signer")],
    "sponsoring.fee_payer": [("gateway: request.fee_payer", True)],
    "sponsoring.types": [("gateway: credential_types.0", "authorization")],
    "rails.charge": [("gateway: terms.chain_id", 31337)],
    "rails.x402": [("gateway: terms.x402", False)],
}
"""Where each text, choice or switch has to be, and as what."""


def devnet_places(devnet: TestChain, folder: Path) -> dict[str, list[tuple[str, Any]]]:
    """Return the same for what a chain and a folder give."""
    values, books = devnet.values, str(folder / "gateway.db")
    payee, relayer = devnet.account("payee"), devnet.account("deployer")
    local = values.rpc_url.replace("127.0.0.1", "localhost")
    programs = ("gateway", "settler", "tower")
    return {
        "chain.rpc_url": [(f"{each}: transport.url", values.rpc_url) for each in programs],
        "chain.more_rpc_urls": [(f"{each}: transport.url", local) for each in programs],
        "chain.escrow": [
            ("gateway: request.escrow", values.escrow),
            ("gateway: chain.escrow", values.escrow),
            ("settler: place.1", values.escrow),
            ("tower: reader.escrow", values.escrow),
        ],
        "chain.token": [
            ("gateway: request.currency", values.token),
            ("gateway: settings.token", values.token),
            ("settler: payout.token", values.token),
        ],
        "payee.address": [
            ("gateway: request.recipient", payee.address),
            ("gateway: settings.payee", payee.address),
            ("settler: observer.payee", payee.address),
            ("tower: calls.payee", payee.address),
        ],
        "payee.key": [("settler: payee.address", payee.address)],
        "relayer.address": [
            ("gateway: health.gas_account", relayer.address),
            ("gateway: sponsor.sender", relayer.address),
            ("gateway: scope.1", relayer.address),
            ("settler: scope.1", relayer.address),
            ("settler: sender.address", relayer.address),
            ("tower: 2.gas_account", relayer.address),
        ],
        "relayer.key": [("tower: signer.address", relayer.address)],
        "ledger.url": [("gateway: head.place", books), ("settler: connection.path", books)],
        "tower.export_file": [("settler: file.path", folder / "settles")],
    }


async def test_every_text_and_switch_is_where_it_decides(
    built: dict[str, Any], devnet: TestChain, tmp_path: Path
) -> None:
    """O-93: by the field that is named for it; what is in one place only by itself."""
    programs = [leaves({name: parts}) for name, parts in built.items()]  # they share a reader
    found = [(place(path), value) for each in programs for path, value in each]
    wanted = WORD_PLACES | devnet_places(devnet, tmp_path)
    missing = [
        f"{name} in {where}"
        for name, places in wanted.items()
        for where, value in places
        if not any(where == at and value == x and type(x) is type(value) for at, x in found)
    ]
    assert missing == []
    parts = built["gateway"][2]
    assert parts.settler is None, "settlement.start"
    assert [*(tmp_path / "state").glob("*.marker")], "ledger.state_dir"
    own = ["settlement.start", "ledger.state_dir", "payment.secrets"]
    words = [each.name for each in list_settings().values() if kind_of(each)[0] is None]
    assert sorted([*wanted, *ELSEWHERE, *own]) == sorted(words), "a setting without its use"


@pytest.mark.parametrize("number", [0, 1])
async def test_each_secret_of_challenges_is_known(built: dict[str, Any], number: int) -> None:
    """O-93: `payment.secrets`; the first one signs, and what each signed is taken."""
    binder = built["gateway"][2].engine.challenger._binder  # noqa: SLF001 -- what was built
    slots = {"realm": "reached", "method": "evm", "intent": "session", "request": "e30"}
    id_ = ChallengeBinder([WORDS["payment.secrets"][number].encode()]).bind(**slots)
    assert binder.is_bound(Challenge(id=id_, **slots))
    assert (binder.bind(**slots) == id_) is (number == 0)


async def test_every_price_of_a_million_tokens_is_in_the_offer(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-93: what a client is offered has each of them, and in its own place."""
    (tmp_path / "state").mkdir()
    defaults = {
        **devnet_settings(devnet.values),
        **WORDS,
        "ledger.url": f"sqlite:///{tmp_path / 'gateway.db'}",
        "ledger.state_dir": str(tmp_path / "state"),
        **{f"price.{name}": text for name, (text, _) in PRICES.items()},
    }
    del defaults["relayer.signer_url"], defaults["relayer.signer_token"]
    config = load_config(None, environment={}, defaults=defaults)
    async with (
        build_parts(config) as parts,
        Upstream.connect(config.upstream) as upstream,
    ):
        gateway = Gateway(config, parts.engine, upstream, stop=lambda: None, unit=parts.unit)
        requests = [each for each in objects(gateway) if isinstance(each, SessionRequest)]
    (tariff,) = {request.tariff for request in requests}
    assert tariff is not None
    names = {"output": "output_token", "input": "input_token", "reasoning": "reasoning_token"}
    names |= {"cached_input": "cached_input_token", "cache_write": "cache_write_token"}
    assert {rate.kind: (rate.amount, rate.per) for rate in tariff.rates} == {
        kind: (PRICES[name][1], 10**6) for name, kind in names.items()
    }
    assert (tariff.minimum, tariff.maximum) == (PRICES["minimum"][1], PRICES["maximum"][1])


def objects(root: Any) -> Iterator[Any]:
    """Yield every object that can be reached from one."""
    seen: set[int] = set()
    todo = [root]
    while todo:
        value = todo.pop()
        if id(value) not in seen and not isinstance(value, type | types.ModuleType | WatchConfig):
            seen.add(id(value))
            yield value
            todo += [each for _, each in fields(value)]


def hasty(devnet: TestChain, **changes: Any) -> Config:
    """Return settings whose processes have less time to start than any process needs."""
    return load_config(
        None,
        environment={},
        defaults={
            **devnet_settings(devnet.values),
            "price.per_unit": 1,
            "upstream.url": "http://127.0.0.1:9",
            "payment.realm": "tests",
            "payment.secrets": WORDS["payment.secrets"],
            **changes,
        },
    )


async def test_a_settler_has_so_long_to_start(devnet: TestChain, tmp_path: Path) -> None:
    """O-93: `settlement.start_timeout_s`."""
    config = hasty(
        devnet,
        **{
            "settlement.start_timeout_s": 0.01,
            "ledger.url": f"sqlite:///{tmp_path / 'gateway.db'}",
        },
    )
    async with start_settler(config) as child:
        with pytest.raises(
            CommandError, match=r"no report of the settler in 0\.01 s: raise settlement"
        ):
            await child.ready()


async def test_each_of_several_workers_has_so_long_to_start(devnet: TestChain) -> None:
    """O-93: `listen.start_timeout_s`."""
    config = hasty(
        devnet,
        **{
            "listen.start_timeout_s": 0.01,
            "listen.workers": 2,
            "listen.port": 0,
            "settlement.start": False,
            "ledger.url": "postgresql://127.0.0.1:9/unasked",
        },
    )
    with pytest.raises(CommandError, match=r"did not serve within 0\.01 s: raise listen"):
        await run_workers(config, announce=lambda *_: None, stopping=asyncio.Event())
