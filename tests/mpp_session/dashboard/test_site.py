"""Who is answered, and with which headers."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from channel.limits import EVENT_STREAMS_MAX, FORM_BYTES_MAX, LOGIN_TRIES_MAX
from settlement.tx.journal.interface import OrderName
from tests.mpp_session.dashboard.served import TOKEN, Served, channel_state, serve_dashboard
from tests.waiting import until

PAGES = ["/", "/channels", "/settlements", "/refusals", "/prices", "/cycles", "/actions/settle"]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve_dashboard(tmp_path) as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that has logged in."""
    async with httpx.AsyncClient(base_url=served.url) as made:
        answer = await made.post("/login", data={"token": TOKEN})
        assert answer.status_code == 303
        yield made


@pytest.fixture
async def stranger(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url) as made:
        yield made


@pytest.mark.parametrize("path", [*PAGES, "/channels/0x00", "/actions/pause"])
async def test_a_stranger_is_sent_to_the_log_in(stranger: httpx.AsyncClient, path: str) -> None:
    for answer in (await stranger.get(path), await stranger.post(path)):
        assert answer.status_code in {303, 405}
        assert answer.headers.get("location", "/login") == "/login"
        assert not answer.text or answer.status_code == 405


async def test_events_are_for_a_session(stranger: httpx.AsyncClient) -> None:
    assert (await stranger.get("/events")).status_code == 401


@pytest.mark.parametrize("path", [*PAGES, "/static/style.css"])
async def test_every_answer_forbids_caching_framing_and_foreign_content(
    client: httpx.AsyncClient, path: str
) -> None:
    headers = (await client.get(path)).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


async def test_the_cookie_is_for_this_site_and_no_script(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as made:
        answer = await made.post("/login", data={"token": TOKEN})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie


async def test_guesses_are_answered_429_even_if_the_last_one_is_right(
    stranger: httpx.AsyncClient,
) -> None:
    for _ in range(LOGIN_TRIES_MAX):
        assert (await stranger.post("/login", data={"token": "a guess"})).status_code == 403
    answer = await stranger.post("/login", data={"token": TOKEN})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


async def test_an_action_without_the_form_s_token_does_nothing(
    client: httpx.AsyncClient, served: Served
) -> None:
    """A page of another site can send a form, and the cookie may even go with it."""
    for data in ({}, {"form_token": ""}, {"form_token": "f" * 64}):
        answer = await client.post("/actions/pause", data=data)
        assert answer.status_code == 400
    assert served.sales.paused_at is None


async def test_a_form_from_another_origin_does_nothing(
    client: httpx.AsyncClient, served: Served
) -> None:
    answer = await client.post(
        "/actions/settle",
        data={"form_token": await form_token(client, "/actions/pause")},
        headers={"origin": "https://evil.example"},
    )
    assert answer.status_code == 403
    assert await served.journal.order(OrderName.SETTLE) is None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
async def test_another_host_name_is_refused(client: httpx.AsyncClient, host: str) -> None:
    """DNS rebinding: the name of another site may lead here."""
    answer = await client.get("/", headers={"host": host})
    assert answer.status_code == 403
    assert "llm.example.com" not in answer.text


async def test_a_log_out_forgets_the_cookie(client: httpx.AsyncClient) -> None:
    await client.post("/logout", data={"form_token": await form_token(client, "/actions/pause")})
    assert (await client.get("/")).status_code == 303


async def test_a_form_that_is_too_long_or_of_another_kind_is_refused(
    client: httpx.AsyncClient,
) -> None:
    assert (
        await client.post("/actions/pause", data={"x": "y" * FORM_BYTES_MAX})
    ).status_code == 400
    assert (await client.post("/actions/pause", json={})).status_code == 400
    twice = "form_token=a&form_token=b"
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await client.post("/actions/pause", content=twice, headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize("name", ["0x00", "%3Cscript%3E", "0x" + "f" * 64, "..%2f..%2f"])
async def test_a_channel_that_is_not_there_is_404_or_410(
    client: httpx.AsyncClient, name: str
) -> None:
    answer = await client.get(f"/channels/{name}")
    assert answer.status_code in {404, 410}
    assert "<script>" not in answer.text


async def test_a_channel_of_another_payee_is_not_shown(
    client: httpx.AsyncClient, served: Served
) -> None:
    state = channel_state(9)
    await served.add(replace(state, terms=replace(state.terms, payee=state.terms.payer)))
    answer = await client.get(f"/channels/0x{state.key.channel_id.hex()}")
    assert answer.status_code == 410
    assert (await client.get("/channels")).text.count("<tr>") == 0


async def test_a_pause_holds_for_the_next_start_and_stands_in_the_log(
    client: httpx.AsyncClient, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    token = await form_token(client, "/actions/pause")
    answer = await client.post("/actions/pause", data={"form_token": token})
    assert answer.headers["location"] == "/?done=pause"
    order = await served.journal.order(OrderName.PAUSE)
    assert order is not None
    assert order.stands
    assert served.sales.paused_at is not None
    await client.post("/actions/resume", data={"form_token": token})
    assert served.sales.paused_at is None
    said = [record.getMessage() for record in caplog.records if "operator" in record.getMessage()]
    assert said == ["the operator has paused sales", "the operator has resumed sales"]


async def test_the_notice_of_the_address_is_never_a_text_of_the_address(
    client: httpx.AsyncClient,
) -> None:
    assert "Sales are paused." in (await client.get("/?done=pause")).text
    assert "sesame" not in (await client.get("/?done=sesame")).text


async def form_token(client: httpx.AsyncClient, path: str) -> str:
    text = (await client.get(path)).text
    return text.partition('name="form_token" value="')[2].partition('"')[0]


async def test_so_many_pages_listen_at_a_time_and_no_more(client: httpx.AsyncClient) -> None:
    async with contextlib.AsyncExitStack() as open_:
        kept = []
        for _ in range(EVENT_STREAMS_MAX):
            answer = await open_.enter_async_context(client.stream("GET", "/events"))
            kept.append(answer.aiter_lines())
            assert await anext(kept[-1]) == "event: state"
        assert (await client.get("/events")).status_code == 503

    async def is_answered() -> bool:
        async with client.stream("GET", "/events") as answer:
            return answer.status_code == 200

    await until(is_answered)
