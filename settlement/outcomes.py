"""What came of a channel's settle or close: paid, left out with a reason, or done before.

A refusal is not the end of it: a channel that is closed already answers a close, and one that has
been paid as much answers a settle. What the chain refuses for now goes into quarantine.
"""

import logging
from collections.abc import Sequence
from typing import Final

from channel.chain import CloseResult
from channel.errors import ChainUnavailableError, MppSessionError
from channel.ledger.interface import Ledger
from channel.types import ChannelFact, ChannelId
from settlement.errors import ContractRevertedError, contract_reverted
from settlement.escrow import EscrowReader
from settlement.jobs import Job, JobResult, SettleResult
from settlement.quarantine import Quarantine
from settlement.tx_state import Purpose
from settlement.types import EntrySkippedLog, Receipt, RevertReason

__all__ = ["Outcomes"]

_log: Final = logging.getLogger(__name__)


class Outcomes:
    """Answers jobs from what the chain says, and keeps quarantine by it."""

    def __init__(self, reader: EscrowReader, quarantine: Quarantine | None) -> None:
        self._reader = reader
        self._quarantine = quarantine

    def require_allowed(self, job: Job) -> None:
        """Refuse what was refused a short while ago.

        Raises:
            ContractRevertedError: For a reason that lasts.
            ChannelQuarantinedError: For one that may pass: to be tried again.
        """
        if self._quarantine is not None:
            key = self._reader.key(job.entry.channel_id)
            self._quarantine.require_allowed(key, job.purpose, deadline=job.deadline)

    async def load(self) -> None:
        """Take over what is in quarantine, after a start."""
        if self._quarantine is not None:
            await self._quarantine.load()

    async def forget_ended(self, ledger: Ledger) -> None:
        """Let out of quarantine what has ended: see `Quarantine.drop_ended`."""
        if self._quarantine is not None:
            await self._quarantine.drop_ended(ledger)

    async def answer(self, jobs: Sequence[Job], receipt: Receipt) -> list[MppSessionError]:
        """Tell each channel what the mined transaction did to it; return what failed.

        Raises:
            ChainUnavailableError: The node does not say how the channels stand.
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
                refused = await self.refuse(job, contract_reverted(reason, tx_hash=receipt.tx_hash))
                failed += [] if refused is None else [refused]
            elif fact is None:
                job.fail(_hidden())
            else:
                await self._discharge(job)
                job.succeed(_result(job.purpose, receipt, fact, gas_of=len(jobs)))
        return failed

    async def refuse(self, job: Job, error: ContractRevertedError) -> MppSessionError | None:
        """Answer a channel's refusal: perhaps what was wanted has been done already.

        Returns what it was refused with, or None when it was done.
        """
        try:
            job.succeed(await self._done_before(job, error))
        except MppSessionError as refusal:
            job.fail(refusal)
            return refusal
        return None

    async def _done_before(self, job: Job, error: ContractRevertedError) -> JobResult:
        channel_id, is_close = job.entry.channel_id, job.purpose is Purpose.CLOSE
        if is_close and error.reason is RevertReason.CHANNEL_FINALIZED:
            await self._discharge(job)
            return await self._closed_before(channel_id)
        if not is_close and error.reason is RevertReason.AMOUNT_NOT_INCREASING:
            await self._discharge(job)
            return SettleResult(tx_hash=None, fact=await self._fact(channel_id))
        if self._quarantine is None:
            raise error
        if error.reason is RevertReason.CHANNEL_FINALIZED:
            await self._discharge(job)
            raise error
        _log.warning("channel 0x%s: %s refused: %s", channel_id.hex(), job.purpose.name, error)
        await self._quarantine.refuse(
            self._reader.key(channel_id), error, purpose=job.purpose, deadline=job.deadline
        )
        raise error

    async def _closed_before(self, channel_id: ChannelId) -> CloseResult:
        """Return how a finalized channel was closed, by whomever, from its own log."""
        log = await self._reader.find_closing(channel_id)
        receipt = None if log is None else await self._reader.rpc.receipt(log.tx_hash)
        if receipt is None:
            msg = "The channel is finalized; the node does not have the close's log."
            raise ChainUnavailableError(msg)
        fact = await self._fact(channel_id)
        return CloseResult(tx_hash=receipt.tx_hash, fact=fact, gas_used=receipt.gas_used)

    async def _fact(self, channel_id: ChannelId) -> ChannelFact:
        fact = await self._reader.read_channel(channel_id)
        if fact is None:
            raise _hidden()
        return fact

    async def _discharge(self, job: Job) -> None:
        if self._quarantine is not None:
            await self._quarantine.discharge(self._reader.key(job.entry.channel_id))


def _result(purpose: Purpose, receipt: Receipt, fact: ChannelFact, *, gas_of: int) -> JobResult:
    if purpose is Purpose.CLOSE:
        gas_used = receipt.gas_used // gas_of
        return CloseResult(tx_hash=receipt.tx_hash, fact=fact, gas_used=gas_used)
    return SettleResult(tx_hash=receipt.tx_hash, fact=fact)


def _hidden() -> ChainUnavailableError:
    msg = "The node does not show the channel that was just settled or closed."
    return ChainUnavailableError(msg)
