"""The operator's port answers its operator, and no page of another site."""

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route

from mpp_session.admin.app import build_admin


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello {request.method}")


async def page(_: Request) -> HTMLResponse:
    return HTMLResponse("<p>", headers={"content-security-policy": "default-src 'self'"})


ROUTES = [Route("/hello", hello, methods=["GET", "POST"]), Route("/page", page)]


async def ask(method: str, path: str, **headers: str) -> httpx.Response:
    app = build_admin(ROUTES, names=["Metrics.internal"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
        return await client.request(method, f"http://127.0.0.1:8403{path}", headers=headers)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8403", "localhost", "LOCALHOST:1", "[::1]:8403", "metrics.INTERNAL:8403"]
)
async def test_it_answers_under_its_own_names(host: str) -> None:
    answer = await ask("GET", "/hello", host=host)
    assert (answer.status_code, answer.text) == (200, "hello GET")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1:8403",
        "localhost.evil.example",
        "[::1",
        "",
    ],
)
async def test_a_name_of_another_site_is_refused(host: str) -> None:
    """A browser that was led here by that site's DNS says whom it believes to ask."""
    answer = await ask("GET", "/hello", host=host)
    assert answer.status_code == 403
    assert "hello" not in answer.text


async def test_a_form_of_another_site_is_refused() -> None:
    assert (await ask("POST", "/hello", origin="https://evil.example")).status_code == 403
    assert (await ask("POST", "/hello", origin="null")).status_code == 403
    assert (await ask("POST", "/hello", **{"sec-fetch-site": "cross-site"})).status_code == 403
    own = {"origin": "http://127.0.0.1:8403", "sec-fetch-site": "same-origin"}
    assert (await ask("POST", "/hello", **own)).text == "hello POST"
    assert (await ask("POST", "/hello")).text == "hello POST"  # a program, no browser


async def test_a_page_may_set_its_own_policy() -> None:
    answer = await ask("GET", "/page")
    assert answer.headers.get_list("content-security-policy") == ["default-src 'self'"]


async def test_other_paths_are_not_found() -> None:
    assert (await ask("GET", "/hello/")).status_code == 404
