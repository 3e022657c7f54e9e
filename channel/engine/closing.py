"""Closing a channel with its payer's consent (CLOSE-01 to CLOSE-07).

The steps, and what is durable after each:

    BeginClose       nothing new is accepted or reserved; what runs may finish
    (wait, bounded)  EndReservations ends what did not finish: a stream's as spent
    CommitClose      which voucher the chain gets; from here on the close is owed
    close on chain   mined, or pending, or reverted
    RecordClose      finalized, with the transaction for every later repeat

A process that dies in between leaves a channel that is closing. The payer's retry, or the
settler, goes on from the step that is durable: each one repeats without harm.
"""

import asyncio

from channel.chain import ChannelCloser, CloseResult
from channel.engine.background import Background
from channel.engine.facts import ChainFacts
from channel.engine.lease_renewer import LeaseRenewer
from channel.engine.outcome import Outcome
from channel.errors import (
    ChainUnavailableError,
    ChannelFinalizedError,
    RequestInFlightError,
    SettlementPendingError,
    TransactionRevertedError,
)
from channel.ledger.interface import ConsumeProof, Ledger
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.state.commands import (
    AbortClose,
    BeginClose,
    CommitClose,
    EndReservations,
    Observe,
    RecordClose,
)
from channel.state.ladder import closing_voucher
from channel.types import ChannelKey, TxHash, VerifiedVoucher
from channel.verify.typed_data import keccak

__all__ = ["Closing"]

_COMMIT_TRIES = 3
_SIGNATURE = 0
"""Beside the hash of a signature where the books keep the index of a transaction's log."""


class Closing:
    """Runs at most one close per channel; whoever asks meanwhile gets the same answer (F-40)."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        closer: ChannelCloser,
        facts: ChainFacts,
        renewer: LeaseRenewer,
        background: Background,
        wait_s: float,
    ) -> None:
        self._ledger = ledger
        self._closer = closer
        self._facts = facts
        self._renewer = renewer
        self._background = background
        self._wait_s = wait_s
        self._running: dict[ChannelKey, asyncio.Task[Outcome]] = {}

    async def close(self, key: ChannelKey, presented: VerifiedVoucher) -> Outcome:
        """Close the channel; goes on to its end even if the caller is cancelled (F-42).

        Raises:
            ChannelFinalizedError: It has ended already, and not by a close of ours.
            PublicVoucherError: Anybody may have sent the voucher: it is no consent.
            SignatureUsedError: Its signature asked for a close before.
            TransactionRevertedError: The contract refused; the channel goes on (CLOSE-04).
            SettlementPendingError: Not mined within the bound; a repeat finds it.
            ChainUnavailableError: Not broadcast yet; a repeat goes on.
        """
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = self._background.start(self._close(key, presented))
            running.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(running)

    async def _close(self, key: ChannelKey, presented: VerifiedVoucher) -> Outcome:
        decided = await self._commit(key, presented)
        try:
            result = await self._closer.close_channel(
                key, decided.cumulative_amount, decided.signature
            )
        except TransactionRevertedError:
            await self._abort(key)
            raise
        return await self._record(key, result)

    async def _commit(self, key: ChannelKey, presented: VerifiedVoucher) -> LadderVoucher:
        """Return what the close is made with, once that is durable."""
        for _ in range(_COMMIT_TRIES):
            # Whatever comes of this close, its signature may be public from here on.
            used = ConsumeProof(TxHash(keccak(presented.signature)), _SIGNATURE, is_single=True)
            state = (await self._ledger.apply(key, [BeginClose(presented)], proof=used)).require()
            if state.closing_with is not None:
                return state.closing_with
            self._renewer.stop_streams(key, ChannelFinalizedError("The channel is being closed."))
            state = await self._drain(key)
            applied = await self._ledger.apply(
                key, [CommitClose(closing_voucher(state, presented))]
            )
            if isinstance(applied.refusal, RequestInFlightError):
                continue  # another process was faster: look again
            if applied.refusal is not None and not applied.state.is_finalized:
                await self._abort(key, undecided_only=True)  # nothing was: the channel goes on
            state = applied.require()
            if state.closing_with is not None:
                return state.closing_with
        raise SettlementPendingError("Another close of this channel is under way.")

    async def _drain(self, key: ChannelKey) -> ChannelState:
        """Return the channel once nothing runs on it, or after the bound has ended what does."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_s
        async with self._ledger.watch(key) as watch:
            while True:
                state = await self._ledger.load(key)
                if state is not None and not state.reservations:
                    return state
                remaining_s = deadline - loop.time()
                if remaining_s <= 0 or not await watch.changed(remaining_s):
                    return (await self._ledger.apply(key, [EndReservations()])).require()

    async def _abort(self, key: ChannelKey, *, undecided_only: bool = False) -> None:
        """Let the channel go on, with what the chain says by now (F-39)."""
        try:
            fact = await self._facts.read(key.channel_id)
        except ChainUnavailableError:
            fact = None
        seen = [Observe(fact)] if fact is not None else []
        abort = AbortClose(undecided_only=undecided_only)
        await self._ledger.apply(key, [*seen, abort])

    async def _record(self, key: ChannelKey, result: CloseResult) -> Outcome:
        applied = await self._ledger.apply(key, [RecordClose(result.fact, result.tx_hash)])
        self._facts.mark_read(key)
        return Outcome(state=applied.require(), tx_hash=TxHash(result.tx_hash))
