"""Follows the chain's head: which channels were touched, and what a reorg removed.

Events are fast; reading the state is reliable. This is the fast half. It reads logs by block hash,
so that a node that lacks a block cannot answer with an empty list. It reads those of the last few
blocks again each time, which corrects an answer that was empty by mistake (F-73).
"""

import msgspec

from channel.errors import ChainUnavailableError
from channel.types import Address, ChannelId
from settlement.escrow.reader import EscrowReader
from settlement.node.blocks import Change, Tail, extend, next_missing
from settlement.types import BlockRef

__all__ = ["ChainFollower", "FollowLimits", "Step"]

_WORD = 32


class FollowLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far back to look."""

    tail_blocks_max: int = 256
    """Blocks kept: a deeper reorg looks like a different chain."""
    walk_blocks_max: int = 64
    """Most blocks fetched one by one. Beyond that, every channel is read instead."""
    overlap_blocks: int = 2
    """Blocks whose events are read again."""


class Step(msgspec.Struct, frozen=True):
    """The result of one look at the head."""

    head: BlockRef
    touched: frozenset[ChannelId] = frozenset()
    """Channels named by an event, in a new block or in one that a reorg removed."""
    forked_at: int | None = None
    """Number of the last block that a reorg kept; None without a reorg."""
    has_gap: bool = False
    """Events may be missing: the state of every channel must be read."""
    is_behind: bool = False
    """The node lags behind the newest block seen; `head` is that block, not the node's."""
    is_new: bool = False
    """The head was not seen before."""


class ChainFollower:
    """Keeps the tail of one chain, and the channels of one escrow touched in it."""

    def __init__(
        self,
        reader: EscrowReader,
        *,
        payee: Address | None = None,
        limits: FollowLimits | None = None,
    ) -> None:
        """Follow the events of one payee's channels, or of every channel of the escrow."""
        self._reader = reader
        self._limits = limits or FollowLimits()
        self._topics = (None, None, None, bytes(12) + payee) if payee else ()
        self._tail = Tail()
        self._touched: dict[bytes, frozenset[ChannelId]] = {}

    @property
    def head(self) -> BlockRef | None:
        """The newest block seen, or None before the first step."""
        return self._tail.head

    def forget(self) -> None:
        """Start anew: most nodes show that the followed blocks are not on the chain."""
        self._tail = Tail()
        self._touched.clear()

    async def step(self) -> Step:
        """Look at the head once. A failed step changes nothing.

        Raises:
            ChainUnavailableError: The node does not answer, or contradicts itself.
        """
        branch = [await self._reader.rpc.block()]
        while len(branch) < self._limits.walk_blocks_max:
            missing = next_missing(self._tail, branch)
            if missing is None:
                break
            branch.append(await self._parent(branch[-1], missing))
        change = extend(self._tail, branch, blocks_max=self._limits.tail_blocks_max)
        if change.is_behind or not change.added:
            head = change.tail.head or branch[0]
            return Step(head=head, is_behind=change.is_behind)
        return await self._take(branch[0], change)

    async def _parent(self, child: BlockRef, block_hash: bytes) -> BlockRef:
        block = await self._reader.rpc.block_by_hash(block_hash)
        if block.hash != block_hash or block.number != child.number - 1:
            msg = f"The node gave another block than the parent of block {child.number}."
            raise ChainUnavailableError(msg)
        return block

    async def _take(self, head: BlockRef, change: Change) -> Step:
        """Read the events of new blocks, and only then add the blocks to the tail."""
        is_first = self._tail.head is None
        if change.has_gap and not is_first:  # another chain would look the same
            await self._reader.rpc.check_chain()
        removed = [self._touched.get(block.hash, frozenset()) for block in change.removed]
        added: dict[bytes, frozenset[ChannelId]] = {}
        if not (is_first or change.has_gap):
            added = await self._events(change)
        self._tail = change.tail
        for block_hash, touched in added.items():
            self._touched[block_hash] = self._touched.get(block_hash, frozenset()) | touched
        kept = {block.hash for block in change.tail.blocks}
        self._touched = {each: seen for each, seen in self._touched.items() if each in kept}
        return Step(
            head=head,
            touched=frozenset().union(*removed, *added.values()),
            forked_at=change.forked_at,
            has_gap=is_first or change.has_gap,
            is_new=True,
        )

    async def _events(self, change: Change) -> dict[bytes, frozenset[ChannelId]]:
        """Return the channels named by events, by block, for new blocks and the overlap."""
        count = len(change.added) + self._limits.overlap_blocks
        hashes = [block.hash for block in change.tail.blocks[-count:]]
        logs = await self._reader.rpc.logs_of_blocks(self._reader.escrow, self._topics, hashes)
        found: dict[bytes, set[ChannelId]] = {}
        for log in logs:
            if log.address == self._reader.escrow and len(log.topics) > 1:
                named = ChannelId(log.topics[1])
                if named not in self._touched.get(log.block_hash, ()):
                    found.setdefault(log.block_hash, set()).add(named)
        return {block_hash: frozenset(named) for block_hash, named in found.items()}
