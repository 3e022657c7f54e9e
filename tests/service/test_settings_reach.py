"""O-93: every setting that is a number reaches the object it is for, as the number it is.

All of them are set to values of their own, none of which is a default, and everything of a gateway,
a settler and a watchtower is built. Then each value is looked for in the fields of what was built.
A new setting that nothing is built from fails here by itself.
"""

import functools
import math
import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest

from service import settings
from service.config import Setting, list_settings, load_config, load_tower_config
from service.devnet_file import devnet_settings
from service.gateway.app import Gateway
from service.gateway.serve import _build_server
from service.gateway.upstream import Upstream
from service.keys import open_signer
from service.settings import WatchConfig
from service.settings.values import Section
from service.settle_process import build_settler
from service.testing.chain import TestChain
from service.tower_process import TowerParts
from service.wiring import build_parts
from settlement.journal.sqlite import SqliteJournal

GIVEN = {
    "chain.id": "it is the node's; another is refused",
    "listen.port": "the socket is bound before anything is built",
    "listen.start_timeout_s": "read where a worker is started: tests/service/gateway",
    "settlement.start_timeout_s": "read where a settler is started: tests/service",
    "listen.workers": "more than one is more processes: tests/e2e/test_workers.py",
}
"""Numbers that no object keeps, and why."""

DERIVED: dict[str, Callable[[Any], float]] = {
    "ledger.channels_cached": lambda entries: entries // 2,  # two generations of a cache
    "listen.shutdown_s": math.ceil,  # uvicorn counts whole seconds
    "sponsoring.gas_budget_wei": lambda wei: wei // 10**9,  # orders are kept in gwei
}
"""What an object keeps instead of the number itself."""

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


def another(setting: Setting, number: int) -> float:
    """Return a value within bounds that no other setting has, and no default."""
    kind, metas = kind_of(setting)
    low = max([x for m in metas for x in (m.ge, m.gt) if x is not None], default=0)
    high = min([x for m in metas for x in (m.le, m.lt) if x is not None], default=2**62)
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
    return {each.name: another(each, index) for index, each in enumerate(numbers)}


def leaves(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield every number that can be reached from an object, with how; not through settings."""
    seen: set[int] = set()
    todo = [("", root)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield path, value
            continue
        if id(value) in seen or isinstance(
            value,
            str | bytes | type | types.ModuleType | WatchConfig | msgspec.Meta,
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
        *("channel", "settlement", "service", "httpx", "aiohttp", "uvicorn", "starlette"),
    }:
        names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        names += [*getattr(type(value), "__struct_fields__", ()), *getattr(value, "__dict__", {})]
        for name in dict.fromkeys(names):
            try:
                yield name, object.__getattribute__(value, name)
            except AttributeError:
                continue


@pytest.fixture
async def built(
    devnet: TestChain, tmp_path: Path, changed: Changed
) -> AsyncIterator[dict[str, Any]]:
    defaults = {
        **devnet_settings(devnet.values),
        "upstream.url": "http://127.0.0.1:9",
        "payment.realm": "tests",
        "payment.secrets": ["a secret of thirty-two bytes, or more"],
        "ledger.url": f"sqlite:///{tmp_path / 'gateway.db'}",
        "settlement.start": False,
        "tower.export_file": str(tmp_path / "settles"),
        "sponsoring.fee_payer": True,
        **changed,
    }
    config = load_config(None, environment={}, defaults=defaults)
    sender = devnet.account("deployer")
    away = {name: value for name, value in defaults.items() if name != "payee.key"}
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
    found = {value for _, value in leaves(built)}
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
