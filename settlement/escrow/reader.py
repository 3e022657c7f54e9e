"""Reads one escrow: the engine's view of the chain (`channel.chain.ChainReader`)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import msgspec

from channel.chain import EscrowInterface, OpenedLog, ToppedUpLog, TransactionEvidence
from channel.errors import ChainUnavailableError, ConfigError
from channel.limits import GRACE_PERIOD_S_MIN
from channel.types import Address, ChannelFact, ChannelId, ChannelKey, TxHash
from channel.verify.typed_data import domain_separator
from settlement import abi
from settlement.errors import ContractRevertedError, RpcRefusedError, contract_reverted
from settlement.node import questions
from settlement.node.rpc import Rpc
from settlement.node.values import parse_bytes, parse_count, parse_receipt
from settlement.types import (
    BlockRef,
    ChannelClosedLog,
    Log,
    Receipt,
    RevertReason,
    SettledLog,
)

__all__ = ["EscrowReader", "ReaderLimits"]

_log: Final = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

# Gas the escrow requires before it calls a wallet, and room for the longest signature.
_WALLET_CALL_GAS: Final = 1_500_000


_NODES_MIN: Final = 2
"""How many nodes must agree before an answer counts, if several are configured."""


class _SecondWord(msgspec.Struct, frozen=True, gc=False):
    """What at least two nodes show of a channel."""

    deposit: int
    close_requested_at: int


class ReaderLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one request to a node, and on waiting for a node that lags."""

    channels_per_call_max: int = 500
    log_blocks_max: int = 10_000
    """Blocks in one log query: most public nodes allow this; other nodes are asked for fewer."""
    log_searches_max: int = 500
    """How many such ranges are searched backwards for one event of a channel."""
    lag_s_max: float = 6.0
    """Seconds that a node may lag behind the node that returned a receipt (F-72)."""
    lag_poll_s: float = 0.1


class EscrowReader:
    """Reads one escrow on one chain. Every method may raise `ChainUnavailableError`."""

    def __init__(
        self,
        rpc: Rpc,
        escrow: Address,
        *,
        limits: ReaderLimits | None = None,
        interface: EscrowInterface | None = None,
    ) -> None:
        """Read `escrow`, whose functions are those of `interface`; by default `SessionEscrow`'s."""
        self.rpc = rpc
        self.interface = interface or EscrowInterface()
        self._get_channels = abi.Function(self.interface.read_many)
        self._escrow = escrow
        self._limits = limits or ReaderLimits()

    @property
    def chain_id(self) -> int:
        """The chain of the escrow."""
        return self.rpc.chain_id

    @property
    def escrow(self) -> Address:
        """The escrow's address."""
        return self._escrow

    def key(self, channel_id: ChannelId) -> ChannelKey:
        """Return the key of a channel of this escrow."""
        return ChannelKey(chain_id=self.chain_id, escrow=self._escrow, channel_id=channel_id)

    async def require_deployment(self, *, token: Address | None = None) -> None:
        """Check that the escrow will pay vouchers signed for it (OPEN-09, decision 15).

        Raises:
            ConfigError: No code, another token, another EIP-712 domain, or too short a grace
                period.
        """
        where = f"0x{self._escrow.hex()} on chain {self.chain_id}"
        if not await self.rpc.code(self._escrow):
            msg = f"There is no escrow at {where}: correct `chain.escrow` or `chain.rpc_url`."
            raise ConfigError(msg)
        try:
            served = await self.read_token() if self.interface.has_extensions else token
            separator = await self.rpc.call(self._escrow, abi.domain_separator.encode())
        except ContractRevertedError:
            msg = f"The contract at {where} is not a session escrow: check the escrow's address."
            raise ConfigError(msg) from None
        grace_period_s = await self.read_grace_period_s()
        if served is not None and token is not None and served != token:
            msg = (
                f"The escrow at {where} serves token 0x{served.hex()}, not 0x{token.hex()}: "
                "correct `chain.token` or `chain.escrow`."
            )
            raise ConfigError(msg)
        if separator != domain_separator(self.chain_id, self._escrow, self.interface.domain):
            msg = f"The escrow at {where} signs under another EIP-712 domain."
            raise ConfigError(msg)
        if grace_period_s < GRACE_PERIOD_S_MIN:
            msg = f"The grace period of {where} is {grace_period_s} s, below {GRACE_PERIOD_S_MIN}."
            raise ConfigError(msg)

    async def read_token(self) -> Address:
        """Return the token that the escrow serves."""
        return abi.token.decode_address(await self.rpc.call(self._escrow, abi.token.encode()))

    async def read_grace_period_s(self) -> int:
        """Return the seconds a payer must wait after requesting a close (F-69)."""
        return await self.rpc.view(
            self._escrow, abi.close_grace_period.encode(), abi.decode_grace_period
        )

    async def read_channel(
        self, channel_id: ChannelId, *, block_number: int | None = None
    ) -> ChannelFact | None:
        """Return the channel as of a block (default: the head), or None if it never existed."""
        key = self.key(channel_id)
        _, fact = await self._view_at(
            abi.get_channel.encode(channel_id),
            lambda answer, number: abi.decode_channel(key, answer, block_number=number),
            block_number,
        )
        return fact

    async def read_channels(
        self, channel_ids: Sequence[ChannelId], *, block_number: int | None = None
    ) -> list[ChannelFact | None]:
        """Return many channels, in the order asked, all as of one block."""
        facts: list[ChannelFact | None] = []
        size = self._limits.channels_per_call_max
        for start in range(0, len(channel_ids), size):
            keys = [self.key(channel_id) for channel_id in channel_ids[start : start + size]]
            block_number, page = await self._view_at(
                self._get_channels.encode([key.channel_id for key in keys]),
                partial(_decode_page, keys),
                block_number,
            )
            facts += page
        return facts

    async def read_channels_at(
        self, channel_ids: Sequence[ChannelId], block: BlockRef
    ) -> list[ChannelFact | None]:
        """Return many channels as of exactly this block, in the order asked (F-71).

        One call a page. A node that does not have the block raises an error.
        """
        facts: list[ChannelFact | None] = []
        size = self._limits.channels_per_call_max
        for start in range(0, len(channel_ids), size):
            keys = [self.key(channel_id) for channel_id in channel_ids[start : start + size]]
            ask = partial(
                self.rpc.view,
                self._escrow,
                self._get_channels.encode([key.channel_id for key in keys]),
                partial(_decode_page, keys, number=block.number),
                block_hash=block.hash,
            )
            facts += await self._patiently(ask)
        return facts

    async def confirm_deposits(self, facts: Sequence[ChannelFact]) -> list[int]:
        """Return each channel's deposit as a second node confirms it: at most the fact's.

        Read at the fact's block. A lying node could invent a deposit to have strangers served for
        nothing (SEC-09, O-88); if several nodes are configured, two must show it.

        Raises:
            ChainUnavailableError: Fewer than two nodes answer.
        """
        shown = await self._second_words(facts)
        return [
            fact.deposit if words is None else min(fact.deposit, words.deposit)
            for fact, words in zip(facts, shown, strict=True)
        ]

    async def confirm_exits(self, facts: Sequence[ChannelFact]) -> list[bool]:
        """Return for each channel whether a second node confirms that its payer requested a close.

        Raises:
            ChainUnavailableError: Fewer than two nodes answer.
        """
        shown = await self._second_words(facts)
        return [words is None or words.close_requested_at > 0 for words in shown]

    async def _second_words(self, facts: Sequence[ChannelFact]) -> list[_SecondWord | None]:
        """Return what at least two nodes show of each channel; None with a single node.

        Deposit and exit are compared separately: each is the second greatest of all answers.
        """
        if self.rpc.node_count < _NODES_MIN or not facts:
            return [None] * len(facts)
        views = await self.read_each(
            [fact.key.channel_id for fact in facts], block_number=facts[0].block_number
        )
        words: list[_SecondWord | None] = []
        for each in views:
            if len(each) < _NODES_MIN:
                raise ChainUnavailableError("No second node confirms the state of the channels.")
            deposits = sorted(0 if fact is None else fact.deposit for fact in each)
            exits = sorted(0 if fact is None else fact.close_requested_at for fact in each)
            words.append(_SecondWord(deposits[-_NODES_MIN], exits[-_NODES_MIN]))
        return words

    async def read_each(
        self, channel_ids: Sequence[ChannelId], *, block_number: int
    ) -> list[list[ChannelFact | None]]:
        """Return for each channel the answers of all nodes that are not left out.

        Read as of one block. None stands for a node that knows no such channel.
        """
        views: list[list[ChannelFact | None]] = []
        size = self._limits.channels_per_call_max
        for start in range(0, len(channel_ids), size):
            asked = channel_ids[start : start + size]
            keys = [self.key(channel_id) for channel_id in asked]
            calldata = self._get_channels.encode(asked)
            said = []
            for answer in await self.rpc.call_each(
                self._escrow, calldata, block_number=block_number
            ):
                with suppress(ChainUnavailableError):  # an invalid answer is no answer
                    said.append(abi.decode_channels(keys, answer, block_number=block_number))
            views += [[one[at] for one in said] for at in range(len(asked))]
        return views

    async def read_transaction(self, tx_hash: TxHash) -> TransactionEvidence | None:
        """Return a mined, successful transaction, or None while it has no receipt.

        Only events emitted by this escrow are evidence (F-84).

        Raises:
            ContractRevertedError: It was mined with status 0; that is final (F-76).
        """
        receipt, head = await self.rpc.parse_batch(
            [questions.receipt(tx_hash), questions.BLOCK_NUMBER],
            lambda said: (
                None if said[0] is None else parse_receipt(said[0]),
                parse_count(said[1]),
            ),
        )
        if receipt is None:
            return None
        if not receipt.is_success:
            raise contract_reverted(RevertReason.UNKNOWN, tx_hash=tx_hash)
        logs = self.own_logs(receipt)
        return TransactionEvidence(
            tx_hash=tx_hash,
            block_number=receipt.block_number,
            confirmations=max(1, head - receipt.block_number + 1),
            opened=tuple(log for log in logs if isinstance(log, OpenedLog)),
            topped_up=tuple(log for log in logs if isinstance(log, ToppedUpLog)),
        )

    async def has_code(self, address: Address) -> bool:
        """See `channel.chain.ChainReader.has_code`."""
        return bool(await self.rpc.code(address))

    async def is_valid_wallet_signature(
        self, signer: Address, digest: bytes, signature: bytes
    ) -> bool:
        """Ask a contract signer by ERC-1271, with the same code that the escrow runs.

        Anything the wallet does within the escrow's gas cap, including a revert, is an answer. A
        node that cannot answer raises `ChainUnavailableError`: neither yes nor no (F-15, F-20). An
        escrow without such code takes no wallet's signature.
        """
        if not self.interface.has_extensions:
            return False
        answer = await self.rpc.view(
            self._escrow,
            abi.is_valid_voucher_signer.encode(signer, digest, signature),
            abi.is_valid_voucher_signer.decode_int,
            gas=_WALLET_CALL_GAS,
        )
        return answer == 1

    async def broadcast(self, raw: bytes) -> bool:
        """See `channel.chain.TransactionBroadcaster.broadcast`."""
        try:
            await self.rpc.command(questions.SEND, "0x" + raw.hex())
        except RpcRefusedError as error:
            _log.info("a node refused a payer's transaction: %s", error)
            return False
        return True

    async def find_opening(self, channel_id: ChannelId) -> Log | None:
        """Return the channel's `ChannelOpened` log, or None (CLIENT-05)."""
        return await self._find_log(abi.CHANNEL_OPENED_TOPIC, channel_id)

    async def find_closing(self, channel_id: ChannelId) -> Log | None:
        """Return the channel's `ChannelClosed` log, or None."""
        return await self._find_log(abi.CHANNEL_CLOSED_TOPIC, channel_id)

    async def find_top_ups(self, channel_id: ChannelId) -> tuple[Log, ...]:
        """Return the channel's recent `TopUp` logs, oldest first."""
        head = await self.rpc.block_number()
        oldest = max(0, head - self._limits.log_blocks_max + 1)
        topics = [abi.TOPPED_UP_TOPIC, channel_id]
        found: list[Log] = []
        async for logs in self._search(topics, oldest, head):
            found += logs
        return tuple(found)

    async def find_channels(
        self, payee: Address, *, from_block: int, to_block: int
    ) -> list[ChannelId]:
        """Return every channel opened for a payee in a range of blocks, oldest first."""
        topics = [abi.CHANNEL_OPENED_TOPIC, None, None, bytes(12) + payee]
        found: list[ChannelId] = []
        async for logs in self._search(topics, from_block, to_block):
            found += [
                opened.channel_id
                for log in logs
                if log.address == self._escrow
                and isinstance(opened := abi.decode_log(log), OpenedLog)
            ]
        return found

    async def find_payouts(
        self, payee: Address, *, from_block: int, to_block: int
    ) -> AsyncIterator[tuple[Log, SettledLog | ChannelClosedLog]]:
        """Yield every settlement and end of a payee's channels in a range of blocks, in order."""
        topics = [None, None, None, bytes(12) + payee]
        async for logs in self._search(topics, from_block, to_block):
            for log in logs:
                event = abi.decode_log(log) if log.address == self._escrow else None
                if isinstance(event, SettledLog | ChannelClosedLog):
                    yield log, event

    async def find_settled_before(self, closed: Log) -> int:
        """Return a channel's settled total before the log of its end; 0 if none is found."""
        furthest = self._limits.log_blocks_max * self._limits.log_searches_max
        oldest = max(0, closed.block_number - furthest + 1)
        topics = [None, closed.topics[1]]
        async for logs in self._search(topics, oldest, closed.block_number, newest_first=True):
            for log in reversed(logs):
                event = abi.decode_log(log) if log.address == self._escrow else None
                if isinstance(event, SettledLog):  # none follows the end
                    return event.settled
                if isinstance(event, OpenedLog):
                    return 0
        return 0

    def own_logs(self, receipt: Receipt) -> list[abi.EscrowLog]:
        """Return this escrow's events in a transaction; those of other contracts are left out."""
        own = [abi.decode_log(log) for log in receipt.logs if log.address == self._escrow]
        return [log for log in own if log is not None]

    async def _find_log(self, topic: bytes, channel_id: ChannelId) -> Log | None:
        """Search backwards from the head, within `log_searches_max` ranges."""
        head = await self.rpc.block_number()
        furthest = self._limits.log_blocks_max * self._limits.log_searches_max
        oldest = max(0, head - furthest + 1)
        async for logs in self._search([topic, channel_id], oldest, head, newest_first=True):
            if logs:
                return logs[-1]
        return None

    async def _search(
        self,
        topics: Sequence[bytes | None],
        from_block: int,
        to_block: int,
        *,
        newest_first: bool = False,
    ) -> AsyncIterator[tuple[Log, ...]]:
        """Yield the escrow's events in a range of blocks, in pieces that the node accepts.

        Nodes limit the blocks of a query or the events of an answer differently. A refused range is
        split in half and asked again.
        """
        size = self._limits.log_blocks_max
        while from_block <= to_block:
            first, last = from_block, min(from_block + size - 1, to_block)
            if newest_first:
                first, last = max(from_block, to_block - size + 1), to_block
            try:
                logs = await self.rpc.logs(self._escrow, topics, from_block=first, to_block=last)
            except RpcRefusedError:
                if first == last:
                    raise
                size = (last - first + 1) // 2
                continue
            yield logs
            if newest_first:
                to_block = first - 1
            else:
                from_block = last + 1

    async def _view_at(
        self, calldata: bytes, decode: Callable[[bytes, int], _Answer], block_number: int | None
    ) -> tuple[int, _Answer]:
        """Call at one known block; return the number of that block with the answer."""
        number = await self.rpc.block_number() if block_number is None else block_number
        request = {"to": "0x" + self._escrow.hex(), "data": "0x" + calldata.hex()}

        def parse(said: list[object]) -> _Answer:
            if parse_count(said[0]) < number:
                raise RpcRefusedError(questions.CALL, code=0, message="this node lags behind")
            return decode(parse_bytes(said[1]), number)

        async def ask() -> tuple[int, _Answer]:
            calls = [questions.BLOCK_NUMBER, questions.call(request, hex(number))]
            try:
                return number, await self.rpc.parse_batch(calls, parse)
            except ContractRevertedError as error:
                msg = f"The escrow refused to return a channel ({error.reason.value})."
                raise ChainUnavailableError(msg) from error

        return await self._patiently(ask)

    async def _patiently(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Retry, within a bound, while a node does not have the block yet (F-72)."""
        deadline = asyncio.get_running_loop().time() + self._limits.lag_s_max
        while True:
            try:
                return await ask()
            except RpcRefusedError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
                await asyncio.sleep(self._limits.lag_poll_s)


def _decode_page(
    keys: Sequence[ChannelKey], answer: bytes, number: int
) -> list[ChannelFact | None]:
    return abi.decode_channels(keys, answer, block_number=number)
