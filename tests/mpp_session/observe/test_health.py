"""Health is cheap to ask: one look serves all who ask within a second."""

import asyncio
from typing import Any

import httpx
import msgspec

from mpp_session.observe.health import Health, HealthPages, HealthSite, PartDownError


class Checks:
    """Two parts, and how often each was looked at."""

    def __init__(self) -> None:
        self.looks = 0
        self.fault = ""

    async def first(self) -> None:
        self.looks += 1
        await asyncio.sleep(0.01)
        if self.fault:
            raise PartDownError(self.fault)

    async def second(self) -> None:
        raise KeyError

    def health(self, kept_s: float = 60.0) -> Health:
        checks = {"first": self.first, "second": self.second}
        return Health(checks, needed=frozenset({"first"}), kept_s=kept_s)


async def ask(app: Any, path: str, method: str = "GET") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
        return await client.request(method, f"http://x{path}")


async def test_a_crowd_causes_one_look() -> None:
    checks = Checks()
    health = checks.health()
    pages = HealthPages(health, is_public=True)
    answers = await asyncio.gather(*[ask(pages, "/readyz") for _ in range(50)])
    assert {answer.status_code for answer in answers} == {200}
    await ask(pages, "/healthz")
    assert checks.looks == 1


async def test_the_public_reads_no_reasons() -> None:
    checks = Checks()
    checks.fault = "password of 10.0.0.7 is wrong"
    health = checks.health()
    public = await ask(HealthPages(health, is_public=True), "/readyz")
    assert public.status_code == 503
    assert public.json() == {"status": "degraded", "parts": {"first": "down", "second": "down"}}
    operator = await ask(HealthPages(health, is_public=False), "/healthz")
    assert operator.status_code == 200
    assert operator.json()["parts"] == {
        "first": "down: password of 10.0.0.7 is wrong",
        "second": "down: KeyError",
    }


async def test_a_part_that_comes_back_is_seen_after_the_look_is_old() -> None:
    checks = Checks()
    checks.fault = "away"
    health = checks.health(kept_s=0.0)
    pages = HealthPages(health, is_public=True)
    assert (await ask(pages, "/readyz")).status_code == 503
    checks.fault = ""
    assert (await ask(pages, "/readyz")).status_code == 200
    assert (await ask(pages, "/readyz", "DELETE")).status_code == 405


async def test_other_paths_reach_the_application() -> None:
    async def app(scope: Any, _: Any, send: Any) -> None:
        body = msgspec.json.encode(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    site = HealthSite(app, HealthPages(Checks().health(), is_public=True))
    assert (await ask(site, "/healthz/x")).json() == "/healthz/x"
    assert (await ask(site, "/healthz")).json()["parts"]["first"] == "ok"
