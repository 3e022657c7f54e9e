"""The first worker's pages show what all workers sell."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mpp_session.dashboard import gather
from mpp_session.dashboard.feed import CYCLES_KEPT, Feed
from mpp_session.dashboard.gather import Feeds, serve_feed
from tests.mpp_session.dashboard.telling import challenge, receipt, refusal, spend
from tests.waiting import until


@contextlib.asynccontextmanager
async def _worker(feed: Feed, folder: Path, number: int) -> AsyncIterator[None]:
    serving = asyncio.create_task(serve_feed(feed, folder, number))
    await until((folder / f"feed-{number}.sock").exists)
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.wait({serving})


async def test_live_streams_refusals_and_sums_are_of_all_workers(tmp_path: Path) -> None:
    first, second, third = Feed(), Feed(), Feed()
    first.on_spend(spend(1, 1, amount=25))
    second.on_spend(spend(2, 2, amount=50))
    for feed in (first, third):
        feed.on_refusal(refusal(3, 3))
    second.on_receipt(receipt(4, 5))
    async with _worker(second, tmp_path, 1), _worker(third, tmp_path, 2):
        seen = await Feeds(first, tmp_path, 3).read()
    assert [live.cost for live in seen.live] == [25, 50]
    (refused,) = seen.refused
    assert refused.number == 2
    assert seen.paid_requests == 1
    assert sum(seen.earned.values()) == 75
    assert seen.started_at == min(each.started_at for each in (first, second, third))


async def test_a_cycle_that_two_workers_served_is_one(tmp_path: Path) -> None:
    """A 402 by one worker, and the credential at another: times count from the first request."""
    first, second = Feed(), Feed()
    second.on_challenge(challenge(0, 1, "a"))
    first.on_receipt(receipt(3, 2, challenge_id="a", received=102.0))
    async with _worker(second, tmp_path, 1):
        seen = await Feeds(first, tmp_path, 2).read()
    (cycle,) = seen.cycles
    assert [step.name for step in cycle.steps] == ["Request", "402", "Credential", "Receipt"]
    assert cycle.ending == "paid"
    after = [step.after_s for step in cycle.steps]
    assert after == sorted(after)
    assert after[-1] > after[0]


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_challenge_that_two_workers_were_paid_under_is_two_cycles(
    tmp_path: Path,
    is_first: bool,  # noqa: FBT001
) -> None:
    """Decision 6: a challenge may be used until it expires, so no paid request is lost."""
    issuer, other = Feed(), Feed()
    issuer.on_challenge(challenge(0, 1, "a"))
    at_issuer, at_other = (102.0, 103.0) if is_first else (103.0, 102.0)
    issuer.on_receipt(receipt(3, 2, challenge_id="a", received=at_issuer))
    other.on_receipt(receipt(3, 3, challenge_id="a", received=at_other))
    async with _worker(other, tmp_path, 1):
        seen = await Feeds(issuer, tmp_path, 2).read()
    assert [cycle.ending for cycle in seen.cycles] == ["paid", "paid"]
    assert sum("402" in [step.name for step in cycle.steps] for cycle in seen.cycles) == 1


async def test_lists_stay_bounded(tmp_path: Path) -> None:
    first, second = Feed(), Feed()
    for number in range(CYCLES_KEPT):
        first.on_challenge(challenge(number, number, f"a{number}"))
        second.on_challenge(challenge(number, number, f"b{number}"))
    async with _worker(second, tmp_path, 1):
        seen = await Feeds(first, tmp_path, 2).read()
    assert len(seen.cycles) == CYCLES_KEPT
    assert [cycle.at for cycle in seen.cycles] == sorted(cycle.at for cycle in seen.cycles)


@pytest.mark.parametrize("fault", ["absent", "silent", "garbage", "long"])
async def test_a_worker_that_does_not_answer_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Killed, stuck, of another version, or with more than `FEED_BYTES_MAX` to tell."""
    monkeypatch.setattr(gather, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(gather, "FEED_BYTES_MAX", 100)
    feed = Feed()
    feed.on_spend(spend(1, 1, amount=25))

    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if fault != "silent":
            writer.write(b"x" * (10 if fault == "garbage" else 1000))
            writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()  # until the other side closes
        writer.close()
        gone.set()

    async with contextlib.AsyncExitStack() as open_:
        if fault != "absent":
            server = await asyncio.start_unix_server(answer, tmp_path / "feed-1.sock")
            open_.callback(server.close)
        seen = await Feeds(feed, tmp_path, 2).read()
        if fault != "absent":
            await gone.wait()
    assert [live.cost for live in seen.live] == [25]


async def test_a_worker_that_was_killed_answers_again(tmp_path: Path) -> None:
    path = tmp_path / "feed-1.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    feed = Feed()
    feed.on_spend(spend(1, 1, amount=25))
    async with _worker(feed, tmp_path, 1):
        feeds = Feeds(Feed(), tmp_path, 2)

        async def is_read() -> bool:
            return bool((await feeds.read()).live)

        await until(is_read)
