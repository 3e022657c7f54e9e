"""Who may answer by the pages, and what they show."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
from msgspec.structs import replace
from playwright.async_api import expect

from mpp_session.wallet.approvals.record import State
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.approvals.tokens import AnswerTokens
from mpp_session.wallet.types import Alternative
from tests.mpp_session.dashboard.browser import open_page
from tests.mpp_session.wallet.approvals.asks import RULES, ask_of
from tests.mpp_session.wallet.approvals.served import OWNER, SECRET, Served, serve_approvals

ANSWERS: tuple[tuple[Literal["approve", "deny"], int], ...] = (
    ("approve", 409),
    ("deny", 200),
    ("deny", 409),
)
ATTACK = "<script>report('xss')</script>\u202eevig\u200b\n\x1b[2J"


@pytest.fixture
async def served(tmp_path: Path, approvals: Approvals) -> AsyncIterator[Served]:
    async with serve_approvals(tmp_path, approvals) as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that has logged in."""
    async with httpx.AsyncClient(base_url=served.url) as made:
        answer = await made.post("/login", data={"token": OWNER})
        assert answer.status_code == 303
        yield made


async def form_token(client: httpx.AsyncClient) -> str:
    text = (await client.get("/")).text
    return text.partition('name="form_token" value="')[2].partition('"')[0]


async def test_a_person_approves_on_a_phone_by_keyboard_alone(served: Served) -> None:
    """The agent's words stand as text: no script runs, and nothing invisible moves a character."""
    record = await served.ask(
        ask_of(reason=ATTACK, task=ATTACK, alternatives=(Alternative(ATTACK, ATTACK),))
    )
    async with open_page(size={"width": 375, "height": 667}) as page:
        await page.goto(served.url)
        await page.keyboard.type(OWNER)
        await page.keyboard.press("Enter")
        card = page.locator("main li").first
        await expect(card).to_contain_text("scout asks to pay 5.000000 USDC to https://api.example")
        await expect(card).to_contain_text(
            "<script>report('xss')</script>\\u202eevig\\u200b\\n\\x1b"
        )
        await expect(card).to_contain_text("the agent's own words")
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 375
        await page.goto(f"{served.url}/approvals/{record.id}")
        await expect(page.locator("main")).to_contain_text("20.000000 USDC after it")
        await expect(page.locator("main")).to_contain_text("0.01 USDC / request")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 375
        link = page.get_by_role("link", name="Approve")
        for _ in range(10):
            await page.keyboard.press("Tab")
            if await link.evaluate("link => link === document.activeElement"):
                break
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Approve this?")).to_be_visible()
        assert (await served.get(record)).state == State.PENDING
        button = page.get_by_role("button", name="Approve")
        for _ in range(10):
            await page.keyboard.press("Tab")
            if await button.evaluate("button => button === document.activeElement"):
                break
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Nothing to answer")).to_be_visible()
    done = await served.get(record)
    assert (done.state, done.approved, done.scope) == (State.APPROVED, 5_000_000, "once")
    assert [vote.by.id for vote in done.votes] == ["mia"]


async def test_a_form_of_another_site_or_session_answers_nothing(
    served: Served, client: httpx.AsyncClient
) -> None:
    record = await served.ask()
    path = f"/approvals/{record.id}/approve"
    right = await form_token(client)
    for data, headers, status in (
        ({}, {}, 400),
        ({"form_token": "f" * 64}, {}, 400),
        ({"form_token": right}, {"origin": "https://evil.example"}, 403),
        ({"form_token": right}, {"sec-fetch-site": "cross-site"}, 403),
        ({"form_token": right}, {"host": "evil.example"}, 403),
    ):
        answer = await client.post(path, data=data, headers=headers)
        assert answer.status_code == status
    async with httpx.AsyncClient(base_url=served.url) as stranger:
        for path_ in ("/", path, f"/approvals/{record.id}"):
            assert (await stranger.get(path_)).headers["location"] == "/login"
        assert (await stranger.post(path, data={"form_token": right})).status_code == 303
        assert (await stranger.post("/login", data={"token": "a guess"})).status_code == 403
    assert (await client.get(path)).status_code == 200
    assert (await served.get(record)).votes == ()


async def test_an_answer_says_amount_scope_and_comment(
    served: Served, client: httpx.AsyncClient
) -> None:
    record = await served.ask()
    path, token = f"/approvals/{record.id}/approve", await form_token(client)
    wrong = await client.post(path, data={"form_token": token, "amount": "9", "scope": "once"})
    assert wrong.status_code == 409
    assert "cannot exceed what was asked" in wrong.text
    wrong = await client.post(path, data={"form_token": token, "amount": "two", "scope": "once"})
    assert wrong.status_code == 409
    data = {"form_token": token, "amount": "9.5", "scope": "window", "comment": "for today"}
    assert (await client.post(path, data=data)).status_code == 303
    done = await served.get(record)
    assert (done.approved, done.scope, done.comment) == (9_500_000, "window", "for today")
    late = await client.post(f"/approvals/{record.id}/deny", data={"form_token": token})
    assert late.status_code == 409
    assert "late" in late.text
    assert (await client.get("/approvals/none")).status_code == 409


@pytest.mark.parametrize("path", ["/", "/login", "/static/style.css"])
async def test_every_answer_forbids_scripts_caching_and_framing(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert "<script" not in answer.text


async def test_a_token_of_a_message_gives_one_answer_once(served: Served) -> None:
    """A GET changes nothing: programs that look at links before people do must not answer."""
    record, other = await served.ask(), await served.ask(ask_of(path="/extract"))
    tokens = AnswerTokens(SECRET)
    token = tokens.make(record, "approve")
    path = f"/approvals/{record.id}/decide"
    async with httpx.AsyncClient(base_url=served.url) as receiver:
        shown = await receiver.get(path, params={"verdict": "approve", "token": token})
        assert shown.status_code == 200
        assert "Approve this?" in shown.text
        for wrong_path, given in (
            (path, {"verdict": "deny", "token": token}),
            (path, {"verdict": "approve", "token": tokens.make(other, "approve")}),
            (
                path,
                {"verdict": "approve", "token": token[:-1] + ("0" if token[-1] != "0" else "1")},
            ),
            (path, {"verdict": "approve", "token": f"9{token}"}),
            (path, {"verdict": "approve", "token": ""}),
            (f"/approvals/{other.id}/decide", {"verdict": "approve", "token": token}),
        ):
            assert (await receiver.post(wrong_path, json=given)).status_code == 409
        assert (await receiver.post(path, json={"token": token})).status_code == 400
        assert (await receiver.post(path, json=["x"])).status_code == 400
        assert (await served.get(record)).votes == ()
        given = {"verdict": "approve", "token": token, "scope": "window", "amount": "2"}
        done = await receiver.post(path, json=given)
        assert done.json() == {"id": record.id, "state": "approved"}
        again = await receiver.post(path, data=given)
        assert again.status_code == 409
        found = await served.get(record)
        assert (found.approved, found.scope) == (2_000_000, "once")
        assert [vote.by.id for vote in found.votes] == ["webhook"]
        served.clock.now += 900
        late = tokens.make(other, "deny")
        answer = await receiver.post(
            f"/approvals/{other.id}/decide", json={"verdict": "deny", "token": late}
        )
        assert answer.status_code == 409
        assert "expired" in answer.json()["detail"]
    assert (await served.get(other)).votes == ()


async def test_where_several_people_must_approve_a_token_only_denies(
    tmp_path: Path,
) -> None:
    async with serve_approvals(tmp_path, Approvals(replace(RULES, quorum=2))) as served:
        record, tokens = await served.ask(), AnswerTokens(SECRET)
        path = f"/approvals/{record.id}/decide"
        async with httpx.AsyncClient(base_url=served.url) as receiver:
            for verdict, status in ANSWERS:
                token = tokens.make(record, verdict)
                given = {"verdict": verdict, "token": token}
                assert (await receiver.post(path, json=given)).status_code == status
        assert (await served.get(record)).state == State.DENIED


async def test_a_token_is_taken_once(served: Served) -> None:
    approvals, now = served.approvals, served.clock.now
    for is_first in (True, False):
        taken = await served.store.transact(lambda db: approvals.take_token(db, b"d", now))
        assert taken is is_first
