"""One key's transactions: simulated, journalled, signed, broadcast, and seen through.

Three outcomes and no fourth: mined with success; refused, in the simulation (nothing was
broadcast) or in a block (final, F-76); or pending. A missing receipt is never a failure (F-75):
the same bytes are sent again, which no node can turn into a second transaction, and a bid that
the base fee has overtaken is raised on the same nonce, within the transaction's budget.

What is on disk before what, with a durable journal:

    intent           before anything is asked or signed
    bytes and nonce  before they are broadcast; a higher bid likewise
    broadcast        before the next one is sent
    mined, reverted  before whoever waits is told
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from channel.errors import (
    ChainUnavailableError,
    ConfigError,
    InvariantError,
    MppSessionError,
    OperatorError,
)
from channel.types import Address, TxHash
from settlement.errors import (
    ContractRevertedError,
    LeaseLostError,
    NonceTakenError,
    RpcRefusedError,
    TransactionPendingError,
    TransactionReplacedError,
    contract_reverted,
)
from settlement.fees import (
    Fee,
    FeePolicy,
    Stake,
    choose_fee,
    fee_ceiling,
    is_outbid,
    lane_ceilings,
    raise_fee,
)
from settlement.journal.interface import Journal
from settlement.journal.memory import MemoryJournal
from settlement.rpc import Rpc
from settlement.rpc_values import parse_block, parse_quantity, parse_receipt
from settlement.signer import Signer
from settlement.tx_bytes import UnsignedTx, assemble
from settlement.tx_state import (
    Abandoned,
    Bumped,
    Event,
    Included,
    Intent,
    JournalTx,
    NodeAnswer,
    Overtaken,
    Purpose,
    Sent,
    Signed,
    TxStatus,
    TxVersion,
    Unmined,
    classify_refusal,
    look_for,
)
from settlement.types import BlockRef, Receipt, RevertReason

__all__ = ["TxLimits", "TxManager"]

_log: Final = logging.getLogger(__name__)

_SIGNING_TRIES: Final = 3
_RECEIPTS_KEPT: Final = 1000
_HASHES_PER_LOOK_MAX: Final = 200


class TxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a transaction is waited for, and when it is helped along."""

    mined_within_s: float = 90.0
    poll_min_s: float = 0.01
    poll_max_s: float = 2.0
    resend_after_s: float = 5.0
    bump_after_s: float = 30.0
    """After this long a bid that could be mined and is not is raised: its tip is too low."""
    overtaken_after_s: float = 6.0
    """How long its nonce must be used and no receipt found before ours counts as replaced."""
    confirmations: int = 1
    """How deep a block must be, its own counted, before nothing is looked at again."""
    gas_margin_percent: int = 25
    """Above the estimate: the state may change before the transaction is mined."""


class _Quote(msgspec.Struct, frozen=True):
    """What a simulation and the node say before a first signature."""

    gas: int
    head: BlockRef
    base_fee_wei: int
    tip_wei: int
    nonces_used: int


class TxManager:
    """Sends transactions from one key on one chain. At most one per key at a time (F-74, F-110).

    The journal says which: one on disk has a lease, one in memory has nobody else's word.
    """

    def __init__(
        self,
        rpc: Rpc,
        signer: Signer,
        *,
        journal: Journal | None = None,
        fees: FeePolicy | None = None,
        limits: TxLimits | None = None,
    ) -> None:
        self.rpc = rpc
        self._signer = signer
        self._journal: Journal = journal or MemoryJournal()
        self._fees = fees or FeePolicy()
        self._limits = limits or TxLimits()
        self._signing = asyncio.Lock()
        self._open: dict[int, JournalTx] = {}
        self._ids: OrderedDict[TxHash, int] = OrderedDict()
        self._ended: OrderedDict[int, JournalTx] = OrderedDict()
        self._receipts: OrderedDict[TxHash, Receipt] = OrderedDict()
        self._put_at: dict[int, float] = {}
        self._overtaken_at: dict[int, float] = {}
        self._underpriced: set[int] = set()
        self._missing = -1
        self._looking: asyncio.Task[None] | None = None

    @property
    def address(self) -> Address:
        """Whose transactions these are."""
        return self._signer.address

    @property
    def wait_s(self) -> float:
        """How long a transaction is waited for."""
        return self._limits.mined_within_s

    # Sending.

    async def send(
        self,
        to: Address | None,
        calldata: bytes,
        *,
        value_wei: int = 0,
        purpose: Purpose = Purpose.OTHER,
        budget_wei: int | None = None,
        deadline: int = 0,
    ) -> Receipt:
        """Simulate, broadcast, and return the receipt of a success. `to` None creates a contract.

        `budget_wei` is the most it may cost, `deadline` the chain's time by which it must be
        mined: see `fees.fee_ceiling`.

        Raises:
            ContractRevertedError: The contract refused; with `tx_hash` set, in a block.
            TransactionPendingError: Broadcast and not mined within the bound; see `resume`.
            TransactionReplacedError: The key's nonce went to a transaction from elsewhere.
            FeeAboveBudgetError: It would cost more than its budget now; nothing was broadcast.
            ChainUnavailableError: Nothing was broadcast.
        """
        return await self.resume(
            await self.broadcast(
                to,
                calldata,
                value_wei=value_wei,
                purpose=purpose,
                budget_wei=budget_wei,
                deadline=deadline,
            )
        )

    async def broadcast(
        self,
        to: Address | None,
        calldata: bytes,
        *,
        value_wei: int = 0,
        purpose: Purpose = Purpose.OTHER,
        budget_wei: int | None = None,
        deadline: int = 0,
    ) -> TxHash:
        """Simulate, journal, sign and broadcast; return as soon as it is on its way.

        Raises:
            ContractRevertedError: The simulation was refused; nothing was broadcast.
            FeeAboveBudgetError: It would cost more than its budget now; nothing was broadcast.
            ChainUnavailableError: Nothing was broadcast.
        """
        intent = Intent(
            to=to,
            calldata=calldata,
            value_wei=value_wei,
            purpose=purpose,
            budget_wei=budget_wei,
            deadline=deadline,
        )
        async with self._signing:
            for _ in range(_SIGNING_TRIES):
                tx = await self._journal.add(intent, at=_now())
                try:
                    quote = await self._quote(intent)
                    tx = await self._sign_first(tx, quote)
                except LeaseLostError:
                    raise
                except MppSessionError as error:
                    await self._journal.record(tx.tx_id, [Abandoned(_reason_of(error))])
                    raise
                self._keep(tx)
                tx = await self._put_first(tx, quote)
                if tx.status is not TxStatus.REPLACED:
                    return tx.versions[0].tx_hash
        raise TransactionReplacedError(tx.nonce or 0)

    async def resume(self, tx_hash: TxHash) -> Receipt:
        """Wait for a transaction that was broadcast; may be called again after it gave up.

        Any version's hash serves: the receipt is that of the version that was mined.

        Raises:
            ContractRevertedError: It was mined and reverted.
            TransactionReplacedError: Its nonce went to a transaction that is not ours.
            TransactionPendingError: Not mined within the bound.
        """
        started = time.monotonic()
        pause_s = self._limits.poll_min_s
        tx_id = await self._id_of(tx_hash)
        while True:
            if tx_id is None:
                receipt = await self._receipt_or_none(tx_hash)
                if receipt is not None and not receipt.is_success:
                    raise contract_reverted(RevertReason.UNKNOWN, tx_hash=tx_hash)
            else:
                await self._look()
                receipt = await self._outcome(await self._known(tx_id, tx_hash))
            if receipt is not None:
                return receipt
            if time.monotonic() - started >= self._limits.mined_within_s:
                raise TransactionPendingError(tx_hash)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._limits.poll_max_s)

    async def recover(self) -> list[JournalTx]:
        """Take over what the journal holds, after a start; return what is not ended.

        What was wanted and never signed is given up: nobody can have it, and whoever wanted it
        decides anew from the books (F-80). All else goes on with the same bytes (F-75).
        """
        for tx in await self._journal.open_transactions():
            if tx.status is TxStatus.INTENT:
                await self._record(tx, Abandoned("never signed"))
            else:
                self._keep(tx)
        return list(self._open.values())

    async def run(self) -> None:
        """See every open transaction through, whoever waits for it or not.

        Raises:
            LeaseLostError: Another settler has the key.
            InvariantError: A bug.
        """
        while True:
            try:
                await self._look()
            except LeaseLostError:
                raise
            except OperatorError:
                _log.exception("transactions were not looked at; they will be the next time")
            await asyncio.sleep(self._limits.poll_max_s)

    # The first signature.

    async def _quote(self, intent: Intent) -> _Quote:
        """Simulate and price, in one round trip; the simulation's refusal comes first."""
        sender = "0x" + self.address.hex()
        request = {
            "from": sender,
            "data": "0x" + intent.calldata.hex(),
            "value": hex(intent.value_wei),
        }
        if intent.to is not None:
            request["to"] = "0x" + intent.to.hex()
        _, gas, block, tip, mined, pending = await self.rpc.read_batch(
            [
                ("eth_call", [request, "latest"]),
                ("eth_estimateGas", [request, "latest"]),  # some nodes would take "pending"
                ("eth_getBlockByNumber", ["latest", False]),
                ("eth_maxPriorityFeePerGas", []),
                ("eth_getTransactionCount", [sender, "latest"]),
                ("eth_getTransactionCount", [sender, "pending"]),
            ]
        )
        head = parse_block(block)
        if head.base_fee_wei is None:
            msg = "The chain has no base fee (EIP-1559)."
            raise ConfigError(msg)
        # A node's `pending` may lag behind `latest` (F-113) or count what is dropped later: it is
        # asked only where no journal knows better.
        used = parse_quantity(mined)
        return _Quote(
            gas=parse_quantity(gas) * (100 + self._limits.gas_margin_percent) // 100,
            head=head,
            base_fee_wei=head.base_fee_wei,
            tip_wei=parse_quantity(tip),
            nonces_used=used if self._journal.is_durable else max(used, parse_quantity(pending)),
        )

    async def _sign_first(self, tx: JournalTx, quote: _Quote) -> JournalTx:
        """Choose fee and nonce, sign, and store the bytes with the nonce."""
        intent = tx.intent
        ceiling_wei = fee_ceiling(
            gas=quote.gas,
            budget_wei=intent.budget_wei,
            remaining_s=_remaining_s(intent, quote.head),
            policy=self._fees,
        )
        fee = choose_fee(
            base_fee_wei=quote.base_fee_wei,
            suggested_tip_wei=quote.tip_wei,
            policy=self._fees,
            ceiling_wei=ceiling_wei,
        )
        for _ in range(_SIGNING_TRIES):
            nonce = max(await self._journal.next_nonce(), quote.nonces_used)
            version = await self._version(intent, nonce, quote.gas, fee)
            try:
                return await self._journal.record(tx.tx_id, [Signed(nonce, quote.gas, version)])
            except NonceTakenError:
                continue
        raise NonceTakenError("Somebody else gives nonces of this key.")

    async def _version(self, intent: Intent, nonce: int, gas: int, fee: Fee) -> TxVersion:
        unsigned = UnsignedTx(
            chain_id=self.rpc.chain_id,
            nonce=nonce,
            tip_wei=fee.tip_wei,
            max_fee_wei=fee.max_fee_wei,
            gas=gas,
            to=intent.to,
            value_wei=intent.value_wei,
            calldata=intent.calldata,
        )
        tx_hash, raw = assemble(unsigned, await self._signer.sign_transaction(unsigned))
        return TxVersion(tx_hash=tx_hash, fee=fee, raw=raw, signed_at=_now())

    async def _put_first(self, tx: JournalTx, quote: _Quote) -> JournalTx:
        """Broadcast new bytes. Only a plain no on this first way out frees the nonce again."""
        for _ in range(_SIGNING_TRIES):
            try:
                answer = await self._put(tx)
            except RpcRefusedError as error:
                if self.rpc.node_count > 1:
                    return tx  # another node may have taken it before this one refused
                after = await self._record(tx, Abandoned(error.message))
                if after.status is TxStatus.ABANDONED:
                    raise
                return after
            except ChainUnavailableError:
                return tx  # it may have arrived: pending, and `resume` sends the same bytes again
            if answer is NodeAnswer.NONCE_USED:
                return await self._record(tx, Overtaken())
            if answer is NodeAnswer.KNOWN:
                return await self._record(tx, Sent())
            raised = await self._raise(tx, quote.head, quote.tip_wei, self._ceiling(tx, quote.head))
            if raised is None:
                break
            tx = raised
        return tx

    # Seeing it through.

    async def _look(self) -> None:
        """Look once at every open transaction; who asks meanwhile shares the answer."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_once())
            self._looking.add_done_callback(self._looked)
        await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # seen, even when nobody waits for it any more

    async def _look_once(self) -> None:
        lane = self._lane()
        if not lane:
            return
        try:
            used, head, tip_wei = await self._read_head()
            lane = await self._reopen(lane, used)
            await self._read_receipts(lane)
        except ChainUnavailableError:
            return  # the node is away; the transactions are not
        for tx in lane:
            await self._take_over(tx, head, used)
        await self._help_along(head, tip_wei, used)

    def _lane(self) -> list[JournalTx]:
        return sorted(self._open.values(), key=lambda tx: tx.nonce or 0)

    async def _read_head(self) -> tuple[int, BlockRef, int]:
        """Return the nonces used, the head and the node's tip. Receipts are asked after it."""
        sender = "0x" + self.address.hex()
        used, block, tip = await self.rpc.read_batch(
            [
                ("eth_getTransactionCount", [sender, "latest"]),
                ("eth_getBlockByNumber", ["latest", False]),
                ("eth_maxPriorityFeePerGas", []),
            ]
        )
        return parse_quantity(used), parse_block(block), parse_quantity(tip)

    async def _reopen(self, lane: list[JournalTx], used: int) -> list[JournalTx]:
        """Take up again what a deep reorg put back, or the nonces after it would wait for ever."""
        if used >= (lane[0].nonce or 0):
            return lane
        for tx in await self._journal.transactions_from(used):
            if tx.status is TxStatus.FINAL:
                await self._record(tx, Unmined())
        lane = self._lane()
        if used < (lane[0].nonce or 0) and used != self._missing:
            self._missing = used
            _log.error("nonce %d is not in the journal, and later ones wait for it", used)
        return lane

    async def _read_receipts(self, lane: Sequence[JournalTx]) -> None:
        hashes = [version.tx_hash for tx in lane for version in tx.versions]
        for tx_hash in hashes:  # a reorg may have moved or removed it
            self._receipts.pop(tx_hash, None)
        for start in range(0, len(hashes), _HASHES_PER_LOOK_MAX):
            asked = hashes[start : start + _HASHES_PER_LOOK_MAX]
            answers = await self.rpc.read_batch(
                [("eth_getTransactionReceipt", ["0x" + tx_hash.hex()]) for tx_hash in asked]
            )
            for answer in answers:
                if answer is not None:
                    receipt = parse_receipt(answer)
                    self._receipts[receipt.tx_hash] = receipt
        while len(self._receipts) > _RECEIPTS_KEPT:
            self._receipts.popitem(last=False)

    async def _take_over(self, tx: JournalTx, head: BlockRef, used: int) -> None:
        """Record what the chain says has become of a transaction."""
        events = look_for(
            tx,
            self._receipts,
            head_number=head.number,
            nonces_used=used,
            confirmations=self._limits.confirmations,
        )
        if events == (Overtaken(),):
            since = self._overtaken_at.setdefault(tx.tx_id, time.monotonic())
            if time.monotonic() - since < self._limits.overtaken_after_s:
                return  # a node may know the nonce before it shows the receipt (F-72)
        if events:
            await self._record(tx, *[await self._explain(tx, event) for event in events])

    async def _help_along(self, head: BlockRef, tip_wei: int, used: int) -> None:
        """Raise the bids that need it, and send again what may be lost."""
        unmined = [tx for tx in self._lane() if tx.is_unmined]
        stakes = [_stake(tx, head) for tx in unmined]
        for tx, ceiling_wei in zip(unmined, lane_ceilings(stakes, self._fees), strict=True):
            if self._wants_raise(tx, head, used):
                raised = await self._raise(tx, head, tip_wei, ceiling_wei)
                if raised is not None:
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
        return tx.nonce == used and _now() - tx.newest.signed_at >= self._limits.bump_after_s

    async def _raise(
        self, tx: JournalTx, head: BlockRef, tip_wei: int, ceiling_wei: int | None
    ) -> JournalTx | None:
        """Sign the same nonce again for more, and store it; None when the budget has no room."""
        self._underpriced.discard(tx.tx_id)
        fee = raise_fee(
            tx.newest.fee,
            base_fee_wei=head.base_fee_wei or 0,
            suggested_tip_wei=tip_wei,
            policy=self._fees,
            ceiling_wei=ceiling_wei,
        )
        if fee is None:
            return None
        version = await self._version(tx.intent, tx.nonce or 0, tx.gas, fee)
        return await self._record(tx, Bumped(version))

    def _ceiling(self, tx: JournalTx, head: BlockRef) -> int | None:
        return lane_ceilings([_stake(tx, head)], self._fees)[0]

    async def _put(self, tx: JournalTx) -> NodeAnswer:
        """Send the newest bytes. KNOWN also stands for taken.

        Raises:
            RpcRefusedError: A plain no.
            ChainUnavailableError: No answer; it may have arrived.
        """
        self._put_at[tx.tx_id] = time.monotonic()
        try:
            await self.rpc.command("eth_sendRawTransaction", "0x" + tx.newest.raw.hex())
        except RpcRefusedError as error:
            answer = classify_refusal(error.message)
            if answer is NodeAnswer.REFUSED:
                raise
            return answer
        return NodeAnswer.KNOWN

    async def _put_again(self, tx: JournalTx) -> None:
        """Send bytes that may be lost. Whatever the node says, only a receipt ends the wait."""
        try:
            answer = await self._put(tx)
        except ChainUnavailableError as error:
            _log.debug("transaction %d was not taken: %s", tx.tx_id, error)
            return
        if answer is NodeAnswer.KNOWN:
            await self._record(tx, Sent())
        elif answer is NodeAnswer.UNDERPRICED:
            self._underpriced.add(tx.tx_id)

    # What is known.

    async def _record(self, tx: JournalTx, *events: Event) -> JournalTx:
        after = await self._journal.record(tx.tx_id, events)
        self._keep(after)
        if after.status is TxStatus.REPLACED:
            _log.error("nonce %s was used by a transaction that is not ours", after.nonce)
        return after

    def _keep(self, tx: JournalTx) -> None:
        """Remember the newest state; what has ended is forgotten in the end."""
        for version in tx.versions:
            self._ids[version.tx_hash] = tx.tx_id
        if tx.is_open:
            self._open[tx.tx_id] = tx
            return
        self._open.pop(tx.tx_id, None)
        for table in (self._put_at, self._overtaken_at):
            table.pop(tx.tx_id, None)
        self._underpriced.discard(tx.tx_id)
        self._ended[tx.tx_id] = tx
        while len(self._ended) > _RECEIPTS_KEPT:
            _, old = self._ended.popitem(last=False)
            for version in old.versions:
                self._ids.pop(version.tx_hash, None)

    async def _id_of(self, tx_hash: TxHash) -> int | None:
        if tx_hash not in self._ids:
            found = await self._journal.find(tx_hash)
            if found is None:
                return None
            self._keep(found)
        return self._ids[tx_hash]

    async def _known(self, tx_id: int, tx_hash: TxHash) -> JournalTx:
        found = self._open.get(tx_id) or self._ended.get(tx_id)
        found = found or await self._journal.find(tx_hash)
        if found is None:
            raise InvariantError(f"transaction {tx_id} was forgotten while it was waited for")
        return found

    async def _outcome(self, tx: JournalTx) -> Receipt | None:
        """Return the receipt of a success, None while there is none, or raise what it became."""
        if tx.status in (TxStatus.REPLACED, TxStatus.ABANDONED):
            raise TransactionReplacedError(tx.nonce or 0)
        if tx.inclusion is None:
            return None
        if not tx.inclusion.is_success:
            name, _, text = tx.reason.partition(" ")
            reason = RevertReason.__members__.get(name, RevertReason.UNKNOWN)
            raise contract_reverted(reason, text=text, tx_hash=tx.inclusion.tx_hash)
        mined = tx.inclusion.tx_hash
        return self._receipts.get(mined) or await self._receipt_or_none(mined)

    async def _receipt_or_none(self, tx_hash: TxHash) -> Receipt | None:
        try:
            return await self.rpc.receipt(tx_hash)
        except ChainUnavailableError:
            return None  # the node is away; the transaction is not

    async def _explain(self, tx: JournalTx, event: Event) -> Event:
        """Add to a revert why: run the call again, before its block, then after it.

        The second finds what only another transaction in the same block made it refuse.
        """
        if not isinstance(event, Included) or event.inclusion.is_success:
            return event
        mined_in = event.inclusion.block_number
        reason = RevertReason.UNKNOWN.name
        for block_number in (mined_in - 1, mined_in):
            try:
                await self.rpc.call(
                    tx.intent.to,
                    tx.intent.calldata,
                    sender=self.address,
                    block_number=block_number,
                )
            except ContractRevertedError as error:
                reason = _reason_of(error)
                break
            except ChainUnavailableError:
                break
        return Included(event.inclusion, reason)


def _reason_of(error: MppSessionError) -> str:
    if isinstance(error, ContractRevertedError):
        return f"{error.reason.name} {error.text}".strip()
    return str(error)


def _stake(tx: JournalTx, head: BlockRef) -> Stake:
    return Stake(
        gas=tx.gas, budget_wei=tx.intent.budget_wei, remaining_s=_remaining_s(tx.intent, head)
    )


def _remaining_s(intent: Intent, head: BlockRef) -> int | None:
    """Return what is left before the deadline, by the chain's own clock (F-111)."""
    return None if intent.deadline == 0 else intent.deadline - head.timestamp


def _now() -> int:
    return int(time.time())
