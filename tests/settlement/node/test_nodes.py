"""Whom to believe among nodes that differ: properties over any number of them."""

from hypothesis import given
from hypothesis import strategies as st

from settlement.node.nodes import (
    EndpointView,
    Quorum,
    judge_nodes,
    majority_head,
    nodes_ahead,
)
from settlement.types import BlockRef


def view(name: str, shows: str | None) -> EndpointView:
    if shows is None:
        return EndpointView(name, None)
    block = BlockRef(9, shows.encode(), 1_800_000_000, 1, b"p")
    return EndpointView(name, block, block)


def judge(shows: str, left_out: str = "") -> Quorum:
    """`aab-`: two nodes show a, one b, one does not answer; names are 0, 1, 2 and so on."""
    views = [view(str(n), None if each == "-" else each) for n, each in enumerate(shows)]
    return judge_nodes(views, frozenset(left_out))


def test_nodes_that_agree_are_all_believed() -> None:
    assert judge("a") == judge("aaa") == judge("aa-") == judge("---") == Quorum()


def test_a_majority_of_all_is_believed_and_the_others_are_left_out() -> None:
    """SEC-09."""
    assert judge("aab") == Quorum(left_out=frozenset("2"))
    assert judge("baaab") == Quorum(left_out=frozenset("04"))


def test_without_a_majority_no_node_is_believed_more() -> None:
    """SEC-09: nor of those alone that answer."""
    assert judge("ab") == Quorum(disputing=("0", "1"))
    assert judge("ab-") == Quorum(disputing=("0", "1"))
    assert judge("aabb") == Quorum(disputing=("0", "1", "2", "3"))
    assert judge("aab--") == Quorum(disputing=("0", "1", "2"))


def test_who_is_left_out_is_taken_in_when_it_agrees_and_not_for_its_silence() -> None:
    assert judge("aaa", "2") == Quorum()
    assert judge("aab", "2") == judge("aa-", "2") == Quorum(left_out=frozenset("2"))
    assert judge("a-b", "2") == Quorum(left_out=frozenset("2"))
    assert judge("--b", "2") == Quorum(left_out=frozenset("2"))


@given(st.text("abc-", max_size=7), st.sets(st.integers(0, 6)))
def test_who_is_believed_shows_one_chain_or_deposits_are_disputed(
    shows: str, before: set[int]
) -> None:
    left_out = {str(n) for n in before if n < len(shows)}
    judged = judge("".join(shows), "".join(left_out))
    believed = {
        each for n, each in enumerate(shows) if each != "-" and str(n) not in judged.left_out
    }
    assert len(believed) <= 1 or judged.disputing
    if judged.disputing:
        assert len(believed) > 1


@given(st.text("ab-", min_size=1, max_size=7))
def test_a_majority_that_stays_is_never_left_out(shows: str) -> None:
    """However the few others change their minds."""
    honest = "h" * (len(shows) + 1)
    judged = judge(honest + shows)
    again = judge(honest + shows[::-1], "".join(judged.left_out))
    assert not {str(n) for n in range(len(honest))} & (judged.left_out | again.left_out)
    assert not again.disputing


def at(name: str, number: int | None, *, timestamp: int = 1_000) -> EndpointView:
    if number is None:
        return EndpointView(name, None)
    return EndpointView(name, BlockRef(number, b"h", timestamp, 1, b"p"))


def ahead(views: list[EndpointView], *, since: int = 1_000) -> frozenset[str]:
    return nodes_ahead(views, majority_head(views, since=since), blocks=20)


def test_who_is_far_ahead_of_a_fresh_majority_is_not_believed() -> None:
    """SEC-09: a head that most nodes could not have missed is invented."""
    assert ahead([at("0", 100), at("1", 101), at("2", 10**6)]) == {"2"}
    assert ahead([at("0", 100), at("1", 101), at("2", 119)]) == frozenset()


def test_who_is_far_ahead_of_a_stuck_majority_may_be_right() -> None:
    """F-72: two of three behind one operator stand still; the third is what a defence needs."""
    stuck = [at("0", 100), at("1", 101), at("2", 10**6, timestamp=2_000)]
    assert ahead(stuck, since=1_940) == frozenset()


def test_of_two_nodes_or_of_few_that_answer_none_is_too_far_ahead() -> None:
    assert ahead([at("0", 100), at("1", 10**6)]) == frozenset()
    assert ahead([at("0", 100), at("1", None), at("2", 10**6)]) == {"2"}
    assert ahead([at("0", None), at("1", None), at("2", 10**6)]) == frozenset()


@given(
    st.lists(st.integers(1_000, 1_019), min_size=2, max_size=5),
    st.lists(st.none() | st.integers(0, 10**9), max_size=4),
)
def test_of_an_honest_majority_none_is_ahead_and_every_liar_is(
    honest: list[int], others: list[int | None]
) -> None:
    """SEC-09: the few others change nothing."""
    others = others[: len(honest) - 1]
    heads = [*honest, *others]
    found = ahead([at(str(n), number) for n, number in enumerate(heads)])
    assert not found & {str(n) for n in range(len(honest))}
    if len(heads) > 2:
        assert found >= {str(n) for n, number in enumerate(heads) if number and number >= 1_039}
