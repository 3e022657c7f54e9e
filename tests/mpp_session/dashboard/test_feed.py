"""The feed turns a gate's events into live streams, payment cycles and sums, in bounded memory."""

import pytest

from mpp_session.dashboard.feed import CYCLES_KEPT, RUNNING_KEPT, Feed
from tests.mpp_session.dashboard.telling import (
    CHANNEL,
    challenge,
    opening,
    receipt,
    refusal,
    spend,
)


def names(feed: Feed) -> list[list[str]]:
    return [[step.name for step in cycle.steps] for cycle in feed.cycles.values()]


def test_a_stream_lives_from_its_first_charge_to_its_receipt() -> None:
    feed = Feed()
    feed.on_spend(spend(1, amount=25))
    feed.on_spend(spend(2, amount=25, cost=50, usage={"output_token": 2}))
    (live,) = feed.live.values()
    assert (live.cost, live.usage, live.variant) == (50, {"output_token": 2}, "tiny")
    feed.on_receipt(receipt(3))
    assert not feed.live
    assert feed.paid_requests == 1


def test_a_challenge_and_the_request_that_answers_it_are_one_cycle() -> None:
    feed = Feed()
    feed.on_challenge(challenge(0, 1, "a", "b"))
    feed.on_open(opening(2, 2, challenge_id="a", received=101.0))
    feed.on_spend(spend(3, 2, challenge_id="a", received=101.0))
    feed.on_receipt(
        receipt(4, 2, challenge_id="a", received=101.0, handled=102.5, first_sent=103.0)
    )
    assert names(feed) == [
        ["Request", "402", "Credential", "Channel", "Decision", "First content", "Receipt"]
    ]
    (cycle,) = feed.cycles.values()
    assert [step.after_s for step in cycle.steps] == [0, 0, 1, 2, 2.5, 3, 4]
    assert (cycle.ending, cycle.cost, cycle.channel_id) == ("paid", 25, CHANNEL)


def test_the_second_request_under_a_challenge_is_a_cycle_of_its_own() -> None:
    feed = Feed()
    feed.on_challenge(challenge(0, 1, "a"))
    feed.on_receipt(receipt(1, 2, challenge_id="a"))
    feed.on_receipt(receipt(2, 3, challenge_id="a"))
    assert names(feed) == [["Request", "402", "Credential", "Receipt"], ["Credential", "Receipt"]]


def test_a_refusal_and_its_answer_go_on_in_one_cycle() -> None:
    feed = Feed()
    feed.on_challenge(challenge(0, 1, "a"))
    feed.on_refusal(refusal(1, 2, challenge_id="a", issued=("b",)))
    assert [cycle.ending for cycle in feed.cycles.values()] == ["refused"]
    feed.on_receipt(receipt(2, 3, challenge_id="b"))
    (steps,) = names(feed)
    assert steps == ["Request", "402", "Credential", "Refused", "Credential", "Receipt"]


def test_a_refused_stream_is_no_longer_live() -> None:
    feed = Feed()
    feed.on_spend(spend(1))
    feed.on_refusal(refusal(2))
    assert not feed.live


def test_refusals_add_up_by_problem_and_challenges_are_none() -> None:
    feed = Feed()
    feed.on_challenge(challenge(0, 1, "a"))
    feed.on_refusal(refusal(1, 2))
    feed.on_refusal(refusal(2, 3, detail="Less still."))
    (kind,) = feed.refused.values()
    assert (kind.number, kind.detail) == (2, "Less still.")


def test_revenue_adds_up_by_hour() -> None:
    feed = Feed()
    feed.on_spend(spend(0, amount=25))
    feed.on_spend(spend(10, amount=50))
    feed.on_spend(spend(3600, 2, amount=100))
    assert list(feed.earned.values()) == [75, 100]


@pytest.mark.parametrize("outcome", ["left", "failed"])
def test_an_ending_that_is_none_of_the_gate_s_doing_is_named(outcome: str) -> None:
    feed = Feed()
    feed.on_receipt(receipt(1, outcome=outcome))
    (cycle,) = feed.cycles.values()
    assert cycle.ending == outcome


def test_an_action_on_a_channel_is_no_paid_request() -> None:
    feed = Feed()
    feed.on_receipt(receipt(1, action="close", cost=0, usage={}))
    (cycle,) = feed.cycles.values()
    assert (cycle.ending, feed.paid_requests) == ("managed", 0)


def test_memory_is_bounded() -> None:
    feed = Feed()
    for number in range(RUNNING_KEPT + 300):
        feed.on_challenge(challenge(number, number, f"c{number}"))
        feed.on_spend(spend(number, 10_000 + number))
        feed.on_refusal(refusal(number, 30_000 + number, problem_type=f"p{number}"))
    assert len(feed.cycles) == CYCLES_KEPT
    assert len(feed.live) == RUNNING_KEPT
    assert len(feed.refused) == 200


def test_vouchers_of_a_running_stream_are_a_step_of_it_and_no_cycles() -> None:
    feed = Feed()
    feed.on_challenge(challenge(0, 1, "a"))
    feed.on_spend(spend(1, 2, challenge_id="a"))
    for number in range(3):
        feed.on_receipt(receipt(2 + number, 10 + number, action="voucher", cost=0, usage={}))
    feed.on_receipt(receipt(6, 2, challenge_id="a"))
    (cycle,) = feed.cycles.values()
    assert [(step.name, step.after_s) for step in cycle.steps][-2:] == [
        ("Vouchers", 4),
        ("Receipt", 6),
    ]
    feed.on_receipt(receipt(7, 20, action="voucher", cost=0, usage={}))
    assert len(feed.cycles) == 2
