"""The canonical tail: what a new head means after any change of the chain."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from channel.errors import InvariantError
from settlement.node.blocks import Change, Tail, confirmed_number, extend, next_missing
from settlement.types import BlockRef

GENESIS = BlockRef(number=0, hash=b"g" * 32, timestamp=0, base_fee_wei=0, parent_hash=bytes(32))


def child(parent: BlockRef, branch: str = "a") -> BlockRef:
    name = hashlib.sha256(parent.hash + branch.encode()).digest()
    number = parent.number + 1
    return BlockRef(
        number=number,
        hash=name,
        timestamp=12 * number,
        base_fee_wei=0,
        parent_hash=parent.hash,
    )


def grow(parent: BlockRef, count: int, branch: str = "a") -> list[BlockRef]:
    """Blocks on top of `parent`, oldest first."""
    blocks = []
    for _ in range(count):
        parent = child(parent, branch)
        blocks.append(parent)
    return blocks


def follow(
    tail: Tail, chain: list[BlockRef], *, walk_max: int = 100, blocks_max: int = 100
) -> Change:
    """Do as the follower does: fetch parents from the head until they lead into the tail."""
    by_hash = {block.hash: block for block in chain}
    branch = [chain[-1]]
    while len(branch) < walk_max and (missing := next_missing(tail, branch)) is not None:
        branch.append(by_hash[missing])
    return extend(tail, branch, blocks_max=blocks_max)


def test_the_first_head_begins_the_tail() -> None:
    change = follow(Tail(), grow(GENESIS, 5))
    assert change.tail.head == grow(GENESIS, 5)[-1]
    assert (change.removed, change.has_gap, change.forked_at) == ((), False, None)


def test_the_same_head_changes_nothing() -> None:
    tail = follow(Tail(), grow(GENESIS, 5)).tail
    assert follow(tail, grow(GENESIS, 5)) == Change(tail)


def test_blocks_between_two_looks_are_all_added() -> None:
    tail = follow(Tail(), grow(GENESIS, 2)).tail
    change = follow(tail, grow(GENESIS, 6))
    assert list(change.added) == grow(GENESIS, 6)[2:]
    assert not change.has_gap


def test_a_reorg_says_what_was_taken_back() -> None:
    """F-71: the number stays, the hash tells."""
    common = grow(GENESIS, 3)
    old, new = common + grow(common[-1], 2, "old"), common + grow(common[-1], 3, "new")
    tail = extend(Tail(), list(reversed(old)), blocks_max=100).tail
    change = follow(tail, new)
    assert list(change.removed) == old[3:]
    assert list(change.added) == new[3:]
    assert change.forked_at == 3
    assert list(change.tail.blocks) == new


def test_a_node_that_lags_is_not_a_reorg() -> None:
    """F-72: an ancestor of our head, or a block older than all we keep."""
    blocks = grow(GENESIS, 9)
    tail = extend(Tail(), list(reversed(blocks)), blocks_max=4).tail
    for head in (blocks[6], blocks[1]):
        assert extend(tail, [head], blocks_max=4) == Change(tail, is_behind=True)


def test_a_long_absence_is_a_gap() -> None:
    """F-73: what lies between is unknown, so every channel must be read."""
    tail = follow(Tail(), grow(GENESIS, 2)).tail
    change = follow(tail, grow(GENESIS, 50), walk_max=5)
    assert change.has_gap
    assert change.removed == ()
    assert change.tail.head == grow(GENESIS, 50)[-1]


def test_a_reorg_deeper_than_the_tail_is_a_gap_that_took_all_back() -> None:
    old = grow(GENESIS, 9, "old")
    tail = extend(Tail(), list(reversed(old)), blocks_max=3).tail
    change = follow(tail, grow(GENESIS, 9, "new"), blocks_max=3)
    assert change.has_gap
    assert list(change.removed) == old[6:]
    assert change.forked_at == 6


def test_a_branch_that_is_no_chain_is_a_bug() -> None:
    blocks = grow(GENESIS, 3)
    with pytest.raises(InvariantError):
        extend(Tail(), [blocks[2], blocks[0]], blocks_max=9)


@pytest.mark.parametrize(("confirmations", "number"), [(1, 9), (3, 7), (50, 0)])
def test_a_block_is_as_deep_as_the_blocks_on_it_and_itself(confirmations: int, number: int) -> None:
    """OPEN-12."""
    assert confirmed_number(grow(GENESIS, 9)[-1], confirmations) == number


class AChain(RuleBasedStateMachine):
    """A chain that grows and forks at will, and a tail that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = [GENESIS]
        self.tail = Tail()
        self.forks = 0
        self.known: list[BlockRef] = []

    @rule(count=st.integers(1, 6))
    def mine(self, count: int) -> None:
        self.chain += grow(self.chain[-1], count, f"fork {self.forks}")

    @rule(depth=st.integers(1, 8), count=st.integers(0, 3))
    def reorg(self, depth: int, count: int) -> None:
        depth = min(depth, len(self.chain) - 1)
        self.forks += 1
        del self.chain[len(self.chain) - depth :]
        self.chain += grow(self.chain[-1], depth + count, f"fork {self.forks}")

    @rule(walk_max=st.integers(2, 30))
    def look(self, walk_max: int) -> None:
        before = set(self.tail.blocks)
        change = follow(self.tail, self.chain, walk_max=walk_max, blocks_max=12)
        canonical = set(self.chain)
        assert change.tail.head == self.chain[-1]
        assert set(change.tail.blocks) <= canonical
        assert set(change.added) <= canonical
        assert set(change.removed) <= before
        assert not set(change.removed) & canonical
        if not change.has_gap and self.tail.blocks:
            assert before - canonical == set(change.removed)
            oldest = self.tail.blocks[0].number
            new = {b for b in self.chain if b.number > oldest} - before
            assert new == set(change.added)
        self.tail = change.tail

    @invariant()
    def the_tail_is_a_chain_of_parents(self) -> None:
        blocks = self.tail.blocks
        assert len(blocks) <= 12
        for parent, block in itertools.pairwise(blocks):
            assert block.parent_hash == parent.hash


TestAChain = AChain.TestCase


@given(st.integers(1, 40), st.integers(1, 20))
def test_only_the_last_blocks_are_kept(count: int, blocks_max: int) -> None:
    change = extend(Tail(), list(reversed(grow(GENESIS, count))), blocks_max=blocks_max)
    assert list(change.tail.blocks) == grow(GENESIS, count)[-blocks_max:]
