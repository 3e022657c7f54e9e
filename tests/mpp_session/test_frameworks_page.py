"""docs/guide/frameworks.md: each page is a whole program that sells, as it stands there."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from channel.http import PaymentGate
from tests.channel.selling import Provider, ask, never_stop, open_provider
from tests.frameworks import build_django, living

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "frameworks.md"
PROGRAMS = {
    section.partition("\n")[0]: section.partition("```python\n")[2].partition("```")[0]
    for section in PAGE.read_text().split("\n## ")[1:]
}
UNIT = 10


@pytest.fixture
def module(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The program as a module; the gate around it is the test's, with a ledger of its own."""
    source, _, last = PROGRAMS[request.param].rpartition("app = ")
    assert last == "sell(api, ROUTES)\n"
    made = ModuleType("provider")
    sys.modules["provider"] = made  # frameworks read annotations in the module of a handler
    if request.param == "Django":
        build_django()  # which sets Django up, once for the process
    try:
        exec(compile(source, "provider.py", "exec"), made.__dict__)  # noqa: S102 -- the page
        yield made
    finally:
        del sys.modules["provider"]


def test_the_page_has_every_framework() -> None:
    names = ["FastAPI", "Starlette", "Litestar", "Quart", "Django", "BlackSheep", "sse-starlette"]
    assert list(PROGRAMS) == names


@pytest.mark.filterwarnings("default")  # the frameworks' own, on newer Pythons
@pytest.mark.parametrize("module", PROGRAMS, indirect=True)
async def test_each_page_sells_by_the_word(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-50, and the frameworks' own way to a meter."""
    if hasattr(module, "urlpatterns"):
        use_urls(module, monkeypatch)
    async with open_provider(tmp_path) as provider, living(module.api):
        provider.payer.open_on_chain()
        gate = PaymentGate(
            module.api, engine=provider.engine, routes=module.ROUTES, stop_worker=never_stop
        )
        refused = await ask(gate, "GET", "/words?count=3")
        assert refused.status == 402
        credential = provider.payer.credential(refused.challenge, provider.payer.opening(30))
        answer = await ask(gate, "GET", "/words?count=3", credential)
        assert (answer.status, answer.body.count(b"word")) == (200, 3)
        assert (await spent(provider)) == 3 * UNIT


async def spent(provider: Provider) -> int:
    books = await provider.books()
    assert books.reservations == ()
    return books.spent


def use_urls(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.conf import settings  # noqa: PLC0415 -- by the page that needs it
    from django.urls import clear_url_caches, set_urlconf  # noqa: PLC0415

    monkeypatch.setattr(settings, "ROOT_URLCONF", module)
    clear_url_caches()
    set_urlconf(None)
