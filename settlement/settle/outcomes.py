"""Outcomes of settles and closes: paid, skipped with a reason, or done before.

A refusal may not be final. A relayed call is public once it is in a transaction pool: a stranger
can copy it and be mined first, so that the settler's own call reverts although its goal is reached
(O-33). The settler therefore reads the channel once before it accepts a refusal: a closed channel
answers a close, and a channel with as much settled answers a settle. A channel the chain refuses
for now goes into quarantine.
"""

import logging
from collections.abc import Sequence
from typing import Final

from channel.errors import ChainUnavailableError, MppSessionError
from channel.ledger.interface import Ledger
from channel.types import ChannelFact, ChannelId, TxHash
from settlement.errors import (
    AuthorizationUnusableError,
    ContractRevertedError,
    contract_reverted,
)
from settlement.escrow.reader import EscrowReader
from settlement.settle.jobs import CloseResult, Job, JobResult, SettleResult
from settlement.settle.quarantine import Quarantine
from settlement.tx.state import Purpose
from settlement.types import EntrySkippedLog, Receipt, RevertReason

__all__ = ["Outcomes"]

_log: Final = logging.getLogger(__name__)

_OF_AUTHORIZATION: Final = frozenset(
    {RevertReason.NONCE_ALREADY_USED, RevertReason.AUTHORIZATION_EXPIRED}
)
"""Faults of the payee's authorization, which is signed anew for each transaction."""


class Outcomes:
    """Answers jobs from what the chain shows, and updates the quarantine."""

    def __init__(self, reader: EscrowReader, quarantine: Quarantine | None) -> None:
        self._reader = reader
        self._quarantine = quarantine

    def require_allowed(self, job: Job) -> None:
        """Refuse a job that was refused a short while ago.

        Raises:
            ContractRevertedError: The reason is permanent.
            ChannelQuarantinedError: The reason may pass; retried later.
        """
        if self._quarantine is not None:
            key = self._reader.key(job.entry.channel_id)
            self._quarantine.require_allowed(key, job.purpose, deadline=job.deadline)

    async def load(self) -> None:
        """Load the quarantine after a start."""
        if self._quarantine is not None:
            await self._quarantine.load()

    async def forget_ended(self, ledger: Ledger) -> None:
        """Release ended channels from quarantine: see `Quarantine.drop_ended`."""
        if self._quarantine is not None:
            await self._quarantine.drop_ended(ledger)

    async def answer(self, jobs: Sequence[Job], receipt: Receipt) -> list[MppSessionError]:
        """Answer each job of a mined transaction; return the failures.

        Raises:
            ChainUnavailableError: No node shows the channels' state.
        """
        skipped = {
            log.channel_id: log.reason
            for log in self._reader.own_logs(receipt)
            if isinstance(log, EntrySkippedLog)
        }
        ids = [job.entry.channel_id for job in jobs]
        facts = await self._reader.read_channels(ids, block_number=receipt.block_number)
        failed: list[MppSessionError] = []
        for job, fact in zip(jobs, facts, strict=True):
            reason = skipped.get(job.entry.channel_id)
            if reason is not None:
                error = contract_reverted(reason, tx_hash=receipt.tx_hash)
                refused = await self.refuse(job, error, fact=fact)
                failed += [] if refused is None else [refused]
            elif fact is None:
                job.fail(_hidden())
            else:
                await self._release(job)
                job.succeed(_result(job.purpose, receipt, fact, gas_of=len(jobs)))
        return failed

    async def refuse(
        self, job: Job, error: ContractRevertedError, *, fact: ChannelFact | None = None
    ) -> MppSessionError | None:
        """Answer a refused job, unless its goal has been reached already.

        Args:
            job: The refused job.
            error: The contract's error.
            fact: The channel after the refusal; read here if None.

        Returns:
            The error, or None if the goal was reached.
        """
        try:
            job.succeed(await self._done_before(job, error, fact))
        except MppSessionError as refusal:
            job.fail(refusal)
            return refusal
        return None

    async def _done_before(
        self, job: Job, error: ContractRevertedError, fact: ChannelFact | None
    ) -> JobResult:
        channel_id, is_close = job.entry.channel_id, job.purpose is Purpose.CLOSE
        if fact is None:
            fact = await self._read_after(channel_id, error.tx_hash)
        is_settled = error.reason is RevertReason.AMOUNT_NOT_INCREASING or (
            fact is not None and fact.settled >= job.entry.cumulative_amount
        )
        is_final = error.reason is RevertReason.CHANNEL_FINALIZED or (
            fact is not None and fact.is_finalized
        )
        if fact is not None and (is_final if is_close else is_settled):
            await self._release(job)
            return (
                await self._closed_before(channel_id)
                if is_close
                else SettleResult(tx_hash=None, fact=fact)
            )
        if is_final:  # a settle after the close: it can never succeed
            await self._release(job)
            raise contract_reverted(RevertReason.CHANNEL_FINALIZED, tx_hash=error.tx_hash)
        _log.warning("channel 0x%s: %s refused: %s", channel_id.hex(), job.purpose.name, error)
        if error.reason in _OF_AUTHORIZATION:
            raise AuthorizationUnusableError(error.reason)
        if self._quarantine is not None:
            is_unexplained = error.reason is RevertReason.UNKNOWN and error.tx_hash is not None
            if fact and (is_unexplained or error.reason is RevertReason.INVALID_SIGNATURE):
                # A key's voucher is not affected; a contract may refuse only inside a block.
                await self._quarantine.distrust(fact.terms)
            await self._quarantine.refuse(
                self._reader.key(channel_id), error, purpose=job.purpose, deadline=job.deadline
            )
        raise error

    async def _read_after(
        self, channel_id: ChannelId, refused_in: TxHash | None
    ) -> ChannelFact | None:
        """Return the channel, no older than the block that refused it, if one did (F-72)."""
        receipt = None if refused_in is None else await self._reader.rpc.receipt(refused_in)
        block_number = None if receipt is None else receipt.block_number
        return await self._reader.read_channel(channel_id, block_number=block_number)

    async def _closed_before(self, channel_id: ChannelId) -> CloseResult:
        """Return the result of a finalized channel's close, by any sender, from its log."""
        log = await self._reader.find_closing(channel_id)
        receipt = None if log is None else await self._reader.rpc.receipt(log.tx_hash)
        if receipt is None:
            msg = "The channel is finalized; the node does not have the close's log."
            raise ChainUnavailableError(msg)
        fact = await self._reader.read_channel(channel_id)
        if fact is None:
            raise _hidden()
        return CloseResult(tx_hash=receipt.tx_hash, fact=fact, gas_used=receipt.gas_used)

    async def _release(self, job: Job) -> None:
        if self._quarantine is not None:
            await self._quarantine.release(self._reader.key(job.entry.channel_id))


def _result(purpose: Purpose, receipt: Receipt, fact: ChannelFact, *, gas_of: int) -> JobResult:
    if purpose is Purpose.CLOSE:
        gas_used = receipt.gas_used // gas_of
        return CloseResult(tx_hash=receipt.tx_hash, fact=fact, gas_used=gas_used)
    return SettleResult(tx_hash=receipt.tx_hash, fact=fact)


def _hidden() -> ChainUnavailableError:
    msg = "The node does not show the channel that was just settled or closed."
    return ChainUnavailableError(msg)
