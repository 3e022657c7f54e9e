"""Closes a channel with its payer's consent (CLOSE-01 to CLOSE-07).

The steps, and what is durable after each:

    BeginClose       nothing new is accepted or reserved; running requests may finish
    (bounded wait)   EndReservations ends the others: a stream's reservation becomes spent
    CommitClose      the voucher of the close; from here on the settler must send it
    close on chain   mined, or pending, or reverted
    RecordClose      finalized, with the transaction for every later repeat

If the process dies in between, the channel stays closing. The payer's retry, or the settler,
continues from the last durable step. Repeating a step is harmless.
"""

import asyncio
from functools import partial

from channel.chain import ChannelCloser, CloseResult
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
from channel.tasks import Tasks
from channel.types import ChannelKey, TxHash, VerifiedVoucher
from channel.verify.typed_data import keccak

__all__ = ["Closing"]

_COMMIT_TRIES = 3
_SIGNATURE = 0
"""The log index that the ledger stores beside the hash of a signature."""


class Closing:
    """Runs at most one close per channel; concurrent callers get the same answer (F-40)."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        closer: ChannelCloser,
        facts: ChainFacts,
        renewer: LeaseRenewer,
        background: Tasks,
        wait_s: float,
    ) -> None:
        self._ledger = ledger
        self._closer = closer
        self._facts = facts
        self._renewer = renewer
        self._background = background
        self._wait_s = wait_s

    async def close(self, key: ChannelKey, presented: VerifiedVoucher) -> Outcome:
        """Close the channel. The close continues even if the caller is cancelled (F-42).

        Raises:
            ChannelFinalizedError: It has ended, but not by this server's close.
            PublicVoucherError: A third party may have sent the voucher, so it is no consent.
            SignatureUsedError: The signature has asked for a close before.
            TransactionRevertedError: The escrow refused; the channel continues (CLOSE-04).
            SettlementPendingError: Not mined within the bound; repeat the request.
            ChainUnavailableError: Not broadcast yet; repeat the request.
        """
        closing = partial(self._close, key, presented)
        return await asyncio.shield(self._background.share(("close", key), closing))

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
        """Return the voucher of the close, once that decision is durable."""
        for _ in range(_COMMIT_TRIES):
            # However this close ends, its signature may be public from here on (O-21).
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
                continue  # another process changed the channel first: read it again
            if applied.refusal is not None and not applied.state.is_finalized:
                await self._abort(key, undecided_only=True)  # nothing was decided: it continues
            state = applied.require()
            if state.closing_with is not None:
                return state.closing_with
        raise SettlementPendingError("Another close of this channel is under way.")

    async def _drain(self, key: ChannelKey) -> ChannelState:
        """Return the channel once nothing runs on it; after the bound, end what still runs."""
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
        """Let the channel continue, with the chain's current facts (F-39)."""
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
