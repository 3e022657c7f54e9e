"""Profiles and breakers live in the wallet's file, and change with the payment or not at all."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.tariff import Tariff
from channel.types import address
from mpp_session.wallet.policy import decide, parse_policy
from mpp_session.wallet.types import Ask, Code, Purpose, Snapshot
from mpp_session.wallet.watch import store
from mpp_session.wallet.watch.store import SCHEMA, Watch
from tests.mpp_session.wallet.policy import asks

ORIGIN = "https://model.example:443"
POLICY = """
version = 1
revision = 1
default = "deny"
[token.usdc]
chain = 8453
address = "0x1111111111111111111111111111111111111111"
decimals = 6
[breaker]
repeated_402 = {count = 3, window = "1m", cooldown = "5m"}
paid_errors = {count = 3, window = "10m", cooldown = "30m"}
same_request = {count = 20, window = "10m", cooldown = "5m"}
"""
SIGN = Ask(
    kind="sign",
    agent="research-3",
    request_id="r",
    origin=ORIGIN,
    method="POST",
    path="/v1/chat",
    purpose=Purpose(),
    chain_id=8453,
    token=address(b"\x11" * 20),
    recipient=address(b"\x22" * 20),
    escrow=None,
    tariff=Tariff.of("output_token", 10),
    request_max=10_000,
    amount=10_000,
    total=10_000,
    request_total=10_000,
    at=1_767_600_000.0,
)


@pytest.fixture
def watch() -> Watch:
    return Watch(parse_policy(POLICY, "policy.toml"))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with_rows = sqlite3.connect(tmp_path / "wallet.db", isolation_level=None)
    with_rows.row_factory = sqlite3.Row
    with_rows.execute("PRAGMA synchronous = OFF")
    with_rows.execute("PRAGMA journal_mode = WAL")
    with_rows.executescript(SCHEMA)
    yield with_rows
    with_rows.close()


def ask(number: int, **changes: object) -> Ask:
    at = SIGN.at + 60.0 * number
    return replace(SIGN, request_id=f"r{number}", at=at, **changes)


def warm(watch: Watch, db: sqlite3.Connection, requests: int = 60) -> None:
    db.execute("BEGIN IMMEDIATE")
    for number in range(requests):
        cost = 10_000 + 500 * (number % 7)
        seen = ask(number, amount=cost, request_total=cost)
        assert watch.finding(db, seen) == ""
        watch.learn(db, seen)
    db.execute("COMMIT")


def test_a_recipient_that_changes_is_said_with_its_money(
    watch: Watch, db: sqlite3.Connection
) -> None:
    warm(watch, db)
    other = ask(61, recipient=address(b"\x33" * 20))
    assert watch.finding(db, other) == (
        f"{ORIGIN} asks for 0.01 USDC to a recipient that this agent never paid there, "
        "after 60 requests to another one"
    )


def test_an_origin_with_many_recipients_may_name_more(watch: Watch, db: sqlite3.Connection) -> None:
    """Such as a market, whose sellers are paid at addresses of their own."""
    for number in range(60):
        watch.learn(db, ask(number, recipient=address(bytes([number % 10]) * 20)))
    assert watch.finding(db, ask(61, recipient=address(b"\x33" * 20))) == ""


def test_a_price_above_the_usual_is_said_until_a_person_agrees(
    watch: Watch, db: sqlite3.Connection
) -> None:
    warm(watch, db)
    dearer = ask(61, tariff=Tariff.of("output_token", 15))
    assert watch.finding(db, dearer) == (
        f"{ORIGIN} asks 1.5 times the usual price of output_token: 0.000015 USDC; "
        "usual is at most 0.00001 USDC"
    )
    watch.learn(db, dearer)  # noted only
    assert watch.finding(db, dearer)
    watch.learn(db, dearer, is_approved=True)
    assert watch.finding(db, dearer) == ""


def test_a_payment_that_is_rolled_back_teaches_nothing(
    watch: Watch, db: sqlite3.Connection
) -> None:
    warm(watch, db)
    odd = ask(61, amount=5_000_000, request_total=5_000_000)
    finding = watch.finding(db, odd)
    assert "5.00 USDC" in finding
    db.execute("BEGIN IMMEDIATE")
    watch.learn(db, odd, is_approved=True)
    assert watch.finding(db, odd) == ""
    db.execute("ROLLBACK")
    assert watch.finding(db, odd) == finding
    assert Watch(watch.policy).finding(db, odd) == finding


def test_tokens_are_not_compared_and_agents_are_apart(watch: Watch, db: sqlite3.Connection) -> None:
    warm(watch, db)
    large = {"amount": 5_000_000, "request_total": 5_000_000}
    assert watch.finding(db, ask(61, **large))
    assert watch.finding(db, ask(61, agent="other", **large)) == ""
    assert watch.finding(db, ask(61, token=address(b"\x44" * 20), **large)) == ""


@pytest.mark.parametrize(
    ("outcome", "times", "words"),
    [
        ((402, 0), 3, "3 requests ended with another 402 within 60 s"),
        ((500, 10), 3, "3 requests that were paid and failed within 600 s"),
        ((0, 10), 3, "3 requests that were paid and failed within 600 s"),
        ((200, 10), 20, "the same request 20 times within 600 s"),
    ],
)
def test_breakers_open_for_agent_and_origin_and_close_by_themselves(
    watch: Watch, db: sqlite3.Connection, outcome: tuple[int, int], times: int, words: str
) -> None:
    """Also for a loop that succeeds, which no count of failures notices (multica#4076)."""
    status, paid = outcome
    for number in range(times):
        assert watch.breaker(db, "a", ORIGIN, SIGN.at) is None
        watch.note_outcome(
            db,
            agent="a",
            origin=ORIGIN,
            request_digest=b"same",
            status=status,
            paid=paid,
            at=SIGN.at + number,
        )
    later = Watch(watch.policy)  # after a restart
    found = later.breaker(db, "a", ORIGIN, SIGN.at + times)
    assert found is not None
    assert found[0] == words
    assert later.breaker(db, "a", ORIGIN, found[1]) is None
    assert later.breaker(db, "a", "https://other.example:443", SIGN.at + times) is None
    assert later.breaker(db, "b", ORIGIN, SIGN.at + times) is None


def test_free_and_different_requests_open_nothing(watch: Watch, db: sqlite3.Connection) -> None:
    for number in range(100):
        for digest, paid in ((b"free", 0), (b"%d" % number, 10)):
            watch.note_outcome(
                db,
                agent="a",
                origin=ORIGIN,
                request_digest=digest,
                status=200,
                paid=paid,
                at=SIGN.at + number,
            )
    assert watch.breaker(db, "a", ORIGIN, SIGN.at + 100) is None


def test_a_loop_too_slow_for_a_breaker_is_found(watch: Watch, db: sqlite3.Connection) -> None:
    warm(watch, db)
    for number in range(60, 140):
        watch.note_outcome(
            db,
            agent=SIGN.agent,
            origin=ORIGIN,
            request_digest=b"%d" % number if number < 110 else b"same",
            status=200,
            paid=10_000,
            at=SIGN.at + 120.0 * number,
        )
        if number == 109:
            assert watch.finding(db, ask(2 * number)) == ""
    assert watch.breaker(db, SIGN.agent, ORIGIN, SIGN.at + 120.0 * 140) is None
    words = f"30 of the last 32 paid requests to {ORIGIN} are the same one; usual are at most"
    assert watch.finding(db, ask(280)).startswith(words)
    watch.learn(db, ask(280), is_approved=True)
    assert watch.finding(db, ask(281)) == ""


def test_an_agent_with_many_origins_is_kept_within_bounds(
    watch: Watch, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "ORIGINS_KEPT", 20)
    monkeypatch.setattr(store, "CACHED", 5)  # rows are read again
    for number in range(60):
        origin = f"https://{number}.example:443"
        watch.learn(db, ask(number, origin=origin))
        watch.note_outcome(
            db, agent=SIGN.agent, origin=origin, request_digest=b"", status=402, paid=0, at=number
        )
    origins = {row["origin"] for row in db.execute("SELECT origin FROM watch_profile")}
    assert origins == {"", *(f"https://{n}.example:443" for n in range(40, 60))}
    (states,) = db.execute("SELECT count(*) FROM watch_breaker").fetchone()
    assert states == 20


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\x91\xc1", b"\x97" + b"\x01" * 7])
def test_a_row_that_is_not_understood_warms_up_anew(
    watch: Watch, db: sqlite3.Connection, damage: bytes
) -> None:
    warm(watch, db)
    db.execute("UPDATE watch_profile SET profile = ?", (damage,))
    db.execute("INSERT INTO watch_breaker VALUES (?, ?, 0, ?)", (SIGN.agent, ORIGIN, damage))
    assert watch.finding(db, ask(61, amount=5_000_000, request_total=5_000_000)) == ""
    assert watch.breaker(db, SIGN.agent, ORIGIN, SIGN.at) is None
    watch.learn(db, ask(61))
    assert watch.profiles(db, ask(62))[0].requests == 1


def test_an_ask_costs_little(watch: Watch, db: sqlite3.Connection) -> None:
    warm(watch, db)
    db.execute("BEGIN")
    many = [ask(number) for number in range(100, 400)]
    began = time.process_time()
    for each in many:
        watch.finding(db, each)
        watch.learn(db, each)
    taken_us = (time.process_time() - began) / len(many) * 1e6
    db.execute("COMMIT")
    assert taken_us < 2_000, taken_us  # 200 on a slow machine; this notices a mistake of scale
    (most,) = db.execute("SELECT max(length(profile)) FROM watch_profile").fetchone()
    assert most < 3 * 1024


@pytest.mark.parametrize(
    ("action", "charge", "voucher"),
    [("ask", "ask", "allow"), ("pause", "deny", "deny"), ("note", "allow", "allow")],
)
def test_a_finding_asks_or_pauses_and_allows_nothing(
    db: sqlite3.Connection, action: str, charge: str, voucher: str
) -> None:
    allowing = asks.policy(asks.allow(), anomaly={"action": action, "warm_up": 30})
    denying = asks.policy(anomaly={"action": action, "warm_up": 30})
    watch = Watch(allowing)
    for number in range(40):
        watch.learn(db, asks.ask("charge", request_id=str(number), at=asks.NOW + number))
    for kind, expected in (("charge", charge), ("sign", voucher)):
        odd = asks.ask(kind, recipient=asks.STRANGER, at=asks.NOW + 41)
        finding = watch.finding(db, odd)
        assert "to a recipient that this agent never paid there" in finding
        decision = decide(allowing, odd, Snapshot(finding=finding))
        assert decision.action == expected
        if expected != "allow":
            assert decision.code == Code.ANOMALY_HELD
            assert finding in decision.reason
        assert decide(denying, odd, Snapshot(finding=finding)).code == Code.NO_RULE
