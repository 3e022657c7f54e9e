"""Closes a channel with its payer's consent (CLOSE-01 to CLOSE-07).

The engine decides the close and waits; the settler, which has the key, sends and records it
(decision 14). The steps, and what is durable after each:

    engine    BeginClose       nothing new is accepted or reserved; running requests may finish
    engine    (bounded wait)   EndReservations ends the others: a stream's reservation becomes spent
    engine    CommitClose      the voucher of the close; from here on the settler must send it
    settler   close on chain   mined, or pending, or reverted
    settler   RecordClose      finalized, with the transaction for every later repeat
              or AbortClose    the escrow refused: the channel continues (CLOSE-04)
    engine    (bounded wait)   until the ledger shows one of the two

If a process dies in between, the channel stays closing. The payer's retry, or the settler,
continues from the last durable step. Repeating a step is harmless.
"""

import asyncio
from contextlib import suppress
from functools import partial

from channel.chain import CloseRefusals
from channel.engine.facts import ChainFacts
from channel.engine.lease_renewer import LeaseRenewer
from channel.engine.outcome import Outcome
from channel.errors import (
    ChainUnavailableError,
    ChannelFinalizedError,
    ChannelStoppedError,
    MppSessionError,
    RequestInFlightError,
    SettlementPendingError,
)
from channel.ledger.interface import ConsumeProof, Ledger, load_known
from channel.state.channel_state import ChannelState
from channel.state.commands import (
    AbortClose,
    BeginClose,
    CommitClose,
    EndReservations,
)
from channel.state.ladder import closing_voucher
from channel.tasks import Tasks
from channel.types import ChannelKey, TxHash, VerifiedVoucher
from channel.verify.typed_data import keccak

__all__ = ["Closing"]

_COMMIT_TRIES = 3
_LOOK_S = 1.0
"""Bound on the wait for a notice of the ledger, which may be lost."""
_SIGNATURE = 0
"""The log index that the ledger stores beside the hash of a signature."""


class Closing:
    """Runs at most one close per channel; concurrent callers get the same answer (F-40)."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        facts: ChainFacts,
        renewer: LeaseRenewer,
        background: Tasks,
        wait_s: float,
        timeout_s: float,
        refusals: CloseRefusals | None,
    ) -> None:
        self._ledger = ledger
        self._facts = facts
        self._renewer = renewer
        self._background = background
        self._wait_s = wait_s
        self._timeout_s = timeout_s
        self._refusals = refusals

    async def close(self, key: ChannelKey, presented: VerifiedVoucher) -> Outcome:
        """Close the channel. The close continues even if the caller is cancelled (F-42).

        Raises:
            ChannelFinalizedError: It has ended, but not by this server's close.
            PublicVoucherError: A third party may have sent the voucher, so it is no consent.
            SignatureUsedError: The signature has asked for a close before.
            TransactionRevertedError: The escrow refused; the channel continues (CLOSE-04).
            SettlementPendingError: Not mined within the bound; repeat the request (F-75).
        """
        closing = partial(self._close, key, presented)
        return await asyncio.shield(self._background.share(("close", key), closing))

    async def decide(self, key: ChannelKey) -> None:
        """Decide the payee's own close, which the settler then sends. Goes on if cancelled (F-42).

        Raises:
            ChannelFinalizedError: The channel has ended.
            SettlementPendingError: Another close of it is under way.
        """
        deciding = partial(self._decide, key, None)
        await asyncio.shield(self._background.share(("payee's close", key), deciding))

    async def _close(self, key: ChannelKey, presented: VerifiedVoucher) -> Outcome:
        await self._decide(key, presented)
        return await self._settled(key)

    async def _decide(self, key: ChannelKey, presented: VerifiedVoucher | None) -> None:
        """Return once the voucher of the close is durable."""
        for _ in range(_COMMIT_TRIES):
            # However this close ends, its signature may be public from here on (O-21).
            used = None if presented is None else _consume(presented)
            state = (await self._ledger.apply(key, [BeginClose(presented)], proof=used)).require()
            if state.closing_with is not None:
                return
            self._renewer.stop_streams(key, ChannelFinalizedError("The channel is being closed."))
            state = await self._drain(key)
            applied = await self._ledger.apply(
                key, [CommitClose(closing_voucher(state, presented))]
            )
            if isinstance(applied.refusal, RequestInFlightError):
                continue  # another process changed the channel first: read it again
            if applied.refusal is not None and not applied.state.is_finalized:
                await self._abort(key)  # nothing was decided: the channel continues
            applied.require()
            return
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
                    return (
                        await self._ledger.apply(key, [EndReservations(by_close=True)])
                    ).require()

    async def _abort(self, key: ChannelKey) -> None:
        """Let the channel continue, with the chain's current facts (F-39)."""
        await self._reread(key)
        await self._ledger.apply(key, [AbortClose(undecided_only=True)])

    async def _settled(self, key: ChannelKey) -> Outcome:
        """Return once the settler has recorded the close."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._timeout_s
        async with self._ledger.watch(key) as watch:
            while True:
                state = await load_known(self._ledger, key)
                if state.close_tx:
                    return Outcome(state=state, tx_hash=TxHash(state.close_tx))
                if state.closing_with is None:
                    raise await self._given_up(key)
                remaining_s = deadline - clock()
                if remaining_s <= 0:
                    raise await self._pending(key)
                await watch.changed(min(remaining_s, _LOOK_S))

    async def _given_up(self, key: ChannelKey) -> MppSessionError:
        await self._reread(key)
        why = None if self._refusals is None else await self._refusals.why_given_up(key)
        return why or SettlementPendingError("The close was withdrawn: retry.")

    async def _pending(self, key: ChannelKey) -> MppSessionError:
        why = None if self._refusals is None else await self._refusals.why_pending(key)
        return why or SettlementPendingError("The close is being mined: retry later.")

    async def _reread(self, key: ChannelKey) -> None:
        """Record what the chain shows now, if a node answers: it may be why the close failed."""
        with suppress(ChainUnavailableError, ChannelStoppedError):
            await self._facts.refresh(key)


def _consume(presented: VerifiedVoucher) -> ConsumeProof:
    return ConsumeProof(TxHash(keccak(presented.signature)), _SIGNATURE, is_single=True)
