"""Follows one key's open transactions: records outcomes, rebroadcasts, raises bids.

A key's transactions are mined in the order of their nonces, so a stuck one holds up all later ones
(F-77). Each look reads what the chain shows of each transaction, sends bytes again that may be
lost, and raises a bid below the base fee on the same nonce.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from channel.errors import ChainUnavailableError, OperatorError
from channel.limits import GAP_FILLED_MAX
from channel.tasks import Tasks
from settlement.alarms import AlarmKind, Alarms
from settlement.errors import ContractRevertedError, LeaseLostError, RpcRefusedError, SignerError
from settlement.log_once import LogOnce
from settlement.node import questions
from settlement.node.rpc import Rpc
from settlement.node.values import parse_block, parse_count, parse_price, parse_receipt
from settlement.tx.cache import TxCache
from settlement.tx.fees import is_outbid
from settlement.tx.journal.interface import Journal
from settlement.tx.nonces import UsedNonces
from settlement.tx.pricing import TxPricer
from settlement.tx.reasons import explain
from settlement.tx.state import (
    Bumped,
    Intent,
    JournalTx,
    NodeAnswer,
    Overtaken,
    Sent,
    Signed,
    TxStatus,
    Unmined,
    classify_refusal,
    look_for,
)
from settlement.types import BlockRef

__all__ = ["TxLimits", "TxMonitor"]

_log: Final = logging.getLogger(__name__)

_HASHES_PER_LOOK_MAX: Final = 200


class TxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait for a transaction, and when to act on it."""

    mined_within_s: float = 90.0
    poll_min_s: float = 0.01
    poll_max_s: float = 2.0
    resend_after_s: float = 5.0
    bump_after_s: float = 30.0
    """Seconds after which a bid that could be mined but is not is raised: its tip is too low."""
    overtaken_after_s: float = 6.0
    """Seconds with the nonce used and no receipt before a transaction counts as replaced."""
    confirmations: int = 1
    """How deep a block must be, its own counted, before a transaction is final."""
    jump_checked_s: float = 2.0
    """Seconds for which every node is asked about a nonce above the journal's before use."""
    gap_after_s: float = 60.0
    """Seconds for which a nonce may stay unused before an empty transfer fills it."""
    gas_margin_percent: int = 25
    """Added to the gas estimate: the state may change before the transaction is mined."""


class TxMonitor:
    """The open transactions of one key on one chain."""

    def __init__(
        self,
        rpc: Rpc,
        journal: Journal,
        cache: TxCache,
        pricer: TxPricer,
        limits: TxLimits,
        *,
        used: UsedNonces,
    ) -> None:
        self._rpc = rpc
        self._journal = journal
        self._cache = cache
        self._pricer = pricer
        self._limits = limits
        self._used = used
        self.alarms = Alarms()
        self._put_at: dict[int, float] = {}
        self._overtaken_at: dict[int, float] = {}
        self._underpriced: set[int] = set()
        self._gap: range | None = None
        self._gap_since = 0.0
        self._looks = Tasks()  # each caller gets its error
        self._log_once = LogOnce(_log, "raising a bid failed, will retry: %s")

    async def look(self) -> None:
        """Look once at every open transaction. Concurrent callers share one look."""
        await asyncio.shield(self._looks.share(None, self._look_once))

    async def put(self, tx: JournalTx) -> NodeAnswer:
        """Send the newest bytes: to one node first, to every node later or after a refusal (F-75).

        A node that took the bytes may not have passed them on, and a node that refuses speaks only
        for itself. KNOWN also stands for taken.

        Raises:
            RpcRefusedError: Every node refused.
            ChainUnavailableError: At least one node did not answer; the bytes may have arrived.
        """
        is_again = tx.tx_id in self._put_at
        self._put_at[tx.tx_id] = time.monotonic()
        if not is_again:
            try:
                await self._rpc.command(questions.SEND, "0x" + tx.newest.raw.hex())
            except RpcRefusedError as error:
                if self._rpc.node_count == 1:
                    return _meant_by([error])
            else:
                return NodeAnswer.KNOWN
        return _meant_by(await self._rpc.offer(tx.newest.raw))

    async def raise_bid(
        self, tx: JournalTx, head: BlockRef, tip_wei: int, ceiling_wei: int | None
    ) -> JournalTx | None:
        """Sign the same nonce again with a higher bid and store it; None if out of budget."""
        self._underpriced.discard(tx.tx_id)
        version = await self._pricer.raised(tx, head, tip_wei, ceiling_wei)
        return None if version is None else await self._cache.record(tx, Bumped(version))

    # One look.

    async def _look_once(self) -> None:
        open_txs = self._cache.open()
        self._forget_ended()
        if not open_txs:
            return
        try:
            used, head, tip_wei = await self._read_head()
            open_txs, used = await self._reopen(open_txs, used)
            await self._read_receipts(open_txs)
        except ChainUnavailableError:
            return  # an unreachable node says nothing about the transactions
        for tx in open_txs:
            with suppress(ChainUnavailableError):
                await self._take_over(tx, head, used)
        await self._help_along(head, tip_wei, used)

    def _forget_ended(self) -> None:
        for table in (self._put_at, self._overtaken_at):
            for tx_id in [each for each in table if not self._cache.is_open(each)]:
                del table[tx_id]
        self._underpriced = {each for each in self._underpriced if self._cache.is_open(each)}

    async def _read_head(self) -> tuple[int, BlockRef, int]:
        """Return the nonces used, the head and the node's tip. Read the receipts after this."""
        used, head, tip_wei = await self._rpc.parse_batch(
            [
                questions.nonces_of(self._pricer.address),
                questions.block(),
                questions.TIP,
            ],
            lambda said: (parse_count(said[0]), parse_block(said[1]), parse_price(said[2])),
        )
        return used, head, await self._rpc.least_tip(tip_wei)

    async def _reopen(self, open_txs: list[JournalTx], used: int) -> tuple[list[JournalTx], int]:
        """Reopen transactions that later nonces wait for; return the open ones and the nonces used.

        A deep reorg put them back, or they were signed while the journal's answer was lost.
        """
        if used < (open_txs[0].nonce or 0) and self._rpc.node_count > 1:
            used = await self._used.agreed()  # one lagging node would cause a needless check
        if used >= (open_txs[0].nonce or 0):
            self._close_gap()
            return open_txs, used
        if self._is_first_sight(range(used, open_txs[0].nonce or 0)):
            return open_txs, used
        for tx in await self._journal.transactions_from(used):
            if tx.status is TxStatus.FINAL:
                await self._cache.record(tx, Unmined())
            elif tx.is_open and not self._cache.is_open(tx.tx_id):
                self._cache.keep(tx)  # signed, but the journal's answer was lost
        open_txs = self._cache.open()
        await self._look_at_gap(range(used, open_txs[0].nonce or 0))
        return open_txs, used

    async def _look_at_gap(self, missing: range) -> None:
        """Fill nonces that the journal lacks too, once they have been missing for a while."""
        if not missing:
            self._close_gap()
        elif not self._is_first_sight(missing):
            try:
                await self._fill(missing)
            except LeaseLostError:
                raise
            except (ContractRevertedError, OperatorError) as error:
                _log.warning("filling missing nonces failed, will retry: %s", error)

    def _is_first_sight(self, missing: range) -> bool:
        """Whether these nonces were not missing at the previous look."""
        if missing != self._gap:
            self._gap, self._gap_since = missing, time.monotonic()
            return True
        return False

    def _close_gap(self) -> None:
        self._gap = None
        self.alarms.end(AlarmKind.NONCE_GAP)

    async def _fill(self, missing: range) -> None:
        """Fill unused nonces, which later transactions wait for, with empty transfers to ourselves.

        If the journal has an abandoned transaction with the nonce, its bytes are sent instead.
        """
        if time.monotonic() - self._gap_since < self._limits.gap_after_s:
            return
        text = f"no transaction has the nonces {missing[0]} to {missing[-1]}, and later ones wait"
        if len(missing) > GAP_FILLED_MAX:
            self.alarms.ring(AlarmKind.NONCE_GAP, f"{text}: too many to fill", level=2)
            return
        self.alarms.ring(AlarmKind.NONCE_GAP, f"{text}: the settler fills them", level=1)
        known = {tx.nonce: tx for tx in await self._journal.transactions_from(missing[0])}
        account = self._pricer.address
        intent = Intent(to=account, calldata=b"")
        quote = await self._pricer.quote(intent)
        for nonce in missing:
            if nonce in known:
                await self._rpc.offer(known[nonce].newest.raw)
                continue
            fee = self._pricer.first_fee(intent, quote)
            version = await self._pricer.sign(intent, nonce, quote.gas, fee)
            tx = await self._journal.add(intent, at=int(time.time()))
            await self._cache.record(tx, Signed(nonce, quote.gas, version, fills_gap=True))

    async def _read_receipts(self, monitor: Sequence[JournalTx]) -> None:
        hashes = [version.tx_hash for tx in monitor for version in tx.versions]
        for tx_hash in hashes:  # a reorg may have moved or removed its block
            self._cache.receipts.pop(tx_hash, None)
        for start in range(0, len(hashes), _HASHES_PER_LOOK_MAX):
            asked = hashes[start : start + _HASHES_PER_LOOK_MAX]
            receipts = await self._rpc.parse_batch(
                [questions.receipt(tx_hash) for tx_hash in asked],
                lambda said: [parse_receipt(each) for each in said if each is not None],
            )
            for receipt in receipts:
                self._cache.keep_receipt(receipt)

    async def _take_over(self, tx: JournalTx, head: BlockRef, used: int) -> None:
        """Record what the chain shows of a transaction."""
        events = look_for(
            tx,
            self._cache.receipts,
            head_number=head.number,
            nonces_used=used,
            confirmations=self._limits.confirmations,
        )
        if events == (Overtaken(),):
            since = self._overtaken_at.setdefault(tx.tx_id, time.monotonic())
            if time.monotonic() - since < self._limits.overtaken_after_s:
                return  # a node may count the nonce before it shows the receipt (F-72)
            if self._rpc.node_count > 1 and (tx.nonce or 0) >= await self._used.agreed():
                self._rpc.mark_unhealthy()  # no other node confirms it
                return
        if events:
            sender = self._pricer.address
            explained = [await explain(self._rpc, sender, tx, event) for event in events]
            await self._cache.record(tx, *explained)

    # Rebroadcasting and raising bids.

    async def _help_along(self, head: BlockRef, tip_wei: int, used: int) -> None:
        """Raise the bids that need it, and send bytes again that may be lost."""
        unmined = [tx for tx in self._cache.open() if tx.is_unmined]
        ceilings = self._pricer.ceilings(unmined, head)
        for tx, ceiling_wei in zip(unmined, ceilings, strict=True):
            if self._wants_raise(tx, head, used):
                try:
                    raised = await self.raise_bid(tx, head, tip_wei, ceiling_wei)
                except SignerError as error:
                    self._log_once.make(error)  # the current bid stays valid
                    raised = None
                if raised is not None:
                    self._log_once.over()
                    await self._put_again(raised)
                    continue
            put_at = self._put_at.get(tx.tx_id, float("-inf"))
            if time.monotonic() - put_at >= self._limits.resend_after_s:
                await self._put_again(tx)

    def _wants_raise(self, tx: JournalTx, head: BlockRef, used: int) -> bool:
        if tx.tx_id in self._underpriced or is_outbid(
            tx.newest.fee, base_fee_wei=head.base_fee_wei or 0
        ):
            return True
        age_s = int(time.time()) - tx.newest.signed_at
        is_young = 0 <= age_s < self._limits.bump_after_s  # below 0: the clock was set back (F-111)
        return tx.nonce == used and not is_young

    async def _put_again(self, tx: JournalTx) -> None:
        """Send bytes that may be lost. Only a receipt ends the wait, not an answer."""
        try:
            answer = await self.put(tx)
        except ChainUnavailableError as error:
            _log.debug("transaction %d was not taken: %s", tx.tx_id, error)
            return
        if answer is NodeAnswer.KNOWN:
            await self._cache.record(tx, Sent())
        elif answer is NodeAnswer.UNDERPRICED:
            self._underpriced.add(tx.tx_id)


def _meant_by(answers: Sequence[ChainUnavailableError | None]) -> NodeAnswer:
    """Combine several nodes' answers to the same bytes.

    One node that has the bytes is enough. A refusal counts only from every node: bytes that one
    node has may be mined one day, and bytes that no node ever takes would hold up every later
    nonce.

    Raises:
        RpcRefusedError: Every node refused.
        ChainUnavailableError: At least one node did not answer; the bytes may have arrived.
    """
    if None in answers:
        return NodeAnswer.KNOWN
    refusals = [answer for answer in answers if isinstance(answer, RpcRefusedError)]
    said = [classify_refusal(refusal.message) for refusal in refusals]
    for answer in (NodeAnswer.KNOWN, NodeAnswer.NONCE_USED, NodeAnswer.UNDERPRICED):
        if answer in said:
            return answer
    if len(said) < len(answers):
        raise next(
            each for each in answers if each is not None and not isinstance(each, RpcRefusedError)
        )
    raise refusals[0]
