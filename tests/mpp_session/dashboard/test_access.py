"""Only the token, a session of it and a form of that session open the dashboard."""

import pytest

from channel.errors import TooManyRequestsError
from channel.limits import LOGIN_TRIES_MAX
from mpp_session.dashboard.access import LOGIN_TRIES_PERIOD_S, SESSION_S, Access
from mpp_session.settings import Secret
from tests.channel.selling import Clock

RIGHT = "a-log-in-token-of-thirty-two-chars"


def access(clock: Clock, token: str = RIGHT) -> Access:
    return Access(Secret(token), now=clock)


def test_the_token_alone_is_admitted() -> None:
    mine = access(Clock())
    assert mine.admits(RIGHT)
    assert not any(map(mine.admits, ["", RIGHT[:-1], RIGHT + "x", RIGHT.upper(), "\udcff"]))


def test_guesses_are_bounded_and_the_owner_gets_in_afterwards() -> None:
    clock = Clock()
    mine = access(clock)
    for _ in range(LOGIN_TRIES_MAX):
        assert not mine.admits("a guess")
    with pytest.raises(TooManyRequestsError):
        mine.admits(RIGHT)
    clock.advance(LOGIN_TRIES_PERIOD_S)
    assert mine.admits(RIGHT)


def test_a_session_lasts_for_its_time_and_outlives_a_restart() -> None:
    clock = Clock()
    session = access(clock).begin()
    assert access(clock).knows(session)
    clock.advance(SESSION_S - 1)
    assert access(clock).knows(session)
    clock.advance(2)
    assert not access(clock).knows(session)


def test_another_token_ends_all_sessions() -> None:
    clock = Clock()
    assert not access(clock, "b" * 32).knows(access(clock).begin())


def test_no_other_session_is_known() -> None:
    mine = access(Clock())
    session = mine.begin()
    later = str(int(session.split(".")[0]) + 1)
    forged = [later + session[session.index(".") :], session[:-1], "", "..", "1.2.é", session + "."]
    assert not any(map(mine.knows, forged))


def test_a_form_belongs_to_one_session() -> None:
    mine = access(Clock())
    one, other = mine.begin(), mine.begin()
    assert mine.is_form(one, mine.form_token(one))
    assert not mine.is_form(one, mine.form_token(other))
    assert not mine.is_form(one, "")
