"""Whom to believe among nodes that differ: properties over any number of them."""

from hypothesis import given
from hypothesis import strategies as st

from settlement.nodes import EndpointView, Judgement, judge_nodes
from settlement.types import BlockRef


def view(name: str, shows: str | None) -> EndpointView:
    if shows is None:
        return EndpointView(name, None)
    block = BlockRef(9, shows.encode(), 1_800_000_000, 1, b"p")
    return EndpointView(name, block, block)


def judge(shows: str, left_out: str = "") -> Judgement:
    """`aab-`: two nodes show a, one b, one does not answer; names are 0, 1, 2 and so on."""
    views = [view(str(n), None if each == "-" else each) for n, each in enumerate(shows)]
    return judge_nodes(views, frozenset(left_out))


def test_nodes_that_agree_are_all_believed() -> None:
    assert judge("a") == judge("aaa") == judge("aa-") == judge("---") == Judgement()


def test_a_majority_of_all_is_believed_and_the_others_are_left_out() -> None:
    """SEC-09."""
    assert judge("aab") == Judgement(left_out=frozenset("2"))
    assert judge("baaab") == Judgement(left_out=frozenset("04"))


def test_without_a_majority_nobody_is_believed_more() -> None:
    """SEC-09: nor of those alone that answer."""
    assert judge("ab") == Judgement(disputing=("0", "1"))
    assert judge("ab-") == Judgement(disputing=("0", "1"))
    assert judge("aabb") == Judgement(disputing=("0", "1", "2", "3"))
    assert judge("aab--") == Judgement(disputing=("0", "1", "2"))


def test_who_is_left_out_is_taken_in_when_it_agrees_and_not_for_its_silence() -> None:
    assert judge("aaa", "2") == Judgement()
    assert judge("aab", "2") == judge("aa-", "2") == Judgement(left_out=frozenset("2"))
    assert judge("a-b", "2") == Judgement(left_out=frozenset("2"))
    assert judge("--b", "2") == Judgement(left_out=frozenset("2"))


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
