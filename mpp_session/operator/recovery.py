"""Rebuilds a lost ledger from an export and the chain (`mpp-session recover`).

The export holds the vouchers; the chain holds deposits and payouts. Amounts delivered after the
export are lost with the ledger, except what the chain shows as settled. Nothing is ever claimed
beyond a voucher (F-52, F-108, SETTLE-05).
"""

import enum
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Final

import msgspec

from channel.errors import ChannelStoppedError
from channel.ledger.interface import Ledger
from channel.ledger.maintenance import import_channels, repair
from channel.state.channel_state import ChannelState
from channel.state.commands import Observe
from channel.state.ladder import forced_settling_voucher
from channel.types import Address, ChannelFact, ChannelId, ChannelKey
from settlement.escrow.reader import EscrowReader
from settlement.types import BlockRef

__all__ = ["Recovered", "Verdict", "recover_channels"]

_PAGE: Final = 500


class Verdict(enum.Enum):
    """The result for one channel."""

    COLLECTABLE = "a voucher covers what was delivered; the settler collects it"
    SETTLED = "nothing delivered is unsettled"
    ENDED = "it has ended on chain"
    STOPPED = "more is settled than the export knows: repair it, or collect no more"
    GONE = "the chain does not know it (yet)"
    MISSING = "open on chain and in no export: there is no voucher to collect with"


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """One channel after the recovery. Amounts are in base units."""

    key: ChannelKey
    payer: Address
    verdict: Verdict
    deposit: int
    settled: int
    spent: int = 0
    claim: int = 0
    """How much the voucher for the delivered amount adds to `settled`."""
    close_requested_at: int = 0


async def recover_channels(
    ledger: Ledger,
    reader: EscrowReader,
    payee: Address,
    lines: AsyncIterable[bytes],
    *,
    repairs: bool,
    from_block: int,
) -> list[Recovered]:
    """Import an export, compare it with the chain, and return what can be collected; repeatable.

    Args:
        ledger: The new ledger; its existing channels stay unchanged.
        reader: Reads the escrow.
        payee: The payee whose channels to search on chain.
        lines: The export's lines, from any time.
        repairs: Whether to count as delivered what the chain shows as settled (SETTLE-05).
        from_block: First block to search for channels that are not in the export.

    Raises:
        ConfigError: A line was not exported by this program.
        ChainUnavailableError: No node gives the channels' state; run it again.
    """
    await import_channels(ledger, lines)
    head = await reader.rpc.block()
    found: list[Recovered] = []
    known: set[ChannelId] = set()
    async for page in _pages(ledger, reader):
        facts = await reader.read_channels_at([each.key.channel_id for each in page], head)
        for state, fact in zip(page, facts, strict=True):
            known.add(state.key.channel_id)
            found.append(await _reconcile(ledger, state, fact, repairs=repairs))
    found += await _missing(reader, payee, known, head, from_block)
    return sorted(found, key=lambda each: (each.verdict.name, -each.claim, -each.deposit))


async def _pages(ledger: Ledger, reader: EscrowReader) -> AsyncIterator[Sequence[ChannelState]]:
    after = None
    while page := await ledger.list_channels(after=after, limit=_PAGE):
        after = page[-1].key
        mine = (reader.chain_id, reader.escrow)
        own = [state for state in page if (state.key.chain_id, state.key.escrow) == mine]
        if own:
            yield own


async def _reconcile(
    ledger: Ledger, state: ChannelState, fact: ChannelFact | None, *, repairs: bool
) -> Recovered:
    if fact is None:
        return _recovered(state, Verdict.GONE)
    # The export may be from before a reorg, or from a node that was ahead: the chain decides.
    observe = Observe(fact, is_rollback=fact.block_number < state.fact_block)
    state = (await ledger.apply(state.key, [observe])).require()
    if repairs and state.settled > state.accepted and not state.is_finalized:
        try:
            state = await repair(ledger, state.key, accepted=state.settled, spent=state.settled)
        except ChannelStoppedError:
            return _recovered(state, Verdict.STOPPED)
    if state.foreign_block and state.settled <= state.accepted:
        # Settled by the lost ledger: this accounts for it.
        state = await repair(ledger, state.key, accepted=0, spent=0)
    if state.is_finalized:
        return _recovered(state, Verdict.ENDED)
    if state.settled > state.accepted:
        return _recovered(state, Verdict.STOPPED)
    is_owed = forced_settling_voucher(state) is not None
    return _recovered(state, Verdict.COLLECTABLE if is_owed else Verdict.SETTLED)


def _recovered(state: ChannelState, verdict: Verdict) -> Recovered:
    voucher = forced_settling_voucher(state) if verdict is Verdict.COLLECTABLE else None
    return Recovered(
        key=state.key,
        payer=state.terms.payer,
        verdict=verdict,
        deposit=state.deposit,
        settled=state.settled,
        spent=state.spent,
        claim=0 if voucher is None else voucher.cumulative_amount - state.settled,
        close_requested_at=state.close_requested_at,
    )


async def _missing(
    reader: EscrowReader, payee: Address, known: set[ChannelId], head: BlockRef, from_block: int
) -> list[Recovered]:
    """Return the payee's channels that are open on chain and not in the export."""
    opened = await reader.find_channels(payee, from_block=from_block, to_block=head.number)
    unknown = [channel_id for channel_id in opened if channel_id not in known]
    facts: list[ChannelFact | None] = []
    for start in range(0, len(unknown), _PAGE):
        facts += await reader.read_channels_at(unknown[start : start + _PAGE], head)
    return [
        Recovered(
            key=fact.key,
            payer=fact.terms.payer,
            verdict=Verdict.MISSING,
            deposit=fact.deposit,
            settled=fact.settled,
            close_requested_at=fact.close_requested_at,
        )
        for fact in facts
        if fact is not None and not fact.is_finalized
    ]
