"""The canonical tail: the known blocks, what a reorg removed, how deep is final (pure).

A block number does not identify a block: after a reorg another block has it (F-71). The tail is
therefore a chain of hashes in which each block is the parent of the next. A new head is accepted
once its parents lead into the tail.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from channel.errors import InvariantError
from settlement.types import BlockRef

__all__ = ["Change", "Tail", "confirmed_number", "extend", "next_missing"]


class Tail(msgspec.Struct, frozen=True):
    """The newest known blocks of the chain, oldest first, each the parent of the next."""

    blocks: tuple[BlockRef, ...] = ()

    @property
    def head(self) -> BlockRef | None:
        """The newest block, or None before the first."""
        return self.blocks[-1] if self.blocks else None

    def find(self, block_hash: bytes) -> int | None:
        """Return the index of a block in the tail, or None."""
        for index, block in enumerate(self.blocks):
            if block.hash == block_hash:
                return index
        return None


class Change(msgspec.Struct, frozen=True):
    """What a new head means."""

    tail: Tail
    added: tuple[BlockRef, ...] = ()
    """Blocks that are new, oldest first."""
    removed: tuple[BlockRef, ...] = ()
    """Blocks that a reorg removed, oldest first."""
    has_gap: bool = False
    """The new head does not connect to the tail: the blocks between them are unknown."""
    is_behind: bool = False
    """The head is an ancestor of the known head: the node lags, the chain did not go back."""

    @property
    def forked_at(self) -> int | None:
        """Number of the last block that the reorg kept; None without a reorg."""
        return self.removed[0].number - 1 if self.removed else None


def next_missing(tail: Tail, branch: Sequence[BlockRef]) -> bytes | None:
    """Return the hash of the next block to fetch, walking back from a new head.

    Args:
        tail: The chain as known.
        branch: The blocks fetched so far, newest first: the new head, its parent, and so on.

    Returns:
        None when the branch connects to the tail, or when the tail is empty.
    """
    oldest = branch[-1]
    if not tail.blocks or tail.find(branch[0].hash) is not None:
        return None
    if tail.find(oldest.parent_hash) is not None or oldest.number <= tail.blocks[0].number:
        return None
    return oldest.parent_hash


def extend(tail: Tail, branch: Sequence[BlockRef], *, blocks_max: int) -> Change:
    """Accept a branch, newest first, as the chain; keep the last `blocks_max` blocks.

    Raises:
        InvariantError: The branch is not a chain of parents.
    """
    _require_linked(branch)
    known = tail.find(branch[0].hash)
    if known is not None:
        return Change(tail, is_behind=known < len(tail.blocks) - 1)
    added = tuple(reversed(branch))
    if not tail.blocks:
        return Change(_keep(added, blocks_max), added=added)
    if branch[0].number < tail.blocks[0].number:
        return Change(tail, is_behind=True)  # older than the whole tail: the node lags far behind
    ancestor = tail.find(branch[-1].parent_hash)
    if ancestor is not None:
        kept, removed = tail.blocks[: ancestor + 1], tail.blocks[ancestor + 1 :]
        return Change(_keep(kept + added, blocks_max), added=added, removed=removed)
    # Either the process was away for longer than it walks back, or the reorg is deeper than the
    # tail.
    removed = tuple([block for block in tail.blocks if block.number >= added[0].number])
    return Change(_keep(added, blocks_max), added=added, removed=removed, has_gap=True)


def confirmed_number(head: BlockRef, confirmations: int) -> int:
    """Return the newest block that is `confirmations` deep, its own block counted (OPEN-12)."""
    return max(0, head.number - confirmations + 1)


def _keep(blocks: tuple[BlockRef, ...], blocks_max: int) -> Tail:
    return Tail(blocks[-blocks_max:])


def _require_linked(branch: Sequence[BlockRef]) -> None:
    for child, parent in pairwise(branch):
        if child.parent_hash != parent.hash or child.number != parent.number + 1:
            msg = f"block {parent.number} is not the parent of block {child.number}"
            raise InvariantError(msg)
